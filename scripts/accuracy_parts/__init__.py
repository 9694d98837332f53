"""What scripts/accuracy is made of; image folders, tables and the machine's description are those of bench_parts."""

"""One file a measurement beside training: `measure(task)` answers with numbers."""

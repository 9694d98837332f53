"""`train()` and `evaluate()`: generators of events."""

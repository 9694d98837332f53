"""Images become batches, by (seed, step)."""

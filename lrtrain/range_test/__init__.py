"""The LR range test: one more curve for the same training loop."""

"""Named parameter groups, and torch's optimizers over them."""

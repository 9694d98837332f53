"""What scripts/bench is made of. Only `contestants` and `measures` import torch, each in a process of its own."""

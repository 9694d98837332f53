"""One file a contestant: `train(task, clock)` trains a task through the contestant's public API."""

"""The learning rate as a table that exists before the first step."""

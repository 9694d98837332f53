"""lrtrain: train image classifiers from one YAML file, with exactly the learning rate that was shown."""

__version__ = "0.1.0"

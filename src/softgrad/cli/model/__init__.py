"""Training, measuring and storing a model."""

"""Layer 9: from a model, a task and an optimizer to a trained adapter."""

"""Layer 6: from a model, a task and an optimizer to a trained adapter."""

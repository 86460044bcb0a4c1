"""Layer 9: turns a model, a task and an optimizer into a trained adapter."""

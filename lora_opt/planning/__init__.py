"""Layer 10: predicts what a training step needs on hardware not at hand."""

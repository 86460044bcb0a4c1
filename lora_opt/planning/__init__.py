"""Layer 10: what a training step will take on hardware that is not here."""

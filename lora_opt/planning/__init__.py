"""Layer 6: what a training step will take on hardware that is not here."""

"""Layer 7: what a run writes into its MODEL_DIR, and what is read of it."""

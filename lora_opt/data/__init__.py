"""Layer 5: turns rows of any source into training and evaluation batches."""

"""Layer 5: from rows of any source to batches for training and evaluation."""

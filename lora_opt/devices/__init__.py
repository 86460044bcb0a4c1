"""Layer 6: arrays on many devices, and processes that share such arrays."""

"""Layer 4: one file per library whose LoRA needs more than a `LoraLayout`."""

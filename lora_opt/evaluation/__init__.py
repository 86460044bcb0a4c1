"""Layer 8: scores adapters, writes completions, and reports on runs."""

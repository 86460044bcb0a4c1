"""Layer 8: scores of adapters, completions, and the report of a run."""

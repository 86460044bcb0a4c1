"""Weights, tokenizers and adapters from files that others wrote."""

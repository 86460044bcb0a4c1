"""Weights, tokenizers and adapters from files that other tools wrote."""

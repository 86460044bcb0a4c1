"""Stable Diffusion: networks, noise, samplers, folders and adapters."""

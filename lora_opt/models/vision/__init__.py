"""Vision transformers: images in, labels out."""

"""Turns latent datasets into batches: reading, drawing, padding, and the loaders that Lightning asks for."""

"""From a latent dataset to batches: reading, drawing, padding, and the loaders that Lightning asks for."""

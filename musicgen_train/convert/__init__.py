"""Converts checkpoints of audiocraft to the hub's layout and back, and mono models to stereo ones."""

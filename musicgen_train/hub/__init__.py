"""Reads and writes folders in the layout of the Hugging Face hub. It knows files and tensors, no models."""

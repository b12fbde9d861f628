"""Measurements of audio: signal statistics, embeddings, and distances between sets of them."""

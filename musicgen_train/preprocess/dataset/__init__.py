"""Shards to the finished latent dataset, divided into splits."""

"""Assembles the latent dataset from shards, divides it into splits, and puts it in the output's place."""

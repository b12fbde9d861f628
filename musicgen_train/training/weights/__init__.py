"""Weights: where they come from, which are trained, and how they are averaged, sharded and adapted."""

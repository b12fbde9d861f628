"""Checkpoints of audiocraft to the hub's layout and back, and mono models made into stereo ones."""

"""Tracks to clips, clips to codes, captions to states."""

"""Turns captioned audio into a latent dataset. `entry.run` starts the stage; `docs/preprocessing.md` is the manual."""

"""Captioned audio to a latent dataset; `start.run` is the entry, `docs/preprocessing.md` the manual."""

"""Captioned audio to a latent dataset; `run.run` is the entry, `docs/preprocessing.md` the manual."""

"""The latent dataset on disk, between preprocessing and training; `docs/latent-dataset.md` specifies it."""

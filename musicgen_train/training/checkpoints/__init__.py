"""Checkpoints: written whole or not at all, looked at before they are trusted, and resumed from."""

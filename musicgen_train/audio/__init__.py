"""Audio files and pictures of sound; nothing here knows models."""

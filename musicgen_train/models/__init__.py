"""The model system in plain torch: T5 encoder, EnCodec, MusicGen decoder, their composite, and generation."""

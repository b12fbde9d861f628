"""The embedded default: captioned music and small frozen encoders that the project makes itself, from a seed."""

from musicgen_train.demo.corpus import Track, make_track, write_corpus

__all__ = ["Track", "make_track", "write_corpus"]

"""The demo: captioned music made from a seed, classifiers that hear it, and the small model trained on it."""

from musicgen_train.demo.corpus import CorpusTrack, make_track, write_corpus

__all__ = ["CorpusTrack", "make_track", "write_corpus"]

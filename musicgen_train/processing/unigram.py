"""The Unigram model of a T5 tokenizer: pieces with scores, and the best segmentation of a word into them.

sentencepiece has this search, too, but it sums scores as 32-bit floats. `tokenizers`, whose ids MusicGen was trained
and is used with, sums them as 64-bit ones. Where segmentations tie, as they do in every run of a repeated character,
rounding decides, and the two libraries decide differently.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

# Stands for the space in front of a word, in the pieces and so in the words to segment.
METASPACE = "\u2581"
# transformers builds T5's model with this id whatever the files say.
UNK_ID = 2
# How far an unknown character's score lies below the lowest score of any piece.
_UNK_PENALTY = 10.0

_CACHED_WORDS = 20_000
_LONGEST_CACHED_WORD = 64

# Ids and pieces of a stretch of text. A piece that is unknown stands for itself, not as `<unk>`.
Segment = tuple[tuple[int, ...], tuple[str, ...]]


class UnigramModel:
    """Pieces by id, ids by piece, and words to both.

    Args:
        pieces: every piece with its score (a log probability), in the order of the ids.

    Raises:
        ValueError: there are too few pieces for a T5 vocabulary.
    """

    def __init__(self, pieces: Sequence[tuple[str, float]]) -> None:
        if len(pieces) <= UNK_ID:
            raise ValueError(f"the vocabulary has {len(pieces)} pieces; T5's starts with <pad>, </s> and <unk>")
        self.pieces = pieces
        self.ids = {piece: index for index, (piece, _) in enumerate(pieces)}
        self._scores = dict(pieces)
        self._unknown_score = min(score for _, score in pieces) - _UNK_PENALTY
        # The longest piece by first character bounds how far a search from that character has to look.
        self._longest: dict[str, int] = {}
        for piece in self.ids:
            self._longest[piece[:1]] = max(self._longest.get(piece[:1], 0), len(piece))
        self._cache: dict[str, Segment] = {}

    def segment(self, word: str) -> Segment:
        """The segmentation of `word` with the highest sum of scores; neighbouring unknown characters are one piece."""
        known = self._cache.get(word)
        if known is not None:
            return known
        pieces = tuple(self._with_joined_unknowns(self._best_pieces(word)))
        segment = tuple(self.ids.get(piece, UNK_ID) for piece in pieces), pieces
        if len(word) <= _LONGEST_CACHED_WORD:
            # Starting over is cheaper than keeping track of what was used last, and rare.
            if len(self._cache) >= _CACHED_WORDS:
                self._cache.clear()
            self._cache[word] = segment
        return segment

    def _best_pieces(self, word: str) -> list[str]:
        """Viterbi search. Of equal sums the one found first stays: the one whose last differing piece is longest.

        Python's floats are the 64-bit ones the reference sums in, and the order of the additions is the same.
        """
        size = len(word)
        best = [0.0] + [-math.inf] * size
        origin = [0] * (size + 1)
        for start in range(size):
            for end in range(start + 1, min(start + self._longest.get(word[start], 1), size) + 1):
                score = self._scores.get(word[start:end])
                if score is None:
                    # Only a single character may be unknown.
                    if end > start + 1:
                        continue
                    score = self._unknown_score
                if best[start] + score > best[end]:
                    best[end], origin[end] = best[start] + score, start
        pieces = []
        end = size
        while end > 0:
            pieces.append(word[origin[end] : end])
            end = origin[end]
        return pieces[::-1]

    def _with_joined_unknowns(self, pieces: list[str]) -> Iterator[str]:
        # The piece <unk> itself, written out in the text, counts as unknown, too.
        for is_unknown, run in itertools.groupby(pieces, key=lambda piece: self.ids.get(piece, UNK_ID) == UNK_ID):
            if is_unknown:
                yield "".join(run)
            else:
                yield from run

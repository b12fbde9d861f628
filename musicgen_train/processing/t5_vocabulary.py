"""The tokens of a T5 tokenizer, pieces and special tokens alike, and how a text falls into them.

sentencepiece's own `encode` would not do: it knows no cut at special tokens, normalises by longest match instead of by
grapheme cluster (precompiled_normalizer.py), and settles ties between segmentations otherwise (unigram.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from musicgen_train.processing.precompiled_normalizer import PrecompiledNormalizer
from musicgen_train.processing.tokenizer_files import AddedToken, VocabularyFile
from musicgen_train.processing.unigram import METASPACE, UNK_ID, Segment

# Unicode's White_Space property. Python's own `\s` and `str.split` also take U+001C to U+001F.
_SPACES = (
    "\t\n\v\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_WORD = re.compile(f"[^{_SPACES}]+")


class T5Vocabulary:
    """Tokens, their ids, and the segmentation of text into them; the base of `T5Tokenizer`.

    Args:
        file: pieces, character map and added tokens.
        named: `eos_token`, `unk_token` and `pad_token`.
        additional: further special tokens. Tokens that are no pieces get ids after them, in the order
            `file.added`, `named`, `additional`.
    """

    def __init__(self, file: VocabularyFile, named: Mapping[str, AddedToken], additional: Sequence[AddedToken]) -> None:
        self.additional_special_tokens = list(dict.fromkeys(token.content for token in additional))
        self._named = {name: token.content for name, token in named.items()}

        self._file = file
        self._model = file.model
        self._normalize: Callable[[str], str] = PrecompiledNormalizer(file.charsmap) if file.charsmap else str
        self._added: dict[int, AddedToken] = {}
        self._added_ids: dict[str, int] = {}
        next_id = self.vocab_size
        for token in (*file.added, *named.values(), *additional):
            if token.content and token.content not in self._added_ids:
                index = self._model.ids.get(token.content, next_id)
                next_id = max(next_id, index + 1)
                self._added[index], self._added_ids[token.content] = token, index
        tokens = self._added.values()
        self._cut_raw = _Cutter({token.content: token for token in tokens if not token.normalized})
        self._cut_normalized = _Cutter({self._normalize(token.content): token for token in tokens if token.normalized})

    @property
    def vocab_size(self) -> int:
        """Number of pieces, sentinels included, tokens added beyond them not."""
        return len(self._model.pieces)

    def __len__(self) -> int:
        """Number of pieces and added tokens."""
        return self.vocab_size + sum(index >= self.vocab_size for index in self._added)

    def get_vocab(self) -> dict[str, int]:
        """Every piece and added token with its id."""
        return self._model.ids | self._added_ids

    @property
    def eos_token(self) -> str:
        return self._named["eos_token"]

    @property
    def unk_token(self) -> str:
        return self._named["unk_token"]

    @property
    def pad_token(self) -> str:
        return self._named["pad_token"]

    @property
    def eos_token_id(self) -> int:
        return self._id_of(self.eos_token)

    @property
    def unk_token_id(self) -> int:
        return self._id_of(self.unk_token)

    @property
    def pad_token_id(self) -> int:
        return self._id_of(self.pad_token)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The named special tokens: `eos_token`, `unk_token` and `pad_token`."""
        return dict(self._named)

    @property
    def all_special_tokens(self) -> list[str]:
        """The named special tokens, then the additional ones."""
        return list(dict.fromkeys([*self._named.values(), *self.additional_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`, in that order."""
        return [self._id_of(token) for token in self.all_special_tokens]

    def get_sentinel_tokens(self) -> list[str]:
        """The sentinels `<extra_id_0>`... among the additional special tokens, in their order."""
        return [token for token in self.additional_special_tokens if re.search(r"<extra_id_\d+>", token)]

    def get_sentinel_token_ids(self) -> list[int]:
        """The ids of `get_sentinel_tokens()`, in that order."""
        return [self._id_of(token) for token in self.get_sentinel_tokens()]

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> int | list[int]:
        """The id of a token, or the ids of several; the unknown id for what is not in the vocabulary."""
        if isinstance(tokens, str):
            return self._id_of(tokens)
        return [self._id_of(token) for token in tokens]

    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], skip_special_tokens: bool = False
    ) -> str | list[str | None] | None:
        """The token of an id, or the tokens of several; None for an id beyond the vocabulary.

        Args:
            ids: an int, or a list, array or tensor of shape (length,).
            skip_special_tokens: leave `all_special_ids` out of a list.

        Raises:
            ValueError: an id is negative.
        """
        if isinstance(ids, int):
            return self._token_of(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._token_of(index) for index in map(int, ids) if index not in skipped]

    def _segments(self, text: str) -> Iterator[Segment]:
        """Every special token and word of `text`, in order."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise ValueError(f"the text is no valid Unicode: it has a lone surrogate, U+{code:04X}") from None
        for raw, raw_token in self._cut_raw(text):
            if raw_token is not None:
                yield (self._added_ids[raw_token.content],), (raw,)
                continue
            for part, token in self._cut_normalized(self._normalize(raw)):
                if token is not None:
                    yield (self._added_ids[token.content],), (part,)
                    continue
                for word in _WORD.findall(part):
                    # The metaspace in front is not doubled where the text has one, and further ones start words.
                    for piece in word.removeprefix(METASPACE).split(METASPACE):
                        yield self._model.segment(METASPACE + piece)

    def _text_of(self, ids: Iterable[int], skip_special_tokens: bool) -> str:
        tokens: list[str] = []
        for index in ids:
            if not isinstance(index, int):
                raise TypeError(f"a token id is {index!r} ({type(index).__name__}); ids are whole numbers")
            token = self._token_of(index)
            if token is None or (skip_special_tokens and index in self._added and self._added[index].special):
                continue
            # Every metaspace is a space, but the first token's are dropped.
            tokens.append(token.replace(METASPACE, " " if tokens else ""))
        return "".join(tokens)

    def _id_of(self, token: str) -> int:
        index = self._model.ids.get(token, self._added_ids.get(token))
        if index is None:
            return UNK_ID if token == self.unk_token else self._id_of(self.unk_token)
        return index

    def _token_of(self, index: int) -> str | None:
        if index < 0:
            raise ValueError(f"{index} is no token id; ids go from 0 to {len(self) - 1}")
        if index < self.vocab_size:
            return self._model.pieces[index][0]
        return self._added[index].content if index in self._added else None


class _Cutter:
    """Cuts text into tokens and what lies between them: the leftmost and, of those, the longest token wins.

    Args:
        tokens: the tokens by the text to look for.
    """

    def __init__(self, tokens: Mapping[str, AddedToken]) -> None:
        self._tokens = {text: token for text, token in tokens.items() if text}
        longest_first = sorted(self._tokens, key=len, reverse=True)
        # Without tokens, a pattern that is found nowhere.
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def __call__(self, text: str) -> Iterator[tuple[str, AddedToken | None]]:
        """The parts of `text`, in order: tokens with the white space they take, and the rest (with None)."""
        position = 0
        for match in self._pattern.finditer(text):
            token = self._tokens[match[0]]
            start, end = match.span()
            if token.lstrip:
                # Spaces that the token before has taken already are not taken twice.
                start = max(position, len(text[:start].rstrip(_SPACES)))
            if token.rstrip:
                end = len(text) - len(text[end:].lstrip(_SPACES))
            if start > position:
                yield text[position:start], None
            yield text[start:end], token
            position = end
        if position < len(text):
            yield text[position:], None

"""The T5 tokenizer of MusicGen's text encoder: text to ids and back, identical to the `tokenizers`-backed one.

The order of work on a text is that of `tokenizers`: special tokens are cut out of the raw text; what lies between
them is normalised with the model's character map, split at white space, and every word gets a metaspace (U+2581) in
front; each word is then segmented into the pieces with the highest sum of scores; `</s>` goes to the end.

sentencepiece loads the model, but its own `encode` is not used, because its ids differ from the reference's: it
normalises by longest match, keeps no cut at special tokens, and sums scores as 32-bit floats, so that it settles
ties (every run of a repeated character has some) by rounding. Here sums are 64-bit, as they are in `tokenizers`.
"""

from __future__ import annotations

import base64
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from musicgen_train.hub.folder import PretrainedFolder, atomic_folder, read_json, write_json
from musicgen_train.processing import sentencepiece_proto
from musicgen_train.processing.batch import BatchFeature, to_requested_type
from musicgen_train.processing.precompiled_normalizer import PrecompiledNormalizer

VOCAB_NAME = "spiece.model"
TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
SPECIAL_TOKENS_MAP_NAME = "special_tokens_map.json"

# What transformers writes where a model has no limit; anything from here on counts as none.
NO_LIMIT = int(1e30)
_LARGEST_LIMIT = int(1e20)

_METASPACE = "\u2581"
# Unicode's White_Space property. Python's own `\s` and `str.split` also take U+001C to U+001F.
_SPACES = (
    "\t\n\v\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_WORD = re.compile(f"[^{_SPACES}]+")
_SPACE_RUN = re.compile(f"[{_SPACES}]*")
_SENTINEL = re.compile(r"<extra_id_\d+>")

# The reference builds its Unigram model with this id whatever the files say.
_UNK_ID = 2
# How far an unknown character's score lies below the lowest score of any piece.
_UNK_PENALTY = 10.0
_CACHED_WORDS = 20_000
_LONGEST_CACHED_WORD = 64

# Order in which transformers lists and adds the named special tokens.
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_PADDINGS = ("longest", "max_length", "do_not_pad")
_TRUNCATIONS = ("longest_first", "only_first", "do_not_truncate")
_SIDES = ("right", "left")


@dataclass(frozen=True)
class _AddedToken:
    """A token that is cut out of the text as a whole, and how."""

    content: str
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


@dataclass(frozen=True)
class _UnigramModel:
    """The vocabulary with scores, in the order of the ids, and the normaliser's character map."""

    pieces: list[tuple[str, float]]
    charsmap: bytes
    # The sentencepiece file this was read from; None where it came from tokenizer.json.
    file: bytes | None = None
    # Control and user-defined symbols of the sentencepiece file.
    symbols: list[_AddedToken] = field(default_factory=list)


class T5Tokenizer:
    """Text to T5 ids and back.

    `T5Tokenizer.from_pretrained("facebook/musicgen-small")` gives the ids of transformers' `AutoProcessor` for that
    checkpoint on any text. What the reference does in places where one could expect something else:

    - A special token's text (`</s>`, `<pad>`, `<unk>`, `<extra_id_0>`...) becomes that token wherever it occurs, also
      inside a word, and what follows it starts a new word.
    - A special token's text that only appears through normalisation (full-width `<pad>`) is not cut out, yet becomes
      the id of that piece, since it is a piece of the vocabulary.
    - Neighbouring unknown characters of one word become one `<unk>`.
    - White space never reaches the ids; neither does its amount. U+2581 in the text counts as a space with T5's
      character map.
    - `tokenizer.json` wins over `spiece.model` where a folder has both. Of its pipeline only the vocabulary, the
      character map and the added tokens are used: another pre-tokenizer or further normalisers in it (as older
      versions of transformers wrote them) change nothing. A folder with `spiece.model` alone gives the same ids, with
      the `extra_ids` sentinels on top of the file's pieces.

    Args:
        vocab_file: a sentencepiece model (`spiece.model`), or a `tokenizer.json`.
        eos_token, unk_token, pad_token: the text of these tokens.
        extra_ids: number of sentinel tokens `<extra_id_0>`...; `<extra_id_0>` has the highest id.
        additional_special_tokens: further tokens to cut out as a whole. Without it, the sentinels; with it, the
            sentinels are appended unless some are among them. Tokens that are not in the vocabulary get ids after it.
        model_max_length: length that `truncation=True` and `padding="max_length"` take when none is given.
        padding_side, truncation_side: "right" or "left".
        clean_up_tokenization_spaces: whether `decode` removes spaces before punctuation when it is not told.

    Raises:
        FileNotFoundError: `vocab_file` does not exist.
        ValueError: `vocab_file` is no Unigram model; a side is neither "right" nor "left"; `extra_ids` contradicts
            the sentinels in `additional_special_tokens`.
    """

    model_input_names: tuple[str, ...] = ("input_ids", "attention_mask")

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        *,
        eos_token: str = "</s>",
        unk_token: str = "<unk>",
        pad_token: str = "<pad>",
        extra_ids: int = 100,
        additional_special_tokens: Sequence[str] | None = None,
        model_max_length: int | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        clean_up_tokenization_spaces: bool = False,
    ) -> None:
        path = Path(vocab_file)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is no file; vocab_file must be a {VOCAB_NAME} or a {TOKENIZER_NAME}")
        if path.suffix == ".json":
            content = read_json(path)
            model, added = _model_from_json(content, path), _added_tokens_of(content)
        else:
            model, added = _model_from_sentencepiece(path, extra_ids), []
        self._set_up(
            model,
            added,
            {
                "eos_token": _AddedToken(eos_token),
                "unk_token": _AddedToken(unk_token),
                "pad_token": _AddedToken(pad_token),
            },
            _with_sentinels(additional_special_tokens, extra_ids),
            extra_ids=extra_ids,
            model_max_length=model_max_length,
            padding_side=padding_side,
            truncation_side=truncation_side,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        subfolder: str = "",
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> T5Tokenizer:
        """The tokenizer saved in a folder or hub repository, by this class or by any version of transformers.

        Args:
            name_or_path, subfolder, revision, token, cache_dir, local_files_only: as for `PretrainedFolder`.
            overrides: arguments of the class that win over the saved ones, `vocab_file` excepted.

        Raises:
            FileNotFoundError: there is no such folder, or it has neither `tokenizer.json` nor `spiece.model`.
            ValueError: a file is damaged or holds something else than a T5 tokenizer.
            TypeError: an override that the class does not have.
        """
        unknown = sorted(set(overrides) - _OVERRIDES)
        if unknown:
            allowed = ", ".join(sorted(_OVERRIDES))
            raise TypeError(f"T5Tokenizer has no argument {', '.join(unknown)}; allowed are {allowed}")
        folder = PretrainedFolder(
            name_or_path,
            subfolder=subfolder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        config_file = folder.find(TOKENIZER_CONFIG_NAME)
        config: dict[str, Any] = read_json(config_file) if config_file else {}
        special = config.get("extra_special_tokens") or config.get("additional_special_tokens")
        special = list(special.values()) if isinstance(special, Mapping) else special
        # Since it lists added tokens itself, a newer tokenizer_config.json makes the special tokens map obsolete.
        if "added_tokens_decoder" not in config and (map_file := folder.find(SPECIAL_TOKENS_MAP_NAME)):
            config |= read_json(map_file)
        config |= overrides
        extra_ids = int(config.get("extra_ids", 100))

        json_file = folder.find(TOKENIZER_NAME)
        content = read_json(json_file) if json_file else {}
        if json_file:
            model = _model_from_json(content, json_file)
        else:
            spiece = folder.find(VOCAB_NAME)
            if spiece is None:
                raise FileNotFoundError(
                    f"{folder} has neither {TOKENIZER_NAME} nor {VOCAB_NAME} (the vocabulary of the text encoder's "
                    f"tokenizer). {folder.describe()}"
                )
            model = _model_from_sentencepiece(spiece, extra_ids)

        if "added_tokens_decoder" in config:
            added = _added_tokens_of({"added_tokens": _in_order_of_ids(config["added_tokens_decoder"])})
        else:
            added = _added_tokens_of(content)
        flags = {entry.content: entry for entry in added}
        defaults = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
        named = {}
        for name in _NAMED_TOKENS:
            if (value := config.get(name) or defaults.get(name)) is not None:
                entry = _added_token(value)
                named[name] = flags.get(entry.content, entry)
        if special and "additional_special_tokens" not in overrides:
            extra = [_added_token(value) for value in special]
        else:
            extra = model.symbols + _with_sentinels(config.get("additional_special_tokens"), extra_ids)

        # Settings of the fast tokenizer itself; only their sides outlive a call in the reference.
        padding, truncation = content.get("padding") or {}, content.get("truncation") or {}
        tokenizer = cls.__new__(cls)
        tokenizer._set_up(
            model,
            added,
            named,
            extra,
            extra_ids=extra_ids,
            model_max_length=config.get("model_max_length"),
            padding_side=config.get("padding_side") or str(padding.get("direction", "right")).lower(),
            truncation_side=config.get("truncation_side") or str(truncation.get("direction", "right")).lower(),
            clean_up_tokenization_spaces=bool(config.get("clean_up_tokenization_spaces", False)),
        )
        return tokenizer

    def _set_up(
        self,
        model: _UnigramModel,
        added: Iterable[_AddedToken],
        named: Mapping[str, _AddedToken],
        additional: Sequence[_AddedToken],
        *,
        extra_ids: int,
        model_max_length: int | None,
        padding_side: str,
        truncation_side: str,
        clean_up_tokenization_spaces: bool,
    ) -> None:
        self.padding_side = _one_of("padding_side", padding_side, _SIDES)
        self.truncation_side = _one_of("truncation_side", truncation_side, _SIDES)
        self.model_max_length = NO_LIMIT if model_max_length is None else int(model_max_length)
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.extra_ids = extra_ids
        self._named = {name: token.content for name, token in named.items()}
        self.additional_special_tokens = list(dict.fromkeys(token.content for token in additional))

        self._model = model
        self._piece_ids = {piece: index for index, (piece, _) in enumerate(model.pieces)}
        self._scores = dict(model.pieces)
        self._unk_score = min(score for _, score in model.pieces) - _UNK_PENALTY
        self._longest_piece: dict[str, int] = {}
        for piece, _ in model.pieces:
            # The longest piece by first character bounds how far a search from that character has to look.
            if piece and len(piece) > self._longest_piece.get(piece[0], 0):
                self._longest_piece[piece[0]] = len(piece)
        self._normalize: Callable[[str], str] = PrecompiledNormalizer(model.charsmap) if model.charsmap else str

        self._added: dict[str, _AddedToken] = {}
        self._added_ids: dict[str, int] = {}
        for token in (*added, *named.values(), *additional):
            self._add(token)
        self._added_pieces = {index: content for content, index in self._added_ids.items()}
        tokens = self._added.values()
        self._raw_matcher = _matcher({token.content: token for token in tokens if not token.normalized})
        self._normalized_matcher = _matcher(
            {self._normalize(token.content): token for token in tokens if token.normalized}
        )
        self._words: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {}

    def _add(self, token: _AddedToken) -> None:
        if not token.content or token.content in self._added:
            return
        known = self._piece_ids.get(token.content)
        if known is None:
            known = max((len(self._model.pieces) - 1, *self._added_ids.values())) + 1
        self._added[token.content] = token
        self._added_ids[token.content] = known

    # Vocabulary

    @property
    def vocab_size(self) -> int:
        """Number of pieces, sentinels included, tokens added beyond them not."""
        return len(self._model.pieces)

    def __len__(self) -> int:
        """Number of pieces and added tokens."""
        return self.vocab_size + sum(index >= self.vocab_size for index in self._added_pieces)

    def get_vocab(self) -> dict[str, int]:
        """Every piece and added token with its id."""
        return self._piece_ids | self._added_ids

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
        """The named special tokens: `eos_token`, `unk_token`, `pad_token`, and others if the folder has them."""
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
        return [token for token in self.additional_special_tokens if _SENTINEL.search(token)]

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

    def _id_of(self, token: str) -> int:
        index = self._added_ids.get(token, self._piece_ids.get(token))
        if index is None:
            return _UNK_ID if token == self.unk_token else self._id_of(self.unk_token)
        return index

    def _token_of(self, index: int) -> str | None:
        if index < 0:
            raise ValueError(f"{index} is no token id; ids go from 0 to {len(self) - 1}")
        if index in self._added_pieces:
            return self._added_pieces[index]
        return self._model.pieces[index][0] if index < self.vocab_size else None

    # Text to ids

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        return_attention_mask: bool | None = True,
        return_tensors: str | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
    ) -> BatchFeature:
        """The ids of a text or of several.

        Args:
            text: a string, or a non-empty list or tuple of strings.
            padding: True or "longest" pads to the longest of the batch, "max_length" to `max_length` (without it to
                `model_max_length`), False or "do_not_pad" not at all.
            truncation: True, "longest_first" or "only_first" cut to `max_length` (without it to `model_max_length`),
                `</s>` included; False or "do_not_truncate" never cut. None cuts only where `max_length` is given and
                `padding` is False.
            max_length: at least 1.
            add_special_tokens: whether `</s>` goes to the end.
            return_attention_mask: whether the mask is part of the result.
            return_tensors: "pt", "np", or None for lists.
            pad_to_multiple_of: padded lengths are rounded up to a multiple of it.
            padding_side: "right" or "left" instead of the tokenizer's own side.

        Returns:
            `input_ids` and `attention_mask` (1 for a token, 0 for padding): a list of ints for one text, a list of
            lists for several, or, with `return_tensors`, int64 of shape (batch, length), batch 1 for one text.

        Raises:
            TypeError: `text` is neither a string nor a list of strings.
            ValueError: an empty list; a text with a lone surrogate; an unknown value of `padding`, `truncation`,
                `padding_side` or `return_tensors`; `padding="max_length"` without any maximum; `max_length` below 1
                or, where it cuts and pads, no multiple of `pad_to_multiple_of`; texts of different lengths as
                one tensor.
        """
        texts = [text] if isinstance(text, str) else _texts(text)
        strategy = _padding_strategy(padding)
        cuts = _cuts(max_length is not None and padding is False if truncation is None else truncation)
        self._warn_of_ignored_length(padding, cuts, max_length)
        limit = self._limit(max_length, needed_to_pad=strategy == "max_length")
        if cuts and strategy != "do_not_pad" and pad_to_multiple_of and limit and limit % pad_to_multiple_of:
            raise ValueError(f"max_length is {limit}, no multiple of pad_to_multiple_of, {pad_to_multiple_of}")

        end = [self.eos_token_id] if add_special_tokens else []
        rows = []
        for one in texts:
            ids = self._ids(one)
            if cuts and limit is not None:
                kept = max(limit - len(end), 0)
                ids = ids[:kept] if self.truncation_side == "right" else ids[max(len(ids) - kept, 0) :]
            rows.append(ids + end)
        masks = [[1] * len(row) for row in rows]
        self._pad_rows(rows, masks, strategy, limit, pad_to_multiple_of, padding_side)

        result: dict[str, list[list[int]]] = {"input_ids": rows}
        if return_attention_mask is not False:
            result["attention_mask"] = masks
        if isinstance(text, str) and return_tensors is None:
            return BatchFeature({name: value[0] for name, value in result.items()})
        return BatchFeature({name: _as_requested(value, return_tensors) for name, value in result.items()})

    def encode(self, text: str, **options: Any) -> Any:
        """The `input_ids` that `__call__` gives for `text` with the same options: a list of ints, `</s>` at its end."""
        return self(text, **options)["input_ids"]

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """The pieces of a text. A piece that is unknown stands for itself, not as `<unk>`.

        Raises:
            TypeError: `text` is no string.
            ValueError: `text` has a lone surrogate.
        """
        if not isinstance(text, str):
            raise TypeError(f"text is {_kind(text)}; tokenize takes one string")
        tokens = [token for part in self._segments(text) for token in part[1]]
        return [*tokens, self.eos_token] if add_special_tokens else tokens

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = True,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Pad what `__call__` returned: one text, a batch, or a list of them as a data loader collects it.

        Args:
            encoded_inputs: `input_ids`, and `attention_mask` if there is one (without it, all ones). Lists, arrays or
                tensors, of shape (length,) or (batch, length). Other entries are passed on unpadded.
            padding, max_length, pad_to_multiple_of, padding_side, return_tensors: as in `__call__`. Arrays and
                tensors come back as such without `return_tensors`.
            return_attention_mask: False adds no mask where there is none.

        Raises:
            ValueError: there is no `input_ids`, or as `__call__`.
        """
        if not isinstance(encoded_inputs, Mapping):
            items = list(encoded_inputs)
            encoded_inputs = {name: [item[name] for item in items] for name in items[0]} if items else {}
        entries = dict(encoded_inputs)
        if "input_ids" not in entries:
            raise ValueError(f"encoded_inputs has no input_ids; it holds {sorted(entries)}")
        if return_tensors is None:
            return_tensors = _array_type(entries["input_ids"])
        entries = {name: _plain(value) for name, value in entries.items()}
        if len(entries["input_ids"]) == 0:
            return BatchFeature(entries)

        single = not isinstance(entries["input_ids"][0], list)
        rows = [entries["input_ids"]] if single else list(entries["input_ids"])
        masks = entries.get("attention_mask")
        masks = [[1] * len(row) for row in rows] if masks is None else [masks] if single else list(masks)
        strategy = _padding_strategy(padding)
        limit = self._limit(max_length, needed_to_pad=strategy == "max_length")
        self._pad_rows(rows, masks, strategy, limit, pad_to_multiple_of, padding_side)
        entries["input_ids"] = rows[0] if single else rows
        if return_attention_mask is not False or "attention_mask" in entries:
            entries["attention_mask"] = masks[0] if single else masks
        return BatchFeature({name: _as_requested(value, return_tensors) for name, value in entries.items()})

    def _warn_of_ignored_length(self, padding: bool | str, cuts: bool, max_length: int | None) -> None:
        if padding is True and max_length is not None and not cuts:
            warnings.warn(
                "max_length does nothing with padding=True and no truncation; padding='max_length' pads to it",
                stacklevel=3,
            )

    def _limit(self, max_length: int | None, *, needed_to_pad: bool) -> int | None:
        """`max_length`, or else the model's; None where neither limits anything."""
        if max_length is not None:
            if max_length < 1:
                raise ValueError(f"max_length is {max_length}; it must be at least 1, the room of {self.eos_token}")
            return max_length
        if self.model_max_length <= _LARGEST_LIMIT:
            return self.model_max_length
        if needed_to_pad:
            raise ValueError("padding='max_length' needs max_length: this tokenizer has no model_max_length to pad to")
        return None

    def _pad_rows(
        self,
        rows: list[list[int]],
        masks: list[list[int]],
        strategy: str,
        limit: int | None,
        multiple: int | None,
        side: str | None,
    ) -> None:
        """Lengthen rows and masks in place. A row that is longer than the target stays as it is."""
        side = self.padding_side if side is None else _one_of("padding_side", side, _SIDES)
        if strategy == "do_not_pad":
            return
        target = limit if strategy == "max_length" and limit is not None else max(map(len, rows))
        if multiple:
            target += -target % multiple
        for index, row in enumerate(rows):
            missing = max(target - len(row), 0)
            ids, zeros = [self.pad_token_id] * missing, [0] * missing
            rows[index] = row + ids if side == "right" else ids + row
            masks[index] = masks[index] + zeros if side == "right" else zeros + masks[index]

    def _ids(self, text: str) -> list[int]:
        return [index for part in self._segments(text) for index in part[0]]

    def _segments(self, text: str) -> Iterator[tuple[Sequence[int], Sequence[str]]]:
        """Ids and pieces of every special token and word of `text`, in order."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise ValueError(f"the text is no valid Unicode: it has a lone surrogate, U+{code:04X}") from None
        for raw, raw_token in _cut_out(text, self._raw_matcher):
            if raw_token is not None:
                yield (self._added_ids[raw_token.content],), (raw,)
                continue
            for part, token in _cut_out(self._normalize(raw), self._normalized_matcher):
                if token is not None:
                    yield (self._added_ids[token.content],), (part,)
                    continue
                for word in _WORD.findall(part):
                    yield from map(self._segment, _marked(word))

    def _segment(self, word: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Ids and pieces of one word, which starts with a metaspace."""
        known = self._words.get(word)
        if known is not None:
            return known
        pieces = tuple(self._best_pieces(word))
        result = tuple(self._piece_ids.get(piece, _UNK_ID) for piece in pieces), pieces
        if len(word) <= _LONGEST_CACHED_WORD:
            # Starting over is cheaper than keeping track of what was used last, and rare.
            if len(self._words) >= _CACHED_WORDS:
                self._words.clear()
            self._words[word] = result
        return result

    def _best_pieces(self, word: str) -> list[str]:
        """The segmentation of `word` with the highest sum of scores, neighbouring unknown characters as one piece.

        Of equal sums the one found first stays, which is the one whose last differing piece is longest. Python's
        floats are the 64-bit ones that the reference sums in, in the same order.
        """
        scores, longest, size = self._scores, self._longest_piece, len(word)
        best = [0.0] * (size + 1)
        origin = [-1] * (size + 1)
        unknown = [False] * (size + 1)
        for start in range(size):
            so_far = best[start]
            for end in range(start + 1, min(start + longest.get(word[start], 0), size) + 1):
                score = scores.get(word[start:end])
                if score is not None and (origin[end] < 0 or score + so_far > best[end]):
                    best[end], origin[end], unknown[end] = score + so_far, start, False
            # Only a character that is no piece by itself may be unknown.
            end = start + 1
            if word[start] not in scores and (origin[end] < 0 or self._unk_score + so_far > best[end]):
                best[end], origin[end], unknown[end] = self._unk_score + so_far, start, True
        pieces: list[str] = []
        end, unknown_end = size, -1
        while end > 0:
            start = origin[end]
            # The piece <unk> itself counts as unknown, too.
            if unknown[end] or self._piece_ids.get(word[start:end]) == _UNK_ID:
                unknown_end = end if unknown_end < 0 else unknown_end
            else:
                if unknown_end >= 0:
                    pieces.append(word[end:unknown_end])
                    unknown_end = -1
                pieces.append(word[start:end])
            end = start
        if unknown_end >= 0:
            pieces.append(word[:unknown_end])
        return pieces[::-1]

    # Ids to text

    def decode(
        self, ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:
        """The text of ids. Ids beyond the vocabulary are left out.

        Args:
            ids: an int, or a list, array or tensor of ints: of shape (length,) for one text, (batch, length) for
                several.
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: whether spaces before punctuation and English contractions go; without it
                as the tokenizer's files say.

        Returns:
            A string, or a list of strings for a batch.

        Raises:
            ValueError: an id is negative.
            TypeError: an id is no whole number.
        """
        ids = _plain(ids)
        if isinstance(ids, list) and ids and isinstance(ids[0], list):
            return [self._decode_row(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        row = [ids] if isinstance(ids, int) else ids
        return self._decode_row(row, skip_special_tokens, clean_up_tokenization_spaces)

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """Like `decode`, and always a list: one string per row, none for an empty batch."""
        if len(sequences) == 0:
            return []
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        return [texts] if isinstance(texts, str) else texts

    def _decode_row(self, ids: Sequence[int], skip_special_tokens: bool, clean_up: bool | None) -> str:
        tokens: list[str] = []
        for index in ids:
            if not isinstance(index, int):
                raise TypeError(f"a token id is {_kind(index)}; ids are whole numbers")
            token = self._token_of(index)
            if token is None or (skip_special_tokens and token in self._added and self._added[token].special):
                continue
            # Every metaspace is a space, but the first token's are dropped.
            tokens.append(token.replace(_METASPACE, " " if tokens else ""))
        text = "".join(tokens)
        return _cleaned_up(text) if (self.clean_up_tokenization_spaces if clean_up is None else clean_up) else text

    # Saving

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the tokenizer into `folder`, whole or not at all, so that this class and transformers load it back.

        Written are `tokenizer.json`, `spiece.model`, `tokenizer_config.json` and `special_tokens_map.json`. Scores
        that came from a `tokenizer.json` and have no 32-bit form are rounded in `spiece.model` only.

        Raises:
            NotADirectoryError: `folder` is a file.
        """
        with atomic_folder(folder) as staging:
            (staging / VOCAB_NAME).write_bytes(self._model.file or self._rebuilt_sentencepiece_model())
            (staging / TOKENIZER_NAME).write_text(
                json.dumps(self._tokenizer_json(), indent=2, ensure_ascii=False), encoding="utf-8"
            )
            config = {
                **self._named,
                "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
                "extra_ids": self.extra_ids,
                # Under its older name, transformers refuses a list that has other than `extra_ids` sentinels.
                "extra_special_tokens": self.additional_special_tokens,
                "model_max_length": self.model_max_length,
                "padding_side": self.padding_side,
                "tokenizer_class": "T5Tokenizer",
                "truncation_side": self.truncation_side,
            }
            write_json(staging / TOKENIZER_CONFIG_NAME, config)
            # Written because one that an earlier tokenizer left in the folder would win over the configuration.
            write_json(staging / SPECIAL_TOKENS_MAP_NAME, self._named)

    def _rebuilt_sentencepiece_model(self) -> bytes:
        pieces = self._model.pieces
        # The sentinels at the end are not part of the file; whoever loads it adds `extra_ids` of them.
        size = len(pieces)
        while size and _SENTINEL.fullmatch(pieces[size - 1][0]) and len(pieces) - size < self.extra_ids:
            size -= 1
        control = {self.eos_token, self.pad_token}
        kinds = [
            sentencepiece_proto.UNKNOWN
            if index == _UNK_ID
            else sentencepiece_proto.CONTROL
            if piece in control
            else sentencepiece_proto.NORMAL
            for index, (piece, _) in enumerate(pieces[:size])
        ]
        return sentencepiece_proto.write_unigram_model(
            [(piece, score, kind) for (piece, score), kind in zip(pieces, kinds, strict=False)],
            self._model.charsmap,
            unk=(_UNK_ID, pieces[_UNK_ID][0]),
            eos=(self._piece_ids.get(self.eos_token, -1), self.eos_token),
            pad=(self._piece_ids.get(self.pad_token, -1), self.pad_token),
        )

    def _tokenizer_json(self) -> dict[str, Any]:
        metaspace = {"type": "Metaspace", "replacement": _METASPACE, "prepend_scheme": "always", "split": True}
        end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
        text, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
        charsmap = base64.b64encode(self._model.charsmap).decode("ascii")
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": index,
                    "content": content,
                    "single_word": False,
                    "lstrip": self._added[content].lstrip,
                    "rstrip": self._added[content].rstrip,
                    "normalized": self._added[content].normalized,
                    "special": self._added[content].special,
                }
                for index, content in sorted(self._added_pieces.items())
            ],
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap} if charsmap else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [text, end],
                "pair": [text, end, second, end],
                "special_tokens": {"</s>": {"id": "</s>", "ids": [self.eos_token_id], "tokens": ["</s>"]}},
            },
            "decoder": metaspace,
            "model": {"type": "Unigram", "unk_id": _UNK_ID, "vocab": self._model.pieces, "byte_fallback": False},
        }


_OVERRIDES = frozenset(
    (
        "additional_special_tokens",
        "clean_up_tokenization_spaces",
        "eos_token",
        "extra_ids",
        "model_max_length",
        "pad_token",
        "padding_side",
        "truncation_side",
        "unk_token",
    )
)


def _model_from_sentencepiece(path: Path, extra_ids: int) -> _UnigramModel:
    content = path.read_bytes()
    if not content:
        raise ValueError(f"{path} is no sentencepiece model: it is empty")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        header = sentencepiece_proto.read_header(content)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is no sentencepiece model: {error}") from error
    if header.model_type != sentencepiece_proto.UNIGRAM:
        raise ValueError(f"{path} is a sentencepiece model of another type than Unigram, the type of T5's")
    ids = list(range(processor.get_piece_size()))
    texts = processor.id_to_piece(ids)
    pieces = list(zip(texts, processor.get_score(ids), strict=True))
    _check_size(pieces, path)
    pieces += [(f"<extra_id_{index}>", 0.0) for index in range(extra_ids - 1, -1, -1)]
    control = processor.is_control(ids)
    symbols = [
        _AddedToken(text, special=is_control)
        for text, is_control in zip(texts, control, strict=True)
        if is_control or text in header.user_defined
    ]
    return _UnigramModel(pieces, header.precompiled_charsmap, content, symbols)


def _model_from_json(content: Mapping[str, Any], path: Path) -> _UnigramModel:
    model = content.get("model") or {}
    vocab = model.get("vocab")
    if model.get("type", "Unigram") != "Unigram" or not isinstance(vocab, list):
        raise ValueError(f"{path} holds a {model.get('type', 'model without vocabulary')}; T5's model is Unigram")
    try:
        pieces = [(str(piece), float(score)) for piece, score in vocab]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: the vocabulary must be a list of [piece, score] pairs: {error}") from error
    _check_size(pieces, path)
    normalizer = content.get("normalizer") or {}
    charsmap = b""
    for one in normalizer.get("normalizers", [normalizer]):
        if one.get("type") == "Precompiled":
            charsmap = base64.b64decode(one["precompiled_charsmap"])
            break
    return _UnigramModel(pieces, charsmap)


def _check_size(pieces: Sequence[tuple[str, float]], path: Path) -> None:
    if len(pieces) <= _UNK_ID:
        raise ValueError(f"{path} has {len(pieces)} pieces; a T5 vocabulary starts with <pad>, </s> and <unk>")


def _added_tokens_of(content: Mapping[str, Any]) -> list[_AddedToken]:
    return [_added_token(entry) for entry in content.get("added_tokens") or []]


def _in_order_of_ids(decoder: Mapping[str, Any]) -> list[Any]:
    return [decoder[index] for index in sorted(decoder, key=int)]


def _added_token(value: Any) -> _AddedToken:
    """An added token as a JSON file has it: its text alone, or an object with its flags."""
    if isinstance(value, str):
        return _AddedToken(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        raise ValueError(f"a special token is {value!r}; expected its text, or an object with its content and flags")
    if value.get("single_word"):
        raise ValueError(f"the special token {value['content']!r} has single_word set, which no T5 tokenizer uses")
    special = bool(value.get("special", True))
    return _AddedToken(
        value["content"],
        lstrip=bool(value.get("lstrip", False)),
        rstrip=bool(value.get("rstrip", False)),
        normalized=bool(value.get("normalized", not special)),
        special=special,
    )


def _with_sentinels(additional: Sequence[Any] | None, extra_ids: int) -> list[_AddedToken]:
    given = [_added_token(token) for token in additional or []]
    sentinels = [token for token in given if "<extra_id_" in token.content]
    if sentinels and extra_ids > 0 and len(sentinels) != extra_ids:
        raise ValueError(
            f"extra_ids is {extra_ids}, but additional_special_tokens has {len(sentinels)} sentinels; give all or none"
        )
    if not sentinels:
        given += [_AddedToken(f"<extra_id_{index}>") for index in range(extra_ids)]
    return given


@dataclass(frozen=True)
class _Matcher:
    """Finds the leftmost, and of those the longest, of some texts."""

    pattern: re.Pattern[str]
    tokens: dict[str, _AddedToken]


def _matcher(tokens: Mapping[str, _AddedToken]) -> _Matcher | None:
    texts = sorted((text for text in tokens if text), key=len, reverse=True)
    return _Matcher(re.compile("|".join(map(re.escape, texts))), dict(tokens)) if texts else None


def _cut_out(text: str, matcher: _Matcher | None) -> Iterator[tuple[str, _AddedToken | None]]:
    """The parts of `text`, in order: tokens of `matcher` with the spaces they take, and the rest (with None)."""
    position = 0
    for match in matcher.pattern.finditer(text) if matcher else ():
        token = matcher.tokens[match[0]] if matcher else None
        if token is None:
            continue
        start, end = match.span()
        if token.lstrip:
            # Spaces that the token before has taken already are not taken twice.
            start = max(position, len(text[:start].rstrip(_SPACES)))
        if token.rstrip:
            spaces = _SPACE_RUN.match(text, end)
            end = spaces.end() if spaces else end
        if start > position:
            yield text[position:start], None
        yield text[start:end], token
        position = end
    if position < len(text):
        yield text[position:], None


def _marked(word: str) -> list[str]:
    """`word` with a metaspace in front, cut before every further metaspace."""
    if not word.startswith(_METASPACE):
        word = _METASPACE + word
    return [_METASPACE + part for part in word[1:].split(_METASPACE)]


def _texts(text: Any) -> list[str]:
    if not isinstance(text, list | tuple):
        raise TypeError(f"text is {_kind(text)}; allowed are a string and a list of strings")
    if not text:
        raise ValueError("text is an empty list; give at least one string")
    for index, one in enumerate(text):
        if not isinstance(one, str):
            raise TypeError(f"text[{index}] is {_kind(one)}; allowed are a string and a list of strings")
    return list(text)


def _kind(value: Any) -> str:
    return "None" if value is None else f"{value!r:.40} ({type(value).__name__})"


def _one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(map(repr, allowed))}")
    return value


def _padding_strategy(padding: bool | str) -> str:
    if isinstance(padding, bool):
        return "longest" if padding else "do_not_pad"
    if padding not in _PADDINGS:
        raise ValueError(f"padding is {padding!r}; allowed are True, False, {', '.join(map(repr, _PADDINGS))}")
    return padding


def _cuts(truncation: bool | str) -> bool:
    if isinstance(truncation, bool):
        return truncation
    if truncation not in _TRUNCATIONS:
        raise ValueError(f"truncation is {truncation!r}; allowed are True, False, {', '.join(map(repr, _TRUNCATIONS))}")
    return truncation != "do_not_truncate"


def _array_type(value: Any) -> str | None:
    """ "np" or "pt" where `value`, or the first thing in it, is an array or tensor."""
    while isinstance(value, list | tuple) and len(value):
        value = value[0]
    if isinstance(value, np.ndarray):
        return "np"
    return "pt" if hasattr(value, "tolist") and not isinstance(value, np.generic) else None


def _plain(value: Any) -> Any:
    """Arrays, tensors and tuples as nested lists of Python numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [one if isinstance(one, int) else _plain(one) for one in value]
    return value


def _as_requested(rows: Any, return_tensors: str | None) -> Any:
    # Rows without a single token would otherwise become floats.
    if return_tensors is not None and isinstance(rows, list) and rows and all(row == [] for row in rows):
        rows = np.zeros((len(rows), 0), dtype=np.int64)
    return to_requested_type(rows, return_tensors)


def _cleaned_up(text: str) -> str:
    for before, after in (
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ):
        text = text.replace(before, after)
    return text

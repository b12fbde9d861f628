"""The T5 tokenizer of MusicGen's text encoder: text to ids and back.

The ids are those of the `tokenizers` library, which transformers uses, too: special tokens are cut out of the raw text;
what lies between them is normalized with the model's character map, split at white space, and every word gets a
metaspace (U+2581) in front; each word is then segmented into the pieces with the highest sum of scores. sentencepiece's
own `encode` gives other ids: it knows no cut at special tokens, normalizes by longest match instead of by grapheme
cluster, and settles ties between segmentations by the rounding of 32-bit sums instead of 64-bit ones.

This module has batches, padding, truncation and saving; tokenizer_files.py reads the files of all versions.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Encoding, Tokenizer, processors
from tokenizers.models import Unigram

from musicgen_train.files import atomic_folder, write_json
from musicgen_train.hub.folder import PretrainedFolder
from musicgen_train.processing.model_inputs import BatchFeature, to_requested_type
from musicgen_train.processing.tokenizer_files import (
    DEFAULT_EXTRA_IDS,
    SIDES,
    SPECIAL_TOKENS_MAP_NAME,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    UNK_ID,
    VOCAB_NAME,
    TokenizerParts,
    read_folder,
    read_vocabulary,
    with_sentinels,
)

__all__ = ["TOKENIZER_CONFIG_NAME", "T5Tokenizer"]

# transformers writes NO_LIMIT where a model has no limit, and takes anything above the smaller number for none.
NO_LIMIT = int(1e30)
_LARGEST_LIMIT = int(1e20)

# Allowed values of `padding` and `truncation`, and what they mean.
_PADDINGS: dict[bool | str, str] = {
    True: "longest",
    False: "do_not_pad",
    "longest": "longest",
    "max_length": "max_length",
    "do_not_pad": "do_not_pad",
}
_TRUNCATIONS: dict[bool | str, bool] = {
    True: True,
    False: False,
    "longest_first": True,
    "only_first": True,
    "do_not_truncate": False,
}


class T5Tokenizer:
    """Turns text into T5 ids and back.

    `T5Tokenizer.from_pretrained("facebook/musicgen-small")` gives the ids of transformers' `AutoProcessor` for that
    checkpoint on any text. Where one could expect something else, it behaves as transformers does:

    - A special token's text (`</s>`, `<pad>`, `<unk>`, `<extra_id_0>`...) becomes that token wherever it occurs, also
      inside a word, and what follows it starts a new word.
    - A special token's text that only appears through normalisation (full-width `<pad>`) is not cut out, yet becomes
      the id of that piece, since it is a piece of the vocabulary.
    - Neighbouring unknown characters of one word become one `<unk>`.
    - White space never reaches the ids; neither does its amount. U+2581 in the text counts as a space with T5's
      character map.

    Args:
        vocab_file: a sentencepiece model (`spiece.model`), or a `tokenizer.json`. Both give the same ids.
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
        extra_ids: int = DEFAULT_EXTRA_IDS,
        additional_special_tokens: Sequence[str] | None = None,
        model_max_length: int | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        clean_up_tokenization_spaces: bool = False,
    ) -> None:
        path = Path(vocab_file)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is no file; vocab_file must be a {VOCAB_NAME} or a {TOKENIZER_NAME}")
        named = {"eos_token": eos_token, "unk_token": unk_token, "pad_token": pad_token}
        self._set_up(
            TokenizerParts(
                vocabulary=read_vocabulary(path, extra_ids),
                named={name: AddedToken(text, normalized=False, special=True) for name, text in named.items()},
                additional=with_sentinels(additional_special_tokens, extra_ids),
                extra_ids=extra_ids,
                model_max_length=model_max_length,
                padding_side=padding_side,
                truncation_side=truncation_side,
                clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            )
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
        """Load the tokenizer that this class or any version of transformers saved in a folder or hub repository.

        Args:
            name_or_path, subfolder, revision, token, cache_dir, local_files_only: as for `PretrainedFolder`.
            overrides: arguments of the class that win over the saved ones, `vocab_file` excepted.

        Raises:
            FileNotFoundError: there is no such folder, or it has neither `tokenizer.json` nor `spiece.model`.
            ValueError: a file is damaged or holds something else than a T5 tokenizer.
            TypeError: an override that the class does not have.
        """
        allowed = sorted(inspect.signature(cls).parameters.keys() - {"vocab_file"})
        if unknown := sorted(overrides.keys() - set(allowed)):
            raise TypeError(f"T5Tokenizer has no argument {', '.join(unknown)}; allowed are {', '.join(allowed)}")
        folder = PretrainedFolder(
            name_or_path,
            subfolder=subfolder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        # The constructor is not called: files also say how each special token is cut out, which it does not take.
        tokenizer = cls.__new__(cls)
        tokenizer._set_up(read_folder(folder, overrides))
        return tokenizer

    def _set_up(self, parts: TokenizerParts) -> None:
        self._spiece = parts.vocabulary.spiece
        self._named = {name: token.content for name, token in parts.named.items()}
        self.additional_special_tokens = list(dict.fromkeys(token.content for token in parts.additional))
        self.extra_ids = parts.extra_ids
        self.model_max_length = NO_LIMIT if parts.model_max_length is None else parts.model_max_length
        self.padding_side = parts.padding_side
        self.truncation_side = parts.truncation_side
        self.clean_up_tokenization_spaces = parts.clean_up_tokenization_spaces

        self._tokenizer: Tokenizer = parts.vocabulary.pipeline
        # Tokens that are no pieces get the ids after them, in this order. Of the same text, the first one counts.
        tokens: dict[str, AddedToken] = {}
        for token in (*parts.vocabulary.added, *parts.named.values(), *parts.additional):
            tokens.setdefault(token.content, token)
        self._tokenizer.add_tokens(list(tokens.values()))
        self._tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", self.eos_token_id)]
        )
        # The library counts by building the whole dictionary.
        self._size = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tokenizer": self._tokenizer.to_str()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._tokenizer = Tokenizer.from_str(state["_tokenizer"])
        # The library reads some scores with a last bit other than written, and such bits decide ties. Python does not.
        pieces = [(piece, score) for piece, score in json.loads(state["_tokenizer"])["model"]["vocab"]]
        self._tokenizer.model = Unigram(pieces, unk_id=UNK_ID, byte_fallback=False)

    @property
    def vocab_size(self) -> int:
        """Number of pieces, sentinels included, tokens added beyond them not."""
        return self._tokenizer.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        """Number of pieces and added tokens."""
        return self._size

    def get_vocab(self) -> dict[str, int]:
        """Return every piece and added token with its id."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

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
        """Return the sentinels `<extra_id_0>`... among the additional special tokens, in their order."""
        return [token for token in self.additional_special_tokens if re.search(r"<extra_id_\d+>", token)]

    def get_sentinel_token_ids(self) -> list[int]:
        """Return the ids of `get_sentinel_tokens()`, in that order."""
        return [self._id_of(token) for token in self.get_sentinel_tokens()]

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> int | list[int]:
        """Return the id of a token, or the ids of several; the unknown id for what is not in the vocabulary."""
        if isinstance(tokens, str):
            return self._id_of(tokens)
        return [self._id_of(token) for token in tokens]

    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], skip_special_tokens: bool = False
    ) -> str | list[str | None] | None:
        """Return the token of an id, or the tokens of several; None for an id beyond the vocabulary.

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
        """Encode one text or several.

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
        strategy = _PADDINGS[_checked("padding", padding, _PADDINGS)]
        if truncation is None:
            truncation = max_length is not None and padding is False
        cuts = _TRUNCATIONS[_checked("truncation", truncation, _TRUNCATIONS)]
        if padding is True and max_length is not None and not cuts:
            warnings.warn(
                "max_length does nothing with padding=True and no truncation; padding='max_length' pads to it",
                stacklevel=2,
            )
        limit = self._limit(max_length, needed_to_pad=strategy == "max_length")
        if cuts and strategy != "do_not_pad" and pad_to_multiple_of and limit and limit % pad_to_multiple_of:
            raise ValueError(f"max_length is {limit}, no multiple of pad_to_multiple_of, {pad_to_multiple_of}")

        end = [self.eos_token_id] if add_special_tokens else []
        rows = []
        for one in texts:
            ids = self._encoding(one).ids
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
        return BatchFeature({name: to_requested_type(value, return_tensors) for name, value in result.items()})

    def encode(self, text: str, **options: Any) -> Any:
        """Return the `input_ids` of `__call__` for `text` with the same options: a list of ints ending in `</s>`."""
        return self(text, **options)["input_ids"]

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """Return the pieces of a text. An unknown piece is returned as its own text, not as `<unk>`.

        Raises:
            TypeError: `text` is no string.
            ValueError: `text` has a lone surrogate.
        """
        if not isinstance(text, str):
            raise TypeError(f"text is {_kind(text)}; tokenize takes one string")
        pieces = self._encoding(text).tokens
        return [*pieces, self.eos_token] if add_special_tokens else pieces

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
        if "input_ids" not in encoded_inputs:
            raise ValueError(f"encoded_inputs has no input_ids; it holds {sorted(encoded_inputs)}")
        if return_tensors is None:
            return_tensors = _array_type(encoded_inputs["input_ids"])
        entries = {name: _plain(value) for name, value in encoded_inputs.items()}
        if not entries["input_ids"]:
            return BatchFeature(entries)

        single = not isinstance(entries["input_ids"][0], list)
        rows = [entries["input_ids"]] if single else entries["input_ids"]
        masks = entries.get("attention_mask")
        masks = [[1] * len(row) for row in rows] if masks is None else [masks] if single else masks
        strategy = _PADDINGS[_checked("padding", padding, _PADDINGS)]
        limit = self._limit(max_length, needed_to_pad=strategy == "max_length")
        self._pad_rows(rows, masks, strategy, limit, pad_to_multiple_of, padding_side)
        entries["input_ids"] = rows[0] if single else rows
        if return_attention_mask is not False or "attention_mask" in entries:
            entries["attention_mask"] = masks[0] if single else masks
        return BatchFeature({name: to_requested_type(value, return_tensors) for name, value in entries.items()})

    def decode(
        self, ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:
        """Return the text of ids. Ids beyond the vocabulary are left out.

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
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        ids = [ids] if isinstance(ids, int) else ids
        for index in ids:
            if not isinstance(index, int):
                raise TypeError(f"a token id is {index!r} ({type(index).__name__}); ids are whole numbers")
            self._refuse_negative(index)
        known = [index for index in ids if index < self._size]
        text = self._tokenizer.decode(known, skip_special_tokens=skip_special_tokens)
        clean_up = clean_up_tokenization_spaces
        return _cleaned_up(text) if (self.clean_up_tokenization_spaces if clean_up is None else clean_up) else text

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """Decode like `decode`, but always return a list: one string per row, none for an empty batch."""
        if len(sequences) == 0:
            return []
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        return [texts] if isinstance(texts, str) else texts

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the tokenizer into `folder`, whole or not at all, so that this class and transformers load it back.

        Written are `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and, if the tokenizer was
        loaded with one, `spiece.model` as it was.

        Raises:
            NotADirectoryError: `folder` is a file.
        """
        with atomic_folder(folder) as staging:
            if self._spiece is not None:
                (staging / VOCAB_NAME).write_bytes(self._spiece)
            self._tokenizer.save(str(staging / TOKENIZER_NAME))
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

    def _encoding(self, text: str) -> Encoding:
        """Return ids and pieces of `text`, without `</s>`.

        Texts are encoded one by one, since the library's batches start threads, of which it warns at every later fork.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise ValueError(f"the text is no valid Unicode: it has a lone surrogate, U+{code:04X}") from None
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _id_of(self, token: str) -> int:
        for candidate in (token, self.unk_token):
            if (index := self._tokenizer.token_to_id(candidate)) is not None:
                return index
        return UNK_ID

    def _token_of(self, index: int) -> str | None:
        self._refuse_negative(index)
        return self._tokenizer.id_to_token(index) if index < self._size else None

    def _refuse_negative(self, index: int) -> None:
        if index < 0:
            raise ValueError(f"{index} is no token id; ids go from 0 to {self._size - 1}")

    def _limit(self, max_length: int | None, *, needed_to_pad: bool) -> int | None:
        """Return `max_length`, or else the model's; None where neither limits anything."""
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
        side = self.padding_side if side is None else _checked("padding_side", side, SIDES)
        if strategy == "do_not_pad":
            return
        target = limit if strategy == "max_length" and limit is not None else max(map(len, rows))
        if multiple:
            target += -target % multiple
        for index, row in enumerate(rows):
            missing = target - len(row)
            # A negative count repeats nothing.
            ids, zeros = [self.pad_token_id] * missing, [0] * missing
            rows[index] = row + ids if side == "right" else ids + row
            masks[index] = masks[index] + zeros if side == "right" else zeros + masks[index]


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


def _checked(name: str, value: Any, allowed: Collection[Any]) -> Any:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(map(repr, allowed))}")
    return value


def _array_type(value: Any) -> str | None:
    """Return "np" or "pt" if `value`, or the first value in it, is an array or tensor."""
    while isinstance(value, list | tuple) and len(value):
        value = value[0]
    if isinstance(value, np.ndarray):
        return "np"
    return "pt" if hasattr(value, "tolist") and not isinstance(value, np.generic) else None


def _plain(value: Any) -> Any:
    """Turn arrays, tensors and tuples into nested lists of Python numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value


def _cleaned_up(text: str) -> str:
    for spaced in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(spaced, spaced.strip())
    return text

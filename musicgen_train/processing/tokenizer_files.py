"""Reads the files of a T5 tokenizer, in the layouts that the hub and all versions of transformers have of them.

- `tokenizer.json` has vocabulary, character map and added tokens. It wins where it is there. Of its pipeline nothing
  else is read: another pre-tokenizer or more normalizers, as older versions wrote them, change nothing in today's
  transformers either.
- `spiece.model`, the original, has vocabulary and character map; the sentinels go on top of its pieces.
- `tokenizer_config.json` has the settings and the special tokens, in newer versions all added tokens, too.
- `special_tokens_map.json` has the special tokens in older versions.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import Unigram

from musicgen_train.files import read_json
from musicgen_train.hub.folder import PretrainedFolder

VOCAB_NAME = "spiece.model"
TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
SPECIAL_TOKENS_MAP_NAME = "special_tokens_map.json"

DEFAULT_EXTRA_IDS = 100
# transformers builds T5's model with this id of <unk>, whatever the files say.
UNK_ID = 2
_DEFAULT_NAMED_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
SIDES = ("right", "left")

# Field numbers in sentencepiece_model.proto.
_TRAINER_SPEC, _NORMALIZER_SPEC = 2, 3
_MODEL_TYPE, _PRECOMPILED_CHARSMAP = 3, 2
_UNIGRAM = 1


@dataclass(frozen=True)
class VocabularyFile:
    """Holds the content of one vocabulary file.

    Attributes:
        pipeline: normalizer, pre-tokenizer and model with all pieces, sentinels included, but no added token yet.
        added: the added tokens that the file lists, in the order of their ids.
        padding_side, truncation_side: "right" or "left".
        spiece: the sentencepiece model as bytes; None where the vocabulary comes without one.
    """

    pipeline: Tokenizer
    added: Sequence[AddedToken] = ()
    padding_side: str = "right"
    truncation_side: str = "right"
    spiece: bytes | None = None


@dataclass(frozen=True)
class TokenizerParts:
    """Holds everything that defines a `T5Tokenizer`, in the terms of its arguments.

    Attributes:
        vocabulary: pieces, character map and added tokens.
        named: the end, unknown and padding tokens, by the names of their arguments.
        additional: further special tokens.
        model_max_length: None for no limit.

    Raises:
        ValueError: a side is neither "right" nor "left".
    """

    vocabulary: VocabularyFile
    named: dict[str, AddedToken]
    additional: list[AddedToken]
    extra_ids: int
    model_max_length: int | None
    padding_side: str
    truncation_side: str
    clean_up_tokenization_spaces: bool

    def __post_init__(self) -> None:
        for name in ("padding_side", "truncation_side"):
            if (side := getattr(self, name)) not in SIDES:
                raise ValueError(f"{name} is {side!r}; allowed are {', '.join(map(repr, SIDES))}")


def read_folder(folder: PretrainedFolder, overrides: Mapping[str, Any]) -> TokenizerParts:
    """Read the tokenizer in `folder`. The arguments of `T5Tokenizer` in `overrides` win over what the files say.

    Raises:
        FileNotFoundError: the folder has neither `tokenizer.json` nor `spiece.model`.
        ValueError: a file is damaged or holds something else than a T5 tokenizer.
    """
    config = _read_if_there(folder, TOKENIZER_CONFIG_NAME)
    listed = config.pop("extra_special_tokens", None) or config.pop("additional_special_tokens", None)
    # A newer tokenizer_config.json lists the added tokens itself, which makes the special tokens map obsolete.
    if "added_tokens_decoder" not in config:
        config |= _read_if_there(folder, SPECIAL_TOKENS_MAP_NAME)
    config |= overrides
    wrong = f"{folder}: the settings in {TOKENIZER_CONFIG_NAME} and those given are no T5 tokenizer's"
    with _damage_named(wrong):
        extra_ids = int(config.get("extra_ids", DEFAULT_EXTRA_IDS))

    json_file, spiece_file = folder.find(TOKENIZER_NAME), folder.find(VOCAB_NAME)
    vocabulary_file = json_file or spiece_file
    if vocabulary_file is None:
        raise FileNotFoundError(
            f"{folder} has neither {TOKENIZER_NAME} nor {VOCAB_NAME} (the vocabulary of the text encoder's "
            f"tokenizer). {folder.describe()}"
        )
    vocabulary = read_vocabulary(vocabulary_file, extra_ids)
    if json_file and spiece_file:
        vocabulary = dataclasses.replace(vocabulary, spiece=spiece_file.read_bytes())

    with _damage_named(wrong):
        if "added_tokens_decoder" in config:
            by_id = sorted(config["added_tokens_decoder"].items(), key=lambda item: int(item[0]))
            vocabulary = dataclasses.replace(vocabulary, added=[_added_token(value) for _, value in by_id])
        if listed and "additional_special_tokens" not in overrides:
            # A configuration lists all special tokens there are, so no sentinels are missing.
            additional = [_added_token(value) for value in listed]
        else:
            additional = with_sentinels(config.get("additional_special_tokens"), extra_ids)
        model_max_length = config.get("model_max_length")
        return TokenizerParts(
            vocabulary,
            named={name: _added_token(config.get(name) or text) for name, text in _DEFAULT_NAMED_TOKENS.items()},
            additional=additional,
            extra_ids=extra_ids,
            model_max_length=None if model_max_length is None else int(model_max_length),
            padding_side=config.get("padding_side") or vocabulary.padding_side,
            truncation_side=config.get("truncation_side") or vocabulary.truncation_side,
            clean_up_tokenization_spaces=bool(config.get("clean_up_tokenization_spaces")),
        )


def read_vocabulary(path: Path, extra_ids: int) -> VocabularyFile:
    """Read the vocabulary in a `tokenizer.json` or a `spiece.model`; the latter gets `extra_ids` sentinels.

    Raises:
        ValueError: the file is damaged or holds no Unigram model.
    """
    if path.suffix == ".json":
        return _vocabulary_from_json(path)
    return _vocabulary_from_sentencepiece(path, extra_ids)


def with_sentinels(additional: Sequence[Any] | None, extra_ids: int) -> list[AddedToken]:
    """Complete additional special tokens, given as text or as in a JSON file, with the sentinels.

    Raises:
        ValueError: there are sentinels among them, but not `extra_ids`.
    """
    tokens = [_added_token(token) for token in additional or []]
    given = sum("<extra_id_" in token.content for token in tokens)
    if given and extra_ids > 0 and given != extra_ids:
        raise ValueError(
            f"extra_ids is {extra_ids}, but additional_special_tokens has {given} sentinels; give all or none"
        )
    return tokens if given else tokens + [_added_token(f"<extra_id_{index}>") for index in range(extra_ids)]


def _read_if_there(folder: PretrainedFolder, filename: str) -> dict[str, Any]:
    path = folder.find(filename)
    return read_json(path) if path else {}


@contextlib.contextmanager
def _damage_named(what: str) -> Iterator[None]:
    """Turn whatever goes wrong with a file's content into a ValueError that begins with `what`."""
    try:
        yield
    # tokenizers raises bare Exceptions; and content of any shape may lack any key or method.
    except Exception as error:
        raise ValueError(f"{what}: {error}") from error


def _vocabulary_from_json(path: Path) -> VocabularyFile:
    content = read_json(path)
    with _damage_named(f"{path} is no {TOKENIZER_NAME} of a T5 tokenizer"):
        model = content.get("model") or {}
        if model.get("type", "Unigram") != "Unigram" or "vocab" not in model:
            raise ValueError(f"it holds a {model.get('type', 'tokenizer without vocabulary')}; T5's model is Unigram")
        try:
            pieces = [(str(piece), float(score)) for piece, score in model["vocab"]]
        except (TypeError, ValueError) as error:
            raise ValueError(f"its vocabulary is no list of [piece, score] pairs: {error}") from error
        normalizer = content.get("normalizer") or {}
        charsmaps = [
            base64.b64decode(step["precompiled_charsmap"])
            for step in normalizer.get("normalizers", [normalizer])
            if step.get("type") == "Precompiled"
        ]
        # The sides are the only settings of tokenizer.json that transformers keeps.
        padding, truncation = content.get("padding") or {}, content.get("truncation") or {}
        return VocabularyFile(
            _pipeline(pieces, charsmaps[0] if charsmaps else b""),
            [_added_token(entry) for entry in content.get("added_tokens") or []],
            padding_side=padding.get("direction", "Right").lower(),
            truncation_side=truncation.get("direction", "Right").lower(),
        )


def _vocabulary_from_sentencepiece(path: Path, extra_ids: int) -> VocabularyFile:
    content = path.read_bytes()
    with _damage_named(f"{path} is no sentencepiece model of a T5 tokenizer"):
        # The library takes empty content for none given, and says nothing.
        if not content:
            raise ValueError("it is empty")
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        ids = list(range(processor.get_piece_size()))
        pieces = list(zip(processor.id_to_piece(ids), processor.get_score(ids), strict=True))
        sentinels = [(f"<extra_id_{index}>", 0.0) for index in reversed(range(extra_ids))]
        fields = _protobuf_fields(content)
        if _protobuf_fields(fields.get(_TRAINER_SPEC, b"")).get(_MODEL_TYPE, _UNIGRAM) != _UNIGRAM:
            raise ValueError("its type is not Unigram")
        charsmap = _protobuf_fields(fields.get(_NORMALIZER_SPEC, b"")).get(_PRECOMPILED_CHARSMAP, b"")
        return VocabularyFile(_pipeline(pieces + sentinels, charsmap), spiece=content)


def _protobuf_fields(message: bytes) -> dict[int, Any]:
    """Return the fields of a serialized protobuf message by number: an int for a varint, else the raw bytes.

    The character map is in no function of sentencepiece, and its generated protobuf module wants a version of protobuf
    that other packages forbid. A field that occurs several times has its last value.
    """
    stream = io.BytesIO(message)
    fields: dict[int, Any] = {}
    while stream.tell() < len(message):
        key = _varint(stream)
        wire_type = key & 7
        if wire_type == 0:
            fields[key >> 3] = _varint(stream)
        else:
            # Eight bytes, as many as the length in front says, or four.
            fields[key >> 3] = stream.read({1: 8, 2: _varint(stream) if wire_type == 2 else 0, 5: 4}[wire_type])
    return fields


def _varint(stream: io.BytesIO) -> int:
    value = shift = 0
    while True:
        byte = stream.read(1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
        shift += 7


def _pipeline(pieces: list[tuple[str, float]], charsmap: bytes) -> Tokenizer:
    """Build the pipeline that transformers builds for T5, whatever pipeline a file describes.

    Args:
        pieces: every piece with its score (a log probability), in the order of the ids.
        charsmap: the character map of a sentencepiece model; empty for none.
    """
    if len(pieces) <= UNK_ID:
        raise ValueError(f"the vocabulary has {len(pieces)} pieces; T5's starts with <pad>, </s> and <unk>")
    if not all(piece and math.isfinite(score) for piece, score in pieces):
        raise ValueError("the vocabulary has an empty piece or a score that is no finite number")
    pipeline = Tokenizer(Unigram(pieces, unk_id=UNK_ID, byte_fallback=False))
    if charsmap:
        pipeline.normalizer = normalizers.Precompiled(charsmap)
        _check_charsmap(charsmap)
    # Metaspace puts U+2581 in front of every word.
    pipeline.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    pipeline.decoder = decoders.Metaspace()
    return pipeline


def _check_charsmap(charsmap: bytes) -> None:
    """Refuse a damaged map, which makes `tokenizers` panic at the first text that meets the damage.

    A map is the size of a double-array trie, the trie (Darts-clone's), and the replacements it points to, each ended
    by a NUL. A unit of the trie holds where a replacement begins (bit 31 set) or how far away its children are.
    """
    size = int.from_bytes(charsmap[:4], "little")
    units = np.frombuffer(charsmap, "<u4", size // 4, 4)
    replacements = np.frombuffer(charsmap, np.uint8, -1, 4 + size)
    has_value = units >> 31 == 1
    starts = units[has_value] & 0x7FFFFFFF
    inner = units[~has_value]
    children = np.flatnonzero(~has_value) ^ (inner >> 10 << ((inner & 0x200) >> 6))
    if not len(units) or (starts >= len(replacements)).any() or (children | 255 >= len(units)).any():
        raise ValueError("its precompiled_charsmap points outside itself")
    # A byte 10xxxxxx is the middle of a character in UTF-8.
    if (replacements[starts] >> 6 == 2).any():
        raise ValueError("its precompiled_charsmap points into the middle of a character")


def _added_token(value: Any) -> AddedToken:
    """Return an added token as a JSON file has it: its text alone, or an object with its flags."""
    if isinstance(value, str):
        return AddedToken(value, normalized=False, special=True)
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        raise ValueError(f"a special token is {value!r}; expected its text, or an object with its content and flags")
    special = bool(value.get("special", True))
    flags = {name: bool(value.get(name, False)) for name in ("lstrip", "rstrip", "single_word")}
    normalized = bool(value.get("normalized", not special))
    return AddedToken(value["content"], normalized=normalized, special=special, **flags)

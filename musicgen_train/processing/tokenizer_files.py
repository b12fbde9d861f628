"""The files that hold a T5 tokenizer, in the layouts that the hub and all versions of transformers have of them.

- `tokenizer.json` has vocabulary, character map and added tokens. It wins where it is there. Of its pipeline nothing
  else is read: another pre-tokenizer or more normalisers, as older versions wrote them, change nothing today.
- `spiece.model`, the original, has vocabulary and character map; the sentinels go on top of its pieces.
- `tokenizer_config.json` has the settings and the special tokens, in newer versions all added tokens, too.
- `special_tokens_map.json` has the special tokens in older versions.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece

from musicgen_train.files import read_json
from musicgen_train.hub.folder import PretrainedFolder
from musicgen_train.processing import sentencepiece_proto
from musicgen_train.processing.unigram import METASPACE, UNK_ID, UnigramModel

VOCAB_NAME = "spiece.model"
TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
SPECIAL_TOKENS_MAP_NAME = "special_tokens_map.json"

DEFAULT_EXTRA_IDS = 100
_DEFAULT_NAMED_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


@dataclass(frozen=True)
class AddedToken:
    """A token that is cut out of the text as a whole, and how.

    Attributes:
        content: its text.
        lstrip, rstrip: whether it takes the white space before or after it along.
        normalized: whether it is looked for in the normalised text instead of the raw one.
        special: whether `skip_special_tokens` leaves it out.
    """

    content: str
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


@dataclass(frozen=True)
class VocabularyFile:
    """What one vocabulary file holds.

    Attributes:
        model: the pieces, sentinels included.
        charsmap: the normaliser's character map; empty for none.
        added: the added tokens that the file lists, in the order of their ids.
        spiece: the sentencepiece model; None where the vocabulary comes without one.
    """

    model: UnigramModel
    charsmap: bytes
    added: Sequence[AddedToken] = ()
    spiece: bytes | None = None


@dataclass(frozen=True)
class TokenizerParts:
    """Everything that defines a `T5Tokenizer`, in the terms of its arguments.

    Attributes:
        vocabulary: pieces, character map, and the added tokens with their ways of being cut out.
        named: the end, unknown and padding tokens, by their argument's names.
        additional: further special tokens.
        model_max_length: None for no limit.
    """

    vocabulary: VocabularyFile
    named: dict[str, AddedToken]
    additional: list[AddedToken]
    extra_ids: int
    model_max_length: int | None
    padding_side: str
    truncation_side: str
    clean_up_tokenization_spaces: bool


def read_folder(folder: PretrainedFolder, overrides: Mapping[str, Any]) -> TokenizerParts:
    """The tokenizer in `folder`. The arguments of `T5Tokenizer` in `overrides` win over what the files say.

    Raises:
        FileNotFoundError: the folder has neither `tokenizer.json` nor `spiece.model`.
        ValueError: a file is damaged or holds something else than a T5 tokenizer.
    """
    config = _read_if_there(folder, TOKENIZER_CONFIG_NAME)
    listed = config.pop("extra_special_tokens", None) or config.pop("additional_special_tokens", None)
    # Since it lists added tokens itself, a newer tokenizer_config.json makes the special tokens map obsolete.
    if "added_tokens_decoder" not in config:
        config |= _read_if_there(folder, SPECIAL_TOKENS_MAP_NAME)
    config |= overrides
    extra_ids = int(config.get("extra_ids", DEFAULT_EXTRA_IDS))

    json_file, spiece_file = folder.find(TOKENIZER_NAME), folder.find(VOCAB_NAME)
    content = read_json(json_file) if json_file else {}
    if json_file:
        spiece = spiece_file.read_bytes() if spiece_file else None
        vocabulary = dataclasses.replace(_vocabulary_from_json(content, json_file), spiece=spiece)
    elif spiece_file:
        vocabulary = _vocabulary_from_sentencepiece(spiece_file, extra_ids)
    else:
        raise FileNotFoundError(
            f"{folder} has neither {TOKENIZER_NAME} nor {VOCAB_NAME} (the vocabulary of the text encoder's "
            f"tokenizer). {folder.describe()}"
        )
    if "added_tokens_decoder" in config:
        by_id = sorted(config["added_tokens_decoder"].items(), key=lambda item: int(item[0]))
        vocabulary = dataclasses.replace(vocabulary, added=[_added_token(value) for _, value in by_id])

    named = {name: _added_token(config.get(name) or text) for name, text in _DEFAULT_NAMED_TOKENS.items()}
    if listed and "additional_special_tokens" not in overrides:
        # A configuration lists all special tokens there are, so that no sentinels are missing.
        additional = [_added_token(value) for value in listed]
    else:
        additional = with_sentinels(config.get("additional_special_tokens"), extra_ids)
    # The sides are the only settings in tokenizer.json that transformers keeps.
    padding, truncation = content.get("padding") or {}, content.get("truncation") or {}
    model_max_length = config.get("model_max_length")
    return TokenizerParts(
        vocabulary,
        named,
        additional,
        extra_ids=extra_ids,
        model_max_length=None if model_max_length is None else int(model_max_length),
        padding_side=config.get("padding_side") or padding.get("direction", "right").lower(),
        truncation_side=config.get("truncation_side") or truncation.get("direction", "right").lower(),
        clean_up_tokenization_spaces=bool(config.get("clean_up_tokenization_spaces")),
    )


def read_vocabulary(path: Path, extra_ids: int) -> VocabularyFile:
    """The vocabulary in a `tokenizer.json` or a `spiece.model`; the latter gets `extra_ids` sentinels.

    Raises:
        ValueError: the file is damaged or holds no Unigram model.
    """
    if path.suffix == ".json":
        return _vocabulary_from_json(read_json(path), path)
    return _vocabulary_from_sentencepiece(path, extra_ids)


def with_sentinels(additional: Sequence[Any] | None, extra_ids: int) -> list[AddedToken]:
    """Additional special tokens, given as text or as in a JSON file, completed with the sentinels.

    Raises:
        ValueError: there are sentinels among them, but not `extra_ids`.
    """
    tokens = [_added_token(token) for token in additional or []]
    given = sum("<extra_id_" in token.content for token in tokens)
    if given and extra_ids > 0 and given != extra_ids:
        raise ValueError(
            f"extra_ids is {extra_ids}, but additional_special_tokens has {given} sentinels; give all or none"
        )
    return tokens if given else tokens + [AddedToken(f"<extra_id_{index}>") for index in range(extra_ids)]


def tokenizer_json(vocabulary: VocabularyFile, added: Mapping[int, AddedToken], eos_id: int) -> dict[str, Any]:
    """The content of a `tokenizer.json` that the `tokenizers` library reads: its pipeline does what `T5Tokenizer` does.

    Args:
        vocabulary: pieces and character map.
        added: the added tokens by their ids.
        eos_id: the id that ends a text.
    """
    metaspace = {"type": "Metaspace", "replacement": METASPACE, "prepend_scheme": "always", "split": True}
    charsmap = base64.b64encode(vocabulary.charsmap).decode("ascii")
    text, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "single_word": False, **dataclasses.asdict(token)} for index, token in sorted(added.items())
        ],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap} if charsmap else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [text, end],
            "pair": [text, end, second, end],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [eos_id], "tokens": ["</s>"]}},
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": UNK_ID, "vocab": vocabulary.model.pieces, "byte_fallback": False},
    }


def _read_if_there(folder: PretrainedFolder, filename: str) -> dict[str, Any]:
    path = folder.find(filename)
    return read_json(path) if path else {}


def _vocabulary_from_json(content: Mapping[str, Any], path: Path) -> VocabularyFile:
    model = content.get("model") or {}
    if model.get("type", "Unigram") != "Unigram" or "vocab" not in model:
        raise ValueError(f"{path} holds a {model.get('type', 'tokenizer without vocabulary')}; T5's model is Unigram")
    try:
        pieces = UnigramModel([(str(piece), float(score)) for piece, score in model["vocab"]])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no T5 vocabulary, a list of [piece, score] pairs: {error}") from error
    normalizer = content.get("normalizer") or {}
    maps = [
        base64.b64decode(step["precompiled_charsmap"])
        for step in normalizer.get("normalizers", [normalizer])
        if step.get("type") == "Precompiled"
    ]
    added = [_added_token(entry) for entry in content.get("added_tokens") or []]
    return VocabularyFile(pieces, maps[0] if maps else b"", added)


def _vocabulary_from_sentencepiece(path: Path, extra_ids: int) -> VocabularyFile:
    content = path.read_bytes()
    try:
        # The library takes empty content for none given, and says nothing.
        if not content:
            raise ValueError("it is empty")
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        header = sentencepiece_proto.read_header(content)
        if header.model_type != sentencepiece_proto.UNIGRAM:
            raise ValueError("its type is not Unigram")
        ids = list(range(processor.get_piece_size()))
        pieces = list(zip(processor.id_to_piece(ids), processor.get_score(ids), strict=True))
        sentinels = [(f"<extra_id_{index}>", 0.0) for index in reversed(range(extra_ids))]
        return VocabularyFile(UnigramModel(pieces + sentinels), header.precompiled_charsmap, spiece=content)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is no sentencepiece model of a T5 tokenizer: {error}") from error


def _added_token(value: Any) -> AddedToken:
    """An added token as a JSON file has it: its text alone, or an object with its flags."""
    if isinstance(value, str):
        return AddedToken(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        raise ValueError(f"a special token is {value!r}; expected its text, or an object with its content and flags")
    if value.get("single_word"):
        raise ValueError(f"the special token {value['content']!r} has single_word set, which no T5 tokenizer uses")
    special = bool(value.get("special", True))
    return AddedToken(
        value["content"],
        lstrip=bool(value.get("lstrip", False)),
        rstrip=bool(value.get("rstrip", False)),
        normalized=bool(value.get("normalized", not special)),
        special=special,
    )

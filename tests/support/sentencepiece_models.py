"""Makes small T5-style sentencepiece models in a few hundredths of a second, always the same bytes."""

from __future__ import annotations

import functools
import io
import json
import random
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

# fmt: off
SYLLABLES = [
    "ba", "ro", "mi", "ka", "tu", "sy", "nth", "gui", "tar", "dru", "m", "beat", "chor", "us", "e", "a", "lo", "fi",
    "jazz", "pop", "ing", "er", "aa", "bb",
]
TAILS = [
    ".", ", ", "!", "?", " 80s", " 120 bpm", " (x) ", " - ", "'s", " n't", " \u00e9t\u00e9 \u00fcber",
    " \u65e5\u8a9e", " a/b:c;d",
]
# fmt: on
SENTINELS = [f"<extra_id_{index}>" for index in range(100)]


@functools.cache
def t5_model(vocab_size: int = 400, normalization: str = "nmt_nfkc") -> bytes:
    """Train a serialised Unigram model with `<pad>` 0, `</s>` 1 and `<unk>` 2, as T5's has them.

    `vocab_size` counts them and may be 100 to 800. Letters outside ASCII are few, so most others are unknown.
    """
    rng = random.Random(0)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(400)]
    lines = []
    for number in range(1500):
        line = " ".join(rng.choices(words, k=rng.randint(3, 10)))
        lines.append(line + rng.choice(TAILS) + str(number) if number % 3 == 0 else line)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name=normalization,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def model_of(pieces: list[tuple[str, float]]) -> bytes:
    """Make a serialised Unigram model of `<pad>` 0, `</s>` 1, `<unk>` 2 and then `pieces`, without normalisation."""
    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    kind = model.SentencePiece
    for text, score, of in (("<pad>", 0.0, kind.CONTROL), ("</s>", 0.0, kind.CONTROL), ("<unk>", 0.0, kind.UNKNOWN)):
        model.pieces.add(piece=text, score=score, type=of)
    for text, score in pieces:
        model.pieces.add(piece=text, score=score)
    for name, index in (("pad_id", 0), ("eos_id", 1), ("unk_id", 2), ("bos_id", -1)):
        setattr(model.trainer_spec, name, index)
    model.normalizer_spec.name = "identity"
    written: bytes = model.SerializeToString()
    return written


def charsmap_of(model: bytes) -> bytes:
    """Return the character map of a serialised model."""
    charsmap: bytes = _parsed(model).normalizer_spec.precompiled_charsmap
    return charsmap


def with_charsmap(model: bytes, charsmap: bytes) -> bytes:
    """Return a serialised model with another character map."""
    changed = _parsed(model)
    changed.normalizer_spec.precompiled_charsmap = charsmap
    written: bytes = changed.SerializeToString()
    return written


def _parsed(model: bytes) -> Any:
    return sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]


def tokenizer_config(**changes: Any) -> dict[str, Any]:
    """Return the tokenizer_config.json of the T5 repositories on the hub, with changes."""
    config = {
        "additional_special_tokens": SENTINELS,
        "clean_up_tokenization_spaces": True,
        "eos_token": "</s>",
        "extra_ids": 100,
        "model_max_length": 512,
        "pad_token": "<pad>",
        "tokenizer_class": "T5Tokenizer",
        "unk_token": "<unk>",
    }
    return config | changes


def write_t5_tokenizer_folder(folder: Path, vocab_size: int = 400, normalization: str = "nmt_nfkc") -> None:
    """Write `spiece.model`, `tokenizer_config.json` and `special_tokens_map.json` as the hub has them.

    The tokenizer then has `vocab_size` pieces and 100 sentinels on top of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(t5_model(vocab_size, normalization))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config()))
    names = {"additional_special_tokens": SENTINELS, "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))

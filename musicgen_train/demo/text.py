"""A small T5 and its vocabulary for the captions of the corpus."""

from __future__ import annotations

import functools
import io
import string
from pathlib import Path

import sentencepiece
import torch

from musicgen_train.demo.corpus import captions_of
from musicgen_train.models.config import T5Config
from musicgen_train.models.t5 import T5EncoderModel
from musicgen_train.processing.t5_tokenizer import T5Tokenizer

PIECES = 384
_SENTINELS = 100
# Composing is quick, so the vocabulary sees many more pieces than anybody renders.
_TRACKS = 1500
_CAPTIONS_SEED = 0


@functools.cache
def vocabulary() -> bytes:
    """A sentencepiece model in T5's form: Unigram, nmt_nfkc, `<pad>` 0, `</s>` 1, `<unk>` 2. Always the same bytes."""
    lines = [caption for index in range(_TRACKS) for caption in captions_of(_CAPTIONS_SEED, index)]
    # No letter, digit or mark that people type shall be unknown, whatever the captions need.
    lines += [" ".join(characters) for characters in (string.ascii_letters, string.digits, string.punctuation)]
    lines += [f"{number} bpm" for number in range(40, 241)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=PIECES,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="nmt_nfkc",
        character_coverage=1.0,
        # More threads would add up counts in another order each time.
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def make_tokenizer(folder: Path) -> T5Tokenizer:
    """Write `spiece.model` into a folder and make the tokenizer of it."""
    path = folder / "spiece.model"
    path.write_bytes(vocabulary())
    return T5Tokenizer(path, extra_ids=_SENTINELS, model_max_length=512)


def make_text_encoder(seed: int) -> T5EncoderModel:
    """A T5 encoder of two layers with random weights, in eval mode."""
    config = T5Config(
        vocab_size=512,
        d_model=64,
        d_kv=16,
        d_ff=192,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T5EncoderModel(config).eval()

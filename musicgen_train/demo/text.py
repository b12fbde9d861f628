"""The text encoder of the demo: a small T5 and its vocabulary, untrained. `text_training` makes the one that ships."""

from __future__ import annotations

import functools
import io
import string
from pathlib import Path

import sentencepiece
import torch

from musicgen_train.demo.corpus import captions_of
from musicgen_train.demo.reading import ways_to_say
from musicgen_train.demo.text_prompts import NOUNS, OTHER_WORDS
from musicgen_train.models.config import T5Config
from musicgen_train.models.t5 import T5EncoderModel
from musicgen_train.processing.t5_tokenizer import T5Tokenizer

PIECES = 600
_SENTINELS = 100
# Composing is quick, so the vocabulary sees many more pieces than anybody renders.
_TRACKS = 600
_CAPTIONS_SEED = 0
# What captions never say is in few lines; this often, it counts as much as what is in most of them.
_REPEATS = 40
_ACCENTED = "\u00e0\u00e1\u00e2\u00e3\u00e4\u00e5\u00e6\u00e7\u00e8\u00e9\u00ea\u00eb\u00ec\u00ed\u00ee\u00ef" + (
    "\u00f1\u00f2\u00f3\u00f4\u00f5\u00f6\u00f8\u00f9\u00fa\u00fb\u00fc\u00fd\u00ff"
)


@functools.cache
def vocabulary() -> bytes:
    """A sentencepiece model in T5's form: Unigram, `<pad>` 0, `</s>` 1, `<unk>` 2. Always the same bytes.

    Other than T5's, its character map folds cases (`nmt_nfkc_cf`), so "Calm Piano" and "calm piano" are the same ids,
    and numbers are cut into digits, so every tempo is known.
    """
    lines = [caption for index in range(_TRACKS) for caption in captions_of(_CAPTIONS_SEED, index)]
    lines += [text for texts in ways_to_say().values() for text in texts] * _REPEATS
    lines += [*OTHER_WORDS, *NOUNS] * _REPEATS
    # No letter, digit or mark that people type shall be unknown, whatever the captions need.
    signs = "\u266f\u266d\u2013\u2014\u2018\u2019\u201c\u201d"
    for characters in (string.ascii_letters, string.digits, string.punctuation, _ACCENTED, signs):
        lines.append(" ".join(characters))
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
        normalization_rule_name="nmt_nfkc_cf",
        split_digits=True,
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
    """A T5 encoder of three layers with random weights, in eval mode."""
    config = T5Config(
        vocab_size=PIECES + _SENTINELS,
        d_model=128,
        d_kv=32,
        d_ff=384,
        num_layers=3,
        num_heads=4,
        dropout_rate=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T5EncoderModel(config).eval()

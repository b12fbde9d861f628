"""Training of the text encoder that ships: its vocabulary, the training, and a folder in the hub's layout.

From the mean of a text's states, linear probes must tell every property that the text states, and which ones it leaves
open. The mean, because that is what cross-attention gives a decoder that has not yet learned where to look; over a
random share of the tokens, so that every state learns what the whole text says. Words with the same meaning have the
same targets, so their states come to lie together. The probes are dropped afterwards.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import string
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from text_probes import Probes, mean_states, probe_targets
from text_prompts import NOUNS, OTHER_WORDS, PromptSource
from text_quality import TextQuality, measure_text_encoder
from torch import nn

from musicgen_train.demo.caption_reading import ways_to_say
from musicgen_train.demo.corpus import captions_of
from musicgen_train.files import atomic_folder, write_json
from musicgen_train.models.config import T5Config
from musicgen_train.models.t5 import T5EncoderModel
from musicgen_train.processing.t5_tokenizer import T5Tokenizer

TEXT_RECORD_NAME = "text_training.json"

_VOCABULARY_SIZE = 600
_SENTINELS = 100
# The vocabulary is fitted to the captions of this many pieces.
_TRACKS = 600
_CAPTIONS_SEED = 0
# Words that captions never use stand in few lines; repeated this often, they count as much as common ones.
_REPEATS = 40
_ACCENTED = "\u00e0\u00e1\u00e2\u00e3\u00e4\u00e5\u00e6\u00e7\u00e8\u00e9\u00ea\u00eb\u00ec\u00ed\u00ee\u00ef" + (
    "\u00f1\u00f2\u00f3\u00f4\u00f5\u00f6\u00f8\u00f9\u00fa\u00fb\u00fc\u00fd\u00ff"
)

# Far from the seeds people take for their corpora.
_TRAINING_SEED = 4_000_000
# Texts of this many batches are sorted by length together: little padding, and no order that the model could learn.
_POOL = 16
_WARMUP_STEPS = 100


@dataclass(frozen=True)
class TextTraining:
    """How the text encoder is trained.

    Args:
        seed: seed of the initial weights, the texts and their order.
        steps: optimizer steps.
        batch_size: texts per step.
        learning_rate: AdamW's peak learning rate, after a warm-up; from there it falls linearly to zero.
        pieces: number of composed pieces whose captions are among the texts.
        held_out_pieces: number of other pieces whose captions it is measured on.
    """

    seed: int = 0
    steps: int = 1800
    batch_size: int = 96
    learning_rate: float = 2e-3
    pieces: int = 4000
    held_out_pieces: int = 400

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "pieces", "held_out_pieces"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")


@functools.cache
def vocabulary() -> bytes:
    """Train a sentencepiece model in T5's form (Unigram, `<pad>` 0, `</s>` 1, `<unk>` 2); always the same bytes.

    Unlike T5's, its character map folds case (`nmt_nfkc_cf`), so "Calm Piano" and "calm piano" have the same ids, and
    numbers are split into digits, so every tempo is known.
    """
    lines = [caption for index in range(_TRACKS) for caption in captions_of(_CAPTIONS_SEED, index)]
    lines += [text for texts in ways_to_say().values() for text in texts] * _REPEATS
    lines += [*OTHER_WORDS, *NOUNS] * _REPEATS
    # Every letter, digit or mark that people type must be known, even if no caption has it.
    signs = "\u266f\u266d\u2013\u2014\u2018\u2019\u201c\u201d"
    for characters in (string.ascii_letters, string.digits, string.punctuation, _ACCENTED, signs):
        lines.append(" ".join(characters))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=_VOCABULARY_SIZE,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="nmt_nfkc_cf",
        split_digits=True,
        character_coverage=1.0,
        # With more threads the order of summation, and so the result, would vary.
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def make_tokenizer(folder: Path) -> T5Tokenizer:
    """Write `spiece.model` into a folder and return the tokenizer that reads it."""
    path = folder / "spiece.model"
    path.write_bytes(vocabulary())
    return T5Tokenizer(path, extra_ids=_SENTINELS, model_max_length=512)


def make_text_encoder(seed: int) -> T5EncoderModel:
    """A T5 encoder of three layers with random weights, in eval mode."""
    config = T5Config(
        vocab_size=_VOCABULARY_SIZE + _SENTINELS,
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


def train_text_encoder(
    training: TextTraining,
    tokenizer: T5Tokenizer,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[T5EncoderModel, Probes]:
    """Train the encoder and the probes. The same settings on the same machine with one thread give the same weights.

    Args:
        training: the settings.
        tokenizer: the result of `make_tokenizer`.
        report: called with a line of progress every 100 steps.

    Returns:
        The encoder in eval mode, its weights rounded to float16's precision; and the probes.
    """
    encoder = make_text_encoder(training.seed).train()
    # The random embeddings are large; training would take long to overcome them.
    encoder.shared.weight.data.mul_(0.2)
    # With the last scale fixed at 1, states always have a mean square of 1.
    encoder.encoder.final_layer_norm.weight.requires_grad_(False)
    generator = torch.Generator().manual_seed(training.seed)
    probes = Probes(encoder.config.d_model)
    with torch.no_grad():
        probes.linear.weight.normal_(std=encoder.config.d_model**-0.5, generator=generator)
        probes.linear.bias.zero_()
    parameters = [value for value in (*encoder.parameters(), *probes.parameters()) if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, training.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, training.steps))

    report(f"text encoder: {sum(value.numel() for value in encoder.parameters()):,} weights; composing its texts")
    batches = _batches(training, tokenizer, generator)
    start, losses = time.monotonic(), []
    for step in range(1, training.steps + 1):
        ids, mask, classes, slots = next(batches)
        loss = probes.loss(mean_states(encoder, ids, mask, generator), classes, slots)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 100 == 0 or step == training.steps:
            seconds = time.monotonic() - start
            report(
                f"step {step} of {training.steps}: loss {sum(losses) / len(losses):.3f}, "
                f"{step * training.batch_size / seconds:.0f} texts/s, "
                f"{seconds / step * (training.steps - step):.0f} s left"
            )
            losses.clear()
    return encoder.half().float().eval(), probes.eval()


def _schedule(step: int, steps: int) -> float:
    return min((step + 1) / min(_WARMUP_STEPS, steps), (steps - step) / steps)


def _batches(
    training: TextTraining, tokenizer: T5Tokenizer, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield ids and mask `(B, L)` and the probes' targets, without end."""
    source = PromptSource(_TRAINING_SEED + training.seed, training.pieces)
    size = training.batch_size
    while True:
        texts, facts = zip(*(source.draw() for _ in range(size * _POOL)), strict=True)
        rows = tokenizer(texts)["input_ids"]
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        for batch in torch.randperm(_POOL, generator=generator).tolist():
            places = order[batch * size : (batch + 1) * size]
            padded = tokenizer.pad({"input_ids": [rows[place] for place in places]}, return_tensors="pt")
            yield padded["input_ids"], padded["attention_mask"], *probe_targets([facts[place] for place in places])


def make_trained_text_encoder(
    folder: str | os.PathLike[str],
    training: TextTraining | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> TextQuality:
    """Train an encoder, measure it, and write weights in float16, the tokenizer and `text_training.json`.

    Args:
        folder: the result, in the hub's layout; it appears complete or not at all.
        training: the settings; None for the default ones.
        report: called with a line of progress every 100 steps.

    Returns:
        What was measured; `text_training.json` has it too, beside the settings and the seconds it took.

    Raises:
        ValueError: the folder holds something else.
        NotADirectoryError: the folder is a file.
    """
    training = training or TextTraining()
    target = Path(folder).expanduser()
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target} is a file; give a folder for the text encoder")
    if target.is_dir() and any(target.iterdir()) and not (target / TEXT_RECORD_NAME).is_file():
        raise ValueError(f"{target} already holds something else; give a new or empty folder for the text encoder")
    start = time.monotonic()
    report("making the vocabulary")
    with atomic_folder(target) as staging:
        tokenizer = make_tokenizer(staging)
        encoder, probes = train_text_encoder(training, tokenizer, report)
        seconds = time.monotonic() - start
        report(f"trained in {seconds:.0f} s; measuring")
        quality = measure_text_encoder(encoder, probes, tokenizer, training.seed, training.held_out_pieces)
        encoder.save_pretrained(
            staging, state_dict={name: value.half() for name, value in encoder.state_dict().items()}
        )
        tokenizer.save_pretrained(staging)
        record: dict[str, Any] = {
            "training": dataclasses.asdict(training),
            "seconds": round(seconds),
            "quality": dataclasses.asdict(quality),
        }
        write_json(staging / TEXT_RECORD_NAME, record)
    return quality

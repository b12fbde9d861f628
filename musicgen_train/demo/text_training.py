"""Train the demo's text encoder, measure it on texts it has not seen, and write it in the hub's layout.

    python -m musicgen_train.demo.text_training OUTPUT

The encoder is taught to read: from the mean of a text's states, linear probes must tell every property that the text
states, and which ones it leaves open. The mean, since that is what cross-attention gives a decoder that has not yet
learned where to look; of a random share of the tokens, so that every state comes to know what the whole text says.
Words of one meaning have the same answers, so they come to lie together. The probes are dropped afterwards.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from musicgen_train.demo.text import make_text_encoder, make_tokenizer
from musicgen_train.demo.text_probes import Probes, mean_states, targets
from musicgen_train.demo.text_prompts import PromptSource
from musicgen_train.demo.text_quality import TextQuality, measure_text_encoder
from musicgen_train.files import atomic_folder, write_json
from musicgen_train.models.t5 import T5EncoderModel
from musicgen_train.processing.t5_tokenizer import T5Tokenizer

RECORD_NAME = "text_training.json"

# Far from the seeds people take for their corpora.
_TRAINING_SEED = 4_000_000
# Batches whose texts are sorted by length together: little padding, yet no order that the model could notice.
_POOL = 16
_WARMUP_STEPS = 100


@dataclass(frozen=True)
class TextTraining:
    """How the text encoder is trained.

    Args:
        seed: of its first weights, its texts and the order of everything.
        steps: optimizer steps.
        batch_size: texts per step.
        learning_rate: of AdamW, at its highest, after the first steps; from there it falls to zero in a straight line.
        pieces: composed pieces whose captions are among the texts.
        held_out_pieces: others, whose captions it is measured on.
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


def train_text_encoder(
    training: TextTraining,
    tokenizer: T5Tokenizer,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[T5EncoderModel, Probes]:
    """Train the encoder and the probes that teach it. Same settings, machine and one thread: same weights.

    Args:
        training: the settings.
        tokenizer: as `text.make_tokenizer` makes it.
        report: called with a line of text now and then.

    Returns:
        The encoder, its weights rounded to what float16 can hold, in eval mode; and the probes.
    """
    encoder = make_text_encoder(training.seed).train()
    # Large random embeddings would take long to outgrow.
    encoder.shared.weight.data.mul_(0.2)
    # Without a scale at the end, states always have a mean square of 1.
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
    """Ids and mask `(B, L)`, and the targets, endlessly."""
    source = PromptSource(_TRAINING_SEED + training.seed, training.pieces)
    size = training.batch_size
    while True:
        texts, facts = zip(*(source.draw() for _ in range(size * _POOL)), strict=True)
        rows = tokenizer(texts)["input_ids"]
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        for batch in torch.randperm(_POOL, generator=generator).tolist():
            places = order[batch * size : (batch + 1) * size]
            padded = tokenizer.pad({"input_ids": [rows[place] for place in places]}, return_tensors="pt")
            yield padded["input_ids"], padded["attention_mask"], *targets([facts[place] for place in places])


def make_trained_text_encoder(
    folder: str | os.PathLike[str],
    training: TextTraining | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> TextQuality:
    """Train an encoder, measure it, and write it: weights in float16, tokenizer, and `text_training.json`.

    Args:
        folder: in the hub's layout; appears complete or not at all.
        training: the settings; None for the default ones.
        report: called with a line of text now and then.

    Returns:
        What was measured, which is also in `text_training.json`, beside the settings and the time it took.

    Raises:
        ValueError: the folder holds something else.
        NotADirectoryError: it is a file.
    """
    training = training or TextTraining()
    target = Path(folder).expanduser()
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target} is a file; give a folder for the text encoder")
    if target.is_dir() and any(target.iterdir()) and not (target / RECORD_NAME).is_file():
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
        write_json(staging / RECORD_NAME, record)
    return quality


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit code: 0, or 1 after an error that was told in one line."""
    defaults = TextTraining()
    parser = argparse.ArgumentParser(
        prog="python -m musicgen_train.demo.text_training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", help="the folder; an earlier result of this command in it is replaced")
    parser.add_argument("--seed", type=int, default=defaults.seed, help=f"(default: {defaults.seed})")
    parser.add_argument("--steps", type=int, default=defaults.steps, help=f"(default: {defaults.steps})")
    options = parser.parse_args(arguments)
    # One thread: the same weights every time, and the network is too small to share.
    torch.set_num_threads(1)
    try:
        quality = make_trained_text_encoder(
            options.output,
            TextTraining(seed=options.seed, steps=options.steps),
            lambda line: print(line, flush=True),
        )
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    for name, value in dataclasses.asdict(quality).items():
        print(f"{name}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

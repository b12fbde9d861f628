"""Two short runs of the real config from the stored models and latents, told as text."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import torch
from golden_inputs import COMPOSITE, LATENTS, STEREO_LATENTS
from tiny_run import QUICK, compose

from musicgen_train.training.run import run

STEPS = 20
# Everything that draws is on: order, crops, captions and their dropout, dropout.
DRAWING = ["model.dropout=0.1", "data.cfg_dropout=0.3", "data.crop_seconds=0.8"]
COMMON = [*DRAWING, f"trainer.max_steps={STEPS}", "validate_every=10", "optimizer.lr=0.01", f"init_from={COMPOSITE}"]
RUNS = {
    "mono": [f"data.path={LATENTS}", "data.global_batch_size=4", "data.micro_batch_size=2"],
    "stereo_averaged": [
        *(f"data.path={STEREO_LATENTS}", "model=stereo", "data.global_batch_size=2"),
        *("callbacks=ema", "callbacks.ema.decay=0.8"),
    ],
}
# The others are of the machine and its load, follow from these, or jump where two codes are about as likely.
GOLDEN_COLUMNS = re.compile(r"step|epoch|(train|val)/(loss|ce_q\d)|lr|grad_norm")


def train(name: str, output: Path) -> str:
    """The rows of a run's metrics as CSV; below them the norm of every tensor of weights in its last checkpoint."""
    run(compose("train", *QUICK, *COMMON, *RUNS[name], f"output={output}"))
    with (output / "metrics.csv").open() as file:
        header, *rows = csv.reader(file)
    golden = [number for number, column in enumerate(header) if GOLDEN_COLUMNS.fullmatch(column)]
    lines = [",".join(row[number] for number in golden) for row in [header, *rows]]
    checkpoint = torch.load(output / "checkpoints/last.ckpt", weights_only=True)
    # With an average, the first is that.
    for entry in ("state_dict", "current_model_state"):
        for key, value in checkpoint.get(entry, {}).items():
            lines.append(f"{entry}: {key},{value.double().norm():.7g}")
    return "\n".join(lines) + "\n"

"""Makes golden values anew: `python tests/golden/make_golden.py [inputs] [numbers] [snapshots]`.

snapshots: what names and shapes are like; to be made anew after any change of them that is meant.
numbers: what models and runs compute; to be made anew only where a change of the numbers is meant.
inputs: the stored models and latents; the numbers are others afterwards.
"""
# The tests' folders have to be on the path before what lies in them is imported.
# ruff: noqa: E402

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PARTS = ("inputs", "numbers", "snapshots")

if __name__ == "__main__":
    # As pytest has them.
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    sys.path[:0] = [str(REPOSITORY / path) for path in (".", *settings["tool"]["pytest"]["ini_options"]["pythonpath"])]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("WANDB_MODE", "offline")

import datasets
import numpy as np
import torch
from golden_inputs import GOLDEN
from golden_numbers import all_numbers, c_code_is_loaded, codes_in_double, numbers_without_c_code
from golden_origin import SEED, write_inputs
from golden_snapshots import SNAPSHOTS
from golden_training import RUNS, train


def write_numbers(folder: Path) -> None:
    """Write what the models compute, and what the runs do.

    Raises:
        ValueError: some code is so near to another one that rounding decides; take another seed for it.
    """
    found = all_numbers()
    for others in (numbers_without_c_code(folder), codes_in_double()):
        differing = [name for name, codes in others.items() if "codes" in name and (codes != found[name]).any()]
        if differing:
            raise ValueError(f"rounding changes {', '.join(differing)}")
    np.savez_compressed(GOLDEN / "numbers.npz", **found)  # type: ignore[arg-type]
    for name in RUNS:
        (GOLDEN / f"training_{name}.csv").write_text(train(name, folder / name))
    made_with = {"torch": torch.__version__, "seed": SEED, "threads": 1, "C code": c_code_is_loaded()}
    (GOLDEN / "made_with.json").write_text(json.dumps(made_with, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parts = parser.parse_args().parts
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    GOLDEN.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        if "inputs" in parts:
            write_inputs()
        if "numbers" in parts:
            write_numbers(Path(folder))
    if "snapshots" in parts:
        for name, make in SNAPSHOTS.items():
            (GOLDEN / name).write_text(make())


if __name__ == "__main__":
    main()

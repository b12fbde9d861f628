"""The whole way from nothing to a report, as `musicgen-train demo` goes it: each step is a command of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from musicgen_train.launch import CONFIG_FOLDER

DEMO_FOLDER = Path("outputs/demo")
PROMPTS = CONFIG_FOLDER / "demo_prompts.txt"


def run_walkthrough(output: Path) -> int:
    """Make a corpus, its latents, a fine-tuned model and a report: 2 cores, some minutes.

    Args:
        output: a folder that is empty or not there yet.

    Returns:
        The exit code of the first step that failed, else 0. A step prints what went wrong itself.

    Raises:
        ValueError: `output` has something in it.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is not empty; remove it, or give another folder with output=FOLDER")
    for step in _steps(output):
        code = subprocess.run([sys.executable, "-m", "musicgen_train", *step], check=False).returncode
        if code != 0:
            return code
    print(f"\nOpen {output}/report/report.html: samples with spectrograms, each number explained beside it.")
    return 0


def _steps(output: Path) -> Iterator[list[str]]:
    yield ["demo", "corpus", f"{output}/music", "--tracks", "96", "--seconds", "10.24", "--seed", "0"]
    yield ["demo", "encoders", f"{output}/encoders"]
    yield [
        *("preprocess", f"input={output}/music", f"output={output}/latents", f"encoders={output}/encoders"),
        *("clip_seconds=10.24", "split.validation=0.15"),
    ]
    yield [
        *("train", "experiment=demo", f"data.path={output}/latents", f"init_from={output}/encoders"),
        f"output={output}/run",
    ]
    yield [
        *("evaluate", f"model={output}/run", f"output={output}/report", f"prompts={PROMPTS}"),
        *(f"data.path={output}/latents", "max_new_tokens=503", "control.clips=33", "control.guidance_scale=[1,3]"),
        "seed=0",
    ]

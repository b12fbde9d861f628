"""Make the encoders and the decoder that ship anew, from seeds: `make demo-model`.

    python scripts/demo_model/recipe.py [OUTPUT] [--dry-run]

It takes some hours on two cores. After a kill the same command resumes: every stage finds what it has done already.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).parents[2]
FOLDER = "scripts/demo_model"


class Stage(NamedTuple):
    """A command of the recipe."""

    command: list[str]
    """Arguments of Python, run in the project's folder."""
    skipped_if: str | None = None
    """A folder that the command makes and refuses to make twice."""


def recipe(output: str) -> Iterator[Stage]:
    """The stages in order, each of which starts from the results of those before.

    Args:
        output: the folder for everything that is made on the way.
    """
    encoders = f"{output}/encoders/composite"

    def corpus(name: str, tracks: int, seconds: float, seed: int, validation: float, *settings: str) -> Iterator[Stage]:
        music, latents = f"{output}/music{name}", f"{output}/latents{name}"
        size = ["--tracks", str(tracks), "--seconds", str(seconds), "--seed", str(seed)]
        yield Stage(["-m", "musicgen_train.demo", "corpus", music, *size])
        given = [f"input={music}", f"output={latents}", f"encoders={encoders}", f"clip_seconds={seconds}"]
        command = ["scripts/preprocess.py", *given, f"split.validation={validation}", *settings]
        yield Stage(command, skipped_if=latents)

    def training(experiment: str, start: str, run: str, *settings: str) -> Stage:
        given = [f"experiment={experiment}", *settings, f"init_from={start}", f"output={output}/{run}", "resume=auto"]
        return Stage(["scripts/train.py", *given, "--config-dir", FOLDER])

    def mix(**weights: float) -> list[str]:
        parts = [f"{{path: {output}/latents-{name}, weight: {weight}}}" for name, weight in weights.items()]
        return ["data=mix", f"data.mix=[{', '.join(parts)}]"]

    def result(run: str) -> str:
        return f"{output}/{run}/composite"

    yield Stage([f"{FOLDER}/encoder_training.py", f"{output}/encoders"])

    first = f"data.path={output}/latents"
    yield from corpus("", 2000, 15.36, 11, 0.04)
    yield training("demo_model", encoders, "run", first)
    yield training("demo_model_long", result("run"), "run-long", first)

    # Tracks of ten seconds; in the captions of the second corpus every one names tempo and key.
    yield from corpus("-more", 2400, 10.24, 12, 0.03)
    named = ["captions.fields=[description]", "captions.tags=false", "captions.variants=1"]
    yield from corpus("-named", 1079, 10.24, 13, 0.02, *named)
    two = mix(more=0.7, named=0.3)
    constant = [*two, "schedule=constant", "schedule.warmup_steps=60", "trainer.max_steps=1547"]
    yield training("demo_model_more", result("run-long"), "run-more", *constant)
    yield training("demo_model_more", result("run-more"), "run-last", *two, "schedule.warmup_steps=10", "seed=1")

    yield from corpus("-third", 3000, 10.24, 14, 0.02)
    three = mix(more=0.18, named=0.12, third=0.7)
    constant = [*three, "schedule=constant", "schedule.warmup_steps=40", "trainer.max_steps=2152", "seed=2"]
    yield training("demo_model_more", result("run-last"), "run-third", *constant, "validate_every=250")

    three = mix(more=0.2, named=0.3, third=0.5)
    constant = [*three, "schedule=constant", "schedule.warmup_steps=20", "seed=4"]
    yield training("demo_model_short", result("run-third"), "run-short", *constant)
    falling = [*three, "schedule.warmup_steps=10", "trainer.max_steps=240", "seed=5"]
    yield training("demo_model_more", result("run-short"), "run-final", *falling)

    yield Stage([f"{FOLDER}/shipping.py", result("run-final"), encoders])


def main(arguments: list[str] | None = None) -> int:
    """Run the stages. Returns the exit code of the first that fails, or 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "output",
        nargs="?",
        default="outputs/demo-model",
        help="the folder, from the project's (default: outputs/demo-model)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    options = parser.parse_args(arguments)
    for stage in recipe(options.output):
        if stage.skipped_if and (PROJECT / stage.skipped_if).is_dir():
            continue
        print(shlex.join(["python", *stage.command]), flush=True)
        if not options.dry_run and (code := subprocess.run([sys.executable, *stage.command], cwd=PROJECT).returncode):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())

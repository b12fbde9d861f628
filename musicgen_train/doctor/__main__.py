"""The verb `musicgen-train doctor [--latents FOLDER] [--run FOLDER] [--model FOLDER] [--output FOLDER] [--json]`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from musicgen_train.doctor.compute import look_at_compute, look_at_torch
from musicgen_train.doctor.disks import look_at_disks
from musicgen_train.doctor.findings import Finding, as_text, findings_json, guarded, is_fine
from musicgen_train.doctor.media import look_at_audio, look_at_tokenizer
from musicgen_train.doctor.packages import look_at_packages


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found. Returns the exit code: 0 where all is fine, 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="musicgen-train doctor", description=examine.__doc__)
    parser.add_argument("--latents", type=Path, metavar="FOLDER", help="look at a latent dataset too")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="look at a training run too")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="look at a model in the hub's layout too")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", default=Path(), help="where results are to go; default: here"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    with _findings_alone():
        findings = list(examine(given.output, latents=given.latents, run=given.run, model=given.model))
    print(findings_json(findings) if given.json else as_text(findings))
    return 0 if is_fine(findings) else 1


@contextlib.contextmanager
def _findings_alone() -> Iterator[None]:
    """Silence the warnings and log lines of libraries within the block."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def examine(output: Path, *, latents: Path | None, run: Path | None, model: Path | None) -> Iterable[Finding]:
    """Say what works on this machine, what is missing, what it is needed for, and how to get it. Exit code 1 where
    something is wrong. Asks nothing of the network."""
    looks: dict[str, Callable[[], Iterable[Finding]]] = {
        "packages": look_at_packages,
        "torch": look_at_torch,
        "compute": look_at_compute,
        "audio": look_at_audio,
        "tokenizer": look_at_tokenizer,
        "disks": functools.partial(look_at_disks, output),
    }
    for topic, look in looks.items():
        yield from guarded(topic, look)
    # Imported only when asked for: they bring Lightning and datasets, which take seconds.
    if latents is not None:
        from musicgen_train.doctor.latent_folder import look_at_latents

        yield from guarded("latents", functools.partial(look_at_latents, latents))
    if run is not None:
        from musicgen_train.doctor.run_state import look_at_run

        yield from guarded("run", functools.partial(look_at_run, run))
    if model is not None:
        from musicgen_train.doctor.hub_folder import look_at_model

        yield from guarded("model", functools.partial(look_at_model, model, latents))


if __name__ == "__main__":
    sys.exit(main())

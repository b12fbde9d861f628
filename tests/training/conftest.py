"""A tiny composite and its latents, and runs of the real configs on them."""

from __future__ import annotations

from pathlib import Path

import pytest
from poisoned_latents import write_poisoned_latents
from tiny_latents import write_composite, write_latents
from tiny_run import QUICK, TRAIN, VALIDATION, RunWith, compose

from musicgen_train.training.run import Run, run


@pytest.fixture(scope="session")
def composite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_composite(tmp_path_factory.mktemp("models") / "composite")


@pytest.fixture(scope="session")
def latents(composite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data") / "latents", composite, TRAIN, VALIDATION)


@pytest.fixture(scope="session")
def poisoned(composite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents with one clip whose loss is NaN."""
    folder = tmp_path_factory.mktemp("poisoned") / "latents"
    return write_poisoned_latents(folder, composite, TRAIN, validation=VALIDATION)


@pytest.fixture
def run_with(composite: Path, latents: Path) -> RunWith:
    def call(output: Path, *overrides: str) -> Run:
        where = [f"data.path={latents}", f"init_from={composite}", f"output={output}"]
        return run(compose("train", *where, *QUICK, *overrides))

    return call

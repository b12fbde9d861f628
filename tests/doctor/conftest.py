"""A tiny composite, its latents, and a run on them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_latents import write_composite, write_latents
from tiny_run import QUICK, TRAIN, VALIDATION, compose

from musicgen_train.training.run import run


@pytest.fixture(scope="session")
def composite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_composite(tmp_path_factory.mktemp("models") / "composite")


@pytest.fixture(scope="session")
def latents(composite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data") / "latents", composite, TRAIN, VALIDATION)


@pytest.fixture(scope="session")
def finished_run(composite: Path, latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run(compose("train", f"data.path={latents}", f"init_from={composite}", f"output={folder}", *QUICK))
    return folder

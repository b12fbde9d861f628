"""A tiny composite and its latents."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_latents import write_composite, write_latents
from tiny_run import TRAIN, VALIDATION


@pytest.fixture(scope="session")
def composite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_composite(tmp_path_factory.mktemp("models") / "composite")


@pytest.fixture(scope="session")
def latents(composite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data") / "latents", composite, TRAIN, VALIDATION)

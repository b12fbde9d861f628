"""The record that every stage writes beside its result."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import lightning
import pytest
import torch

from musicgen_train.provenance.machine import versions
from musicgen_train.provenance.record import record, write_record


def test_a_record_says_what_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["scripts/train.py", "hydra.run.dir=.", "output=my run"])
    found = record()
    assert found["command"] == "scripts/train.py 'output=my run'"
    assert abs((datetime.fromisoformat(found["started"]) - datetime.now(UTC)).total_seconds()) < 60
    assert found["versions"]["torch"] == torch.__version__
    assert found["machine"]["cores"] >= 1
    assert len(found["machine"]["gpus"]) == torch.cuda.device_count()
    assert "commit" in found["git"] or found["git"] == {}


def test_versions_are_those_of_the_modules() -> None:
    found = versions()
    assert found["lightning"] == lightning.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


def test_it_is_written_as_json(tmp_path: Path) -> None:
    write_record(tmp_path)
    assert json.loads((tmp_path / "provenance.json").read_text())["versions"] == versions()

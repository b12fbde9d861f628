"""Names of version 0.1 lead to where their modules are now, for users' configs and Python."""

from __future__ import annotations

import importlib
import sys

import pytest
from hydra.utils import get_object

from musicgen_train.moved import MOVED, current_name


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_gives_the_module_itself_and_says_the_new_one(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"musicgen_train.{old}", raising=False)
    new = f"musicgen_train.{MOVED[old]}"
    with pytest.warns(FutureWarning, match=f"musicgen_train.{old} is now {new};"):
        module = importlib.import_module(f"musicgen_train.{old}")
    assert module is importlib.import_module(new)
    assert module.__name__ == module.__spec__.name == new


def test_a_target_of_a_users_config_resolves(monkeypatch: pytest.MonkeyPatch) -> None:
    from musicgen_train.training.weights.ema import EMA

    monkeypatch.delitem(sys.modules, "musicgen_train.training.ema", raising=False)
    monkeypatch.delattr("musicgen_train.training.ema", raising=False)
    with pytest.warns(FutureWarning, match="is now"):
        assert get_object("musicgen_train.training.ema.EMA") is EMA


def test_a_name_that_never_was_stays_unknown() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("musicgen_train.training.emma")


@pytest.mark.parametrize(
    ("name", "current"),
    [
        ("musicgen_train.training.ema.EMA", "musicgen_train.training.weights.ema.EMA"),
        ("musicgen_train.training.ema", "musicgen_train.training.weights.ema"),
        ("musicgen_train.training.emails.EMA", "musicgen_train.training.emails.EMA"),
        ("mine.training.ema.EMA", "mine.training.ema.EMA"),
        ("torch.optim.AdamW", "torch.optim.AdamW"),
        ("None", "None"),
    ],
)
def test_the_current_name_of_a_target(name: str, current: str) -> None:
    assert current_name(name) == current

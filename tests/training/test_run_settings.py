"""The config of a run is read once: what is in force is recorded, and no object of Hydra's goes further."""

from __future__ import annotations

import ast
import copy
from pathlib import Path

import lightning
import pytest
import torch
import yaml
from hydra.errors import InstantiationException
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_run import compose

from musicgen_train import training
from musicgen_train.training.settings import read_settings
from musicgen_train.training.weights.sharding import FullySharded

GIVEN = ["data.path=LATENTS", "init_from=MODEL", "output=RUN"]


def test_what_is_recorded_is_what_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = compose("train", *GIVEN, "trainer.max_steps=1e3", "callbacks.best=null")
    before = copy.deepcopy(given)
    settings = read_settings(given)
    assert given == before
    recorded = yaml.safe_load(settings.recorded_config)
    assert recorded["trainer"]["max_steps"] == settings.max_steps == 1000
    assert recorded["trainer"]["precision"] == settings.precision == "32-true"
    assert recorded["callbacks"]["last"]["dirpath"] == "RUN/checkpoints"
    assert set(settings.callbacks) == {"progress", "last"}
    assert (settings.loggers, settings.world_size, settings.shards_weights) == ([], 1, False)


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["trainer=cpu"], 1),
        (["trainer=cpu", "trainer.devices=3", "trainer.num_nodes=2"], 6),
        (["trainer=ddp"], 8),
        (["trainer=ddp", "trainer.devices=-1", "trainer.num_nodes=2"], 16),
        (["trainer=ddp", "trainer.devices=[0,3]"], 2),
        (["trainer=cpu", "trainer.devices=auto"], 1),
    ],
)
def test_devices_are_counted_over_all_nodes(monkeypatch: pytest.MonkeyPatch, overrides: list[str], count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert read_settings(compose("train", *GIVEN, "trainer.max_steps=1", *overrides)).world_size == count


def test_a_strategy_that_shards_is_known_by_its_class() -> None:
    settings = read_settings(compose("train", *GIVEN, "trainer.max_steps=1", "trainer=fsdp"))
    assert settings.shards_weights
    assert isinstance(settings.make_trainer.keywords["strategy"], FullySharded)


def test_arguments_of_the_trainer_reach_it_and_those_of_the_run_win() -> None:
    config = compose("train", *GIVEN, "trainer=cpu", "trainer.max_steps=3", "+trainer.limit_val_batches=7")
    settings = read_settings(config)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = settings.make_trainer(**quiet, enable_model_summary=False)
    assert isinstance(trainer, lightning.Trainer)
    assert (trainer.max_steps, trainer.limit_val_batches, trainer.gradient_clip_val) == (3, 7, 1.0)
    assert settings.make_trainer(**quiet, limit_val_batches=0).limit_val_batches == 0


def test_callbacks_are_made_with_their_settings() -> None:
    best = read_settings(compose("train", *GIVEN, "trainer.max_steps=1", "callbacks.best.monitor=val/loss_own"))
    callback = best.callbacks["best"]
    assert isinstance(callback, ModelCheckpoint)
    assert callback.monitor == "val/loss_own"
    with pytest.raises(InstantiationException, match="EMA"):
        read_settings(compose("train", *GIVEN, "trainer.max_steps=1", "callbacks=ema", "callbacks.ema.decay=2"))


def test_hydra_stops_at_the_settings() -> None:
    folder = Path(str(training.__file__)).parent
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [module or ""]
            if any(name.partition(".")[0] in ("hydra", "omegaconf") for name in names):
                found.add(path.name)
    # The config that a run is started with is the one argument of `run`.
    assert found == {"settings.py", "run.py"}

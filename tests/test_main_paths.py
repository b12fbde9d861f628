"""The files that a training step and a generated frame pass through are those that `docs/architecture.md` lists."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from tiny_latents import write_composite, write_latents
from tiny_run import TRAIN, VALIDATION, compose

import musicgen_train
from musicgen_train import MusicgenForConditionalGeneration
from musicgen_train.models.generation import loop
from musicgen_train.training import run as stage

PACKAGE = Path(musicgen_train.__file__).parent
TEXT = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")


def documented(title: str) -> tuple[list[str], set[str]]:
    """The files of a numbered list in the document, and those that the paragraph after it names."""
    section = TEXT.partition(f"## {title}\n")[2].partition("\n## ")[0]
    entries = re.findall(r"^\d+\. (.*)$", section, re.M)
    assert len(entries) <= 7
    called = section.partition("They call on")[2]
    room = "training/step/" if title == "One training step" else ""
    names = {name if "/" in name else room + name for name in re.findall(r"`([\w/]+\.py)`", called)}
    return [name for entry in entries for name in re.findall(r"`([\w/]+\.py)`", entry)], names


class Traced:
    """Notes which files of the package are called, in the order of their first call."""

    def __init__(self) -> None:
        self.files: list[str] = []

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            name = path.relative_to(PACKAGE).as_posix()
            if name not in self.files:
                self.files.append(name)


@pytest.fixture(scope="module")
def composite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_composite(tmp_path_factory.mktemp("model") / "composite")


def test_a_training_step(composite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = Traced()

    class Tracer(lightning.Callback):
        """Traces one step in the middle of a run."""

        def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                sys.setprofile(traced)

        def on_train_batch_end(self, *_: Any) -> None:
            sys.setprofile(None)

    make_trainer = stage.make_trainer

    def with_tracer(*arguments: Any) -> lightning.Trainer:
        trainer = make_trainer(*arguments)
        trainer.callbacks.append(Tracer())  # type: ignore[attr-defined]
        return trainer

    monkeypatch.setattr(stage, "make_trainer", with_tracer)
    latents = write_latents(tmp_path / "latents", composite, TRAIN, VALIDATION)
    settings = [
        *("experiment=debug", "trainer=cpu", "trainer.max_steps=4", "trainer.log_every_n_steps=100", "samples.every=0"),
        *("data.global_batch_size=2", "data.micro_batch_size=2", "data.workers=0", "validate_every=4"),
    ]
    stage.run(
        compose("train", f"data.path={latents}", f"init_from={composite}", f"output={tmp_path / 'run'}", *settings)
    )

    path, called = documented("One training step")
    # Callbacks note what the step was; they are no part of it.
    found = [name for name in traced.files if not name.startswith("training/logs/")]
    assert [name for name in found if name in path] == path
    assert set(found) <= {*path, *called}


@pytest.mark.parametrize("ways", ["as the machine can", "by the forward pass"])
def test_a_generated_frame(composite: Path, ways: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if ways == "by the forward pass":
        monkeypatch.setattr(loop, "step_maker", lambda *arguments, **options: None)
    decoder = MusicgenForConditionalGeneration.from_pretrained(composite).decoder
    states = torch.randn(1, 4, decoder.config.hidden_size)
    traced, seen = Traced(), SimpleNamespace(frames=0)

    def between(action: Callable[[], None], number: int) -> None:
        if seen.frames == number:
            action()

    def stream(codes: torch.Tensor) -> None:
        seen.frames += 1
        between(lambda: sys.setprofile(traced), 5)
        between(lambda: sys.setprofile(None), 6)

    decoder.generate(
        encoder_hidden_states=states, max_new_tokens=20, guidance_scale=3.0, do_sample=True, streamer=stream
    )
    path, called = documented("One generated frame")
    assert {"models/generation/loop.py", "models/generation/sampling.py"} <= set(traced.files)
    assert set(traced.files) <= {*path, *called}

"""The provenance of a run: code, machine, data, seeds, and every time it was started."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.utilities.rank_zero import rank_zero_only

from musicgen_train.data.datamodule import LatentDataModule
from musicgen_train.files import read_json, write_atomically
from musicgen_train.provenance.record import now, record, write_patch
from musicgen_train.training.run_folder import PROVENANCE_NAME


def provenance(
    data: LatentDataModule, *, init_from: str, base: dict[str, Any], encoders: str, seed: int
) -> dict[str, Any]:
    """Everything beside the config that decides a run's numbers, as plain values for a JSON file.

    Args:
        data: the data that the run trains on.
        init_from: see `load_start`.
        base: see `describe_base`.
        encoders: where the frozen encoders came from.
        seed: that of the run.
    """
    return {
        **record(),
        "seed": seed,
        "init_from": init_from,
        "base": base,
        "encoders": encoders,
        "latents": latents_record(data),
    }


def latents_record(data: LatentDataModule) -> list[dict[str, Any]]:
    """Path, share of the clips, fingerprint and encoders of each dataset."""
    return [
        {
            "path": part.path,
            "share": share,
            "fingerprint": dataset.fingerprint(),
            "created": dataset.manifest.created,
            "text_encoder": dataclasses.asdict(dataset.manifest.text_encoder),
            "audio_encoder": dataclasses.asdict(dataset.manifest.audio_encoder),
            "splits": {name: dataclasses.asdict(split) for name, split in dataset.manifest.splits.items()},
        }
        for part, share, dataset in zip(data.settings.parts, data.shares, data.train_clips.datasets, strict=True)
    ]


# These may differ each time a run is resumed, so they are kept for each start; the rest holds for the whole run.
_START_KEYS = ("command", "started", "git", "versions", "machine")


def write_provenance(run: Path, found: dict[str, Any]) -> None:
    """Write `provenance.json`, with an entry for this start under `starts`, after those of earlier ones.

    A run may be resumed with other code, or on another machine.
    """
    before: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError, ValueError):
        before = read_json(run / PROVENANCE_NAME).get("starts", [])
    _write(run, {**found, "starts": [*before, {name: found[name] for name in _START_KEYS}]})
    write_patch(run)


class StartRecord(lightning.Callback):
    """Writes into `provenance.json` from which step to which this start of the run went, and how it ended.

    If the process is killed, the end is missing, and `step` is that of the last checkpoint.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self._run = run

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._note(
            from_step=trainer.global_step,
            devices=trainer.world_size,
            precision=str(trainer.precision),
            global_batch_size=trainer.datamodule.settings.global_batch_size,  # type: ignore[attr-defined]
        )

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        outcome = "finished" if trainer.global_step >= trainer.max_steps else "stopped early"
        self._note(step=trainer.global_step, ended=now(), outcome=outcome)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._note(step=trainer.global_step)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        reason = " ".join(str(exception).split())
        self._note(step=trainer.global_step, ended=now(), outcome=f"{type(exception).__name__}: {reason}")

    @rank_zero_only
    def _note(self, **values: Any) -> None:
        # It must not end the run if the folder is gone, or the disk full.
        with contextlib.suppress(OSError, ValueError):
            content = read_json(self._run / PROVENANCE_NAME)
            content["starts"][-1] |= values
            _write(self._run, content)


def describe_amounts(latents: Iterable[dict[str, Any]]) -> str:
    """The amount of music in the datasets, in words."""
    described = []
    for dataset in latents:
        amounts = ", ".join(
            f"{name} {split['clips']} clips of {split['tracks']} tracks ({split['hours']:.2f} h)"
            for name, split in dataset["splits"].items()
        )
        share = "" if dataset["share"] == 1 else f"{dataset['share']:.1%} from {Path(dataset['path']).name}: "
        described.append(f"{share}{amounts}")
    return "; ".join(described)


def is_hub_id(name: str) -> bool:
    """Returns True if a model's name is that of a repository of the hub, which a model card may link to."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()


def _write(run: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    write_atomically(run / PROVENANCE_NAME, text + "\n")

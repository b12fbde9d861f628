"""Modules found under the names they had in version 0.1, for one version: in users' configs and in their Python.

This file goes with version 0.3; nothing in the package uses an old name.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

MOVED = {
    "convert.folders": "convert.conversion",
    "convert.stereo": "training.weights.stereo",
    "demo.captions": "demo.descriptions",
    "demo.encoders": "demo.small_model",
    "demo.reading": "demo.caption_reading",
    "evaluation.assemble": "evaluation.model",
    "evaluation.curves": "evaluation.report.curves",
    "evaluation.control_listening": "evaluation.control.listening",
    "evaluation.control_set": "evaluation.control.pieces",
    "evaluation.embedders": "metrics.embedders",
    "evaluation.frechet": "metrics.frechet",
    "evaluation.metrics": "evaluation.tables",
    "evaluation.progress": "progress",
    "evaluation.sampling": "evaluation.generating",
    "evaluation.signal_statistics": "metrics.signal_statistics",
    "evaluation.split": "evaluation.split_clips",
    "latents.fingerprint": "models.fingerprint",
    "models.activations": "models.layers",
    "models.attention": "models.layers",
    "models.autocast": "models.products",
    "models.convolutions": "models.codec.convolutions",
    "models.decode_step": "models.generation.steps",
    "models.encodec": "models.codec.encodec",
    "models.graphed_step": "models.generation.cuda_graph",
    "models.initialization": "training.weights.initialization",
    "models.norms": "models.layers",
    "models.positions": "models.layers",
    "models.sampling": "models.generation.sampling",
    "models.segments": "models.codec.segments",
    "models.step_maker": "models.generation.steps",
    "preprocess.assemble": "preprocess.dataset.assembly",
    "preprocess.captions": "preprocess.sources.captions",
    "preprocess.clips": "preprocess.encoding.clips",
    "preprocess.encode": "preprocess.encoding.pipeline",
    "preprocess.encoders": "preprocess.encoding.encoders",
    "preprocess.hugging_face": "preprocess.sources.hugging_face",
    "preprocess.listing": "preprocess.sources.listing",
    "preprocess.processes": "preprocess.encoding.processes",
    "preprocess.progress": "progress",
    "preprocess.ranks": "preprocess.work.ranks",
    "preprocess.results": "preprocess.work.results",
    "preprocess.shards": "preprocess.work.shards",
    "preprocess.splits": "preprocess.dataset.splits",
    "preprocess.start": "preprocess.entry",
    "preprocess.tracks": "preprocess.sources.tracks",
    "processing.batch": "processing.model_inputs",
    "provenance.cores": "devices",
    "training.adapted": "training.weights.merged",
    "training.adapter_files": "training.weights.adapter_files",
    "training.adapters": "training.weights.adapters",
    "training.checkpoint_files": "training.checkpoints.reading",
    "training.checkpoint_io": "training.checkpoints.writing",
    "training.console": "training.logs.console",
    "training.ema": "training.weights.ema",
    "training.fine_tuning": "training.weights.trainable",
    "training.freezing": "training.weights.freezing",
    "training.health": "training.step.health",
    "training.last_checkpoint": "training.checkpoints.last_checkpoint",
    "training.loggers": "training.logs.loggers",
    "training.metrics_file": "training.logs.metrics_file",
    "training.model_source": "training.weights.model_source",
    "training.optimizers": "training.step.optimizers",
    "training.precision": "training.settings",
    "training.progress_bar": "training.logs.progress_bar",
    "training.provenance": "training.logs.origin",
    "training.resume_checks": "training.checkpoints.resume_checks",
    "training.schedule": "training.step.schedule",
    "training.scores": "training.step.scores",
    "training.sharding": "training.weights.sharding",
    "training.speed": "training.logs.speed",
    "training.start": "training.weights.starting",
    "training.stop_signals": "training.checkpoints.stop_signals",
    "training.wandb_account": "training.logs.wandb_account",
}


class MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a moved module under its old name, with a line that says the new one."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, old = name.partition(".")
        return importlib.util.spec_from_loader(name, self) if package == __package__ and old in MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """Leave it to Python to make an empty one, which `exec_module` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new = f"{__package__}.{MOVED[old.partition('.')[2]]}"
        warnings.warn(f"{old} is now {new}; the old name goes with version 0.3", FutureWarning, stacklevel=2)
        sys.modules[old] = importlib.import_module(new)


def current_name(name: str) -> str:
    """Translate the name of a module, or of something in it, from version 0.1; any other name is returned as it is."""
    package, _, rest = name.partition(".")
    old = max((old for old in MOVED if f"{rest}.".startswith(f"{old}.")), key=len, default=None)
    return name if package != __package__ or old is None else f"{package}.{MOVED[old]}{rest.removeprefix(old)}"

"""The content of `results.json`."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from musicgen_train.data.latent_dataset import LatentDataset
from musicgen_train.evaluation.control.scoring import ControlClip
from musicgen_train.evaluation.inputs import Inputs
from musicgen_train.evaluation.model import EvaluatedModel
from musicgen_train.evaluation.output import PROGRAM
from musicgen_train.evaluation.records import MetricTable, SampleRecord, json_value
from musicgen_train.evaluation.settings import EvaluationSettings
from musicgen_train.provenance.machine import versions
from musicgen_train.provenance.record import command, now


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """The samples of an evaluation, and what they took."""

    samples: list[SampleRecord]
    seconds: float = 0.0
    """Time that generating and writing them took."""
    audio_seconds: float = 0.0
    """Length of the audio that was generated, without the audio that it continues."""


def results_of(
    settings: EvaluationSettings,
    inputs: Inputs,
    sampled: Sampled,
    control: Sequence[ControlClip],
    tables: Sequence[MetricTable],
    seconds: float,
) -> dict[str, Any]:
    """Gather what was evaluated, how, and with which results, ready for JSON.

    Args:
        settings: the evaluation's.
        inputs: the model and the data.
        sampled: the samples.
        control: the clips of the control test.
        tables: the measurements.
        seconds: time that the whole evaluation took.
    """
    sampling, model = inputs.sampling, inputs.evaluated.model
    return json_value(
        {
            "program": PROGRAM,
            "format_version": 1,
            "created": now(),
            "command": command(),
            "config": settings,
            "versions": versions(),
            "device": _device_name(model.device),
            "model": {"given": settings.model, **_model_facts(inputs.evaluated)},
            "data": None if inputs.dataset is None else _data_facts(inputs.dataset, settings.data.path),
            "seed": settings.seed,
            "sampling": {
                **sampling.generation_config(model.generation_config, sampling.guidance_scales[0]).to_dict(),
                "guidance_scale": sampling.guidance_scales,
                "batch_size": sampling.batch_size,
                "audio_seconds": sampled.audio_seconds,
                "seconds": sampled.seconds,
                # Seconds of computing per second of audio: below 1 is faster than playing.
                "real_time_factor": sampled.seconds / sampled.audio_seconds if sampled.audio_seconds else None,
            },
            "samples": sampled.samples,
            "control": control,
            "metrics": {table.key: table.as_json() for table in tables},
            "warnings": [
                f"{sample.audio.file}: {warning}" for sample in sampled.samples for warning in sample.audio.warnings
            ],
            "seconds": seconds,
        }
    )


def _model_facts(evaluated: EvaluatedModel) -> dict[str, Any]:
    source, model = evaluated.source, evaluated.model
    return {
        "composite": source.folder,
        "text_encoder": evaluated.text_source,
        "checkpoint": None if source.checkpoint is None else str(source.checkpoint),
        "adapter": None if source.adapter is None else str(source.adapter),
        "run": None if source.run is None else str(source.run),
        "decoder_parameters": model.decoder.num_parameters(),
        "text_encoder_fingerprint": evaluated.text_encoder,
        "audio_encoder_fingerprint": evaluated.audio_encoder,
        "sampling_rate": evaluated.sampling_rate,
        "frame_rate": evaluated.frame_rate,
        "codebooks": model.config.decoder.num_codebooks,
        "codebook_size": model.config.decoder.vocab_size,
    }


def _data_facts(dataset: LatentDataset, path: str | None) -> dict[str, Any]:
    return {
        "path": path,
        "split": dataset.split,
        "clips": len(dataset),
        "created": dataset.manifest.created,
        "text_encoder": dataset.manifest.text_encoder,
        "audio_encoder": dataset.manifest.audio_encoder,
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"

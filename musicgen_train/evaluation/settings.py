"""The settings of an evaluation: the typed form of `configs/evaluate.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch

from musicgen_train.typed_settings import from_plain

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_GENERATION_OPTIONS = ("do_sample", "temperature", "top_k", "top_p", "extend_stride")


@dataclass(frozen=True, kw_only=True)
class EvaluatedData:
    """The latent dataset, and which of its clips are generated."""

    path: str | None
    split: str | None
    rows: int

    def __post_init__(self) -> None:
        _require_least("data.rows", self.rows, 0)


@dataclass(frozen=True, kw_only=True)
class ContinuationSettings:
    """Which audio is continued."""

    audio: list[str] | None
    rows: int
    seconds: float
    text: str | None

    def __post_init__(self) -> None:
        _require_least("continuation.rows", self.rows, 0)
        _require_seconds("continuation.seconds", self.seconds)


@dataclass(frozen=True, kw_only=True)
class MetricsSettings:
    """Which metrics are computed, and on how many clips."""

    cross_entropy: bool
    max_clips: int | None
    batch_size: int
    frechet: bool
    embedder: str
    reference_audio: str | None
    reference_clips: int

    def __post_init__(self) -> None:
        if self.max_clips is not None:
            _require_least("metrics.max_clips", self.max_clips, 1)
        _require_least("metrics.batch_size", self.batch_size, 1)
        _require_least("metrics.reference_clips", self.reference_clips, 2)


@dataclass(frozen=True, kw_only=True)
class ControlSettings:
    """The control test: whether music does what its caption says."""

    clips: int
    listener: str
    """`module:Class`; see `control/listener.py`."""
    source: Literal["demo", "dataset"]
    seed: int
    guidance_scale: list[float] | None
    """None for those of the other samples."""

    def __post_init__(self) -> None:
        _require_least("control.clips", self.clips, 0)
        if self.clips == 1:
            raise ValueError(
                "control.clips is 1; it must be 0, or 2 or more, since captions are exchanged between clips"
            )


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """The page."""

    embed_megabytes: float


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The settings of `configs/evaluate.yaml`, which says what each means, checked."""

    model: str
    output: str
    overwrite: bool
    prompts: str | None
    unconditional: int
    data: EvaluatedData
    continuation: ContinuationSettings
    duration: float
    max_new_tokens: int | None
    guidance_scale: list[float] | None
    """None for the model's own."""
    samples_per_prompt: int
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    extend_stride: int | None
    seed: int
    batch_size: int
    device: str
    dtype: Literal["float32", "bfloat16", "float16"]
    audio_format: Literal["wav", "flac"]
    loudness: float | None
    metrics: MetricsSettings
    control: ControlSettings
    report: ReportSettings

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The settings of a resolved configuration; a single value is a list of one.

        Raises:
            ValueError: a key that does not exist, a value that is not allowed, or nothing to do.
        """
        return from_plain(cls, values, wrap_single=True)

    def __post_init__(self) -> None:
        _require_least("unconditional", self.unconditional, 0)
        _require_seconds("duration", self.duration)
        if self.control.clips and self.control.source == "dataset" and self.data.path is None:
            raise ValueError("control.source=dataset takes captions of a dataset; give data.path too")
        if self.data.path is None and self.continuation.rows:
            raise ValueError("continuation.rows are rows of a dataset; give data.path too")
        if not (self.prompts or self.unconditional or self.data.path or self.continuation.audio or self.control.clips):
            raise ValueError(
                "there is nothing to do: give prompts=FILE, data.path=LATENTS, unconditional=N, "
                "continuation.audio=FILE, or control.clips=N"
            )

    @property
    def generation_options(self) -> dict[str, Any]:
        """The sampling settings that are given; for the others the model's generation config holds."""
        given = {name: getattr(self, name) for name in _GENERATION_OPTIONS}
        return {name: value for name, value in given.items() if value is not None}

    def torch_dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return _DTYPES[self.dtype]


def _require_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}; it must be {least} or more")


def _require_seconds(name: str, value: float) -> None:
    if value <= 0:
        raise ValueError(f"{name} is {value}; it must be above 0 seconds")

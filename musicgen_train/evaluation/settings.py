"""What an evaluation is asked to do: the typed form of `configs/evaluate.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

_FORMATS = ("wav", "flac")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CONTROL_SOURCES = ("demo", "dataset")
_GENERATION_OPTIONS = ("do_sample", "temperature", "top_k", "top_p", "extend_stride")


@dataclass(kw_only=True)
class EvaluationSettings:
    """As the config has it, checked; see there for what each means."""

    model: str
    output: str
    prompts: str | None
    unconditional: int
    data_path: str | None
    data_split: str | None
    data_rows: int
    continuation_audio: list[str]
    continuation_rows: int
    continuation_seconds: float
    continuation_text: str
    duration: float
    max_new_tokens: int | None
    guidance_scale: list[float]
    """Empty for the model's own."""
    samples_per_prompt: int
    generation_options: dict[str, Any]
    """Those that are given; the others are the model's own."""
    seed: int
    batch_size: int
    device: str
    dtype: str
    audio_format: str
    loudness: float | None
    cross_entropy: bool
    max_clips: int | None
    metrics_batch_size: int
    frechet: bool
    embedder: str
    reference_audio: str | None
    reference_clips: int
    control_clips: int
    control_source: str
    control_seed: int
    control_guidance_scale: list[float]
    """Empty for `guidance_scale`."""
    embed_megabytes: float
    overwrite: bool

    @classmethod
    def from_config(cls, config: DictConfig) -> Self:
        """The settings of a composed config.

        Raises:
            ValueError: a value that is not allowed, or nothing to do.
        """
        given = _Reader(config)
        return cls(
            model=given.text("model"),
            output=given.text("output"),
            prompts=given.text_or_none("prompts"),
            unconditional=given.whole("unconditional"),
            data_path=given.text_or_none("data.path"),
            data_split=given.text_or_none("data.split"),
            data_rows=given.whole("data.rows"),
            continuation_audio=[str(name) for name in given.listed("continuation.audio")],
            continuation_rows=given.whole("continuation.rows"),
            continuation_seconds=given.number("continuation.seconds"),
            continuation_text=given.text_or_none("continuation.text") or "",
            duration=given.number("duration"),
            max_new_tokens=given.whole_or_none("max_new_tokens"),
            guidance_scale=[given.as_number("guidance_scale", scale) for scale in given.listed("guidance_scale")],
            samples_per_prompt=given.whole("samples_per_prompt"),
            generation_options={name: config[name] for name in _GENERATION_OPTIONS if config[name] is not None},
            seed=given.whole("seed"),
            batch_size=given.whole("batch_size"),
            device=given.text("device"),
            dtype=given.text("dtype"),
            audio_format=given.text("audio_format"),
            loudness=given.number_or_none("loudness"),
            cross_entropy=given.yes_or_no("metrics.cross_entropy"),
            max_clips=given.whole_or_none("metrics.max_clips"),
            metrics_batch_size=given.whole("metrics.batch_size"),
            frechet=given.yes_or_no("metrics.frechet"),
            embedder=given.text("metrics.embedder"),
            reference_audio=given.text_or_none("metrics.reference_audio"),
            reference_clips=given.whole("metrics.reference_clips"),
            control_clips=given.whole("control.clips"),
            control_source=given.text("control.source"),
            control_seed=given.whole("control.seed"),
            control_guidance_scale=[
                given.as_number("control.guidance_scale", scale) for scale in given.listed("control.guidance_scale")
            ],
            embed_megabytes=given.number("report.embed_megabytes"),
            overwrite=given.yes_or_no("overwrite"),
        )

    def __post_init__(self) -> None:
        for name, value, least in (
            ("unconditional", self.unconditional, 0),
            ("data.rows", self.data_rows, 0),
            ("continuation.rows", self.continuation_rows, 0),
            ("metrics.batch_size", self.metrics_batch_size, 1),
            ("metrics.max_clips", 1 if self.max_clips is None else self.max_clips, 1),
            ("metrics.reference_clips", self.reference_clips, 2),
            ("control.clips", self.control_clips, 0),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be {least} or more")
        for name, seconds in (("duration", self.duration), ("continuation.seconds", self.continuation_seconds)):
            if seconds <= 0:
                raise ValueError(f"{name} is {seconds}; it must be above 0 seconds")
        if self.audio_format not in _FORMATS:
            raise ValueError(f"audio_format is {self.audio_format!r}; allowed are {', '.join(_FORMATS)}")
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; allowed are {', '.join(_DTYPES)}")
        if self.control_clips == 1:
            raise ValueError(
                "control.clips is 1; it must be 0, or 2 or more, since captions are exchanged between clips"
            )
        if self.control_source not in _CONTROL_SOURCES:
            raise ValueError(f"control.source is {self.control_source!r}; allowed are {', '.join(_CONTROL_SOURCES)}")
        if self.control_clips and self.control_source == "dataset" and self.data_path is None:
            raise ValueError("control.source=dataset takes captions of a dataset; give data.path too")
        if self.data_path is None and self.continuation_rows:
            raise ValueError("continuation.rows are rows of a dataset; give data.path too")
        if not (self.prompts or self.unconditional or self.data_path or self.continuation_audio or self.control_clips):
            raise ValueError(
                "there is nothing to do: give prompts=FILE, data.path=LATENTS, unconditional=N, "
                "continuation.audio=FILE, or control.clips=N"
            )

    def torch_device(self) -> torch.device:
        """The device that is asked for; `auto` is the best there is.

        Raises:
            ValueError: there is no such device here.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(f"device is {self.device!r}; allowed are auto, cpu, cuda, cuda:N, mps") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is {self.device!r}, but this machine has no CUDA device that torch can use")
        return device

    def torch_dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return _DTYPES[self.dtype]


class _Reader:
    """Values of a config by their dotted keys, each of the type that it has to be of."""

    def __init__(self, config: DictConfig) -> None:
        self._config = config

    def text(self, key: str) -> str:
        return str(self._value(key))

    def text_or_none(self, key: str) -> str | None:
        value = self._value(key)
        return None if value is None else str(value)

    def whole(self, key: str) -> int:
        value = self._value(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{key} is {value!r}; it must be a whole number")
        return value

    def whole_or_none(self, key: str) -> int | None:
        return None if self._value(key) is None else self.whole(key)

    def number(self, key: str) -> float:
        return self.as_number(key, self._value(key))

    def number_or_none(self, key: str) -> float | None:
        return None if self._value(key) is None else self.number(key)

    def as_number(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{key} is {value!r}; it must be a number")
        return float(value)

    def yes_or_no(self, key: str) -> bool:
        value = self._value(key)
        if not isinstance(value, bool):
            raise ValueError(f"{key} is {value!r}; it must be true or false")
        return value

    def listed(self, key: str) -> list[Any]:
        """A list, also of a single value; empty for null."""
        value = self._value(key)
        if value is None:
            return []
        return list(value) if isinstance(value, ListConfig) else [value]

    def _value(self, key: str) -> Any:
        return OmegaConf.select(self._config, key, throw_on_missing=True)

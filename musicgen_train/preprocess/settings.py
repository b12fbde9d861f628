"""The settings of a preprocessing run, as dataclasses.

`configs/preprocess.yaml` has the same keys and explains them. Only `run.py` reads `PreprocessSettings`: everything
below it is given the values it needs, or a section.
"""

from __future__ import annotations

import dataclasses
import json
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from musicgen_train.typed_settings import from_plain

InputFormat = Literal["auto", "folder", "audiofolder", "audiocraft", "dataset", "hub"]
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    """Which texts a track gets; see `captions.caption_variants`."""

    variants: int = 4
    fields: tuple[str, ...] = ("description", "caption", "captions", "text", "prompt")
    tag_fields: tuple[str, ...] = ("tags", "keywords", "genre", "moods", "instrument")
    tags: bool = True
    templates: tuple[str, ...] = ()
    word_dropout: float = 0.0
    seed: int = 0
    max_tokens: int = 512

    def __post_init__(self) -> None:
        _require(self.variants >= 1, "captions.variants", self.variants, "at least 1")
        _require(0 <= self.word_dropout < 1, "captions.word_dropout", self.word_dropout, "0 or more and below 1")
        _require(self.max_tokens >= 1, "captions.max_tokens", self.max_tokens, "at least 1")
        for template in self.templates:
            _check_template(template)


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """How tracks are divided; see `splits.SplitRule`."""

    validation: float = 0.05
    test: float = 0.0
    seed: int = 0
    from_source: bool = True
    group_by: str | None = None

    def __post_init__(self) -> None:
        for name, share in (("validation", self.validation), ("test", self.test)):
            _require(0 <= share < 1, f"split.{name}", share, "a share, 0 or more and below 1")
        _require(
            self.validation + self.test < 1, "split.validation + split.test", self.validation + self.test, "below 1"
        )


@dataclass(frozen=True, kw_only=True)
class HubSettings:
    """Which part of a Hugging Face dataset is read, and how."""

    config_name: str | None = None
    split: str | None = None
    revision: str | None = None
    streaming: bool = False
    audio_column: str | None = None


@dataclass(frozen=True, kw_only=True)
class PreprocessSettings:
    """All settings. Lengths are in seconds."""

    input: str
    output: str
    encoders: str | None = None
    text_encoder: str | None = None
    audio_encoder: str | None = None
    input_format: InputFormat = "auto"
    hub: HubSettings = field(default_factory=HubSettings)
    limit: int | None = None
    clip_seconds: float = 30.0
    hop_seconds: float | None = None
    min_clip_seconds: float | None = None
    audio_channels: int | None = None
    captions: CaptionSettings = field(default_factory=CaptionSettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    # The keys of `latents.format.STATES_DTYPES`, which takes seconds to import and is not needed to read settings.
    states_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    device: str = "auto"
    batch_seconds: float = 240.0
    text_batch_tokens: int = 8192
    workers: int | None = None
    shard_tracks: int = 64
    rank: int | None = None
    world_size: int | None = None
    progress_seconds: float = 10.0
    dry_run: bool = False
    stop_on_rejected: bool = False
    overwrite: bool = False
    keep_work: bool = True

    def __post_init__(self) -> None:
        _require(self.clip_seconds > 0, "clip_seconds", self.clip_seconds, "more than 0")
        _require(self.hop > 0, "hop_seconds", self.hop_seconds, "more than 0, or null for the length of a clip")
        _require(
            0 < self.shortest <= self.clip_seconds,
            "min_clip_seconds",
            self.min_clip_seconds,
            f"more than 0 and at most clip_seconds, {self.clip_seconds:g}, or null",
        )
        _require(
            self.audio_channels in (None, 1, 2),
            "audio_channels",
            self.audio_channels,
            "1 (mono), 2 (stereo) or null for what the encoders' folder says",
        )
        _require(self.batch_seconds > 0, "batch_seconds", self.batch_seconds, "more than 0")
        _require(self.text_batch_tokens >= 1, "text_batch_tokens", self.text_batch_tokens, "at least 1")
        _require(self.shard_tracks >= 1, "shard_tracks", self.shard_tracks, "at least 1")
        _require(self.limit is None or self.limit >= 1, "limit", self.limit, "at least 1, or null for no limit")
        _require(self.workers is None or self.workers >= 0, "workers", self.workers, "0 or more, or null")
        if (self.rank is None) != (self.world_size is None):
            raise ValueError(
                "rank and world_size go together: give both, or neither where torchrun or srun starts the processes"
            )
        if self.encoders is None and (self.text_encoder is None or self.audio_encoder is None):
            raise ValueError(
                "no encoders: give encoders=FOLDER (a MusicGen folder or hub id, e.g. facebook/musicgen-small), or "
                "both text_encoder= and audio_encoder="
            )

    @property
    def text_encoder_name(self) -> str:
        """The folder or hub id that holds the text encoder."""
        name = self.text_encoder or self.encoders
        assert name is not None, "checked when the settings were made"
        return name

    @property
    def audio_encoder_name(self) -> str:
        """The folder or hub id that holds the codec."""
        name = self.audio_encoder or self.encoders
        assert name is not None, "checked when the settings were made"
        return name

    @property
    def hop(self) -> float:
        """Seconds from the start of one clip to the start of the next."""
        return self.clip_seconds if self.hop_seconds is None else self.hop_seconds

    @property
    def shortest(self) -> float:
        """The least length of a clip in seconds."""
        return min(1.0, self.clip_seconds) if self.min_clip_seconds is None else self.min_clip_seconds

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PreprocessSettings:
        """Read settings from a resolved configuration. A single text is taken for a list of one.

        Raises:
            ValueError: a key does not exist, or a value is not allowed.
        """
        return from_plain(cls, values, wrap_single=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as nested dicts and lists that JSON can hold."""
        content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return content

    def decisive(self) -> dict[str, Any]:
        """Return the settings that decide the content of clips and captions, without how and where they are made."""
        left_out = {
            "input", "output", "encoders", "text_encoder", "audio_encoder", "device", "workers", "progress_seconds",
            "dry_run", "overwrite", "limit", "shard_tracks", "split", "input_format", "hub", "batch_seconds",
            "text_batch_tokens", "rank", "world_size", "stop_on_rejected", "keep_work",
        }  # fmt: skip
        return {name: value for name, value in self.to_dict().items() if name not in left_out}


def _require(fulfilled: bool, name: str, value: object, allowed: str) -> None:
    if not fulfilled:
        raise ValueError(f"{name} is {value}; allowed is {allowed}")


def _check_template(template: str) -> None:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"captions.templates: {template!r} is no template: {error}") from error
    if not names or not all(name.replace("-", "_").isidentifier() for name in names):
        raise ValueError(
            f"captions.templates: {template!r} must name metadata fields in braces, like '{{genre}} at {{bpm}} bpm'"
        )

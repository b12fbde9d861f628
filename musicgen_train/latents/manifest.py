"""Reads and writes the manifest of a latent dataset: what made it, with which encoders, and what is in it."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musicgen_train.files import read_json, write_json
from musicgen_train.latents.format import FORMAT_VERSION, MANIFEST_NAME


@dataclass(kw_only=True)
class EncoderRecord:
    """One frozen encoder."""

    name: str
    """The folder or hub id it was read from."""
    fingerprint: str
    """See `models.fingerprint.fingerprint`."""


@dataclass(kw_only=True)
class SplitRecord:
    """What a split holds."""

    clips: int
    tracks: int
    hours: float


@dataclass(kw_only=True)
class Manifest:
    """Holds everything that a reader must know besides the rows themselves."""

    text_encoder: EncoderRecord
    audio_encoder: EncoderRecord
    sampling_rate: int
    """Sampling rate of the encoded audio, in Hz."""
    frame_rate: float
    """Frames of codes per second."""
    num_codebooks: int
    """Rows of a clip's codes; stereo has those of both channels, interleaved."""
    codebook_size: int
    audio_channels: int
    text_width: int
    """Width of the stored text states."""
    states_dtype: str
    """float16, bfloat16 or float32."""
    splits: dict[str, SplitRecord]
    captions: int
    """Distinct captions."""
    counts: dict[str, int]
    """Counts of what became of the input: files, rejected, too_short, silent, missing_caption and so on."""
    settings: dict[str, Any]
    """The resolved configuration of the preprocessing run."""
    command: str
    versions: dict[str, str]
    created: str
    """UTC, ISO 8601."""
    format_version: int = field(default=FORMAT_VERSION)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `manifest.json` into a folder that exists."""
        write_json(Path(folder) / MANIFEST_NAME, dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Manifest:
        """Read the manifest of a latent dataset.

        Raises:
            FileNotFoundError: the folder does not exist or is no latent dataset.
            ValueError: its format is newer than this version reads, or the file is damaged.
        """
        path = Path(folder) / MANIFEST_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} is no latent dataset: it has no {MANIFEST_NAME}. Make one with scripts/preprocess.py"
            )
        values = read_json(path)
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"{path}: format version {version}; this version reads {FORMAT_VERSION}. Preprocess again")
        try:
            values["text_encoder"] = EncoderRecord(**values["text_encoder"])
            values["audio_encoder"] = EncoderRecord(**values["audio_encoder"])
            values["splits"] = {name: SplitRecord(**split) for name, split in values["splits"].items()}
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error

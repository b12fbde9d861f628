"""Embedders, which turn audio into vectors for the Frechet audio distance.

One embedder is built in and needs no download. Others, such as VGGish, CLAP or PaSST, are classes of yours that have
the four attributes of `Embedder`, named in the config as `module:Class`. Distances of different embedders, or of
different versions of one, say nothing about each other: name and version are part of the metric's key.

Axes: C channels, S samples, N windows, D width, M mel bands, F spectrogram frames.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Protocol, cast

import torch
from torchaudio.functional import create_dct

from musicgen_train.audio.io import resample
from musicgen_train.audio.mel import log_mel, mel_settings


class Embedder(Protocol):
    """Embeds windows of audio."""

    name: str
    """The method, with its checkpoint where it has one."""
    version: str
    """Changes whenever the same audio gives other embeddings."""
    sampling_rate: int
    """The rate of the audio that `embed` takes, in Hz; the caller resamples."""

    def embed(self, audio_CS: torch.Tensor) -> torch.Tensor:
        """Embeddings `(windows, width)` of one clip `(channels, samples)`; any number of windows, also none."""
        ...


class LogMelStatistics:
    """Level, spread and movement of the mel cepstrum in windows of one second: three times 20 numbers a window.

    Nothing in it is learned. It tells music from noise and silence, bright from dark and busy from calm, but not good
    music from bad. Its distances compare models on the same reference; published figures are of other embedders.
    """

    name = "log-mel-statistics"
    version = "1"
    sampling_rate = 16_000

    _WINDOW_SECONDS = 1.0
    _HOP_SECONDS = 0.5
    _BANDS = 64
    _COEFFICIENTS = 20
    _FLOOR_DB = -80.0

    def embed(self, audio_CS: torch.Tensor) -> torch.Tensor:
        """Mean, standard deviation and mean absolute step of each cepstral coefficient, float32 `(windows, 60)`.

        Channels are mixed. Windows overlap by half. A clip shorter than a window is one window; what is left at the end
        and fills none is left out.
        """
        mono = audio_CS.float().mean(dim=0, keepdim=True)
        decibels_MF = log_mel(mono, self.sampling_rate, bands=self._BANDS)[0].clamp(min=self._FLOOR_DB)
        transform_MK = create_dct(self._COEFFICIENTS, self._BANDS, norm="ortho")
        # In units of 10 dB, so that no coefficient's variance is in the thousands.
        cepstrum_KF = (decibels_MF / 10).T.matmul(transform_MK).T
        per_second = self.sampling_rate / mel_settings(self.sampling_rate).hop
        length = min(round(self._WINDOW_SECONDS * per_second), cepstrum_KF.shape[1])
        windows_KNF = cepstrum_KF.unfold(1, length, max(1, round(self._HOP_SECONDS * per_second)))
        step = windows_KNF.diff(dim=2).abs().mean(dim=2) if length > 1 else torch.zeros_like(windows_KNF[..., 0])
        statistics = [windows_KNF.mean(dim=2), windows_KNF.std(dim=2, correction=0), step]
        return torch.cat(statistics).T.contiguous()


def metric_key(embedder: Embedder) -> str:
    """The name under which a distance of this embedder is reported."""
    return f"frechet_audio_distance/{embedder.name}-v{embedder.version}"


def load_embedder(name: str) -> Embedder:
    """The built-in embedder by its name, or one of yours as `module:Class`, made without arguments.

    Raises:
        ValueError: no such embedder, or it lacks what `Embedder` asks for.
    """
    if name == LogMelStatistics.name:
        return LogMelStatistics()
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"there is no embedder {name!r}; give {LogMelStatistics.name!r} or module:Class of your own")
    try:
        made = cast(Callable[[], Embedder], getattr(importlib.import_module(module_name), attribute))()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the embedder {name!r} cannot be loaded: {error}") from error
    missing = [field for field in ("name", "version", "sampling_rate", "embed") if not hasattr(made, field)]
    if missing:
        raise ValueError(f"{name} is no embedder: it has no {', '.join(missing)}")
    return made


def embed_clips(embedder: Embedder, clips: list[torch.Tensor], sampling_rate: int) -> torch.Tensor:
    """Embeddings of many clips together, `(windows, width)`.

    Args:
        embedder: what to embed with.
        clips: each `(channels, samples)` at `sampling_rate`.
        sampling_rate: of the clips, in Hz.

    Raises:
        ValueError: there are no clips, or the embedder returns something else than windows.
    """
    if not clips:
        raise ValueError("there are no clips to embed")
    parts = []
    for clip in clips:
        part = embedder.embed(resample(clip.detach().cpu().float(), sampling_rate, embedder.sampling_rate))
        if part.dim() != 2:
            raise ValueError(f"the embedder {embedder.name} gave {list(part.shape)}; expected (windows, width)")
        parts.append(part)
    return torch.cat(parts)

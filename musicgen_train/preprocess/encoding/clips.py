"""Tracks to clips: decoding in worker processes, and where each clip begins and ends.

Axes: C channels, S samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from musicgen_train.audio.io import AudioError, read_audio
from musicgen_train.preprocess.encoding.processes import end_with_parent, process_context
from musicgen_train.preprocess.sources.tracks import Track


@dataclass(frozen=True, kw_only=True)
class ClipCutter:
    """How tracks are decoded and cut; lengths in samples of `sampling_rate`."""

    sampling_rate: int
    channels: int
    length: int
    hop: int
    shortest: int

    def spans(self, samples: int) -> list[tuple[int, int]]:
        """Start and end of each clip of a track.

        Clips start every `hop` samples, up to the one that reaches the track's end. That one may be shorter than
        `length`, and is left out if it is shorter than `shortest`.
        """
        spans = []
        for start in range(0, samples, self.hop):
            end = min(start + self.length, samples)
            if end - start >= self.shortest:
                spans.append((start, end))
            if end == samples:
                break
        return spans


@dataclass(kw_only=True)
class CutTrack:
    """A decoded track."""

    track: Track
    """Without its encoded audio."""
    clips: list[np.ndarray[Any, Any]] = field(default_factory=list)
    """float32 `(channels, samples)`."""
    starts: list[int] = field(default_factory=list)
    """First sample of each clip."""
    samples: int = 0
    """Of the whole track, at the cutter's rate."""
    tail_dropped: bool = False
    """Whether sound at the end was too short for a clip of its own."""
    problem: str | None = None
    """Why the track cannot be used."""
    is_gone: bool = False
    """Whether there is no file of its name, which there was when it was listed."""


class TrackDecoder(Dataset[CutTrack]):
    """Decodes and cuts tracks; what runs in the workers. It is asked for tracks, not for numbers."""

    def __init__(self, cutter: ClipCutter) -> None:
        self._cutter = cutter

    def __getitem__(self, track: Any) -> CutTrack:
        result = self._cut(track)
        result.is_gone = result.problem is not None and isinstance(track.audio, Path) and not track.audio.exists()
        return result

    def _cut(self, track: Track) -> CutTrack:
        cutter = self._cutter
        result = CutTrack(track=without_audio(track), problem=track.problem)
        if result.problem is not None:
            return result
        try:
            audio_CS, _ = read_audio(track.audio, sampling_rate=cutter.sampling_rate, channels=cutter.channels)
        except AudioError as error:
            result.problem = str(error)
            return result
        except Exception as error:
            # Whatever a file does to a decoder, as running out of memory, the others go on without it.
            result.problem = f"decoding failed: {type(error).__name__}: {' '.join(str(error).split())}"
            return result
        result.samples = audio_CS.shape[-1]
        spans = cutter.spans(result.samples)
        result.starts = [start for start, _ in spans]
        result.tail_dropped = bool(spans) and spans[-1][1] < result.samples and cutter.hop <= cutter.length
        # numpy arrays travel through a pipe; tensors would take shared memory, of which containers have little.
        result.clips = [audio_CS[:, start:end].contiguous().numpy() for start, end in spans]
        return result


def decode_tracks(tracks: Iterable[Track], cutter: ClipCutter, workers: int) -> Iterator[CutTrack]:
    """Decode tracks in worker processes, in the order given whatever their number.

    Tracks are taken from the iterable as workers get free, two ahead for each, so no more are in memory at a time.

    Args:
        workers: 0 decodes in this process.

    Raises:
        OSError: a worker was killed, as by the system when memory runs out.
    """
    loader: DataLoader[CutTrack] = DataLoader(
        TrackDecoder(cutter),
        batch_size=None,
        # A sampler may yield anything that can be sent: here what is to be decoded itself.
        sampler=tracks,
        num_workers=workers,
        collate_fn=_as_it_is,
        multiprocessing_context=process_context() if workers else None,
        worker_init_fn=_begin_worker if workers else None,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise OSError(
            "a process that decodes audio was killed, most often by the system for lack of memory; fewer at a time "
            f"(workers={max(workers // 2, 1)}) need less"
        ) from error


def without_audio(track: Track) -> Track:
    """The track without bytes that need not travel back."""
    return dataclasses.replace(track, audio=b"") if isinstance(track.audio, bytes) else track


def is_silent(clip_CS: np.ndarray[Any, Any]) -> bool:
    """Whether there is nothing but digital silence."""
    return not clip_CS.any()


def _as_it_is(item: Any) -> Any:
    return item


def _begin_worker(worker: int) -> None:
    torch.set_num_threads(1)
    end_with_parent()

"""Decodes tracks in worker processes and cuts them into clips.

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
    """How tracks are decoded and cut. Lengths are in samples per channel at `sampling_rate`."""

    sampling_rate: int
    channels: int
    length: int
    hop: int
    shortest: int

    @classmethod
    def from_seconds(
        cls, *, sampling_rate: int, channels: int, length: float, hop: float, shortest: float
    ) -> ClipCutter:
        """Make a cutter of lengths in seconds, each at least one sample."""

        def samples(seconds: float) -> int:
            return max(1, round(seconds * sampling_rate))

        return cls(
            sampling_rate=sampling_rate,
            channels=channels,
            length=samples(length),
            hop=samples(hop),
            shortest=samples(shortest),
        )

    def spans(self, samples: int) -> list[tuple[int, int]]:
        """Return the start and end of each clip of a track with so many samples.

        A clip starts every `hop` samples, up to the clip that reaches the track's end. That last clip may be shorter
        than `length`, and is left out if it is shorter than `shortest`.
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
    """A track that is decoded and cut into clips."""

    track: Track
    """The track, without the content of its audio file."""
    clips: list[np.ndarray[Any, Any]] = field(default_factory=list)
    """The audio of each clip, float32 `(channels, samples)`."""
    starts: list[int] = field(default_factory=list)
    """The first sample of each clip."""
    samples: int = 0
    """Samples per channel of the whole track, at the cutter's sampling rate."""
    tail_dropped: bool = False
    """True if what was left at the end was too short for a clip."""
    problem: str | None = None
    """Why the track cannot be used."""
    is_gone: bool = False
    """True if the file is gone, which was there when it was listed."""


class TrackDecoder(Dataset[CutTrack]):
    """Decodes and cuts tracks in the worker processes. Its keys are tracks, not indices."""

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
            # Whatever a file does to a decoder, even if it runs out of memory, the run goes on with the other files.
            result.problem = f"decoding failed: {type(error).__name__}: {' '.join(str(error).split())}"
            return result
        result.samples = audio_CS.shape[-1]
        spans = cutter.spans(result.samples)
        result.starts = [start for start, _ in spans]
        result.tail_dropped = bool(spans) and spans[-1][1] < result.samples and cutter.hop <= cutter.length
        # numpy arrays are sent through a pipe; tensors would take shared memory, of which containers have little.
        result.clips = [audio_CS[:, start:end].contiguous().numpy() for start, end in spans]
        return result


def decode_tracks(tracks: Iterable[Track], cutter: ClipCutter, workers: int) -> Iterator[CutTrack]:
    """Decode tracks in worker processes, and yield them in the order given.

    Tracks are taken from the iterable as workers become free, two ahead for each worker, and no more are in memory.

    Args:
        tracks: the tracks to decode.
        cutter: how to decode and cut them.
        workers: the number of processes; 0 decodes in this process.

    Raises:
        OSError: a worker was killed, for example by the system because memory ran out.
    """
    loader: DataLoader[CutTrack] = DataLoader(
        TrackDecoder(cutter),
        batch_size=None,
        # A sampler may yield anything that can be pickled as a key: here the tracks themselves.
        sampler=tracks,
        num_workers=workers,
        collate_fn=_unchanged,
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
    """Return the track without the content of its audio file, which need not be sent back."""
    return dataclasses.replace(track, audio=b"") if isinstance(track.audio, bytes) else track


def is_silent(clip_CS: np.ndarray[Any, Any]) -> bool:
    """Return True if all samples are zero."""
    return not clip_CS.any()


def _unchanged(item: Any) -> Any:
    return item


def _begin_worker(worker: int) -> None:
    torch.set_num_threads(1)
    end_with_parent()

"""The heart of a run: tracks in, shards out.

Three things happen at a time: workers decode what comes next, this thread keeps the codec busy, and another thread
encodes captions and writes the shard before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musicgen_train.latents.format import pack_codes, pack_states
from musicgen_train.preprocess.captions import caption_variants, metadata_json
from musicgen_train.preprocess.clips import ClipCutter, CutTrack, decode_tracks, is_silent
from musicgen_train.preprocess.encoders import AudioCoder, Encoders, TextCoder
from musicgen_train.preprocess.progress import Progress
from musicgen_train.preprocess.settings import PreprocessSettings
from musicgen_train.preprocess.shards import ShardReport, shard_key, write_shard
from musicgen_train.preprocess.tracks import Track


def encode_tracks(
    tracks: Iterable[Track],
    folder: Path,
    settings: PreprocessSettings,
    encoders: Encoders,
    *,
    content_digest: str,
    workers: int,
    progress: Progress,
) -> list[Path]:
    """Encode all tracks, and write them into `folder` as shards of `settings.shard_tracks`.

    No batch holds clips of two shards, so what a shard holds depends on its own tracks alone.

    Returns:
        The shards' folders, in the order of their tracks.

    Raises:
        OSError: a shard could not be written, as when the disk is full, or a worker process was killed.
    """
    cutter = cutter_for(settings, encoders.audio)
    keyed = _with_keys(tracks, content_digest)
    known_captions: set[str] = set()
    shards: list[Path] = []
    pending: Future[Path] | None = None
    batch_samples = round(settings.batch_seconds * cutter.sampling_rate)
    shard = _Shard(settings, encoders, batch_samples)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-writer") as writer:
        decoded = decode_tracks(keyed, cutter, workers)
        while True:
            cut = next(decoded, None)
            if cut is not None:
                shard.add(cut, cutter)
                seconds = cut.samples / cutter.sampling_rate
                progress.add(tracks=1, audio_seconds=seconds, rejected=cut.problem is not None)
            if shard.keys and (cut is None or len(shard.keys) == settings.shard_tracks):
                shard.flush()
                new = [text for text in shard.captions if text not in known_captions]
                known_captions.update(new)
                if pending is not None:
                    # At most one finished shard waits in memory; an error in the thread comes up here.
                    shards.append(pending.result())
                pending = writer.submit(_write, shard, new, folder, encoders.text, settings.states_dtype)
                shard = _Shard(settings, encoders, batch_samples)
            if cut is None:
                break
        if pending is not None:
            shards.append(pending.result())
    return shards


def cutter_for(settings: PreprocessSettings, audio: AudioCoder) -> ClipCutter:
    """The settings' lengths in samples of the codec's rate."""

    def samples(seconds: float) -> int:
        return max(1, round(seconds * audio.sampling_rate))

    return ClipCutter(
        sampling_rate=audio.sampling_rate,
        channels=audio.channels,
        length=samples(settings.clip_seconds),
        hop=samples(settings.hop),
        shortest=samples(settings.shortest),
    )


@dataclass(kw_only=True)
class _Waiting:
    """A clip on its way to the codec."""

    row: dict[str, Any]
    clip_CS: np.ndarray[Any, Any]


class _Shard:
    """A shard while its clips are being encoded."""

    def __init__(self, settings: PreprocessSettings, encoders: Encoders, batch_samples: int) -> None:
        self.keys: list[str] = []
        self.rows: list[dict[str, Any]] = []
        # Captions in the order of their first use, each once.
        self.captions: dict[str, None] = {}
        self.report = ShardReport()
        self._settings = settings
        self._audio = encoders.audio
        self._batch_samples = batch_samples
        self._waiting: dict[int, list[_Waiting]] = {}
        self._waiting_samples = 0

    def add(self, cut: CutTrack, cutter: ClipCutter) -> None:
        """Count a track, describe its clips, and encode those that make up a batch."""
        track, counts = cut.track, self.report.counts
        self.keys.append(track.key)
        counts["files"] += 1
        if cut.problem is not None:
            counts["rejected"] += 1
            self.report.rejected.append({"file": track.id, "reason": cut.problem})
            return
        if not cut.clips:
            counts["too_short"] += 1
            return
        texts = caption_variants(track.description, track.id, self._settings.captions)
        self.captions.update(dict.fromkeys(texts))
        metadata = track.description.metadata
        counts["tracks"] += 1
        counts["clips"] += len(cut.clips)
        counts["missing_caption"] += not texts
        counts["short_tails"] += cut.tail_dropped
        for clip_CS, start in zip(cut.clips, cut.starts, strict=True):
            silent = is_silent(clip_CS)
            counts["silent"] += silent
            row = {
                "captions": texts,
                "track": track.id,
                "start_seconds": start / cutter.sampling_rate,
                "silent": silent,
                "metadata": metadata_json(metadata),
                "seconds": clip_CS.shape[-1] / cutter.sampling_rate,
                "stated_split": track.split,
                "group": _group(track, self._settings.split.group_by),
            }
            self.rows.append(row)
            self._enqueue(_Waiting(row=row, clip_CS=clip_CS))

    def flush(self) -> None:
        """Encode all clips that wait."""
        for length in sorted(self._waiting):
            self._encode(length)

    def _enqueue(self, waiting: _Waiting) -> None:
        length = waiting.clip_CS.shape[-1]
        batch = self._waiting.setdefault(length, [])
        batch.append(waiting)
        self._waiting_samples += length
        if (len(batch) + 1) * length > self._batch_samples:
            self._encode(length)
        elif self._waiting_samples > 2 * self._batch_samples:
            # Ends of tracks are all of different lengths and would pile up.
            self.flush()

    def _encode(self, length: int) -> None:
        # Only equal lengths share a batch: padding would change the codes at a clip's end.
        batch = self._waiting.pop(length)
        self._waiting_samples -= len(batch) * length
        codes_BKT = self._audio.encode([each.clip_CS for each in batch])
        for each, codes_KT in zip(batch, codes_BKT, strict=True):
            each.row["codes"] = pack_codes(codes_KT)
            each.row["frames"] = codes_KT.shape[-1]


def _with_keys(tracks: Iterable[Track], content_digest: str) -> Iterator[Track]:
    for track in tracks:
        track.key = track.content_key(content_digest)
        yield track


def _write(shard: _Shard, new_captions: list[str], folder: Path, text: TextCoder, states_dtype: str) -> Path:
    captions: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    for caption, encoded in zip(new_captions, text.encode(new_captions), strict=True):
        counts["captions_cut"] += encoded.cut
        packed = pack_states(encoded.states_LD, states_dtype)
        captions.append({"text": caption, "states": packed, "length": len(encoded.states_LD)})
    shard.report.counts += counts
    return write_shard(folder, shard_key(shard.keys), shard.rows, captions, shard.report)


def _group(track: Track, group_by: str | None) -> str:
    """The name by which a track is put into a split."""
    value = track.description.metadata.get(group_by) if group_by is not None else None
    return (track.group or track.id) if value in (None, "", []) else f"{group_by}={value}"

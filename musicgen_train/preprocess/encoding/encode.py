"""The heart of a run: candidates in, shards out.

Several things happen at a time: workers decode what comes next, this thread collects it in batches, the codec encodes
the batch before (on a GPU, in a thread of its own; on a CPU here, since it takes all cores), and another thread encodes
captions and writes the shard before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from musicgen_train.latents.format import pack_codes, pack_states
from musicgen_train.preprocess.encoding.clips import ClipCutter, CutTrack, decode_tracks, is_silent
from musicgen_train.preprocess.encoding.encoders import AudioCoder, Encoders, TextCoder, clip_rows
from musicgen_train.preprocess.progress import Progress
from musicgen_train.preprocess.settings import PreprocessSettings
from musicgen_train.preprocess.sources.captions import caption_variants, metadata_json
from musicgen_train.preprocess.sources.tracks import Candidate, Source, Track
from musicgen_train.preprocess.work.ranks import Rank
from musicgen_train.preprocess.work.results import EncodedTracks, ListingDigest, Result, Results
from musicgen_train.preprocess.work.shards import write_shard

# After so long a shard is written with what it has.
_MOST_SHARD_SECONDS = 300.0


class RejectedTrackError(ValueError):
    """A track that cannot be used, where the settings say that each must be."""


class Encoding:
    """The tracks of one rank on their way into shards.

    Args:
        settings: of the run.
        encoders: of the run.
        rank: whose tracks are encoded.
        shards: the folder with all shards.
        staging: a folder of this rank alone, on the same file system.
        progress: told of every track.
    """

    def __init__(
        self,
        settings: PreprocessSettings,
        encoders: Encoders,
        rank: Rank,
        *,
        shards: Path,
        staging: Path,
        progress: Progress,
    ) -> None:
        self._settings = settings
        self._encoders = encoders
        self._rank = rank
        self._shards = shards
        self._staging = staging
        self._progress = progress
        self._cutter = cutter_for(settings, encoders.audio)
        self.encoded_before = EncodedTracks(shards, rank)
        """From earlier runs."""
        self.listing = ListingDigest()
        """Of all candidates, those of other ranks too."""
        self.results = Results()
        """Of this rank's tracks."""

    def run(self, candidates: Iterable[Candidate], source: Source, workers: int) -> None:
        """Encode what is not encoded yet, in shards of `settings.shard_tracks` tracks, or of five minutes' work.

        Args:
            candidates: all, of which this rank takes its own.
            source: asked whether it is still there, where a file is not.
            workers: processes that decode; 0 decodes in this one.

        Raises:
            OSError: a shard could not be written, as when the disk is full, a worker process was killed, or the
                source is gone. All shards that were complete stay, and the next run goes on from them.
            RejectedTrackError: a track cannot be used, and `settings.stop_on_rejected`. The same holds.
        """
        pending: Future[list[Result]] | None = None
        rejection: RejectedTrackError | None = None
        with (
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-writer") as writer,
            _codec_executor(self._encoders.audio) as codec,
        ):
            shard = self._new_shard(codec)
            decoded = decode_tracks(self._to_encode(candidates), self._cutter, workers)
            while True:
                cut = None if rejection is not None else next(decoded, None)
                if cut is not None:
                    if cut.is_gone:
                        _check_source(source, cut.track, self._settings.input)
                    if cut.problem is not None and self._settings.stop_on_rejected:
                        rejection = RejectedTrackError(
                            f"{cut.track.id}: {cut.problem} (stop_on_rejected=true). What is encoded so far is kept "
                            "for the next run"
                        )
                        continue
                    shard.add(cut)
                    seconds = cut.samples / self._cutter.sampling_rate
                    self._progress.add(tracks=1, audio_seconds=seconds, rejected=cut.problem is not None)
                if shard.tracks and (cut is None or shard.is_full()):
                    shard.encode_all()
                    if pending is not None:
                        # At most one finished shard waits in memory; an error in the thread comes up here.
                        self._take(pending.result())
                    pending = writer.submit(
                        shard.write, self._shards, self._staging, self._encoders.text, self._settings.states_dtype
                    )
                    shard = self._new_shard(codec)
                if cut is None:
                    break
            if pending is not None:
                self._take(pending.result())
        if rejection is not None:
            raise rejection

    def _to_encode(self, candidates: Iterable[Candidate]) -> Iterator[Track]:
        for candidate in candidates:
            self.listing.add(candidate.id)
            if not self._rank.owns(candidate.id):
                continue
            found = self.encoded_before.unchanged(candidate.id, candidate.order, candidate.stamp())
            if found is None:
                track = candidate.read()
                track.key = track.content_key()
                found = self.encoded_before.equal(track.id, track.order, track.key)
                if found is None:
                    yield track
                    continue
            self.results.add(found)
            self._progress.add(reused=1)

    def _take(self, results: list[Result]) -> None:
        for result in results:
            self.results.add(result)

    def _new_shard(self, codec: Executor) -> _Shard:
        return _Shard(self._settings, self._encoders.audio, self._cutter, codec)


class _AtOnce(Executor):
    """Does what it is given before it returns."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def _codec_executor(audio: AudioCoder) -> Executor:
    """What runs the codec: on a CPU this thread, where an interrupt need not wait for the end of a batch."""
    if audio.device.type == "cpu":
        return _AtOnce()
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="codec")


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


class _Shard:
    """A shard while its clips are being encoded.

    Args:
        settings: of the run.
        audio: the codec.
        cutter: what cuts the clips.
        codec: what runs the codec.
    """

    def __init__(self, settings: PreprocessSettings, audio: AudioCoder, cutter: ClipCutter, codec: Executor) -> None:
        self.tracks: list[dict[str, Any]] = []
        self._begun = time.monotonic()
        self._orders: list[str] = []
        self._clips: list[dict[str, Any]] = []
        # Captions in the order of their first use, each once.
        self._captions: dict[str, None] = {}
        self._settings = settings
        self._audio = audio
        self._cutter = cutter
        self._codec = codec
        self._batch_samples = round(settings.batch_seconds * cutter.sampling_rate)
        # Rows of clips that are not encoded yet, all of the full length, and their audio.
        self._waiting: list[tuple[dict[str, Any], np.ndarray[Any, Any]]] = []
        # Rows of clips that are being encoded, and what will be their codes.
        self._encoding: tuple[list[dict[str, Any]], Future[torch.Tensor]] | None = None

    def add(self, cut: CutTrack) -> None:
        """Describe a track and its clips, and encode those that make up a batch."""
        track, rate = cut.track, self._cutter.sampling_rate
        texts = caption_variants(track.description, track.id, self._settings.captions) if cut.clips else []
        self._captions.update(dict.fromkeys(texts))
        self._orders.append(track.order)
        self.tracks.append(
            {
                "id": track.id,
                "key": track.key,
                "stamp": track.stamp,
                "problem": cut.problem,
                "first_clip": len(self._clips),
                "clips": len(cut.clips),
                "short_tail": cut.tail_dropped,
                "captions": texts,
                "metadata": metadata_json(track.description.metadata),
                "stated_split": track.split,
                "group": track.group or track.id,
            }
        )
        for clip_CS, start in zip(cut.clips, cut.starts, strict=True):
            length = clip_CS.shape[-1]
            row = {"start_seconds": start / rate, "seconds": length / rate, "silent": is_silent(clip_CS)}
            self._clips.append(row)
            if self._rows(length) == 1:
                self._encode([(row, clip_CS)], 1)
            else:
                self._waiting.append((row, clip_CS))
                if len(self._waiting) == self._rows(length):
                    self._encode_waiting()

    def is_full(self) -> bool:
        """Whether it has its tracks, or has taken so long that a kill would cost too much."""
        too_long = time.monotonic() - self._begun > _MOST_SHARD_SECONDS
        return too_long or len(self.tracks) == self._settings.shard_tracks

    def encode_all(self) -> None:
        """Encode the clips that wait for others, and wait for the codes of all."""
        if self._waiting:
            self._encode_waiting()
        self._take_codes()

    def write(self, folder: Path, staging: Path, text: TextCoder, states_dtype: str) -> list[Result]:
        """Encode the captions and write everything; returns what the tracks became."""
        captions = [
            {
                "text": caption,
                "states": pack_states(encoded.states_LD, states_dtype),
                "length": len(encoded.states_LD),
                "cut": encoded.cut,
            }
            for caption, encoded in zip(self._captions, text.encode(list(self._captions)), strict=True)
        ]
        shard = write_shard(folder, staging, self.tracks, self._clips, captions)
        return [
            Result(order=order, id=row["id"], key=row["key"], problem=row["problem"], shard=shard.name, row=number)
            for number, (order, row) in enumerate(zip(self._orders, self.tracks, strict=True))
        ]

    def _rows(self, length: int) -> int:
        return clip_rows(length, self._cutter.length, self._batch_samples)

    def _encode_waiting(self) -> None:
        self._encode(self._waiting, self._rows(self._cutter.length))
        self._waiting = []

    def _encode(self, batch: list[tuple[dict[str, Any], np.ndarray[Any, Any]]], rows: int) -> None:
        # Only equal lengths share a batch: padding would change the codes at a clip's end.
        self._take_codes()  # of the batch before, so that no more than two are in memory
        clips = [clip_CS for _, clip_CS in batch]
        self._encoding = [row for row, _ in batch], self._codec.submit(self._audio.encode, clips, rows)

    def _take_codes(self) -> None:
        if self._encoding is None:
            return
        (rows, codes), self._encoding = self._encoding, None
        for row, codes_KT in zip(rows, codes.result(), strict=True):
            row["codes"] = pack_codes(codes_KT)
            row["frames"] = codes_KT.shape[-1]


def _check_source(source: Source, track: Track, name: str) -> None:
    """One file that is gone is rejected; a whole library that is gone must not end as a dataset of what was left."""
    try:
        source.check_it_is_there()
    except OSError as error:
        raise FileNotFoundError(
            f"input {name} is gone ({error.strerror or error}), noticed at {track.id}. What is encoded so far is kept: "
            "run the same command again when the input is back"
        ) from error

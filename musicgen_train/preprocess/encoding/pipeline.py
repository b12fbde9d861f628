"""The heart of a run: candidates go in, shards come out.

Several things happen at a time. Worker processes decode the next tracks; this thread collects their clips in batches;
the codec encodes the batch before (on a GPU in a thread of its own, on a CPU in this thread, since it takes all cores);
and another thread encodes captions and writes the shard before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from musicgen_train.preprocess.encoding.clips import CutTrack, decode_tracks
from musicgen_train.preprocess.encoding.shard_builder import ShardBuilder, ShardRecipe
from musicgen_train.preprocess.sources.tracks import Source, Track
from musicgen_train.preprocess.work.results import EncodedTracks, ListingDigest, Result, Results
from musicgen_train.preprocess.work.work_folder import WorkFolder
from musicgen_train.progress import Progress


class RejectedTrackError(ValueError):
    """A track cannot be used, and the settings ask to stop there."""


@dataclass(kw_only=True)
class EncodingCounts:
    """What a pipeline has done so far."""

    encoded: int = 0
    """Tracks that were decoded, rejected ones included."""
    rejected: int = 0
    """Tracks of these that cannot be used."""
    audio_seconds: float = 0.0
    """Length of the decoded tracks."""
    reused: int = 0
    """Tracks that an earlier run had encoded."""

    def note(self, elapsed: float) -> str:
        """Return what to show beside the number of tracks, after so many seconds."""
        parts = [f"{self.audio_seconds / 3600:.2f} h of audio"]
        if elapsed > 0:
            parts.append(f"{self.audio_seconds / elapsed:.0f} x real time")
        if self.rejected:
            parts.append(f"{self.rejected} rejected")
        if self.reused:
            parts.append(f"{self.reused} from before")
        return ", ".join(parts)


class EncodingPipeline:
    """Encodes the tracks of one rank into the shards of a work folder.

    Args:
        recipe: how to make shards.
        work: the work folder, as this rank sees it.
        encoded_before: the rank's tracks that earlier runs encoded.
        progress: is told of every track.
        input_name: the input as the user gave it, for messages.
        stop_on_rejected: stop at the first track that cannot be used.
    """

    def __init__(
        self,
        recipe: ShardRecipe,
        work: WorkFolder,
        encoded_before: EncodedTracks,
        progress: Progress,
        *,
        input_name: str,
        stop_on_rejected: bool,
    ) -> None:
        self._recipe = recipe
        self._work = work
        self._encoded_before = encoded_before
        self._input_name = input_name
        self._progress = progress
        self._stop_on_rejected = stop_on_rejected
        self.counts = EncodingCounts()
        self.listing = ListingDigest()
        """Of all candidates, those of other ranks included."""
        self.results = Results()
        """What became of this rank's tracks."""

    def run(self, source: Source, workers: int) -> None:
        """Encode what is not encoded yet. A shard is written when it has all its tracks, or after five minutes.

        Args:
            source: lists the candidates. It is asked whether it is still there when a file is not.
            workers: processes that decode; 0 decodes in this process.

        Raises:
            OSError: a shard could not be written, for example because the disk is full; a worker process was killed;
                or the source is gone. All complete shards stay, and the next run uses them.
            RejectedTrackError: a track cannot be used, with `stop_on_rejected`. Complete shards stay, too.
        """
        pending: Future[list[Result]] | None = None
        rejection: RejectedTrackError | None = None
        with (
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-writer") as writer,
            _codec_executor(self._recipe.encoders.audio.device) as codec,
        ):
            shard = ShardBuilder(self._recipe, codec)
            decoded = decode_tracks(self._to_encode(source), self._recipe.cutter, workers)
            while True:
                cut = None if rejection is not None else next(decoded, None)
                if cut is not None:
                    rejection = self._rejection(cut, source)
                    if rejection is not None:
                        continue
                    shard.add(cut)
                    self._count(cut)
                if shard.tracks and (cut is None or shard.is_full()):
                    shard.encode_all()
                    if pending is not None:
                        # At most one finished shard waits in memory; an error in the thread is raised here.
                        self._take(pending.result())
                    pending = writer.submit(shard.write, self._work.shards, self._work.staging)
                    shard = ShardBuilder(self._recipe, codec)
                if cut is None:
                    break
            if pending is not None:
                self._take(pending.result())
        if rejection is not None:
            raise rejection

    def _to_encode(self, source: Source) -> Iterator[Track]:
        """Yield the rank's tracks that are not encoded yet, and take over the results of those that are."""
        for candidate in source:
            self.listing.add(candidate.id)
            if not self._work.rank.owns(candidate.id):
                continue
            found = self._encoded_before.unchanged(candidate.id, candidate.order, candidate.stamp())
            if found is None:
                track = candidate.read()
                track.key = track.content_key()
                found = self._encoded_before.equal(track.id, track.order, track.key)
                if found is None:
                    yield track
                    continue
            self.results.add(found)
            self.counts.reused += 1
            self._progress.skip(1)

    def _rejection(self, cut: CutTrack, source: Source) -> RejectedTrackError | None:
        """Return the error to stop with after this track, if any.

        Raises:
            FileNotFoundError: the whole source is gone.
        """
        if cut.is_gone:
            _check_source(source, cut.track, self._input_name)
        if cut.problem is None or not self._stop_on_rejected:
            return None
        return RejectedTrackError(
            f"{cut.track.id}: {cut.problem} (stop_on_rejected=true). What is encoded so far is kept for the next run"
        )

    def _count(self, cut: CutTrack) -> None:
        self.counts.encoded += 1
        self.counts.rejected += cut.problem is not None
        self.counts.audio_seconds += cut.samples / self._recipe.cutter.sampling_rate
        self._progress.advance(1, self.counts.note(self._progress.elapsed))

    def _take(self, results: list[Result]) -> None:
        for result in results:
            self.results.add(result)


class _ImmediateExecutor(Executor):
    """Runs each call in the calling thread, before `submit` returns."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def _codec_executor(device: torch.device) -> Executor:
    """Choose where the codec runs: on a CPU in this thread, so that Ctrl-C need not wait for the end of a batch."""
    if device.type == "cpu":
        return _ImmediateExecutor()
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="codec")


def _check_source(source: Source, track: Track, name: str) -> None:
    """Raise FileNotFoundError if the whole source is gone.

    One file that is gone is rejected, but a library that is gone must not end as a dataset of what was left.
    """
    try:
        source.check_it_is_there()
    except OSError as error:
        raise FileNotFoundError(
            f"input {name} is gone ({error.strerror or error}), noticed at {track.id}. What is encoded so far is kept: "
            "run the same command again when the input is back"
        ) from error

"""Estimates what a run would make, from headers, captions and a small sample that is really encoded."""

from __future__ import annotations

import datetime
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from musicgen_train.audio.io import AudioError, read_audio, read_header
from musicgen_train.latents.format import STATES_DTYPES
from musicgen_train.preprocess.encoding.shard_builder import ShardRecipe
from musicgen_train.preprocess.sources.captions import caption_variants
from musicgen_train.preprocess.sources.tracks import Track

# The sample that is timed: at most so many seconds, tracks and captions.
_TIMED_SECONDS = 60.0
_TIMED_TRACKS = 4
_TIMED_CAPTIONS = 32
# Tokens are counted in so many captions; the others are assumed to be like them.
_COUNTED_CAPTIONS = 2000
_REASONS_SHOWN = 5


@dataclass(kw_only=True)
class Estimate:
    """What a run would read and write."""

    counts: Counter[str] = field(default_factory=Counter)
    """The manifest's counts, as far as headers tell them."""
    audio_seconds: float = 0.0
    """Length of all tracks."""
    clip_seconds: list[float] = field(default_factory=list)
    """Length of each clip."""
    caption_tokens: list[int] = field(default_factory=list)
    """Tokens in each distinct caption that was counted."""
    captions: int = 0
    """Number of distinct captions."""
    rejected: list[dict[str, str]] = field(default_factory=list)
    """The lines of `rejected.jsonl`, as far as headers tell them."""
    bytes: int = 0
    """Size of the dataset on disk."""
    run_seconds: float | None = None
    """Time that the run would take; None if nothing could be timed."""

    def as_text(self, shortest: float) -> str:
        """Return the estimate as lines to print.

        Args:
            shortest: the least length of a clip in seconds.
        """
        counts = self.counts
        lines = [
            f"{counts['files']} candidates: {counts['tracks']} usable by their headers, {counts['rejected']} rejected, "
            f"{counts['too_short']} shorter than {shortest:g} s; {counts['missing_caption']} without caption",
            f"{self.audio_seconds / 3600:.3f} hours of audio; {counts['clips']} clips with "
            f"{sum(self.clip_seconds) / 3600:.3f} hours; {self.captions} distinct captions",
        ]
        lines += [f"  rejected: {line['file']}: {line['reason']}" for line in self.rejected[:_REASONS_SHOWN]]
        if len(self.rejected) > _REASONS_SHOWN:
            lines.append(f"  and {len(self.rejected) - _REASONS_SHOWN} more")
        lines += ["clip length in seconds", *histogram(self.clip_seconds)]
        lines += ["caption length in tokens", *histogram(self.caption_tokens)]
        lines.append(f"estimated disk: {tqdm.format_sizeof(self.bytes, 'B')}")
        if self.run_seconds is not None:
            lines.append(
                f"estimated time: {datetime.timedelta(seconds=round(self.run_seconds))} "
                f"({self.audio_seconds / self.run_seconds:.1f} x real time on this machine)"
            )
        lines.append("dry run: nothing was written")
        return "\n".join(lines)


def estimate(tracks: Iterable[Track], recipe: ShardRecipe, workers: int) -> Estimate:
    """Look at every track's header and captions, and decode and encode a few tracks.

    Args:
        tracks: the tracks of a source.
        recipe: how the run would make shards.
        workers: how many processes would decode.
    """
    found = Estimate()
    cutter, audio = recipe.cutter, recipe.encoders.audio
    captions: dict[str, None] = {}
    sample: list[Track] = []
    sampled_seconds = 0.0
    frames = 0
    for track in tracks:
        found.counts["files"] += 1
        try:
            if track.problem is not None:
                raise AudioError(track.problem)
            seconds = read_header(track.audio).seconds
        except AudioError as error:
            found.counts["rejected"] += 1
            found.rejected.append({"file": track.id, "reason": str(error)})
            continue
        found.audio_seconds += seconds
        spans = cutter.spans(round(seconds * cutter.sampling_rate))
        if not spans:
            found.counts["too_short"] += 1
            continue
        texts = caption_variants(track.description, track.id, recipe.captions)
        captions.update(dict.fromkeys(texts))
        found.counts["tracks"] += 1
        found.counts["missing_caption"] += not texts
        found.counts["clips"] += len(spans)
        found.clip_seconds += [(end - start) / cutter.sampling_rate for start, end in spans]
        frames += sum(math.ceil((end - start) / audio.hop_length) for start, end in spans)
        if len(sample) < _TIMED_TRACKS and sampled_seconds < _TIMED_SECONDS:
            sample.append(track)
            sampled_seconds += seconds
    texts = list(captions)
    found.captions = len(texts)
    found.caption_tokens = [len(recipe.encoders.text.token_ids(text)[0]) for text in texts[:_COUNTED_CAPTIONS]]
    found.bytes = _size(found, frames, recipe)
    found.run_seconds = _time(found, sample, texts[:_TIMED_CAPTIONS], recipe, workers)
    return found


def histogram(values: Sequence[float], bars: int = 8, width: int = 40) -> list[str]:
    """Draw values as lines with a range, a bar and a count each. All ranges have the same width."""
    if not values:
        return ["  none"]
    if min(values) == max(values):
        return [f"  {values[0]:8.2f}           {'#' * width} {len(values)}"]
    counts, edges = np.histogram(values, bars)
    return [
        f"  {low:8.2f} -{high:8.2f} {'#' * math.ceil(width * count / counts.max()):<{width}} {count}"
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]


def _size(found: Estimate, frames: int, recipe: ShardRecipe) -> int:
    """Estimate the bytes of the dataset."""
    per_number = STATES_DTYPES[recipe.states_dtype].itemsize
    tokens = found.captions * sum(found.caption_tokens) / max(len(found.caption_tokens), 1)
    # Names, metadata and offsets of a row come to a few hundred bytes.
    rows = 300 * (found.counts["clips"] + found.captions)
    encoders = recipe.encoders
    return round(2 * frames * encoders.audio.num_codebooks + tokens * encoders.text.width * per_number + rows)


def _time(
    found: Estimate, sample: Sequence[Track], texts: Sequence[str], recipe: ShardRecipe, workers: int
) -> float | None:
    """Estimate the seconds of the run by timing a sample of tracks and captions."""
    cutter, encoders = recipe.cutter, recipe.encoders
    decoding = encoding = decoded = encoded = 0.0
    clips_each = max(1, round(_TIMED_SECONDS * cutter.sampling_rate / cutter.length))
    for track in sample:
        begin = time.perf_counter()
        try:
            audio_CS, _ = read_audio(track.audio, sampling_rate=cutter.sampling_rate, channels=cutter.channels)
        except AudioError:
            continue
        decoding += time.perf_counter() - begin
        decoded += audio_CS.shape[-1] / cutter.sampling_rate
        for start, end in cutter.spans(audio_CS.shape[-1])[:clips_each]:
            clip_CS = audio_CS[:, start:end].numpy()
            if not encoded:
                encoders.audio.encode([clip_CS], 1)  # the first call is slow: it sets kernels up
            begin = time.perf_counter()
            encoders.audio.encode([clip_CS], 1)
            encoding += time.perf_counter() - begin
            encoded += (end - start) / cutter.sampling_rate
    if not encoded:
        return None
    begin = time.perf_counter()
    encoders.text.encode(texts)
    per_caption = (time.perf_counter() - begin) / max(len(texts), 1)
    codec = encoding / encoded * sum(found.clip_seconds)
    decoder = decoding / decoded * found.audio_seconds / max(workers, 1)
    # Worker processes decode while the codec encodes; without them one comes after the other.
    return (codec + decoder if workers == 0 else max(codec, decoder)) + per_caption * found.captions

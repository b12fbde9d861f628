"""What a run would make, found out from headers, captions and a small sample that is really encoded."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from musicgen_train.audio.io import AudioError, read_audio, read_header
from musicgen_train.preprocess.encoding.clips import ClipCutter
from musicgen_train.preprocess.encoding.encode import cutter_for
from musicgen_train.preprocess.encoding.encoders import Encoders
from musicgen_train.preprocess.progress import as_time
from musicgen_train.preprocess.settings import PreprocessSettings
from musicgen_train.preprocess.sources.captions import caption_variants
from musicgen_train.preprocess.sources.tracks import Track

_TIMED_SECONDS = 60.0
_TIMED_TRACKS = 4
_TIMED_CAPTIONS = 32
# Captions whose tokens are counted; the rest are taken to be like them.
_COUNTED_CAPTIONS = 2000
_REASONS_SHOWN = 5


@dataclass(kw_only=True)
class Estimate:
    """What a run would read and write."""

    counts: Counter[str] = field(default_factory=Counter)
    """As the manifest's, as far as headers tell."""
    audio_seconds: float = 0.0
    """Of all tracks."""
    clip_seconds: list[float] = field(default_factory=list)
    """Length of each clip."""
    caption_tokens: list[int] = field(default_factory=list)
    """Tokens of the distinct captions that were counted."""
    captions: int = 0
    """Distinct captions."""
    rejected: list[dict[str, str]] = field(default_factory=list)
    bytes: int = 0
    """What the dataset would take on disk."""
    run_seconds: float | None = None
    """How long the run would take; None where nothing could be timed."""
    real_time_factor: float | None = None
    """Seconds of audio decoded and encoded per second."""


def estimate(tracks: Iterable[Track], settings: PreprocessSettings, encoders: Encoders, workers: int) -> Estimate:
    """Look at every track, decode and encode a few."""
    found = Estimate()
    cutter = cutter_for(settings, encoders.audio)
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
        texts = caption_variants(track.description, track.id, settings.captions)
        captions.update(dict.fromkeys(texts))
        found.counts["tracks"] += 1
        found.counts["missing_caption"] += not texts
        found.counts["clips"] += len(spans)
        found.clip_seconds += [(end - start) / cutter.sampling_rate for start, end in spans]
        frames += sum(math.ceil((end - start) / encoders.audio.hop_length) for start, end in spans)
        if len(sample) < _TIMED_TRACKS and sampled_seconds < _TIMED_SECONDS:
            sample.append(track)
            sampled_seconds += seconds
    texts = list(captions)
    found.captions = len(texts)
    found.caption_tokens = [len(encoders.text.token_ids(text)[0]) for text in texts[:_COUNTED_CAPTIONS]]
    found.bytes = _size(found, frames, encoders, settings.states_dtype)
    _time(found, sample, texts[:_TIMED_CAPTIONS], cutter, encoders, workers)
    return found


def report(found: Estimate, settings: PreprocessSettings) -> str:
    """The estimate as text."""
    counts = found.counts
    lines = [
        f"{counts['files']} candidates: {counts['tracks']} usable by their headers, {counts['rejected']} rejected, "
        f"{counts['too_short']} shorter than {settings.shortest:g} s; {counts['missing_caption']} without "
        "caption",
        f"{found.audio_seconds / 3600:.3f} hours of audio; {counts['clips']} clips with "
        f"{sum(found.clip_seconds) / 3600:.3f} hours; {found.captions} distinct captions",
    ]
    lines += [f"  rejected: {line['file']}: {line['reason']}" for line in found.rejected[:_REASONS_SHOWN]]
    if len(found.rejected) > _REASONS_SHOWN:
        lines.append(f"  and {len(found.rejected) - _REASONS_SHOWN} more")
    lines += ["clip length in seconds", *histogram(found.clip_seconds)]
    lines += ["caption length in tokens", *histogram(found.caption_tokens)]
    lines.append(f"estimated disk: {as_bytes(found.bytes)}")
    if found.run_seconds is not None:
        lines.append(
            f"estimated time: {as_time(found.run_seconds)} ({found.real_time_factor:.1f} x real time on this machine)"
        )
    lines.append("dry run: nothing was written")
    return "\n".join(lines)


def histogram(values: Sequence[float], bars: int = 8, width: int = 40) -> list[str]:
    """Lines with a range, a bar and a count each; ranges of equal width from the least value to the greatest."""
    if not values:
        return ["  none"]
    low, high = min(values), max(values)
    if low == high:
        return [f"  {low:8.2f}           {'#' * width} {len(values)}"]
    step = (high - low) / bars
    counts = Counter(min(int((value - low) / step), bars - 1) for value in values)
    largest = max(counts.values())
    return [
        f"  {low + bar * step:8.2f} -{low + (bar + 1) * step:8.2f} "
        f"{'#' * math.ceil(width * counts[bar] / largest):<{width}} {counts[bar]}"
        for bar in range(bars)
    ]


def as_bytes(size: float) -> str:
    """A size in the unit that gives it 1 to 3 digits before the point."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _size(found: Estimate, frames: int, encoders: Encoders, states_dtype: str) -> int:
    per_number = torch.finfo(getattr(torch, states_dtype)).bits // 8
    tokens = found.captions * sum(found.caption_tokens) / max(len(found.caption_tokens), 1)
    # Names, metadata and offsets of a row come to a few hundred bytes.
    rows = 300 * (found.counts["clips"] + found.captions)
    return round(2 * frames * encoders.audio.num_codebooks + tokens * encoders.text.width * per_number + rows)


def _time(
    found: Estimate, sample: Sequence[Track], texts: Sequence[str], cutter: ClipCutter, encoders: Encoders, workers: int
) -> None:
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
                encoders.audio.encode([clip_CS], 1)  # the first call sets kernels up
            begin = time.perf_counter()
            encoders.audio.encode([clip_CS], 1)
            encoding += time.perf_counter() - begin
            encoded += (end - start) / cutter.sampling_rate
    if not encoded:
        return
    begin = time.perf_counter()
    encoders.text.encode(texts)
    per_caption = (time.perf_counter() - begin) / max(len(texts), 1)
    codec = encoding / encoded * sum(found.clip_seconds)
    decoder = decoding / decoded * found.audio_seconds / max(workers, 1)
    # Decoding and captions hide behind the codec, or it behind them; in one process they come after each other.
    found.run_seconds = (codec + decoder if workers == 0 else max(codec, decoder)) + per_caption * found.captions
    found.real_time_factor = found.audio_seconds / found.run_seconds

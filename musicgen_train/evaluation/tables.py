"""Measurements as tables for the report: each function gives one `MetricTable`, with findings in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from musicgen_train.evaluation.cross_entropy import CodeUse, SplitScores
from musicgen_train.evaluation.records import Column, MetricRow, MetricTable, Unit
from musicgen_train.evaluation.split_clips import Condition
from musicgen_train.metrics.embedders import Embedder, embed_clips, metric_key
from musicgen_train.metrics.frechet import Gaussian, frechet_distance
from musicgen_train.metrics.signal_statistics import SignalStatistics

# Differences in nats below this are within what another choice of clips would give.
_NOTICEABLE_NATS = 0.01
_SEED_OF_NOISE = 0

_CROSS_ENTROPY = "cross-entropy, captions: {}"
_CONDITIONS: dict[Condition, str] = {
    "own": "What training minimises: how surprised the model is by each next code of these clips. Lower is better.",
    "another clip's": "The same with captions swapped between clips. As low as the line above means that captions are "
    "ignored.",
    "none": "The same without any caption.",
}


def cross_entropy_table(
    scores: dict[Condition, SplitScores], use: CodeUse, codebook_size: int, split: str, clips: int
) -> MetricTable:
    """Prediction of a split's codes under each condition, beside what needs no model.

    Args:
        scores: with "own" among the conditions.
        use: the codes of the same clips.
        codebook_size: V.
        split: its name.
        clips: how many were scored.
    """
    own = scores["own"]
    codebooks = len(own.cross_entropy)
    rows = [
        _codebook_row(_CROSS_ENTROPY.format(condition), scored.cross_entropy, "nats", meaning, mean=scored.loss)
        for condition, meaning in _CONDITIONS.items()
        if (scored := scores.get(condition)) is not None
    ]
    uniform = torch.full((codebooks,), math.log(codebook_size), dtype=torch.float64)
    rows += [
        _codebook_row(
            "unigram entropy",
            use.unigram_entropy,
            "nats",
            "What a guess from how often each code occurs here would reach. A model that is not below it has learned "
            "nothing yet.",
        ),
        _codebook_row(
            f"ln({codebook_size})", uniform, "nats", "All codes equally likely: where an untrained model begins."
        ),
        _codebook_row(
            "perplexity",
            own.perplexity,
            "number",
            f"The first line as a number of codes: among how many of the {codebook_size} the model hesitates.",
            mean=math.exp(own.loss),
        ),
        _codebook_row("accuracy", own.accuracy, "percent", "How often the likeliest code is the right one."),
        _codebook_row(
            "entries in use",
            use.used_share,
            "percent",
            "How many of the codebook's entries occur in these clips at all.",
        ),
    ]
    return MetricTable(
        key="cross_entropy",
        title="Prediction of held-out codes" if split != "train" else "Prediction of training codes",
        explanation=f"Over {clips} clips of the split {split} ({use.frames} frames), each with its first caption. The "
        "model sees all earlier codes of a clip and predicts the next one, as in training.",
        columns=[Column(name="mean"), *(Column(name=f"codebook {k}") for k in range(1, codebooks + 1))],
        rows=rows,
        findings=_findings(scores, use, split),
    )


def frechet_table(
    embedder: Embedder,
    reference: list[torch.Tensor],
    candidates: dict[str, list[torch.Tensor]],
    sampling_rate: int,
    reference_name: str,
    meanings: dict[str, str] | None = None,
) -> MetricTable:
    """Frechet audio distances of sets of clips from a reference, with white noise and silence as the far end.

    A set of fewer than two embeddings has no distance: it is named in the findings and has no row.

    Args:
        embedder: what the clips are embedded with.
        reference: clips `(channels, samples)` of real music.
        candidates: the sets to compare with it, by name.
        sampling_rate: of all of them, in Hz.
        reference_name: what the reference is, for the reader.
        meanings: what some of the candidates mean, in plain words, by name.
    """
    reference_windows = embed_clips(embedder, reference, sampling_rate)
    embedded = {
        name: embed_clips(embedder, clips, sampling_rate)
        for name, clips in {**candidates, **_floors(reference)}.items()
    }
    explained = {**(meanings or {}), **_FLOOR_MEANINGS}
    columns = [
        Column(name="distance", unit="number", meaning="lower is closer to the reference"),
        Column(name="windows", unit="count", meaning="embeddings that it was measured on"),
    ]
    title = f"Frechet audio distance ({embedder.name}, version {embedder.version})"
    too_few = [name for name, windows in {reference_name: reference_windows, **embedded}.items() if len(windows) < 2]
    findings = [f"Too little audio for a distance: {name}. Take more or longer clips." for name in too_few]
    if len(reference_windows) < 2:
        return MetricTable(
            key=metric_key(embedder), title=title, explanation="", columns=columns, rows=[], findings=findings
        )
    target = Gaussian.fit(reference_windows)
    rows = [
        MetricRow(
            label=name,
            values={"distance": frechet_distance(Gaussian.fit(windows), target), "windows": float(len(windows))},
            meaning=explained.get(name, ""),
        )
        for name, windows in embedded.items()
        if name not in too_few
    ]
    width = len(target.mean)
    fewest = min(target.count, *(int(row.values["windows"] or 0) for row in rows))
    if fewest < 2 * width:
        findings.append(
            f"The smallest set has {fewest} windows for embeddings of width {width}: distances are too high by an "
            "amount that depends on the number. Compare only sets of like size, or take more clips."
        )
    return MetricTable(
        key=metric_key(embedder),
        title=title,
        explanation=f"How far the sound of a set of clips, as a whole, is from that of {reference_name} "
        f"({target.count} windows). 0 is the same; only comparisons within this table and with reports of the same "
        "embedder and reference mean something.",
        columns=columns,
        rows=rows,
        findings=findings,
    )


def signal_table(sets: dict[str, Sequence[SignalStatistics]]) -> MetricTable:
    """Means of simple measurements over sets of samples; empty sets are left out."""
    columns = [
        Column(name="samples", unit="count"),
        Column(name="level", unit="decibels", meaning="mean power, dB of full scale"),
        Column(name="peak", unit="decibels", meaning="largest sample, dB of full scale; above 0 it would clip"),
        Column(name="silence", unit="percent", meaning="blocks of 50 ms below -60 dB"),
        Column(name="brightness", unit="hertz", meaning="centre of gravity of the spectrum"),
        Column(name="noise", unit="number", meaning="0 for tones, 1 for noise"),
        Column(name="held", unit="percent", meaning="frames of codes that repeat the one before"),
    ]
    rows = []
    for name, measured in sets.items():
        if not measured:
            continue
        values = {
            "level": [one.rms_dbfs for one in measured],
            "peak": [one.peak_dbfs for one in measured],
            "silence": [one.silent_share for one in measured],
            "brightness": [one.centroid_hz for one in measured],
            "noise": [one.noisiness for one in measured],
            "held": [one.held_share for one in measured],
        }
        means: dict[str, float | None] = {column: sum(numbers) / len(numbers) for column, numbers in values.items()}
        rows.append(MetricRow(label=name, values={"samples": float(len(measured)), **means}))
    return MetricTable(
        key="signal",
        title="The signal itself",
        explanation="Means over the samples, before any change of level. Far from the reference in a column means "
        "that something audible is off.",
        columns=columns,
        rows=rows,
    )


_FLOOR_MEANINGS = {
    "white noise": "The far end of the scale: noise as loud as the reference.",
    "silence": "The other far end.",
}


def _floors(reference: list[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(_SEED_OF_NOISE)
    noise = [torch.randn(clip.shape, generator=generator) * clip.float().cpu().std(correction=0) for clip in reference]
    return {"white noise": noise, "silence": [torch.zeros_like(clip) for clip in reference]}


def _codebook_row(label: str, values: torch.Tensor, unit: Unit, meaning: str, mean: float | None = None) -> MetricRow:
    numbers = [value if math.isfinite(value) else None for value in values.tolist()]
    known = [value for value in numbers if value is not None]
    average = mean if mean is not None else (sum(known) / len(known) if known else None)
    by_column = {f"codebook {number}": value for number, value in enumerate(numbers, start=1)}
    return MetricRow(label=label, values={"mean": average, **by_column}, meaning=meaning, unit=unit)


def _findings(scores: dict[Condition, SplitScores], use: CodeUse, split: str) -> list[str]:
    own = scores["own"].loss
    unigram = use.unigram_entropy.mean().item()
    found = []
    if split == "train":
        found.append("These clips are from the split that is trained on, so the numbers say nothing about new music.")
    if own > unigram - _NOTICEABLE_NATS:
        found.append(
            f"The model predicts these codes no better ({own:.2f} nats) than counting them would ({unigram:.2f}). It "
            "has not learned them yet: train longer, or look for a fault in the data."
        )
    else:
        found.append(f"The model is {unigram - own:.2f} nats better than counting codes would be.")
    other = scores.get("another clip's")
    if other is not None:
        gain = other.loss - own
        found.append(
            f"With captions of other clips the model is {gain:.2f} nats worse: it listens to its captions."
            if gain > _NOTICEABLE_NATS
            else f"Swapping captions changes the cross-entropy by {abs(gain):.3f} nats only: captions hardly matter to "
            "the model yet."
        )
    return found

"""The control test: does the music do what its caption says?

Captions name properties (a tempo, a key, instruments, ...); `demo/hearing.py` hears them in the audio. This file
compares the two and says what the shares mean, beside what they would be with the captions of other clips.

Axes: N clips, P properties, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from musicgen_train.demo.hearing import TEMPO_TOLERANCE, Properties, key_is_relative, tempo_is_near
from musicgen_train.evaluation.records import Column, MetricRow, MetricTable

KEY = "control/v1"
ROUND_TRIP, RECORDINGS = "codec round trip", "recordings"
OTHER_CAPTIONS = "{}, other captions"
ALL = "all"

_RESAMPLES = 2000
_SEED = 0
_NORMAL_975 = 1.959964  # the 97.5 % quantile of the normal distribution


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One comparison of what is asked for with what is heard.

    Args:
        label: its name in the table.
        needs: properties that a caption has to name, and audio to have.
        agree: whether the second has what the first asks for.
        meaning: for the reader.
        lenient: a milder form of another criterion, so not counted again in the mean.
    """

    label: str
    needs: tuple[str, ...]
    agree: Callable[[Properties, Properties], bool]
    meaning: str
    lenient: bool = False


def _same(name: str, label: str, meaning: str) -> Criterion:
    return Criterion(label=label, needs=(name,), agree=lambda asked, heard: asked[name] == heard[name], meaning=meaning)


CRITERIA = (
    Criterion(
        label="tempo",
        needs=("bpm",),
        agree=lambda asked, heard: tempo_is_near(asked["bpm"], heard["bpm"]),
        meaning=f"Beats per minute within {TEMPO_TOLERANCE:.0%}.",
    ),
    Criterion(
        label="tempo or octave",
        needs=("bpm",),
        agree=lambda asked, heard: tempo_is_near(asked["bpm"], heard["bpm"], octaves=True),
        meaning="Half and double the tempo count too: slow music can be counted either way.",
        lenient=True,
    ),
    _same("key", "key", "The tonic, one of twelve."),
    Criterion(
        label="key or relative",
        needs=("key", "mode"),
        agree=key_is_relative,
        meaning="Tonic and mode, or those of the relative key, which has the same notes (C major for A minor).",
        lenient=True,
    ),
    _same("mode", "mode", "Major or minor."),
    _same("style", "style", "Which style of the corpus it sounds like most."),
    _same("drums", "drums", "Whether there are drums."),
    _same("bass", "bass", "Which instrument plays the bass."),
    _same("chords", "chords", "Which instrument plays the chords."),
    _same("lead", "lead", "Which instrument plays the melody, where a caption names one."),
    _same("brightness", "brightness", "Dark, neutral or bright: how much of the sound is high."),
    _same("energy", "energy", "Calm, medium or energetic: how loud it is."),
)


@dataclass(kw_only=True)
class ControlClip:
    """A caption of the control test and what came of it."""

    caption: str
    asked: dict[str, str]
    """What the caption asks for."""
    heard: dict[str, dict[str, str]]
    """What is heard, by the name of the set: of the recording, its round trip, and each guidance scale."""
    files: dict[str, str]
    """Audio files by the name of the set, relative to the report's folder; those that are kept."""


@dataclass(frozen=True)
class Followed:
    """How far one set of clips follows captions by one criterion; `(N,)` each, NaN for clips whose caption is silent on
    it.

    Args:
        own: 1 where the clip does what its caption asks, else 0.
        others: of the other clips' captions, the share that it does. The mean is what a random exchange of all
            captions would give on average, without drawing any.
    """

    own: torch.Tensor
    others: torch.Tensor

    @property
    def count(self) -> int:
        return int((~self.own.isnan()).sum())


def followed(criterion: Criterion, asked: Sequence[Properties], heard: Sequence[Properties]) -> Followed:
    """Compare every clip with every caption.

    Args:
        criterion: how.
        asked: of each clip's caption.
        heard: in each clip; audio without a property that is asked for does not follow.
    """
    naming = [number for number, wishes in enumerate(asked) if all(name in wishes for name in criterion.needs)]
    count = len(asked)
    own = torch.full((count,), math.nan, dtype=torch.float64)
    others = torch.full((count,), math.nan, dtype=torch.float64)
    for clip in naming:
        sound = heard[clip]
        has_all = all(name in sound for name in criterion.needs)
        hits = {caption: has_all and criterion.agree(asked[caption], sound) for caption in naming}
        own[clip] = float(hits.pop(clip))
        if hits:
            others[clip] = sum(hits.values()) / len(hits)
    return Followed(own, others)


def not_followed(asked: Properties, heard: Properties) -> list[str]:
    """What of a caption is not heard, in words such as `key G in place of Bb`."""
    if not heard:
        return ["silence"]
    return [
        f"{criterion.label} {heard[name]} in place of {asked[name]}"
        for criterion in CRITERIA
        for name in criterion.needs
        if not criterion.lenient and name in asked and not criterion.agree(asked, heard)
    ]


def control_table(clips: Sequence[ControlClip], generated: Sequence[str], source: str) -> MetricTable:
    """How often each property is as asked, in each set, with what chance would give.

    Args:
        clips: at least two.
        generated: names of the sets that the model made, in order of their guidance scales.
        source: where the captions come from, for the reader.
    """
    asked = [clip.asked for clip in clips]
    ceilings = [name for name in (RECORDINGS, ROUND_TRIP) if name in clips[0].heard]
    scores = {
        name: [followed(criterion, asked, [clip.heard[name] for clip in clips]) for criterion in CRITERIA]
        for name in (*ceilings, *generated)
    }
    columns = [Column(name="asked", unit="count", meaning="captions that name it"), *_columns(ceilings, generated)]
    rows = [_overall_row(scores, generated)]
    for place, criterion in enumerate(CRITERIA):
        found = {name: followed_by[place] for name, followed_by in scores.items()}
        count = next(iter(found.values())).count
        if count:
            rows.append(_row(criterion, found, generated, count))
    return MetricTable(
        key=KEY,
        title="Control by text",
        explanation=f"Over {len(clips)} captions of {source}: whether the music does what its caption says, heard by "
        "signal analysis that knows neither caption nor model (docs/evaluation.md). In brackets, 95 % intervals. Read "
        f"a column of the model between two others: above '{OTHER_CAPTIONS.format(generated[-1])}', where the same "
        "clips are held against captions that they were not made from, and below the ceilings, since the analysis "
        "errs too and the codec takes something away.",
        columns=columns,
        rows=rows,
        findings=_findings(scores, ceilings, generated),
        bars=True,
    )


def wilson(hits: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, "Probable inference, the law of succession, and statistical inference",
    1927)."""
    share, z = hits / count, _NORMAL_975
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(values_NP: torch.Tensor) -> tuple[float, float]:
    """The 95 % interval of the mean over properties of their means over clips (Efron, "Bootstrap methods", 1979): of
    2000 resamples of the clips the central 95 %.

    Args:
        values_NP: float64 `(clips, properties)`; NaN where a clip says nothing of a property.
    """
    generator = torch.Generator().manual_seed(_SEED)
    drawn_RN = torch.randint(len(values_NP), (_RESAMPLES, len(values_NP)), generator=generator)
    means_R = values_NP[drawn_RN].nanmean(dim=1).nanmean(dim=1)
    low, high = means_R.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _columns(ceilings: Sequence[str], generated: Sequence[str]) -> list[Column]:
    meanings = {
        RECORDINGS: "the music that the captions were written for; what it lacks to 100 % is the analysis' error",
        ROUND_TRIP: "the same through the codec; no model with this codec can do better",
    }
    named = [Column(name=name, unit="percent", meaning=meanings[name]) for name in ceilings]
    for name in generated:
        named.append(Column(name=name, unit="percent", meaning="the model's samples"))
        named.append(
            Column(
                name=OTHER_CAPTIONS.format(name),
                unit="percent",
                meaning="the same samples held against all other captions: chance",
            )
        )
    return named


def _row(criterion: Criterion, found: Mapping[str, Followed], generated: Sequence[str], count: int) -> MetricRow:
    values: dict[str, float | None] = {"asked": float(count)}
    intervals = {}
    for name, result in found.items():
        values[name] = result.own.nanmean().item()
        intervals[name] = wilson(result.own.nansum().item(), count)
        if name in generated:
            values[OTHER_CAPTIONS.format(name)] = result.others.nanmean().item()
    return MetricRow(label=criterion.label, values=values, meaning=criterion.meaning, intervals=intervals)


def _overall_row(scores: Mapping[str, Sequence[Followed]], generated: Sequence[str]) -> MetricRow:
    values: dict[str, float | None] = {}
    intervals = {}
    for name, results in scores.items():
        own_NP, others_NP = _strict(results)
        values[name] = _mean(own_NP)
        intervals[name] = bootstrap(own_NP)
        if name in generated:
            values[OTHER_CAPTIONS.format(name)] = _mean(others_NP)
    return MetricRow(
        label=ALL,
        values=values,
        intervals=intervals,
        meaning="The mean of the lines below, without the lenient ones ('or').",
    )


def _strict(results: Sequence[Followed]) -> tuple[torch.Tensor, torch.Tensor]:
    """Own and others' `(N, P)` of the criteria that are asked for and not lenient."""
    kept = [
        result for criterion, result in zip(CRITERIA, results, strict=True) if not criterion.lenient and result.count
    ]
    return torch.stack([one.own for one in kept], dim=1), torch.stack([one.others for one in kept], dim=1)


def _mean(values_NP: torch.Tensor) -> float:
    return values_NP.nanmean(dim=0).nanmean().item()


def _findings(scores: Mapping[str, Sequence[Followed]], ceilings: Sequence[str], generated: Sequence[str]) -> list[str]:
    found = []
    for name in generated:
        own_NP, others_NP = _strict(scores[name])
        low, high = bootstrap(own_NP - others_NP)
        own, others = _mean(own_NP), _mean(others_NP)
        line = f"{_capital(name)}: {own:.1%} of what captions ask for is heard, {others:.1%} with captions exchanged. "
        found.append(
            line + f"The right caption is worth {_points(own - others, low, high)}."
            if low > 0
            else line + f"The difference, {_points(own - others, low, high)}, may be chance: captions hardly steer it."
        )
    first = generated[0]
    for name in generated[1:]:
        gain_NP = _strict(scores[name])[0] - _strict(scores[first])[0]
        low, high = bootstrap(gain_NP)
        verdict = (
            "more than" if low > 0 else "less than" if high < 0 else "no different, as far as these clips tell, from"
        )
        found.append(f"{_capital(name)} is followed {verdict} {first}: {_points(_mean(gain_NP), low, high)}.")
    if ceilings:
        limits = " and ".join(f"{_mean(_strict(scores[name])[0]):.1%} in the {_plain(name)}" for name in ceilings)
        found.append(f"The most that can be heard is {limits}.")
    ignored = _ignored(scores[generated[-1]])
    if ignored:
        found.append(f"{_capital(generated[-1])}: not shown to follow {', '.join(ignored)} beyond chance.")
    return found


def _ignored(results: Sequence[Followed]) -> list[str]:
    """Properties for which chance lies within the interval."""
    return [
        criterion.label
        for criterion, result in zip(CRITERIA, results, strict=True)
        if result.count and wilson(result.own.nansum().item(), result.count)[0] <= result.others.nanmean().item()
    ]


def _points(difference: float, low: float, high: float) -> str:
    return f"{100 * difference:+.1f} points (95 %: {100 * low:+.1f} to {100 * high:+.1f})"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _plain(name: str) -> str:
    return name if name == RECORDINGS else "codec's round trip of them"

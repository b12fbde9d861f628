"""Measures how far music does what its captions say, and how far it would by chance.

A listener reads properties off captions and hears them in the audio. This file compares the two, and the audio with
the captions of other clips.

Axes: N clips, P properties, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from musicgen_train.evaluation.control.listener import Criterion, Listener, PropertyValues
from musicgen_train.evaluation.records import Column, MetricRow, MetricTable

ROUND_TRIP, RECORDINGS = "codec round trip", "recordings"
OTHER_CAPTIONS = "{}, other captions"
ALL = "all"

_RESAMPLES = 2000
_SEED = 0
_NORMAL_975 = 1.959964  # the 97.5 % quantile of the normal distribution


@dataclass(kw_only=True)
class ControlClip:
    """A caption of the control test, and what is heard in the music made from it."""

    caption: str
    asked: dict[str, str]
    """The properties that the caption names."""
    heard: dict[str, dict[str, str]]
    """The properties that are heard, by the name of the set: in the recording, in its round trip through the codec, and
    in the sample of each guidance scale."""
    files: dict[str, str]
    """Audio files that are kept, by the name of the set, relative to the report's folder."""


@dataclass(frozen=True)
class Followed:
    """How far one set of clips follows captions by one criterion.

    Args:
        own: float64 `(N,)`, 1 where the clip does what its caption asks, else 0; NaN where the caption does not name
            what the criterion needs.
        others: float64 `(N,)`, the share of the other clips' captions that the clip follows, NaN likewise. The mean is
            the expectation over all ways to exchange the captions, so nothing is drawn.
    """

    own: torch.Tensor
    others: torch.Tensor

    @property
    def count(self) -> int:
        """How many captions name what the criterion needs."""
        return int((~self.own.isnan()).sum())


def followed(criterion: Criterion, asked: Sequence[PropertyValues], heard: Sequence[PropertyValues]) -> Followed:
    """Compare every clip with every caption.

    Args:
        criterion: what counts as followed.
        asked: the properties that each clip's caption names.
        heard: the properties heard in each clip; audio that lacks one that is asked for does not follow.
    """
    naming = [number for number, wishes in enumerate(asked) if criterion.is_named(wishes)]
    count = len(asked)
    own = torch.full((count,), math.nan, dtype=torch.float64)
    others = torch.full((count,), math.nan, dtype=torch.float64)
    for clip in naming:
        hits = {caption: criterion.is_met(asked[caption], heard[clip]) for caption in naming}
        own[clip] = float(hits.pop(clip))
        if hits:
            others[clip] = sum(hits.values()) / len(hits)
    return Followed(own, others)


def not_followed(criteria: Sequence[Criterion], asked: PropertyValues, heard: PropertyValues) -> list[str]:
    """Say what a caption asks for and the audio lacks, in words such as `key G in place of Bb`."""
    if not heard:
        return ["silence"]
    return [
        f"{criterion.label} {heard.get(name, 'unheard')} in place of {asked[name]}"
        for criterion in criteria
        if not criterion.lenient and criterion.is_named(asked) and not criterion.is_met(asked, heard)
        for name in criterion.needs
    ]


def control_table(
    clips: Sequence[ControlClip], generated: Sequence[str], source: str, listener: Listener
) -> MetricTable:
    """Tabulate how often each property is as asked, in each set of audio and by chance.

    Args:
        clips: at least two.
        generated: names of the sets that the model made, in order of their guidance scales.
        source: where the captions come from, for the reader.
        listener: who read the captions and heard the clips.
    """
    criteria = listener.criteria
    asked = [clip.asked for clip in clips]
    ceilings = [name for name in (RECORDINGS, ROUND_TRIP) if name in clips[0].heard]
    scores = {
        name: [followed(criterion, asked, [clip.heard[name] for clip in clips]) for criterion in criteria]
        for name in (*ceilings, *generated)
    }
    columns = [Column(name="asked", unit="count", meaning="captions that name it"), *_columns(ceilings, generated)]
    rows = [_overall_row(criteria, scores, generated)]
    for place, criterion in enumerate(criteria):
        found = {name: followed_by[place] for name, followed_by in scores.items()}
        count = next(iter(found.values())).count
        if count:
            rows.append(_row(criterion, found, generated, count))
    return MetricTable(
        key=listener.key,
        title="Control by text",
        explanation=f"Over {len(clips)} captions of {source}: whether the music does what its caption says, heard by "
        f"{listener.method}. In brackets, 95 % intervals. Read a column of the model between two others: above "
        f"'{OTHER_CAPTIONS.format(generated[-1])}', where the same clips are held against captions that they were not "
        "made from, and below the ceilings, since the analysis errs too and the codec takes something away.",
        columns=columns,
        rows=rows,
        findings=_findings(criteria, scores, ceilings, generated),
        bars=True,
    )


def wilson(hits: float, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share, as low and high.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    share, z = hits / count, _NORMAL_975
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(values_NP: torch.Tensor) -> tuple[float, float]:
    """The 95 % interval of the mean over properties of their means over clips, as low and high.

    It spans the central 95 % of 2000 resamples of the clips (Efron, "Bootstrap methods", 1979).

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


def _overall_row(
    criteria: Sequence[Criterion], scores: Mapping[str, Sequence[Followed]], generated: Sequence[str]
) -> MetricRow:
    values: dict[str, float | None] = {}
    intervals = {}
    for name, results in scores.items():
        own_NP, others_NP = _strict(criteria, results)
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


def _strict(criteria: Sequence[Criterion], results: Sequence[Followed]) -> tuple[torch.Tensor, torch.Tensor]:
    """Own and others' `(N, P)` of the criteria that are asked for and not lenient."""
    kept = [
        result for criterion, result in zip(criteria, results, strict=True) if not criterion.lenient and result.count
    ]
    return torch.stack([one.own for one in kept], dim=1), torch.stack([one.others for one in kept], dim=1)


def _mean(values_NP: torch.Tensor) -> float:
    return values_NP.nanmean(dim=0).nanmean().item()


def _findings(
    criteria: Sequence[Criterion],
    scores: Mapping[str, Sequence[Followed]],
    ceilings: Sequence[str],
    generated: Sequence[str],
) -> list[str]:
    strict = {name: _strict(criteria, results) for name, results in scores.items()}
    found = []
    for name in generated:
        own_NP, others_NP = strict[name]
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
        gain_NP = strict[name][0] - strict[first][0]
        low, high = bootstrap(gain_NP)
        verdict = (
            "more than" if low > 0 else "less than" if high < 0 else "no different, as far as these clips tell, from"
        )
        found.append(f"{_capital(name)} is followed {verdict} {first}: {_points(_mean(gain_NP), low, high)}.")
    if ceilings:
        limits = " and ".join(f"{_mean(strict[name][0]):.1%} in the {_plain(name)}" for name in ceilings)
        found.append(f"The most that can be heard is {limits}.")
    ignored = _ignored(criteria, scores[generated[-1]])
    if ignored:
        found.append(f"{_capital(generated[-1])}: not shown to follow {', '.join(ignored)} beyond chance.")
    return found


def _ignored(criteria: Sequence[Criterion], results: Sequence[Followed]) -> list[str]:
    """The labels of criteria for which chance lies within or above the interval."""
    return [
        criterion.label
        for criterion, result in zip(criteria, results, strict=True)
        if result.count and wilson(result.own.nansum().item(), result.count)[0] <= result.others.nanmean().item()
    ]


def _points(difference: float, low: float, high: float) -> str:
    return f"{100 * difference:+.1f} points (95 %: {100 * low:+.1f} to {100 * high:+.1f})"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _plain(name: str) -> str:
    return name if name == RECORDINGS else "codec's round trip of them"

"""Prepares the content of the report's page for its template, `page.html.j2`."""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicgen_train.audio.io import read_audio
from musicgen_train.audio.mel import mel_picture
from musicgen_train.evaluation.control.listener import Criterion
from musicgen_train.evaluation.control.scoring import ControlClip, not_followed
from musicgen_train.evaluation.output import REPORT_NAME, RESULTS_NAME
from musicgen_train.evaluation.records import AudioRecord, MetricTable, SampleRecord
from musicgen_train.evaluation.report.curves import COLOURS, Chart, draw_chart
from musicgen_train.evaluation.report.templates import render
from musicgen_train.evaluation.requests import Kind

_PICTURE_WIDTH, _PICTURE_HEIGHT = 640, 144
_MEDIA_TYPES = {".wav": "audio/wav", ".flac": "audio/flac"}
_SECTIONS: tuple[tuple[Kind, str, str], ...] = (
    ("prompt", "Prompts", "Generated from the lines of the prompts file."),
    (
        "dataset",
        "Beside the recording",
        "Generated from a clip's caption; below it the clip itself, through the codec: the best that this model could "
        "sound like. They need not be alike, as a caption says little; they should be of a kind.",
    ),
    ("continuation", "Continuations", "The first seconds are given (the codec's rendering of them), the rest is new."),
    ("unconditional", "Unconditional", "Generated from no text at all."),
)


@dataclass(kw_only=True)
class Report:
    """The content of the page."""

    samples: Sequence[SampleRecord]
    tables: Sequence[MetricTable]
    control: Sequence[ControlClip]
    """The clips of the control test; none where it was not asked for."""
    criteria: Sequence[Criterion]
    """The comparisons that the control test makes."""
    charts: Sequence[Chart]
    """The curves of the training run; none for a model without one."""
    results: dict[str, Any]
    """The content of `results.json`."""


@dataclass(frozen=True, kw_only=True)
class _Player:
    """One audio file with its spectrogram."""

    label: str
    name: str
    anchor: str | None
    description: str
    picture: str
    source: str
    file: str
    facts: list[str]
    warnings: list[str]
    length: str
    highest_khz: str
    width: int = _PICTURE_WIDTH
    height: int = _PICTURE_HEIGHT


@dataclass(frozen=True, kw_only=True)
class _Card:
    """The samples of one request, side by side."""

    number: int
    name: str
    text: str
    origin: str
    players: list[_Player]


@dataclass(frozen=True, kw_only=True)
class _Section:
    anchor: str
    title: str
    explanation: str
    cards: list[_Card]


def write_report(report: Report, folder: Path, *, embed_bytes: int) -> Path:
    """Write `report.html` beside the audio files that it shows.

    Args:
        report: what to show.
        folder: where the audio files lie, and the report goes.
        embed_bytes: the page holds the audio files if they are no larger than this together; otherwise it links to
            them.
    """
    audio = [record for sample in report.samples for record in (sample.audio, sample.reference) if record is not None]
    size = sum((folder / file).stat().st_size for file in {record.file for record in audio})
    players = _Players(folder, embed=size <= embed_bytes)
    results = report.results
    page = render(
        "page.html.j2",
        name=Path(str(results["model"]["given"])).name or "model",
        results=results,
        results_name=RESULTS_NAME,
        model_kind=_model_kind(results["model"]),
        created=results["created"].replace("T", " ")[:16],
        duration=datetime.timedelta(seconds=round(results["seconds"])),
        facts=_facts(report),
        samples=len(report.samples),
        warned=[
            (_anchor(sample), _name(sample), sample.audio.warnings)
            for sample in report.samples
            if sample.audio.warnings
        ],
        sections=_sections(report.samples, players),
        tables=report.tables,
        control=[(clip.caption, _heard_sets(clip, report.criteria)) for clip in report.control],
        charts=[(chart, draw_chart(chart)) for chart in report.charts],
        colours=COLOURS,
        details=_details(results),
        embed=players.embed,
        audio_megabytes=f"{size / 1e6:.1f}",
    )
    path = folder / REPORT_NAME
    path.write_text(page, encoding="utf-8")
    return path


def _facts(report: Report) -> list[tuple[str, str]]:
    sampling, model = report.results["sampling"], report.results["model"]
    loss = _own_cross_entropy(report.tables)
    return [
        ("samples", f"{len(report.samples)}"),
        ("audio", f"{sampling['audio_seconds']:.0f} s" if sampling["audio_seconds"] else "none"),
        *([("speed", f"{1 / sampling['real_time_factor']:.2g}x real time")] if sampling["real_time_factor"] else []),
        *([("cross-entropy", f"{loss:.3f} nats")] if loss is not None else []),
        ("decoder", f"{model['decoder_parameters'] / 1e6:.3g} M parameters"),
        ("codes", f"{model['codebooks']} x {model['frame_rate']:g} per s"),
    ]


def _own_cross_entropy(tables: Sequence[MetricTable]) -> float | None:
    found = (row.values["mean"] for table in tables if table.key == "cross_entropy" for row in table.rows)
    return next(found, None)


def _model_kind(model: dict[str, Any]) -> str:
    if model["checkpoint"]:
        return f"Checkpoint {Path(model['checkpoint']).name} of a training run."
    return "A training run's composite." if model["run"] else "A composite model."


def _sections(samples: Sequence[SampleRecord], players: _Players) -> list[_Section]:
    sections = []
    for kind, title, explanation in _SECTIONS:
        groups: dict[int, list[SampleRecord]] = {}
        for sample in samples:
            if sample.kind == kind:
                groups.setdefault(sample.index, []).append(sample)
        if groups:
            cards = [_card(group, players) for group in groups.values()]
            sections.append(_Section(anchor=kind, title=title, explanation=explanation, cards=cards))
    return sections


def _card(group: list[SampleRecord], players: _Players) -> _Card:
    first = group[0]
    shown = [
        players.of(
            sample.audio,
            _sample_label(sample, len(group) > 1),
            _name(sample),
            anchor=_anchor(sample),
            facts=[f"seed {sample.seed}"],
        )
        for sample in group
    ]
    if first.reference is not None:
        shown.append(players.of(first.reference, "the recording, through the codec", f"reference of {_name(first)}"))
    return _Card(number=first.index, name=_name(first), text=first.text, origin=_origin(first), players=shown)


class _Players:
    """Makes players of audio files.

    Args:
        folder: where the files lie.
        embed: let the page hold them, in place of linking to them.
    """

    def __init__(self, folder: Path, *, embed: bool) -> None:
        self.folder = folder
        self.embed = embed

    def of(
        self, record: AudioRecord, label: str, name: str, *, anchor: str | None = None, facts: Sequence[str] = ()
    ) -> _Player:
        path = self.folder / record.file
        audio_CS, rate = read_audio(path)
        picture = mel_picture(audio_CS, rate, width=_PICTURE_WIDTH, height=_PICTURE_HEIGHT)
        signal = record.signal
        return _Player(
            label=label,
            name=name,
            anchor=anchor,
            description=f"Mel spectrogram of {name}: {record.seconds:.1f} seconds, mean level {signal.rms_dbfs:.0f} "
            f"dB, energy around {signal.centroid_hz:.0f} Hz, {signal.silent_share:.0%} silence",
            picture=_data_address("image/png", picture),
            source=_data_address(_MEDIA_TYPES[path.suffix], path.read_bytes()) if self.embed else record.file,
            file=record.file,
            facts=[
                f"{record.seconds:.1f} s",
                f"level {signal.rms_dbfs:.0f} dB",
                f"peak {signal.peak_dbfs:.1f} dB",
                *([f"changed by {record.gain_db:+.1f} dB"] if abs(record.gain_db) >= 0.05 else []),
                f"brightness {signal.centroid_hz:.0f} Hz",
                *([f"{signal.silent_share:.0%} silent"] if signal.silent_share >= 0.005 else []),
                *facts,
            ],
            warnings=record.warnings,
            length=f"{record.seconds:.1f} s",
            highest_khz=f"{rate / 2000:g}",
        )


def _data_address(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _heard_sets(clip: ControlClip, criteria: Sequence[Criterion]) -> list[tuple[str, str | None, list[str]]]:
    """For each set of audio its name, the clip's file if it was kept, and what in it is not as the caption asks."""
    return [
        (name, clip.files.get(name), not_followed(criteria, clip.asked, heard)) for name, heard in clip.heard.items()
    ]


def _details(results: dict[str, Any]) -> list[tuple[str, str]]:
    blocks = [
        ("Settings of this evaluation", {"command": results["command"], **results["config"]}),
        ("Model", results["model"]),
        *([("Dataset", results["data"])] if results["data"] else []),
        ("Sampling", results["sampling"]),
        ("Versions", results["versions"]),
    ]
    return [(title, json.dumps(content, indent=2, ensure_ascii=False)) for title, content in blocks]


def _name(sample: SampleRecord) -> str:
    return Path(sample.audio.file).stem


def _anchor(sample: SampleRecord) -> str:
    return f"{sample.kind}-{_name(sample)}".replace(".", "_")


def _sample_label(sample: SampleRecord, several: bool) -> str:
    parts = ["generated"]
    if sample.prompt_seconds:
        parts.append(f"goes on after {sample.prompt_seconds:.1f} s")
    if sample.text:
        parts.append(f"guidance {sample.guidance_scale:g}")
    if several and sample.repetition > 1:
        parts.append(f"sample {sample.repetition}")
    return ", ".join(parts)


def _origin(sample: SampleRecord) -> str:
    origin = sample.origin
    if "row" in origin:
        return f"{origin['split']} clip {origin['row']}: {origin['track']} from {origin['start_seconds']:.1f} s"
    return str(origin.get("file", ""))

"""`report.html`: one file to look at and listen to, without scripts and without anything fetched."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from musicgen_train.audio.io import read_audio
from musicgen_train.audio.mel import mel_picture
from musicgen_train.evaluation.control.scoring import ControlClip, not_followed
from musicgen_train.evaluation.curves import Chart, draw
from musicgen_train.evaluation.output import REPORT_NAME, RESULTS_NAME
from musicgen_train.evaluation.records import AudioRecord, Column, MetricRow, MetricTable, SampleRecord, Unit
from musicgen_train.evaluation.requests import Kind

_STYLE = Path(__file__).with_name("report.css")
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
    """What the page shows."""

    samples: Sequence[SampleRecord]
    tables: Sequence[MetricTable]
    control: Sequence[ControlClip]
    """Of the control test; none where it was not asked for."""
    charts: Sequence[Chart]
    """Of the training run; none for a model without one."""
    results: dict[str, Any]
    """The content of `results.json`."""


def write_report(report: Report, folder: Path, *, embed_bytes: int) -> Path:
    """Write `report.html` beside the audio files that it shows.

    Args:
        report: what to show.
        folder: where the audio files lie, and the report goes.
        embed_bytes: up to so many bytes of audio in all, the page holds the files; beyond, it links to them.
    """
    audio = [record for sample in report.samples for record in (sample.audio, sample.reference) if record is not None]
    size = sum((folder / file).stat().st_size for file in {record.file for record in audio})
    page = _Page(report, folder, embed=size <= embed_bytes, audio_bytes=size)
    path = folder / REPORT_NAME
    path.write_text(page.render(), encoding="utf-8")
    return path


class _Page:
    def __init__(self, report: Report, folder: Path, *, embed: bool, audio_bytes: int) -> None:
        self.report = report
        self.folder = folder
        self.embed = embed
        self.audio_bytes = audio_bytes

    def render(self) -> str:
        name = _escape(Path(str(self.report.results["model"]["given"])).name or "model")
        style = _STYLE.read_text(encoding="utf-8")
        body = [
            self._header(),
            self._warnings(),
            *self._sample_sections(),
            self._metrics(),
            self._control_clips(),
            self._curves(),
            self._details(),
        ]
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            # A page without an icon of its own makes a browser ask the server for one.
            f'<link rel="icon" href="data:,">\n<title>Evaluation of {name}</title>\n<style>{style}</style>\n</head>\n'
            f"<body>\n<main>\n{''.join(body)}</main>\n</body>\n</html>\n"
        )

    def _header(self) -> str:
        results = self.report.results
        sampling, model = results["sampling"], results["model"]
        facts = [
            ("samples", f"{len(self.report.samples)}"),
            ("audio", f"{sampling['audio_seconds']:.0f} s" if sampling["audio_seconds"] else "none"),
        ]
        if sampling["real_time_factor"]:
            facts.append(("speed", f"{1 / sampling['real_time_factor']:.2g}x real time"))
        loss = _own_cross_entropy(self.report.tables)
        if loss is not None:
            facts.append(("cross-entropy", f"{loss:.3f} nats"))
        facts += [
            ("decoder", f"{model['decoder_parameters'] / 1e6:.3g} M parameters"),
            ("codes", f"{model['codebooks']} x {model['frame_rate']:g} per s"),
        ]
        listed = "".join(f"<div><dt>{_escape(name)}</dt><dd>{_escape(value)}</dd></div>" for name, value in facts)
        contents = "".join(f'<a href="#{anchor}">{_escape(title)}</a>' for anchor, title in self._contents())
        return (
            f"<header><p class=kicker>musicgen_train evaluation</p><h1>{_escape(str(model['given']))}</h1>"
            f"<p class=quiet>{_escape(_source(model))} {_escape(results['created'].replace('T', ' ')[:16])} UTC, "
            f"{_escape(results['device'])}, {tqdm.format_interval(round(results['seconds']))} min in all</p>"
            f"<dl class=facts>{listed}</dl><nav aria-label=Contents>{contents}</nav></header>"
        )

    def _contents(self) -> list[tuple[str, str]]:
        kinds = {sample.kind for sample in self.report.samples}
        entries: list[tuple[str, str]] = [(kind, title) for kind, title, _ in _SECTIONS if kind in kinds]
        entries += [("metrics", "Numbers")] if self.report.tables else []
        entries += [("training", "Training")] if self.report.charts else []
        return [*entries, ("details", "Settings and versions")]

    def _warnings(self) -> str:
        warned = [sample for sample in self.report.samples if sample.audio.warnings]
        if not warned:
            return ""
        lines = "".join(
            f'<li><a href="#{_anchor(sample)}">{_escape(_name(sample))}</a>: '
            f"{_escape(' '.join(sample.audio.warnings))}</li>"
            for sample in warned
        )
        count = f"{len(warned)} of {len(self.report.samples)} samples need a look"
        return f'<section class="notice" aria-label="Warnings"><h2>{count}</h2><ul>{lines}</ul></section>'

    def _sample_sections(self) -> list[str]:
        sections = []
        for kind, title, explanation in _SECTIONS:
            groups: dict[int, list[SampleRecord]] = {}
            for sample in self.report.samples:
                if sample.kind == kind:
                    groups.setdefault(sample.index, []).append(sample)
            if groups:
                cards = "".join(self._card(group) for group in groups.values())
                sections.append(
                    f'<section id="{kind}"><h2>{title}</h2><p class=quiet>{explanation}</p>'
                    f"<div class=cards>{cards}</div></section>"
                )
        return sections

    def _card(self, group: list[SampleRecord]) -> str:
        first = group[0]
        text = (
            f"<blockquote>{_escape(first.text)}</blockquote>"
            if first.text
            else "<p class=none>no text (null condition)</p>"
        )
        players = [
            self._player(
                sample.audio,
                _sample_label(sample, len(group) > 1),
                _name(sample),
                anchor=_anchor(sample),
                seed=sample.seed,
            )
            for sample in group
        ]
        if first.reference is not None:
            players.append(
                self._player(first.reference, "the recording, through the codec", f"reference of {_name(first)}")
            )
        origin = _origin(first)
        # Side by side, where there is something to compare.
        wide = " wide" if len(players) > 1 else ""
        return (
            f'<article class="card{wide}"><h3><span class=number>{first.index}</span>'
            f"<span class=sr>{_escape(_name(first))}</span></h3>{text}"
            f"{f'<p class=origin>{_escape(origin)}</p>' if origin else ''}"
            f"<div class=players>{''.join(players)}</div></article>"
        )

    def _player(
        self, record: AudioRecord, label: str, name: str, *, anchor: str | None = None, seed: int | None = None
    ) -> str:
        audio_CS, rate = read_audio(self.folder / record.file)
        picture = mel_picture(audio_CS, rate, width=_PICTURE_WIDTH, height=_PICTURE_HEIGHT)
        described = _describe(record, name)
        signal = record.signal
        facts = [
            f"{record.seconds:.1f} s",
            f"level {signal.rms_dbfs:.0f} dB",
            f"peak {signal.peak_dbfs:.1f} dB",
            *([f"changed by {record.gain_db:+.1f} dB"] if abs(record.gain_db) >= 0.05 else []),
            f"brightness {signal.centroid_hz:.0f} Hz",
            *([f"{signal.silent_share:.0%} silent"] if signal.silent_share >= 0.005 else []),
            *([f"seed {seed}"] if seed is not None else []),
        ]
        warnings = "".join(f"<p class=warning>{_escape(warning)}</p>" for warning in record.warnings)
        return (
            f"<figure{f' id={anchor}' if anchor else ''}><figcaption>{_escape(label)}</figcaption>"
            f'<img width="{_PICTURE_WIDTH}" height="{_PICTURE_HEIGHT}" loading="lazy" alt="{_escape(described)}" '
            f'src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
            f"<div class=axis aria-hidden=true><span>0 s</span><span>0 to {rate / 2000:g} kHz upwards</span>"
            f"<span>{record.seconds:.1f} s</span></div>"
            f'<audio controls preload="metadata" aria-label="{_escape(f"{name}, {label}")}" '
            f'src="{_escape(self._audio_source(record))}"></audio>'
            f'<p class=signal><a href="{_escape(record.file)}" download>{_escape(record.file)}</a> '
            f"{_escape(' / '.join(facts))}</p>{warnings}</figure>"
        )

    def _audio_source(self, record: AudioRecord) -> str:
        if not self.embed:
            return record.file
        path = self.folder / record.file
        return f"data:{_MEDIA_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"

    def _metrics(self) -> str:
        if not self.report.tables:
            return ""
        tables = "".join(_table(table) for table in self.report.tables)
        return f'<section id="metrics"><h2>Numbers</h2>{tables}</section>'

    def _control_clips(self) -> str:
        if not self.report.control:
            return ""
        lines = "".join(f"<li>{_control_clip(clip)}</li>" for clip in self.report.control)
        return (
            "<details><summary>Control by text, clip by clip: what is not as the caption asks</summary>"
            f"<ol class=control>{lines}</ol></details>"
        )

    def _curves(self) -> str:
        if not self.report.charts:
            return ""
        charts = "".join(_chart(chart) for chart in self.report.charts)
        return f'<section id="training"><h2>Training</h2><div class=charts>{charts}</div></section>'

    def _details(self) -> str:
        results = self.report.results
        held = "held by this page" if self.embed else "linked: keep the page in its folder"
        blocks = [
            ("Settings of this evaluation", {"command": results["command"], **results["config"]}),
            ("Model", results["model"]),
            *([("Dataset", results["data"])] if results["data"] else []),
            ("Sampling", results["sampling"]),
            ("Versions", results["versions"]),
        ]
        shown = "".join(
            f"<details><summary>{_escape(title)}</summary><pre tabindex=0>{_escape(_indented(content))}</pre></details>"
            for title, content in blocks
        )
        return (
            f'<section id="details"><h2>Settings and versions</h2>{shown}'
            f"<p class=quiet>All of it, for programs: <a href={RESULTS_NAME}>{RESULTS_NAME}</a>. Audio: "
            f"{self.audio_bytes / 1e6:.1f} MB, {held}. The pictures are mel spectrograms: time to the right, frequency "
            "upwards on the mel scale, from black at -80 dB of full scale to light at 0 dB. A sample can be made again "
            "from its seed, with the same settings, model and kind of device.</p></section>"
        )


def _table(table: MetricTable) -> str:
    head = "".join(f"<th scope=col>{_escape(column.name)}</th>" for column in table.columns)
    rows = "".join(_row(row, table) for row in table.rows)
    explained = "; ".join(f"{column.name}: {column.meaning}" for column in table.columns if column.meaning)
    legend = f"<p class=quiet>{_escape(explained)}.</p>" if explained else ""
    findings = "".join(f"<li>{_escape(finding)}</li>" for finding in table.findings)
    return (
        f"<h3>{_escape(table.title)}</h3><p>{_escape(table.explanation)}</p>"
        f"{f'<ul class=findings>{findings}</ul>' if findings else ''}"
        f'<div class=scroll tabindex=0 role=region aria-label="{_escape(table.title)}"><table>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>{legend}"
    )


def _control_clip(clip: ControlClip) -> str:
    sets = []
    for name, heard in clip.heard.items():
        missed = "; ".join(not_followed(clip.asked, heard)) or "all as asked"
        linked = f'<a href="{_escape(clip.files[name])}">{_escape(name)}</a>' if name in clip.files else _escape(name)
        sets.append(f"<li>{linked}: {_escape(missed)}</li>")
    return f"{_escape(clip.caption)}<ul>{''.join(sets)}</ul>"


def _row(row: MetricRow, table: MetricTable) -> str:
    unit = " <span class=unit>nats</span>" if row.unit == "nats" else ""
    meaning = f"<span class=meaning>{_escape(row.meaning)}</span>" if row.meaning else ""
    cells = "".join(_cell(row, column, bars=table.bars) for column in table.columns)
    return f"<tr><th scope=row>{_escape(row.label)}{unit}{meaning}</th>{cells}</tr>"


def _cell(row: MetricRow, column: Column, *, bars: bool) -> str:
    value, unit = row.values.get(column.name), row.unit or column.unit
    shown = _escape(_number(value, unit))
    if column.name in row.intervals:
        low, high = row.intervals[column.name]
        shown += f" <span class=interval>({100 * low:.0f} to {100 * high:.0f})</span>"
    if bars and unit == "percent" and value is not None and math.isfinite(value):
        return f'<td class=bar style="--share:{value:.1%}">{shown}</td>'
    return f"<td>{shown}</td>"


def _chart(chart: Chart) -> str:
    keys = "".join(
        f'<span class="key key-{curve.colour % 8}">{_escape(curve.label)}</span>'
        for curve in chart.curves
        if curve.points
    )
    note = f"<p class=quiet>{_escape(chart.note)}</p>" if chart.note else ""
    return (
        f"<figure><figcaption>{_escape(chart.title)}</figcaption>{draw(chart)}<p class=keys>{keys}</p>{note}</figure>"
    )


def _own_cross_entropy(tables: Sequence[MetricTable]) -> float | None:
    found = (row.values["mean"] for table in tables if table.key == "cross_entropy" for row in table.rows)
    return next(found, None)


def _source(model: dict[str, Any]) -> str:
    if model["checkpoint"]:
        return f"Checkpoint {Path(model['checkpoint']).name} of a training run."
    return "A training run's composite." if model["run"] else "A composite model."


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


def _describe(record: AudioRecord, name: str) -> str:
    signal = record.signal
    return (
        f"Mel spectrogram of {name}: {record.seconds:.1f} seconds, mean level {signal.rms_dbfs:.0f} dB, energy around "
        f"{signal.centroid_hz:.0f} Hz, {signal.silent_share:.0%} silence"
    )


def _number(value: float | None, unit: Unit) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    if unit == "percent":
        return f"{value:.1%}"
    if unit in ("count", "hertz"):
        return f"{value:.0f}" + (" Hz" if unit == "hertz" else "")
    if unit == "decibels":
        return f"{value:.1f} dB"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def _indented(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False)


def _escape(text: str) -> str:
    return html.escape(text, quote=True)

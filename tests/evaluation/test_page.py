"""The report's page from records made by hand: what users wrote is shown and never run, numbers are in their units."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reports import Page

from musicgen_train.audio.io import write_audio
from musicgen_train.evaluation.control.listener import Criterion
from musicgen_train.evaluation.control.scoring import ControlClip
from musicgen_train.evaluation.records import AudioRecord, Column, MetricRow, MetricTable, SampleRecord
from musicgen_train.evaluation.report.curves import Chart, Curve
from musicgen_train.evaluation.report.page import Report, write_report
from musicgen_train.evaluation.report.templates import in_unit
from musicgen_train.metrics.signal_statistics import measure_signal

HOSTILE = "<script>alert(1)</script> \"quoted\" 'single' & {{ 7 * 7 }} <img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with a hostile text wherever a user's text is shown."""
    folder = tmp_path_factory.mktemp("page")
    audio = 0.1 * torch.sin(torch.arange(2000) / 3)[None]
    write_audio(folder / "001-a.wav", audio, 2000)
    record = AudioRecord(
        file="001-a.wav", seconds=1.0, gain_db=0.0, signal=measure_signal(audio, 2000), warnings=[f"warned {HOSTILE}"]
    )
    sample = SampleRecord(
        kind="continuation", index=1, text=HOSTILE, guidance_scale=3.0, repetition=1, seed=7, prompt_seconds=0.5,
        origin={"file": f"{HOSTILE}.wav"}, audio=record, reference=None,
    )  # fmt: skip
    table = MetricTable(
        key="table", title=f"table {HOSTILE}", explanation=HOSTILE, columns=[Column(name=HOSTILE, meaning=HOSTILE)],
        rows=[MetricRow(label=HOSTILE, values={HOSTILE: 1.0}, meaning=HOSTILE)], findings=[HOSTILE],
    )  # fmt: skip
    clip = ControlClip(caption=HOSTILE, asked={"key": HOSTILE}, heard={HOSTILE: {"key": "C"}}, files={})
    curve = Curve(label=HOSTILE, points=[(0, 1.0), (1, 2.0)])
    results: dict[str, Any] = {
        "model": {
            "given": HOSTILE, "checkpoint": f"{HOSTILE}.ckpt", "run": None, "decoder_parameters": 5, "codebooks": 4,
            "frame_rate": 50.0,
        },
        "sampling": {"audio_seconds": 1.0, "real_time_factor": 2.0},
        "created": "2026-01-02T03:04:05+00:00",
        "device": HOSTILE,
        "seconds": 3723.4,
        "command": HOSTILE,
        "config": {"prompts": HOSTILE},
        "data": {"path": HOSTILE},
        "versions": {},
    }  # fmt: skip
    report = Report(
        samples=[sample],
        tables=[table],
        control=[clip],
        criteria=[Criterion.same("key", "")],
        charts=[Chart(title=HOSTILE, curves=[curve], note=HOSTILE)],
        results=results,
    )
    return write_report(report, folder, embed_bytes=10**6).read_text(encoding="utf-8")


def test_what_a_user_wrote_is_shown_and_never_run(page: str) -> None:
    parsed = Page(page)
    assert not parsed.all("script")
    assert len(parsed.all("img")) == 1
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert parsed.text.count(HOSTILE) >= 15
    # The page has none of it outside quotes and escapes, and a text is no template.
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "{{ 7 * 7 }}" in page
    (chart,) = parsed.all("svg")
    assert chart["aria-label"].startswith(f"{HOSTILE} over training steps: {HOSTILE} from 1 to 2")


def test_times_and_facts(page: str) -> None:
    text = Page(page).text
    assert "2026-01-02 03:04 UTC" in text
    assert "1:02:03 h in all" in text
    assert "0.5x real time" in text
    assert "goes on after 0.5 s, guidance 3" in text


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.1234, "percent", "12.3%"),
        (1234.4, "hertz", "1234 Hz"),
        (3.0, "count", "3"),
        (-12.34, "decibels", "-12.3 dB"),
        (4.56789, "nats", "4.568"),
        (456.789, "number", "456.8"),
        (float("nan"), "percent", "-"),
        (None, "count", "-"),
    ],
)
def test_numbers_in_their_units(value: float | None, unit: Any, shown: str) -> None:
    assert in_unit(value, unit) == shown

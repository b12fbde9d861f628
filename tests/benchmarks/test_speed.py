"""`scripts/benchmarks/speed.py`: a run from the command line with tiny models, and how its figures are computed."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import benchmark_cases
import benchmark_costs
import benchmark_models
import benchmark_plan
import benchmark_run
import pytest
import speed
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from musicgen_train import MusicgenDecoderConfig, MusicgenForCausalLM

SCRIPT = Path(speed.__file__)
# All but the row of imports, which would take most of the time here.
CASES = ["forward", "train", "generate-1", "generate-8", "encode", "decode", "text", "load"]
TINY = ("--size", "test", "--device", "cpu", "--threads", "1", "--repeats", "2")


def test_run_from_the_command_line(tmp_path: Path) -> None:
    written = ("--json", "out.json", "--markdown", "out.md")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *TINY, "--together", "--only", *CASES, *written],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.md").read_text() == done.stdout
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(CASES)
    assert {line.count("|") for line in table} == {9}
    assert "DIFFERENT" not in done.stdout

    report = json.loads((tmp_path / "out.json").read_text())
    assert report["equal"] is True
    assert [row["case"] for row in report["rows"]] == CASES
    for row in report["rows"]:
        assert row["equal"] is True
        for side in ("musicgen_train", "transformers"):
            assert len(row[side]["seconds"]) == 2
            assert all(math.isfinite(seconds) and seconds > 0 for seconds in row[side]["seconds"])
            assert row[side]["rate"] is None or row[side]["rate"] > 0
        assert math.isfinite(row["ratio"])
        assert row["ratio"] > 0
    counted = [row for row in report["rows"] if row["rate_unit"] is not None]
    assert [row["case"] for row in counted] == [case for case in CASES if case != "load"]
    assert all(0 < row["roofline_share"] < 1 for row in counted)
    # 9 steps give 6 frames of 4 codebooks, for 1 and for 8 rows: so many codes were compared.
    remarks = {row["case"]: row["remark"] for row in report["rows"]}
    assert remarks["generate-1"].startswith("24 codes identical")
    assert remarks["generate-8"].startswith("192 codes identical")
    assert remarks["train"].startswith("gradient norm ")
    assert {"date", "command", "machine", "versions", "decoder"} <= report["environment"].keys()


def test_both_sides_in_half_precision(tmp_path: Path) -> None:
    plan = benchmark_plan.Plan.of(speed.parse([*TINY, "--dtype", "bfloat16"]))
    benchmark_models.write_models(plan, tmp_path)
    sessions = [speed.Session(side, tmp_path) for side in (benchmark_plan.OURS, benchmark_plan.THEIRS)]
    for case in ("forward", "train", "generate-1", "encode", "text"):
        ours, theirs = (results_of(session, case, tmp_path) for session in sessions)
        dtype = benchmark_cases.TASKS[case].precision(plan)
        assert dtype == (torch.float32 if case == "encode" else torch.bfloat16)
        agreement = speed.compare(ours, theirs, dtype)
        assert agreement.holds, f"{case}: {agreement.text}"
        if case == "forward":
            assert ours["logits"].dtype == torch.bfloat16


def test_each_case_has_processes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []

    class Recorded:
        def __init__(self, side: str, root: Path) -> None:
            self.side = side

        def __enter__(self) -> Recorded:
            events.append(("begins", self.side))
            return self

        def __exit__(self, *_: object) -> None:
            events.append(("ends", self.side))

    monkeypatch.setattr(speed, "Worker", Recorded)
    monkeypatch.setattr(speed, "write_models", lambda plan, root: None)
    monkeypatch.setattr(speed, "measure_task", lambda plan, case, workers, root: events.append(case))
    plan = benchmark_plan.Plan.of(speed.parse([*TINY]))
    ours, theirs = benchmark_plan.OURS, benchmark_plan.THEIRS
    pair = [("begins", ours), ("begins", theirs)], [("ends", theirs), ("ends", ours)]

    list(speed.measure_tasks(plan, ["train", "encode"], together=False))
    assert events == [*pair[0], "train", *pair[1], *pair[0], "encode", *pair[1]]
    events.clear()
    list(speed.measure_tasks(plan, ["train", "encode"], together=True))
    assert events == [*pair[0], "train", "encode", *pair[1]]


@pytest.mark.parametrize("options", [[], ["--compile"]])
def test_layers_are_compiled_on_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str]) -> None:
    compiled: list[torch.nn.Module] = []
    # Compiling them takes a quarter of a minute.
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    plan = benchmark_plan.Plan.of(speed.parse([*TINY, *options]))
    benchmark_models.write_models(plan, tmp_path)
    for side in (benchmark_plan.OURS, benchmark_plan.THEIRS):
        session = speed.Session(side, tmp_path)
        for case in ("forward", "train"):
            compiled.clear()
            session.open(case)
            assert compiled == (list(session.task.model.model.decoder.layers) if plan.compile else [])
    assert ("compiled" in benchmark_cases.TASKS["train"].title(plan)) is plan.compile


def results_of(session: Any, case: str, folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    session.open(case)
    assert session.run() > 0
    session.save_results(str(folder / "results.safetensors"))
    session.close()
    return load_file(folder / "results.safetensors")


def test_other_results_are_reported_and_fail_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_other_results(plan: Any, cases: Any, together: bool) -> Any:
        side = speed.Measurement([1.0], None)
        agreement = speed.compare({"loss": torch.tensor(2.0)}, {"loss": torch.tensor(2.1)}, torch.float32)
        yield speed.Row("train", "train step", side, side, agreement)

    monkeypatch.setattr(speed, "measure_tasks", with_other_results)
    monkeypatch.setattr(speed, "measure_roofline", lambda plan: speed.Roofline({torch.float32: 1e9}, 1e9))
    assert speed.main([*TINY, "--only", "train"]) == 1
    assert "| loss 5e-02 **DIFFERENT** |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ours", "theirs", "dtype", "holds"),
    [
        ([1.0, -4.0], [1.0, -4.00001], torch.float32, True),
        ([1.0, -4.0], [1.0, -4.0001], torch.float32, False),
        ([1.0, -4.0], [1.0, -4.1], torch.bfloat16, True),
        ([1.0, -4.0], [1.0, -5.0], torch.bfloat16, False),
        ([1.0, math.nan], [1.0, math.nan], torch.float32, False),
        ([1.0, math.inf], [1.0, math.inf], torch.float32, False),
        ([0.0, 0.0], [0.0, 0.0], torch.float32, False),
        ([1.0, 2.0, 3.0], [1.0, 2.0], torch.float32, False),
        ([7, 8], [7, 8], torch.float32, True),
        ([7, 8], [7, 9], torch.float32, False),
        ([7, 8], [7, 9], torch.bfloat16, True),
    ],
)
def test_comparison(ours: list[float], theirs: list[float], dtype: torch.dtype, holds: bool) -> None:
    agreement = speed.compare({"x": torch.tensor(ours)}, {"x": torch.tensor(theirs)}, dtype)
    assert agreement.holds is holds


def test_comparison_needs_the_same_names() -> None:
    value = torch.ones(3)
    assert not speed.compare({"a": value}, {"a": value, "b": value}, torch.float32).holds


def test_ratio_is_the_median_over_neighbouring_runs() -> None:
    # Pair by pair 4, 1.5 and 2: their median is 2, while that of the medians (2 and 6) would be 3.
    ours, theirs = speed.Measurement([2.0, 4.0, 1.0], None), speed.Measurement([8.0, 6.0, 2.0], None)
    assert speed.Row("x", "x", ours, theirs).ratio == 2.0
    assert str(ours) == "2.00 s (1.00-4.00)"
    assert str(speed.Measurement([0.25, 0.125], None)) == "187.5 ms (125.0-250.0)"


def test_operations_of_forward_are_what_torch_counts() -> None:
    plan = benchmark_plan.Plan.of(speed.parse(list(TINY)))
    width, layers, codebooks = 48, 2, 4
    model = MusicgenForCausalLM(MusicgenDecoderConfig(**plan.size.decoder)).eval()
    ids = torch.zeros(plan.batch * codebooks, plan.frames, dtype=torch.long)
    text = torch.ones(plan.batch, plan.size.text_length, width)
    # The plain backend, whose two products torch counts.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids, encoder_hidden_states=text, use_cache=False)
    steps = plan.frames
    masked = plan.batch * layers * 2 * (2 * width) * (steps * (steps - 1) // 2)  # torch counts what causality hides
    assert benchmark_costs.forward_flops(plan) == counter.get_total_flops() - masked
    assert benchmark_cases.TASKS["train"].work(plan).flops == 3 * benchmark_costs.forward_flops(plan)


def test_operations_of_the_text_encoder_are_what_torch_counts() -> None:
    plan = benchmark_plan.Plan.of(speed.parse(list(TINY)))
    size = plan.size
    model = transformers.T5EncoderModel(transformers.T5Config(**size.text_encoder)).eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(size.texts, size.tokens, dtype=torch.long))
    assert benchmark_cases.EncodeText.work(plan).flops == counter.get_total_flops()


@pytest.mark.parametrize("codec", ["test", "tiny"])
def test_operations_of_the_codec_are_what_torch_counts(monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    sizes = benchmark_plan.SIZES
    size = dataclasses.replace(sizes["test"], codec=sizes[codec].codec, audio_seconds=0.1)
    monkeypatch.setitem(sizes, "test", size)
    plan = benchmark_plan.Plan.of(speed.parse(list(TINY)))
    # In float64, since the LSTM is one call to oneDNN in float32, within which torch counts nothing.
    model = transformers.EncodecModel(transformers.EncodecConfig(**size.codec)).double().eval()
    audio = torch.zeros(1, 1, int(size.codec["sampling_rate"] * size.audio_seconds), dtype=torch.float64)
    with torch.no_grad(), FlopCounterMode(display=False) as encoding:
        codes = model.encode(audio).audio_codes
    with torch.no_grad(), FlopCounterMode(display=False) as decoding:
        model.decode(codes, [None])
    assert benchmark_cases.Encode.work(plan).flops == encoding.get_total_flops()
    assert benchmark_cases.Decode.work(plan).flops == decoding.get_total_flops()


def test_weights_read_in_a_step_of_generation() -> None:
    plan = benchmark_plan.Plan.of(speed.parse(list(TINY)))
    model = MusicgenForCausalLM(MusicgenDecoderConfig(**plan.size.decoder))
    read = [
        parameter.numel()
        for name, parameter in model.named_parameters()
        if "embed_tokens" not in name and "encoder_attn.k_proj" not in name and "encoder_attn.v_proj" not in name
    ]
    assert benchmark_costs.weights_read_per_step(plan) == sum(read)


def test_states_read_by_a_generation() -> None:
    plan = benchmark_plan.Plan.of(speed.parse([*TINY]))
    decoder, read = plan.size.decoder, 0
    for step in range(plan.new_tokens):
        for _row in range(3):
            # With its text and without.
            for keys in (step + 1 + plan.size.text_length, step + 1):
                read += keys * 2 * decoder["hidden_size"] * decoder["num_hidden_layers"]
    assert benchmark_costs.states_read(plan, 3) == read


def test_share_of_the_roofline() -> None:
    roofline = speed.Roofline({torch.float32: 100.0, torch.bfloat16: 400.0}, bytes_per_s=10.0)
    work = benchmark_costs.Work(1, "frames/s", flops=150.0)
    assert roofline.share(work, torch.float32, seconds=3.0) == 0.5
    assert roofline.share(work, torch.bfloat16, seconds=3.0) == 0.125
    assert roofline.share(benchmark_costs.Work(1, "frames/s", bytes_read=4.0), torch.float32, seconds=2.0) == 0.2


def test_the_codecs_share_is_that_of_products_in_float32() -> None:
    plan = benchmark_plan.Plan.of(speed.parse([*TINY, "--dtype", "bfloat16"]))
    roofline = speed.Roofline({torch.float32: 1e9, torch.bfloat16: 8e9}, bytes_per_s=1e9)
    side = speed.Measurement([2.0], None)
    rows = [
        speed.Row(case, case, side, side, work=benchmark_costs.Work(1, "a second", flops=1e9))
        for case in ("encode", "text")
    ]
    report = speed.Report(plan, {}, roofline, rows)
    assert [row["roofline_share"] for row in report.as_json()["rows"]] == [0.5, 0.0625]
    assert "matrix product 1 GFLOP/s in float32, matrix product 8 GFLOP/s in bfloat16, copy 1.0" in report.markdown()


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc/self/clear_refs")
def test_peak_memory_sees_what_was_freed_again() -> None:
    memory = benchmark_run.PeakMemory("cpu")
    held_before = torch.ones(2**23)  # 32 MB, no part of the growth
    memory.restart()
    torch.ones(2**24).sum()  # 64 MB
    growth = memory.growth()
    # The kernel counts in steps of some pages for each processor.
    assert abs(growth - 2**26) < 2**23
    memory.restart()
    assert memory.growth() < 2**23
    assert held_before.numel() == 2**23


def test_time_of_an_import_is_that_of_a_new_process() -> None:
    seconds, peak = speed.time_import("import json; import time; time.sleep(0.2)")
    assert 0.2 < seconds < 60
    assert peak is None or 2**22 < peak < 2**28  # of that process: this one has torch in it and is larger


def test_row_of_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def instead(statement: str) -> tuple[float, int]:
        asked.append(statement)
        return (3.0, 30) if "transformers" in statement else (1.5, 20) if "musicgen" in statement else (1.0, 10)

    monkeypatch.setattr(speed, "time_import", instead)
    row = speed.measure_imports(benchmark_plan.Plan.of(speed.parse(list(TINY))))
    assert row.ratio == 2.0
    assert row.remark == "import torch alone: 1.00 s (1.00-1.00)"
    assert (row.ours.peak_bytes, row.theirs.peak_bytes, row.torch_alone.peak_bytes) == (20, 30, 10)
    # One round to warm up and two that count, in turn.
    assert len(asked) == 9
    assert asked[:3] == asked[3:6] == asked[6:]


def test_a_worker_that_fails_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # There is no plan in this folder.
    failure = pytest.raises(RuntimeError, match="the process of musicgen_train ended with code 1 at open")
    with speed.Worker(benchmark_plan.OURS, tmp_path) as worker, failure:
        worker.ask("open", case="forward")
    assert "plan.json" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--new-tokens", "3"], "the delay of 4 codebooks needs 4 at least"),
        (["--repeats", "0"], "0 is given; allowed are whole numbers from 1"),
        (["--only", "forwards"], "invalid choice: 'forwards'"),
        (["--json", "no-such-folder/out.json"], "there is no folder no-such-folder to write out.json into"),
    ],
)
def test_bad_command_lines(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        speed.parse(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err

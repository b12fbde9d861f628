"""Asked to stop, a run saves and says how to go on: real processes, real signals."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import QUICK, RunWith

from musicgen_train.training.checkpoints.stop_signals import STOP_SIGNALS, RunStopped, StopSignals
from musicgen_train.training.module import MusicgenTraining
from musicgen_train.training.samples import SamplePrompts

ROOT = Path(__file__).parents[2]
# Long enough never to end by itself while a test looks at it.
ENDLESS = ["trainer.max_steps=100000", "schedule=constant", "model.dropout=0.1", "validate_every=7"]

Begin = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def begin(composite: Path, latents: Path) -> Iterator[Begin]:
    """`begin(output, "key=value", ...)`: the real command, in a process group of its own, once it has made 5 steps."""
    begun: list[subprocess.Popen[str]] = []

    def call(output: Path, *overrides: str) -> subprocess.Popen[str]:
        where = [f"data.path={latents}", f"init_from={composite}", f"output={output}"]
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts/train.py"), *where, *QUICK, *ENDLESS, *overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        begun.append(process)
        metrics = output / "metrics.csv"
        for _ in range(3000):
            if metrics.exists() and metrics.read_text().count("\n") > 5:
                return process
            if process.poll() is not None:
                break
            time.sleep(0.1)
        process.kill()
        raise AssertionError(process.communicate()[1])

    yield call
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def step_said(printed: str, why: str) -> int:
    found = re.search(
        rf"^stopped by {why} after step (\d+), saved in \S+last\.ckpt\. To go on, give the same command again with "
        r"resume=auto$",
        printed,
        re.M,
    )
    assert found, printed
    return int(found[1])


def test_sigterm_to_all_processes_saves_and_goes_on_as_if_it_had_not_stopped(
    begin: Begin, run_with: RunWith, tmp_path: Path
) -> None:
    overrides = ["data.workers=1", "data.micro_batch_size=1"]
    process = begin(tmp_path / "run", *overrides)
    # As `scancel --full` or systemd do: the process that reads gets it too.
    os.killpg(process.pid, signal.SIGTERM)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 75, errors
    assert errors.count("SIGTERM: saving after this step, then stopping") == 1
    assert "Traceback" not in errors
    step = step_said(printed, "SIGTERM")

    run_with(tmp_path / "straight", *ENDLESS, *overrides, f"trainer.max_steps={step + 3}")
    again = run_with(tmp_path / "run", *ENDLESS, *overrides, f"trainer.max_steps={step + 3}", "resume=auto")
    expected = torch.load(tmp_path / "straight/checkpoints/last.ckpt", weights_only=True)
    found = again.module.state_dict()
    assert [name for name, value in expected["state_dict"].items() if not torch.equal(value, found[name])] == []


@pytest.mark.heavy
def test_ctrl_c_as_a_terminal_sends_it(begin: Begin, tmp_path: Path) -> None:
    process = begin(tmp_path / "run", "data.workers=1")
    os.killpg(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=300)
    assert (process.returncode, "Ctrl-C again stops at once" in errors) == (75, True)
    step_said(printed, "SIGINT")


# In the first micro-batch of the third step, or the first batch of the third validation.
@pytest.mark.parametrize(
    ("number", "during", "call"),
    [
        (signal.SIGTERM, "training_step", 5),
        (signal.SIGINT, "validation_step", 7),
        (signal.SIGUSR1, "training_step", 5),
    ],
)
def test_the_step_is_done_and_saved_before_it_stops(
    run_with: RunWith,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    during: str,
    call: int,
) -> None:
    original, calls = getattr(MusicgenTraining, during), 0

    def signalled(self: MusicgenTraining, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return original(self, *arguments)

    monkeypatch.setattr(MusicgenTraining, during, signalled)
    handlers = [signal.getsignal(each) for each in STOP_SIGNALS]
    stopping = ["data.micro_batch_size=1", "validate_every=1", "trainer.max_steps=4"]
    with pytest.raises(RunStopped) as stopped:
        run_with(tmp_path / "run", *stopping)
    assert stopped.value.code == 75
    assert step_said(capsys.readouterr().out, number.name) == 3
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    with (tmp_path / "run/metrics.csv").open() as file:
        rows = [(row["step"], bool(row["val/loss"])) for row in csv.DictReader(file)]
    assert rows == [(str(step), validation) for step in (1, 2, 3) for validation in (False, True)]
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == handlers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_during_the_last_step_it_stops_before_the_export(
    run_with: RunWith,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    original, calls = MusicgenTraining.training_step, 0

    def signalled(self: MusicgenTraining, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            os.kill(os.getpid(), number)
        return original(self, *arguments)

    monkeypatch.setattr(MusicgenTraining, "training_step", signalled)
    with pytest.raises(RunStopped):
        run_with(tmp_path / "run", "trainer.max_steps=4")
    assert step_said(capsys.readouterr().out, number.name) == 4
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    assert not (tmp_path / "run/composite").exists()
    made = run_with(tmp_path / "run", "trainer.max_steps=4", "resume=auto")
    assert made.composite.is_dir()


def test_after_the_last_save_signals_do_what_they_always_do(
    run_with: RunWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    monkeypatch.setattr(
        SamplePrompts, "on_train_end", lambda *_: found.extend(signal.getsignal(each) for each in STOP_SIGNALS)
    )
    monkeypatch.setattr(SamplePrompts, "on_train_start", lambda *_: None)
    handlers = [signal.getsignal(each) for each in STOP_SIGNALS]
    run_with(tmp_path / "run", "samples.every=9")
    assert found == [signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL for each in STOP_SIGNALS]
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == handlers


def test_before_the_first_step_there_is_nothing_to_save(
    run_with: RunWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # While the first samples are made.
    monkeypatch.setattr(SamplePrompts, "draw", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(SamplePrompts, "_write", lambda *_: None)
    with pytest.raises(RunStopped):
        run_with(tmp_path / "run", "samples.every=2")
    assert "stopped by SIGTERM before the first step. To go on, give the same" in capsys.readouterr().out
    assert not (tmp_path / "run/checkpoints").exists()
    monkeypatch.undo()
    assert run_with(tmp_path / "run", "samples.every=0", "resume=auto").trainer.global_step == 4


def test_a_second_ctrl_c_stops_at_once() -> None:
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        # A shell's background job ignores it, and so would this test's child.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        listening = StopSignals()
        listening.listen()
        os.write(told, b"1")
        while listening.received is None:
            time.sleep(0.01)
        os.write(told, b"2")
        time.sleep(60)
        os._exit(0)
    assert os.read(ready, 1) == b"1"
    os.kill(child, signal.SIGINT)
    assert os.read(ready, 1) == b"2"
    os.kill(child, signal.SIGINT)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130


def test_what_the_process_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    others = {number: signal.getsignal(number) for number in STOP_SIGNALS if number != signal.SIGINT}
    try:
        StopSignals().listen()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
        for number, handler in others.items():
            signal.signal(number, handler)


TWO_RANKS = ["trainer.devices=2", "trainer.strategy=ddp", "data.micro_batch_size=1"]


@pytest.mark.heavy
def test_all_ranks_stop_at_the_same_step(begin: Begin, run_with: RunWith, tmp_path: Path) -> None:
    process = begin(tmp_path / "run", *TWO_RANKS)
    # To the first rank alone, which the second has no other way to know of.
    os.kill(process.pid, signal.SIGUSR1)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 75, errors
    assert "Traceback" not in errors
    step = step_said(printed, "SIGUSR1")
    one = run_with(tmp_path / "run", *ENDLESS, f"trainer.max_steps={step + 2}", "resume=auto")
    assert one.trainer.global_step == step + 2


@pytest.mark.heavy
@pytest.mark.parametrize("ranks", [[], TWO_RANKS])
def test_on_a_full_disk_all_ranks_stop_and_nothing_is_lost(begin: Begin, tmp_path: Path, ranks: list[str]) -> None:
    process = begin(tmp_path / "run", *ranks, "callbacks.last.every_n_train_steps=5")
    last = tmp_path / "run/checkpoints/last.ckpt"
    while not last.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    # What is written next to take the checkpoint's place meets the kernel's own full disk.
    for _ in range(10_000):
        try:
            last.with_name(".saving-last.ckpt").symlink_to("/dev/full")
            break
        except FileExistsError:
            time.sleep(0.001)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    said = [line for line in errors.splitlines() if "could not be saved (No space left on device" in line]
    assert len(said) == 1, errors
    assert said[0].startswith(f"error: {last} of step ")
    assert "Traceback" not in errors
    assert int(torch.load(last, weights_only=True)["global_step"]) % 5 == 0
    assert not last.with_name(".saving-last.ckpt").is_symlink()


@pytest.mark.heavy
def test_data_that_is_deleted_while_it_trains_is_missed_by_the_next_start_alone(
    begin: Begin, latents: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "latents"
    shutil.copytree(latents, mine)
    process = begin(tmp_path / "run", f"data.path={mine}", "data.workers=1")
    shutil.rmtree(mine)
    rows = (tmp_path / "run/metrics.csv").read_text().count("\n")
    while (tmp_path / "run/metrics.csv").read_text().count("\n") < rows + 20:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 75, errors
    step_said(printed, "SIGTERM")
    again = subprocess.run([*process.args, "resume=auto"], capture_output=True, text=True, check=False)  # type: ignore[misc]
    assert again.returncode == 1
    assert again.stderr.strip().startswith(f"error: {mine} is no latent dataset")

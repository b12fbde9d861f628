"""What is said of the machine: that it works, and what of it does not."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from musicgen_train.doctor import compute
from musicgen_train.doctor.__main__ import main
from musicgen_train.doctor.compute import look_at_compute, look_at_torch
from musicgen_train.doctor.disks import look_at_disks
from musicgen_train.doctor.findings import Finding, Status, as_text, guarded, note, ok, wrong
from musicgen_train.doctor.media import look_at_audio, look_at_tokenizer
from musicgen_train.doctor.packages import EXTRAS, look_at_packages
from musicgen_train.processing.t5_tokenizer import T5Tokenizer


def of_topic(findings: list[Finding], topic: str) -> Finding:
    [found] = [finding for finding in findings if finding.topic == topic]
    return found


def test_this_machine_is_fine_and_the_command_says_so() -> None:
    command = [sys.executable, "-m", "musicgen_train.doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(done.stdout)
    assert content["ok"]
    topics = {finding["topic"]: finding for finding in content["findings"]}
    assert {
        "python",
        "packages",
        "torch",
        "torchaudio",
        "threads",
        "libsndfile",
        "tokenizer",
        "output",
    } <= topics.keys()
    assert torch.__version__ in topics["torch"]["what"]
    assert ".mp3" in topics["libsndfile"]["what"]


def test_it_begins_without_what_may_be_broken() -> None:
    names = "('lightning', 'hydra', 'wandb', 'datasets')"
    code = f"import sys, musicgen_train.doctor.__main__; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_it_asks_nothing_of_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(*args: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refused)
    assert main(["--output", str(tmp_path)]) == 0


def test_called_from_python_it_leaves_logging_as_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    main(["--output", str(tmp_path)])
    logging.getLogger("musicgen_train.models").warning("heard again")
    assert "heard again" in caplog.text


def test_findings_as_text() -> None:
    findings = [ok("torch", "works"), note("peft", "not installed", "pip install peft"), wrong("a", "broken")]
    assert as_text(findings).splitlines() == [
        "ok    torch works",
        "note  peft  not installed",
        "            -> pip install peft",
        "wrong a     broken",
        "1 fine, 1 to note, 1 wrong",
    ]


def test_one_broken_look_does_not_hide_the_others() -> None:
    def look() -> Any:
        yield ok("a", "before")
        raise OSError("libc.so is\ngone")

    assert list(guarded("a", look)) == [ok("a", "before"), wrong("a", "OSError: libc.so is gone")]


@pytest.mark.parametrize(
    ("requirement", "status", "what"),
    [
        ("torch<2.0", Status.WRONG, f"{importlib.metadata.version('torch')}, but <2.0 is needed"),
        ("no-such-package>=1", Status.WRONG, "not installed"),
        ("torch>=2.0", None, ""),
        ("no-such-package; extra == 'lora'", None, ""),
    ],
)
def test_what_is_required_is_compared(
    monkeypatch: pytest.MonkeyPatch, requirement: str, status: Status | None, what: str
) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [requirement])
    found = [finding for finding in look_at_packages() if finding.status == Status.WRONG]
    assert [(finding.status, finding.what) for finding in found] == ([(status, what)] if status else [])
    if found:
        assert found[0].remedy == f"pip install '{requirement}'"


def test_an_extra_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "torch>=2.0",
        "torch>=2.0; extra == 'lora'",
        "no-such-package; extra == 'slurm'",
        "torch<2; extra == 'dev'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    findings = list(look_at_packages())
    lora, slurm, dev = (of_topic(findings, f"extra {name}") for name in ("lora", "slurm", "dev"))
    assert (lora.status, lora.what.partition(",")[0]) == (Status.OK, f"torch {importlib.metadata.version('torch')}")
    assert (slurm.status, slurm.remedy) == (Status.NOTE, "pip install 'musicgen-train[slurm]'")
    assert (
        slurm.what == "no-such-package not installed. It is needed only for starting SLURM jobs from the command line"
    )
    assert dev.status == Status.NOTE
    assert "but <2 is needed" in dev.what


def test_every_extra_of_the_package_is_looked_at() -> None:
    content = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert EXTRAS.keys() == content["project"]["optional-dependencies"].keys()


def test_a_torchaudio_that_does_not_load_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    found = of_topic(list(look_at_torch()), "torchaudio")
    assert found.status == Status.WRONG
    assert "torchaudio==2.11.0" in found.remedy


def test_a_driver_without_a_usable_gpu_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 570.1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = of_topic(list(look_at_compute()), "GPU")
    assert found.status == Status.WRONG
    assert "there is an NVIDIA driver (570.1), and torch" in found.what


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_described() -> None:
    found = of_topic(list(look_at_compute()), "GPU 0")
    assert found.status == Status.OK
    assert torch.cuda.get_device_name(0) in found.what


def test_more_threads_than_cores_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    found = of_topic(list(look_at_compute()), "threads")
    assert (found.status, found.remedy.partition("=")[0]) == (Status.NOTE, "export OMP_NUM_THREADS")


def test_a_format_that_comes_back_as_something_else_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    write = soundfile.write

    def write_noise(path: Path, data: Any, rate: int, format: str) -> None:
        write(path, torch.rand(len(data)).numpy() if format == "FLAC" else data, rate, format=format)

    monkeypatch.setattr(soundfile, "write", write_noise)
    bad, good = (finding for finding in look_at_audio() if finding.topic == "libsndfile")
    assert bad.status == Status.WRONG
    assert ".flac (a note of 440 Hz came back as something else)" in bad.what
    assert good.what.endswith(".wav, .ogg, .mp3, .aiff")


def test_without_ffmpeg_that_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = of_topic(list(look_at_audio()), "ffmpeg")
    assert (found.status, found.remedy.partition(",")[0]) == (Status.NOTE, "apt-get install ffmpeg")


def test_other_ids_than_sentencepieces_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(T5Tokenizer, "__call__", lambda self, text: {"input_ids": [1, 2, 3]})
    [found] = look_at_tokenizer()
    assert found.status == Status.WRONG
    assert "becomes [1, 2, 3], sentencepiece says" in found.what


def test_an_output_below_a_file_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = of_topic(list(look_at_disks(tmp_path / "file" / "run")), "output")
    assert (found.status, found.what) == (
        Status.WRONG,
        f"{tmp_path}/file/run cannot be made: {tmp_path}/file is a file",
    )
    assert of_topic(list(look_at_disks(tmp_path / "new" / "run")), "output").status != Status.WRONG


def test_a_folder_that_cannot_be_written_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refused)  # the tests may run as root, who may write anywhere
    found = of_topic(list(look_at_disks(tmp_path)), "output")
    assert (found.status, found.what) == (Status.WRONG, f"{tmp_path} cannot be written: Permission denied")


def test_a_full_disk_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**20}))
    assert of_topic(list(look_at_disks(tmp_path)), "output").status == Status.WRONG


@pytest.mark.parametrize(("reason", "status"), [(None, Status.OK), ("no C compiler here", Status.NOTE)])
def test_whether_there_is_c_code(reason: str | None, status: Status, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "reason_without_any", lambda: reason)
    found = of_topic(list(look_at_compute()), "C code")
    assert found.status is status
    assert (reason or "compiled") in found.what
    assert ("2 to 5 times as long" in found.what) == (reason is not None)

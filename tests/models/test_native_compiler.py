"""C files are compiled once, kept by what they were made from, and never needed."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import pathlib
import platform
import shutil
import stat
from pathlib import Path
from types import ModuleType

import pytest
import tiny
import torch

from musicgen_train import EncodecConfig, EncodecModel, MusicgenDecoderConfig, MusicgenForCausalLM
from musicgen_train.models.kernels import compiler, door, structures

SOURCE = "lstm.c"

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler here")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "musicgen_train"


def in_a_new_process() -> ModuleType:
    """The module as a process has it that has not loaded anything yet."""
    spec = importlib.util.spec_from_file_location("compiler_of_a_new_process", compiler.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def broken_compiler(folder: Path) -> Path:
    broken = folder / "broken-cc"
    broken.write_text(
        "#!/bin/sh\nif [ $1 = --version ]; then echo 1; exit 0; fi\necho this flag is unknown >&2; exit 1\n"
    )
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    return broken


def test_is_compiled_once_and_found_again(own_cache: Path) -> None:
    first = in_a_new_process()
    library = first.load_library(SOURCE)
    assert library.lstm_steps is not None
    assert first.load_library(SOURCE) is library
    assert first.reason_without(SOURCE) is None
    (file,) = own_cache.iterdir()
    made = file.stat().st_mtime_ns
    assert in_a_new_process().load_library(SOURCE) is not None
    assert [path.stat().st_mtime_ns for path in own_cache.iterdir()] == [made]


def test_all_files_are_compiled_here(monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests of what they compute are left out without them.
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert in_a_new_process().reason_without_any() is None


def test_another_processor_has_another_library(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_a_new_process().load_library(SOURCE) is not None
    monkeypatch.setattr(platform, "processor", lambda: "another")
    assert in_a_new_process().load_library(SOURCE) is not None
    assert len(list(own_cache.iterdir())) == 2


def test_can_be_switched_off(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiler.SWITCH, "0")
    process = in_a_new_process()
    assert process.load_library(SOURCE) is None
    assert process.reason_without(SOURCE) == process.reason_without_any() == f"{compiler.SWITCH}=0"
    assert not own_cache.exists()


def test_no_compiler_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    process = in_a_new_process()
    assert process.load_library(SOURCE) is None
    assert "no C compiler here" in process.reason_without(SOURCE)


def test_what_the_compiler_says_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = broken_compiler(tmp_path)
    monkeypatch.setenv("CC", str(broken))
    process = in_a_new_process()
    assert process.load_library(SOURCE) is None
    assert process.reason_without(SOURCE) == f"{SOURCE} was not compiled by {broken}: this flag is unknown"


@pytest.mark.parametrize("fault", ["missing", "broken", "switched off", "none"])
def test_one_warning_tells_what_it_costs(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if fault == "missing":
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setenv("PATH", "")
    elif fault == "broken":
        monkeypatch.setenv("CC", str(broken_compiler(tmp_path)))
    elif fault == "switched off":
        monkeypatch.setenv(compiler.SWITCH, "0")
    compiler._load.cache_clear()
    door._warn_once.cache_clear()
    model = MusicgenForCausalLM(MusicgenDecoderConfig(**{**tiny.DECODER, "hidden_size": 48})).eval()
    codec = EncodecModel(EncodecConfig(**tiny.CODEC)).eval()
    try:
        # A model that C is not for has nothing to miss.
        model.to(torch.float64).generate(max_new_tokens=12)
        assert not caplog.records
        for _ in range(2):
            model.float().generate(max_new_tokens=12)
            codec.encode(torch.zeros(1, 1, 80))
    finally:
        compiler._load.cache_clear()
        door._warn_once.cache_clear()
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    if fault in ("switched off", "none"):
        assert not messages
    else:
        (message,) = messages
        assert "2 to 5 times as long" in message
        assert "install gcc or clang" in message
        assert ("no C compiler here" if fault == "missing" else "this flag is unknown") in message


def test_a_home_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert in_a_new_process().load_library(SOURCE) is not None


def test_a_user_without_a_home_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(pathlib.Path, "home", unknown)
    assert in_a_new_process().load_library(SOURCE) is not None


def test_structures_that_differ_from_those_in_c_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Kept, and not to be found again with other structures.
    assert in_a_new_process().load_library(SOURCE) is not None
    fields = list(structures.LSTMLayer._fields_)
    wrong = {
        "the place of Layer.steps is another": [fields[1], fields[0], *fields[2:]],
        "the size of Layer.threads is another": [*fields[:3], ("threads", ctypes.c_int32), *fields[4:]],
        "the size of Layer is another": fields[:-1],
        "no member named": [*fields[:-1], ("outcome", ctypes.c_void_p)],
    }
    for complaint, its_fields in wrong.items():
        structure = type("Wrong", (ctypes.Structure,), {"_fields_": its_fields})
        monkeypatch.setitem(structures.STRUCTURES, SOURCE, {"Layer": structure})
        process = in_a_new_process()
        assert process.load_library(SOURCE) is None
        assert complaint in process.reason_without(SOURCE)

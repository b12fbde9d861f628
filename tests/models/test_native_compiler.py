"""C files are compiled once, kept by what they were made from, and never needed."""

from __future__ import annotations

import ctypes
import logging
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from musicgen_train.models.native import compiler

SOURCE = "decode_step.c"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("no C compiler here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiler._load.cache_clear()
    yield tmp_path / "cache" / "musicgen_train"
    compiler._load.cache_clear()


def libraries(cache: Path) -> list[Path]:
    return sorted(cache.iterdir())


def load_anew() -> ctypes.CDLL | None:
    compiler._load.cache_clear()
    return compiler.load_library(SOURCE)


def test_is_compiled_once_and_found_again(own_cache: Path) -> None:
    assert load_anew() is not None
    assert compiler.reason_without(SOURCE) is None
    (library,) = libraries(own_cache)
    made = library.stat().st_mtime_ns
    assert load_anew() is not None
    assert [path.stat().st_mtime_ns for path in libraries(own_cache)] == [made]


def test_another_processor_has_another_library(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_anew() is not None
    monkeypatch.setattr(compiler, "_processor", lambda: "another")
    assert load_anew() is not None
    assert len(libraries(own_cache)) == 2


def test_can_be_switched_off(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiler.SWITCH, "0")
    assert load_anew() is None
    assert compiler.reason_without(SOURCE) == f"{compiler.SWITCH}=0"
    assert not own_cache.exists()


def test_no_compiler_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    assert load_anew() is None
    assert "no C compiler here" in (compiler.reason_without(SOURCE) or "")


def test_what_the_compiler_says_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken-cc"
    broken.write_text(
        "#!/bin/sh\nif [ $1 = --version ]; then echo 1; exit 0; fi\necho this flag is unknown >&2; exit 1\n"
    )
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(broken))
    with caplog.at_level(logging.INFO):
        assert load_anew() is None
    assert "this flag is unknown" in caplog.text
    assert str(broken) in caplog.text
    assert "this flag is unknown" in (compiler.reason_without(SOURCE) or "")


def test_a_home_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_anew() is not None


def test_a_user_without_a_home_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(compiler.Path, "home", unknown)
    assert load_anew() is not None

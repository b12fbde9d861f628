"""Tests that files and folders are written whole or not at all, however a save ends, and JSON files."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from musicgen_train import files
from musicgen_train.files import atomic_folder, put_in_place, read_json, write_atomically, write_json


def content_of(path: Path) -> dict[str, str]:
    """Return every file below a folder with its text, and every folder."""
    found = sorted(path.rglob("*"))
    return {str(p.relative_to(path)): p.read_text() if p.is_file() else "(folder)" for p in found}


def write_files(path: Path, **texts: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


# --------------------------------------------------------------------------------------------------- atomic folders


def save(target: str | os.PathLike[str], **texts: str) -> None:
    with atomic_folder(target) as staging:
        write_files(staging, **texts)


def test_a_new_folder_appears_at_once(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    with atomic_folder(target) as staging:
        write_files(staging, a="1")
        write_files(staging / "sub", b="2")
        assert not target.exists()
    assert content_of(tmp_path) == {"deep": "(folder)"} | {
        f"deep/{name}": text
        for name, text in {"model": "(folder)", "model/a": "1", "model/sub": "(folder)", "model/sub/b": "2"}.items()
    }


def test_an_existing_folder_keeps_what_is_not_written(tmp_path: Path) -> None:
    write_files(tmp_path, a="old", config__json="old", keep="keep")
    write_files(tmp_path / "sub", b="old", keep="keep")
    with atomic_folder(tmp_path) as staging:
        write_files(staging, a="new", config__json="new", c="new")
        write_files(staging / "sub", b="new")
        assert (tmp_path / "a").read_text() == "old"
    assert content_of(tmp_path) == {
        "a": "new",
        "c": "new",
        "config.json": "new",
        "keep": "keep",
        "sub": "(folder)",
        "sub/b": "new",
        "sub/keep": "keep",
    }


def test_obsolete_files_go_unless_written_anew(tmp_path: Path) -> None:
    write_files(tmp_path, w1="old", w2="old", keep="keep")
    with atomic_folder(tmp_path, obsolete=lambda name: name.startswith("w")) as staging:
        write_files(staging, w2="new")
    assert content_of(tmp_path) == {"keep": "keep", "w2": "new"}


def test_an_empty_save_changes_nothing(tmp_path: Path) -> None:
    write_files(tmp_path, a="old")
    save(tmp_path)
    assert content_of(tmp_path) == {"a": "old"}


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_block_leaves_all_as_it_was(error: type[BaseException], exists: bool, tmp_path: Path) -> None:
    target = tmp_path / "model"
    if exists:
        write_files(target, a="old")
    before = content_of(tmp_path)

    def interrupted() -> None:
        with atomic_folder(target) as staging:
            write_files(staging, a="new", b="new")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        interrupted()
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("failing_move", range(6))
def test_an_error_while_files_move_is_undone(
    failing_move: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, a="old", config__json="old", w1="old")
    before = content_of(tmp_path)
    real, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == failing_move + 1:
            raise OSError(errno.EIO, "disk trouble")
        return real(self, target)

    def replace_all() -> None:
        with atomic_folder(tmp_path, obsolete=lambda name: name == "w1") as staging:
            write_files(staging, a="new", b="new", config__json="new")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="disk trouble"):
        replace_all()
    assert content_of(tmp_path) == before


# Saves into each of the folders argv[1:] in a process of its own, which kills itself: the first two while they write,
# the next ones at their first move of a file, their second, and so on. Prints how each process ended.
KILLED = """
import os, pathlib, signal, sys
from musicgen_train.files import atomic_folder

rename = pathlib.Path.rename

def kill_at_move(number):
    moves = []
    def move(self, destination):
        moves.append(self)
        if len(moves) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, destination)
    pathlib.Path.rename = move

for number, target in enumerate(sys.argv[1:], start=-1):
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        continue
    kill_at_move(number)
    with atomic_folder(target, obsolete=lambda name: name == "stale") as staging:
        for name in ("config.json", "index", "weights"):
            (staging / name).write_text("new")
            if number <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
    os._exit(0)
"""


def run_killed(targets: list[Path]) -> list[int]:
    """Return the exit codes of a save into each folder, killed at a later point each time."""
    command = [sys.executable, "-c", KILLED, *map(str, targets)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [int(line) for line in output.split()]


def visible(path: Path) -> dict[str, str]:
    return {name: text for name, text in content_of(path).items() if not name.startswith(".saving-")}


def test_a_killed_save_leaves_old_or_new_or_what_refuses_to_load(tmp_path: Path) -> None:
    old = {"config.json": "old", "weights": "old", "stale": "old"}
    new = {"config.json": "new", "weights": "new", "index": "new"}
    targets = [write_files(tmp_path / str(n), config__json="old", weights="old", stale="old") for n in range(8)]
    assert run_killed([tmp_path / "model", *targets]) == [-signal.SIGKILL] * 8 + [0]
    assert not (tmp_path / "model").exists()
    outcomes = []
    for number, target in enumerate(targets):
        left = visible(target)
        # Old or new, whole; or without the config, and then all files of both saves are still there somewhere.
        assert left in (old, new) or "config.json" not in left
        if 0 < number < 7:
            texts = sorted(text for text in content_of(target).values() if text != "(folder)")
            assert texts == ["new"] * 3 + ["old"] * 3
        outcomes.append("old" if left == old else "new" if left == new else "refuses")
    assert outcomes == ["old", "old", *["refuses"] * 5, "new"]
    # The next save is not disturbed by what the killed one left.
    save(targets[4], config__json="newer", weights="newer", index="newer")
    assert visible(targets[4]) == {"config.json": "newer", "weights": "newer", "index": "newer"}


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "model") as staging:
            # As safetensors makes its files.
            os.close(os.open(staging / "weights", os.O_CREAT, 0o600))
        save(tmp_path / "model", other="x")
    finally:
        os.umask(before)
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o777 & ~umask
    for name in ("weights", "other"):
        assert (tmp_path / "model" / name).stat().st_mode & 0o777 == 0o666 & ~umask


def test_spellings_of_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    save("relative/x", a="1")
    save("trailing/", a="2")
    save("~/home", a="3")
    save(Path("path"), a="4")
    save(".", a="5")
    (tmp_path / "link").symlink_to(tmp_path / "path")
    save("link", b="6")
    (tmp_path / "dangling").symlink_to(tmp_path / "made")
    save("dangling", a="7")
    expected = {
        ".": {"a": "5"},
        "relative/x": {"a": "1"},
        "trailing": {"a": "2"},
        "home": {"a": "3"},
        "path": {"a": "4", "b": "6"},
        "made": {"a": "7"},
    }
    for name, content in expected.items():
        assert {file.name: file.read_text() for file in (tmp_path / name).iterdir() if file.is_file()} == content
    assert (tmp_path / "link").is_symlink()


def test_a_target_in_a_parent_that_cannot_be_written(tmp_path: Path) -> None:
    # A mounted volume, say: only the target itself is ours.
    with unprivileged(tmp_path) as place:
        target = place / "parent" / "model"
        target.mkdir(parents=True)
        target.parent.chmod(0o555)
        save(target, config__json="new", a="new")
        save(target, config__json="newer", a="newer")
        assert content_of(target) == {"a": "newer", "config.json": "newer"}
        target.parent.chmod(0o755)


def test_a_target_that_cannot_be_written(tmp_path: Path) -> None:
    with unprivileged(tmp_path) as place:
        target = place / "model"
        write_files(target, a="old")
        target.chmod(0o555)
        with pytest.raises(PermissionError, match=rf"cannot save into {target}: Permission denied"):
            save(target, a="new")
        with pytest.raises(PermissionError, match=rf"cannot save into {target}/deeper: Permission denied"):
            save(target / "deeper", a="new")
        assert content_of(target) == {"a": "old"}
        target.chmod(0o755)


@contextlib.contextmanager
def unprivileged(tmp_path: Path) -> Iterator[Path]:
    """Give a folder of an ordinary user and that user's rights, since root may write anywhere."""
    if os.geteuid() != 0:
        yield tmp_path
        return
    # pytest's own folders are closed to others.
    place = Path(tempfile.mkdtemp(dir=tempfile.gettempdir()))
    nobody = 65534
    os.chown(place, nobody, nobody)
    os.seteuid(nobody)
    try:
        yield place
    finally:
        os.seteuid(0)
        shutil.rmtree(place)


def test_a_target_that_is_a_file(tmp_path: Path) -> None:
    write_files(tmp_path, model="x")
    with pytest.raises(NotADirectoryError, match=r"cannot save into .*/model: it is a file, not a folder"):
        save(tmp_path / "model", a="1")
    with pytest.raises(NotADirectoryError, match=r"cannot save into .*/model/deeper: Not a directory"):
        save(tmp_path / "model" / "deeper", a="1")
    assert content_of(tmp_path) == {"model": "x"}


def test_a_folder_in_the_way_of_a_file(tmp_path: Path) -> None:
    write_files(tmp_path / "config.json", inner="x")
    save(tmp_path, config__json="new")
    assert content_of(tmp_path) == {"config.json": "new"}


def test_files_reach_the_disk_before_they_get_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(files, "flush_to_disk", flushed.append)
    target = tmp_path / "parent" / "model"
    save(target, a="1", b="2")
    assert [path.name for path in flushed] == ["a", "b", "parent", "model"]
    flushed.clear()
    save(target, a="3")
    assert [path.name for path in flushed] == ["a", "model"]


# ------------------------------------------------------------------------------------------- single files, and folders


@pytest.mark.parametrize("content", ["naïve\n", "naïve\n".encode(), lambda file: file.write("naïve\n".encode())])
def test_a_file_of_text_bytes_or_what_a_function_writes(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    write_atomically(path, content)
    assert path.read_bytes() == "naïve\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_gets_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    replace, fsync = Path.replace, os.fsync

    def watched_replace(self: Path, target: Path) -> Path:
        happened.append(f"{self.name} becomes {target.name}")
        return replace(self, target)

    def watched_fsync(descriptor: int) -> None:
        happened.append(f"{Path(os.readlink(f'/proc/self/fd/{descriptor}')).name} flushed")
        fsync(descriptor)

    monkeypatch.setattr(Path, "replace", watched_replace)
    monkeypatch.setattr(os, "fsync", watched_fsync)
    folder = tmp_path / "folder"
    folder.mkdir()
    write_atomically(folder / "a", "1")
    write_atomically(folder / "b", "2", partial=tmp_path / "half")
    assert happened == [
        *(".saving-a flushed", ".saving-a becomes a", "folder flushed"),
        *("half flushed", "half becomes b", "folder flushed"),
    ]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_while_a_file_is_written_keeps_the_old_one(error: type[BaseException], tmp_path: Path) -> None:
    write_files(tmp_path, a="old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise error("stop")

    with pytest.raises(error, match="stop"):
        write_atomically(tmp_path / "a", fail)
    assert content_of(tmp_path) == {"a": "old"}


def test_a_folder_takes_the_place_of_another(tmp_path: Path, flushed: Callable[[Path], bool]) -> None:
    write_files(tmp_path / "new", a="new")
    write_files(tmp_path / "target", a="old", b="old")
    put_in_place(tmp_path / "new", tmp_path / "target", tmp_path / "replaced")
    assert content_of(tmp_path / "target") == {"a": "new"}
    assert content_of(tmp_path / "replaced") == {"a": "old", "b": "old"}
    assert flushed(tmp_path)
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "new", tmp_path / "target", tmp_path / "again")
    assert content_of(tmp_path / "target") == {"a": "new"}
    assert not (tmp_path / "again").exists()
    put_in_place(tmp_path / "replaced", tmp_path / "fresh", tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "target"]


# ---------------------------------------------------------------------------------------------------------- JSON files


def test_json_files(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"b": 1, "a": "\u00fc"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "\u00fc",\n  "b": 1\n}\n'
    assert read_json(path) == {"a": "\u00fc", "b": 1}
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"x.json is not valid JSON: .*utf-8"):
        read_json(path)
    path.write_text("3")
    with pytest.raises(ValueError, match=r"x.json holds a int, expected a JSON object"):
        read_json(path)

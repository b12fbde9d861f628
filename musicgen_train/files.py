"""Writes files and folders whole or not at all, and reads and writes JSON as the hub's files have it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

# Names that begin so are being written; a killed process leaves them behind.
PARTIAL = ".saving-"
# Without it nothing in a folder of the hub's layout loads.
_INDEX = "config.json"


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in `path`. Raises ValueError naming the file if it holds no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object in the form of `json_text`."""
    path.write_text(json_text(content), encoding="utf-8")


def json_text(content: dict[str, Any]) -> str:
    """Format a JSON object as the hub's files are: indented by two, keys sorted, a final newline."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_atomically(
    path: Path, content: str | bytes | Callable[[BinaryIO], object], *, partial: Path | None = None
) -> None:
    """Write a file so that it has either all of the new content or still the old.

    That holds however the process ends, and after a power cut: the content is written into another file and flushed to
    the disk; that file is renamed in one step; then the folder, which holds the name, is flushed, too.

    Args:
        path: the file; its folder exists.
        content: text, which is written as UTF-8; bytes; or a function that writes into a file opened for bytes.
        partial: the other file, on the same file system; by default `.saving-NAME` beside it. After an error it is
            removed; a killed process leaves it.

    Raises:
        OSError: the file cannot be written, e.g. because the disk is full. The old content stays.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}") if partial is None else partial
    try:
        with partial.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk.

    Without this, a power cut after a rename could leave a file of zeros under its final name, or no file of that name.
    """
    if path.is_dir() and os.name != "posix":
        return  # Windows does not open folders.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(folder: Path, target: Path, replaced: Path) -> None:
    """Rename a complete folder to `target`, and flush that to the disk; for single files see `write_atomically`.

    An existing `target` is renamed to `replaced`, and back if the new folder cannot take its place. All three are on
    one file system. Between the two renames no folder has the name.
    """
    if target.exists():
        target.rename(replaced)
    try:
        folder.rename(target)
    except OSError:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        raise
    flush_to_disk(target.parent)


@contextlib.contextmanager
def atomic_folder(target: str | os.PathLike[str], *, obsolete: Callable[[str], bool] | None = None) -> Iterator[Path]:
    """Write files into a staging folder; `target` takes them over only if the block ends without an error.

    A `target` that does not exist appears in one rename. In one that exists, files of the same names are replaced and
    all others stay; after an error it is as it was. Files cannot all be replaced at the same instant, so `config.json`,
    without which nothing loads, is taken out first and the new one put in last: a process killed between the two
    leaves a folder that refuses to load, never a loadable mix of two saves. The files that are not in place are then in
    a hidden folder `.saving-*` in `target` (beside it, if it did not exist); nothing is lost.

    One process may write to a folder at a time.

    Args:
        target: the folder; it and its parents are made if need be.
        obsolete: returns True for the names of files in `target` that are removed unless the block writes them anew,
            such as the third of three shards once there are only two.

    Yields:
        The staging folder, on the same file system as `target`.

    Raises:
        NotADirectoryError: `target` is a file.
        OSError: `target` cannot be written to.
    """
    target = Path(os.path.realpath(Path(target).expanduser()))
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"cannot save into {target}: it is a file, not a folder")
    # The staging folder is inside a target that exists, since its parent may be read-only or on another file system.
    place = target if target.exists() else target.parent
    work = place / f"{PARTIAL}{target.name}-{secrets.token_hex(4)}"
    staging = work / "new"
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise type(error)(error.errno, f"cannot save into {target}: {error.strerror}", error.filename) from error
    try:
        yield staging
        for file in _files_in(staging):
            # safetensors makes files only their owner can read; the folder just made has the usual permissions.
            file.chmod(staging.stat().st_mode & 0o666)
            flush_to_disk(file)
        if target.exists():
            _replace_files(staging, target, work / "old", obsolete or (lambda name: False))
        else:
            staging.rename(target)
            flush_to_disk(target.parent)
        flush_to_disk(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _replace_files(staging: Path, target: Path, removed: Path, obsolete: Callable[[str], bool]) -> None:
    """Move all files of `staging` into `target`, and what they replace into `removed`; undo it all on an error."""
    incoming = [file.relative_to(staging) for file in _files_in(staging)]
    outgoing = [name for name in incoming if (target / name).exists()]
    outgoing += [
        Path(file.name) for file in target.iterdir() if obsolete(file.name) and Path(file.name) not in incoming
    ]
    if len(incoming) == 1 and outgoing in ([], incoming) and not (target / incoming[0]).is_dir():
        (staging / incoming[0]).replace(target / incoming[0])
        return

    config = Path(_INDEX)
    moves = [(target / name, removed / name) for name in sorted(outgoing, key=lambda name: name != config)]
    moves += [(staging / name, target / name) for name in sorted(incoming, key=lambda name: name == config)]
    done: list[tuple[Path, Path]] = []
    try:
        for source, destination in moves:
            destination.parent.mkdir(parents=True, exist_ok=True)
            source.rename(destination)
            done.append((source, destination))
    except BaseException:
        for source, destination in reversed(done):
            destination.rename(source)
        raise


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())

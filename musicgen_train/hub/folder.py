"""A folder of pretrained files, on this disk or on the Hugging Face hub; writing folders and files atomically."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"

# Of what is being written; a killed process leaves it.
PARTIAL = ".saving-"
# "name" or "owner/name", as huggingface_hub allows them.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_NAMES_SHOWN = 12


class PretrainedFolder:
    """One source of pretrained files: a local folder, or a repository of the hub fetched file by file as needed.

    All files come from one commit of a repository, that of the first file, even if it is pushed to meanwhile.

    Args:
        name_or_path: a local folder, or a hub id such as `facebook/musicgen-small`. A folder that exists wins.
        subfolder: a folder inside it that holds the files.
        revision: branch, tag or commit of the hub repository.
        token: the hub's access token; without it the one of `hf auth login`, if any.
        cache_dir: where files of the hub are kept; without it huggingface_hub's own cache.
        local_files_only: use only what the cache has, ask nothing of the network.

    Raises:
        FileNotFoundError: `name_or_path` reads like a path and no folder is there, or `subfolder` is not in it.
        NotADirectoryError: it is a file.
        ValueError: it is empty.
    """

    def __init__(
        self,
        name_or_path: str | os.PathLike[str],
        *,
        subfolder: str = "",
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> None:
        self.name = os.fspath(name_or_path)
        self.subfolder = subfolder
        self._revision = revision
        self._token = token
        self._cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self._local_files_only = local_files_only
        if not self.name:
            raise ValueError("the name of the model is empty; give a folder or a hub id (owner/name)")
        path = Path(self.name).expanduser()
        self.path: Path | None = path / subfolder if path.is_dir() else None
        if self.path is not None and not self.path.is_dir():
            raise FileNotFoundError(f"{self.name} has no folder {subfolder!r}. It holds: {_list_names(path)}")
        if self.path is None and path.is_file():
            raise NotADirectoryError(f"{self.name} is a file; give the folder that holds it")
        if self.path is None and not _HUB_ID.fullmatch(self.name):
            raise FileNotFoundError(
                f"{self.name} is no folder on this machine, and it cannot be a hub id either (owner/name)"
            )

    def __str__(self) -> str:
        return f"{self.name}/{self.subfolder}" if self.subfolder else self.name

    def find(self, filename: str) -> Path | None:
        """The local path of `filename`, fetched from the hub if need be; None where the folder does not have it.

        Raises:
            FileNotFoundError: the hub repository or revision does not exist, is private, or cannot be reached.
        """
        if self.path is not None:
            path = self.path / filename
            return path if path.is_file() else None
        return self._fetch(filename)

    def require(self, filename: str, purpose: str) -> Path:
        """Like `find`, but a missing file raises FileNotFoundError that says what it is for and what is there."""
        path = self.find(filename)
        if path is None:
            raise FileNotFoundError(f"{self} has no {filename} ({purpose}). {self.describe()}")
        return path

    def describe(self) -> str:
        """A sentence that names the files there are, for error messages."""
        if self.path is not None:
            names = _list_names(self.path)
            return f"The folder holds: {names}." if names else "The folder is empty."
        snapshot = self._cached_snapshot()
        names = _list_names(snapshot / self.subfolder) if snapshot is not None else ""
        reach = ", and the hub may not be asked (local_files_only)" if self._local_files_only else ""
        return f"The hub's cache holds: {names or 'nothing'}{reach}."

    def _fetch(self, filename: str) -> Path | None:
        # Imported here because it is slow to import and a local folder never needs it.
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            fetched = hf_hub_download(
                self.name,
                filename,
                subfolder=self.subfolder or None,
                revision=self._revision,
                token=self._token,
                cache_dir=self._cache_dir,
                local_files_only=self._local_files_only,
            )
        except LocalEntryNotFoundError as error:
            # The hub was not reached. A snapshot in the cache is then all there is to know of the repository.
            if self._cached_snapshot() is not None:
                return None
            why = "may not be asked (local_files_only)" if self._local_files_only else "was not reached"
            at = f" at revision {self._revision!r}" if self._revision else ""
            raise FileNotFoundError(
                f"{self.name} is no folder on this machine and not in the hub's cache{at}, and the hub {why}"
            ) from error
        except EntryNotFoundError:
            return None
        except GatedRepoError as error:
            raise FileNotFoundError(
                f"access to {self.name} must be asked for on its hub page; then log in with `hf auth login`"
            ) from error
        except RevisionNotFoundError as error:
            raise FileNotFoundError(f"{self.name} has no revision {self._revision!r} on the hub") from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise FileNotFoundError(
                f"{self.name} is no folder on this machine and no repository of the hub that this account can read"
            ) from error
        except (HfHubHTTPError, ConnectionError) as error:
            raise FileNotFoundError(f"{self.name} could not be read from the hub: {error}") from error
        path = Path(fetched)
        self._pin_commit(path)
        return path

    def _pin_commit(self, fetched: Path) -> None:
        # <cache>/models--<owner>--<name>/snapshots/<commit>/<subfolder>/<filename>
        for below, folder in itertools.pairwise(fetched.parents):
            if folder.name == "snapshots":
                self._revision = below.name
                return

    def _cached_snapshot(self) -> Path | None:
        """The folder of this repository and revision in the hub's cache, if anything of it was ever fetched."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        repository = Path(self._cache_dir or constants.HF_HUB_CACHE) / repo_folder_name(
            repo_id=self.name, repo_type="model"
        )
        revision = self._revision or constants.DEFAULT_REVISION
        reference = repository / "refs" / revision
        commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
        snapshot = repository / "snapshots" / commit
        return snapshot if snapshot.is_dir() else None


def _list_names(folder: Path) -> str:
    """What a folder holds, as text cut to a readable length; "" where there is nothing."""
    if not folder.is_dir():
        return ""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises ValueError naming the file where it is no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object as `json_text`."""
    path.write_text(json_text(content), encoding="utf-8")


def json_text(content: dict[str, Any]) -> str:
    """A JSON object the way the hub's files are written: indented by two, keys sorted, a final newline."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_atomically(
    path: Path, content: str | bytes | Callable[[BinaryIO], object], *, partial: Path | None = None
) -> None:
    """Write a file so that its name stands for all of the new content, or still for the old.

    That holds however the process ends, and after a power cut: the content goes into another file, which is flushed to
    the disk itself before it takes over the name in one step, and then the folder is, which holds the name.

    Args:
        path: of the file; its folder exists.
        content: text, which is written as UTF-8; bytes; or a function that writes into a file opened for bytes.
        partial: the other file, on the same file system; by default `.saving-NAME` beside it. After an error it is
            removed; a killed process leaves it.

    Raises:
        OSError: it cannot be written, e.g. because the disk is full. What was there before stays.
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
    """Have a file, or the names in a folder, on the disk itself.

    Without it a power cut after a rename could leave a file of zeros under its final name, or no such name.
    """
    if path.is_dir() and os.name != "posix":
        return  # Windows does not open folders.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(folder: Path, target: Path, replaced: Path) -> None:
    """Give a complete folder its name, and flush that to the disk; for files alone see `write_atomically`.

    What had the name goes to `replaced` and comes back if the new one cannot take its place. All three are on one
    file system. Between the two renames there is neither.
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

    A `target` that does not exist appears in one rename. In one that does, files of the same names are replaced and
    what else it holds stays; after an error it is as it was. Files cannot be replaced all at the same instant, so
    `config.json`, without which nothing loads, is taken out first and the new one put in last: a process killed
    between the two leaves a folder that refuses to load, never a mix of two saves that does. Whatever is not in place
    is then in a hidden folder `.saving-*` in `target`, or beside one that does not exist yet; nothing is lost.

    One process may write to a folder at a time.

    Args:
        target: the folder; it and its parents are made if need be.
        obsolete: says of a file name whether a file in `target` goes away if the block does not write it anew, such
            as the third of three shards once there are only two.

    Yields:
        The staging folder, on the same file system as `target`.

    Raises:
        NotADirectoryError: `target` is a file.
        OSError: `target` cannot be written to.
    """
    target = Path(os.path.realpath(Path(target).expanduser()))
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"cannot save into {target}: it is a file, not a folder")
    # Inside a target that exists, since its parent may be read-only or on another file system.
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

    config = Path(CONFIG_NAME)
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

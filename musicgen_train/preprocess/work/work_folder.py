"""The work folder keeps what is encoded beside the output, so that a run may be killed, resumed, shared and grown.

    .NAME.work/                 beside the output NAME
      <hash>/                   a hash of everything that decides the content of clips; different ones are never mixed
        about.json              those settings and encoders in words, the input, and how tracks are divided into splits
        shards/<shard>/         see `shards.py`
        parts/00000-of-00002    the results of rank 0 of 2; there once that rank is done
        published.json          which datasets were assembled from this work
        staging/00000/          files that rank 0 is writing; left over if no process runs
        locks/                  held while a rank works; the system releases them when a process dies

Everything appears in one rename. No file is written by two processes, except where both write the same content.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicgen_train.files import json_text, read_json, write_atomically
from musicgen_train.latents.format import MANIFEST_NAME
from musicgen_train.preprocess.settings import PreprocessSettings
from musicgen_train.preprocess.work.ranks import Rank

ABOUT_NAME = "about.json"
PUBLISHED_NAME = "published.json"
_WORK_FORMAT = 1
_DIGEST_CHARACTERS = 16
# These settings decide the dataset, and do not change the clips.
_DATASET_SETTINGS = ("input", "input_format", "hub", "split")


def work_root(output: Path) -> Path:
    """Return the folder beside the output, on the same file system, that holds the work of all settings."""
    output = Path(os.path.realpath(output))
    return output.parent / f".{output.name}.work"


def made_here(output: Path) -> bool:
    """Return True if the dataset in `output` was assembled from what its work folder holds."""
    digest = manifest_digest(output)
    found = (read_published(about.parent) for about in work_root(output).glob(f"*/{ABOUT_NAME}"))
    return digest is not None and any(digest in published.manifests for published in found)


def manifest_digest(folder: Path) -> str | None:
    """Return the SHA-256 of a dataset's manifest, which differs from run to run; None where there is no dataset."""
    try:
        return hashlib.sha256((folder / MANIFEST_NAME).read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None


@dataclass(kw_only=True)
class Published:
    """The datasets that were assembled from a work folder."""

    content: str = ""
    """`Results.content` of the last dataset."""
    manifests: tuple[str, ...] = ()
    """`manifest_digest` of all of them."""


def describe_work(
    settings: PreprocessSettings, *, text_encoder: str, audio_encoder: str, audio_channels: int
) -> dict[str, Any]:
    """Return the content of `about.json`: everything that decides what a dataset holds, apart from the audio.

    Args:
        settings: the settings of the run.
        text_encoder: the text encoder's fingerprint.
        audio_encoder: the codec's fingerprint.
        audio_channels: the channels that are coded.
    """
    values = settings.to_dict()
    dataset = {name: values[name] for name in _DATASET_SETTINGS}
    if Path(settings.input).expanduser().exists():
        dataset["input"] = os.path.realpath(Path(settings.input).expanduser())
    return {
        "work_format": _WORK_FORMAT,
        "clips": settings.decisive(),
        "encoders": {
            "text encoder": text_encoder,
            "audio encoder": audio_encoder,
            "audio_channels": audio_channels,
        },
        "dataset": dataset,
    }


def read_published(folder: Path) -> Published:
    """Read `published.json`; a missing or damaged file counts as no datasets."""
    try:
        values = read_json(folder / PUBLISHED_NAME)
        return Published(content=str(values["content"]), manifests=tuple(values["manifests"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return Published()


@contextlib.contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Tell the user what is kept and what to do when the disk of the work folder, or of temporary files, is full."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(
            f"no space for temporary tables ({error}): name a folder with some in the variable SQLITE_TMPDIR, and run "
            "the same command again"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise type(error)(
            f"no space left on the disk of {folder}. What is encoded so far is kept: make space, and run the same "
            "command again"
        ) from error


class WorkFolder:
    """The work for one output with one set of settings, as one rank sees it.

    Args:
        output: the dataset to make.
        about: what decides the dataset, see `describe_work`.
        rank: this process.
        overwrite: allow that the folder holds work made with other settings or of another input.

    Raises:
        ValueError: there is such work, without `overwrite`.
        OSError: the folder cannot be written.
    """

    def __init__(self, output: Path, about: dict[str, Any], rank: Rank, *, overwrite: bool) -> None:
        self.root = work_root(output)
        self.rank = rank
        self.folder = self.root / _digest(about)
        self._output = output
        if not overwrite:
            self._refuse_others(about)
        self.shards = self.folder / "shards"
        self._parts = self.folder / "parts"
        self._locks = self.folder / "locks"
        self.staging = self.folder / "staging" / f"{rank.number:05d}"
        try:
            for folder in (self.shards, self._parts, self._locks, self.staging):
                folder.mkdir(parents=True, exist_ok=True)
            self._write_json(self.folder / ABOUT_NAME, about)
        except OSError as error:
            raise type(error)(
                f"the work folder {self.root} cannot be written ({error.strerror}); give an output where it can"
            ) from error

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Hold this rank's lock, and remove what an earlier process of this rank left unfinished.

        Raises:
            ValueError: another process works as this rank.
        """
        with self._lock(f"rank-{self.rank.number:05d}", wait=False) as held:
            if not held:
                raise ValueError(
                    f"another process works on {self._output} as {self.rank}; wait for it, or give each process a rank "
                    "of its own (rank=..., world_size=...)"
                )
            shutil.rmtree(self.staging, ignore_errors=True)
            self.staging.mkdir(exist_ok=True)
            # The part of an earlier run no longer counts; this process writes a new one when it is done.
            self.part().unlink(missing_ok=True)
            yield

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Hold the lock of the process that assembles, waiting for another that holds it."""
        with self._lock("finish", wait=True):
            yield

    def part(self, rank: int | None = None) -> Path:
        """Return the path of a rank's results, by default those of this rank."""
        number = self.rank.number if rank is None else rank
        return self._parts / f"{number:05d}-of-{self.rank.world_size:05d}"

    def parts(self) -> list[Path]:
        """Return the paths of all ranks' results, whether they exist yet or not."""
        return [self.part(rank) for rank in range(self.rank.world_size)]

    def published(self) -> Published:
        """Return which datasets were assembled from this work."""
        return read_published(self.folder)

    def note_published(self, content: str, manifest: str) -> None:
        """Record a dataset that is about to be put in its place.

        Args:
            content: its `Results.content`.
            manifest: its `manifest_digest`.
        """
        before = self.published().manifests
        kept = {"content": content, "manifests": [*(each for each in before if each != manifest), manifest]}
        self._write_json(self.folder / PUBLISHED_NAME, kept)

    def clean(self) -> None:
        """Remove what is of no use after publishing: work with other settings, and staging folders of former ranks."""
        for path in [*self.root.iterdir(), *(self.folder / "staging").iterdir()]:
            of_other_settings = path.parent == self.root and path != self.folder
            of_no_rank = path.parent != self.root and int(path.name) >= self.rank.world_size
            if of_other_settings or of_no_rank:
                shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Remove all work for this output."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _write_json(self, path: Path, content: dict[str, Any]) -> None:
        unfinished = self.staging / f"{path.name}.{secrets.token_hex(4)}"
        write_atomically(path, json_text(content), partial=unfinished)

    def _refuse_others(self, about: dict[str, Any]) -> None:
        for file in sorted(self.root.glob(f"*/{ABOUT_NAME}")):
            before = read_json(file)
            if before == about:
                continue
            changes = "; ".join(_changes(before, about)) or "it was written by another version"
            raise ValueError(
                f"{self.root} holds work for {self._output} that was made otherwise, and is never mixed: {changes}. "
                "Give another output, go back to what it was, or add overwrite=true to make it again (what still fits "
                "is kept)"
            )

    @contextlib.contextmanager
    def _lock(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Hold a lock, which the system releases however this process ends. Yields False if another process holds it.

        On a file system without locks it counts as held. That is safe: locks only save work from being done twice, and
        both times give the same files, which appear in one rename.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            yield True
            return
        with (self._locks / name).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                    raise
            yield True


def _digest(about: dict[str, Any]) -> str:
    decisive = {name: value for name, value in about.items() if name != "dataset"}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:_DIGEST_CHARACTERS]


def _changes(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    old, new = _flat(before), _flat(now)
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            if name in ("text encoder", "audio encoder"):
                yield f"the {name} is another (config or weights)"
            else:
                yield f"{name} was {old.get(name)} and is {new.get(name)}"


def _flat(about: dict[str, Any]) -> dict[str, Any]:
    """Return the settings by their dotted names."""
    flat: dict[str, Any] = {}
    for section in ("clips", "encoders", "dataset"):
        for name, value in dict(about.get(section) or {}).items():
            flat |= (
                {f"{name}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {name: value}
            )
    return flat

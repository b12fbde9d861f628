"""Tests folders of pretrained files, local and in a hub cache without network."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from musicgen_train.files import read_json
from musicgen_train.hub.folder import PretrainedFolder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


def write_files(path: Path, **texts: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


# ---------------------------------------------------------------------------------------------------- local folders


def test_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path / "owner" / "name", config__json="{}")
    monkeypatch.chdir(tmp_path)
    # An existing folder wins over a hub id of the same spelling.
    for spelling in ("owner/name", Path("owner/name"), "owner/name/", "./owner/../owner/name", tmp_path / "owner/name"):
        folder = PretrainedFolder(spelling)
        found = folder.find("config.json")
        assert found is not None
        assert found.resolve() == tmp_path / "owner/name/config.json"
        assert folder.find("model.safetensors") is None
    monkeypatch.setenv("HOME", str(tmp_path))
    assert PretrainedFolder("~/owner/name").require("config.json", "x").read_text() == "{}"
    inner = PretrainedFolder("owner", subfolder="name")
    assert inner.find("config.json") is not None
    assert str(inner) == "owner/name"


def test_a_folder_of_that_name_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    assert PretrainedFolder(tmp_path).find("config.json") is None


def test_what_is_no_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path / "run", config__json="{}")
    with pytest.raises(
        FileNotFoundError, match=r"^\./runs/best is no folder on this machine, and it cannot be a hub id"
    ):
        PretrainedFolder("./runs/best")
    with pytest.raises(FileNotFoundError, match=r"runs/best/last is no folder"):
        PretrainedFolder("runs/best/last")
    with pytest.raises(NotADirectoryError, match=r"^run/config.json is a file; give the folder that holds it"):
        PretrainedFolder("run/config.json")
    with pytest.raises(FileNotFoundError, match=r"^run has no folder 'decoder'. It holds: config.json"):
        PretrainedFolder("run", subfolder="decoder")
    with pytest.raises(ValueError, match="the name of the model is empty"):
        PretrainedFolder("")


def test_a_missing_file_names_its_purpose_and_what_is_there(tmp_path: Path) -> None:
    folder = PretrainedFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no config.json \(the model's sizes\)\. The folder is empty\."):
        folder.require("config.json", "the model's sizes")
    (tmp_path / "checkpoints").mkdir()
    for number in range(14):
        (tmp_path / f"file{number:02}").touch()
    with pytest.raises(FileNotFoundError, match=r"The folder holds: checkpoints/, file00, .*file10 and 3 more\."):
        folder.require("config.json", "the model's sizes")


# ------------------------------------------------------------------------------------------------------ hub folders


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Make a cache as huggingface_hub lays it out, with one repository at two commits, one of them a branch."""
    repository = tmp_path / "cache" / "models--owner--name"
    write_files(repository / "refs", main=COMMIT, trial=OTHER_COMMIT)
    snapshots = repository / "snapshots"
    write_files(snapshots / COMMIT, config__json='{"commit": "main"}')
    write_files(snapshots / COMMIT / "inner", config__json='{"commit": "main, inner"}')
    write_files(snapshots / OTHER_COMMIT, config__json='{"commit": "trial"}', model__safetensors="x")
    return tmp_path / "cache"


def test_hub_id_from_the_cache(cache: Path) -> None:
    def config(**options: str) -> str:
        hub = PretrainedFolder("owner/name", cache_dir=cache, local_files_only=True, **options)
        return str(read_json(hub.require("config.json", "x"))["commit"])

    assert config() == "main"
    assert config(revision="trial") == config(revision=OTHER_COMMIT) == "trial"
    assert config(subfolder="inner") == "main, inner"


def test_hub_id_from_the_default_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # HF_HUB_OFFLINE is set for all tests: the same as local_files_only, but for the message.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    folder = PretrainedFolder("owner/name")
    assert folder.find("config.json") is not None
    assert folder.find("model.safetensors") is None
    with pytest.raises(FileNotFoundError, match=r"^owner/other is no folder .* and the hub was not reached"):
        PretrainedFolder("owner/other").find("config.json")


def test_what_the_cache_lacks(cache: Path) -> None:
    folder = PretrainedFolder("owner/name", cache_dir=cache, local_files_only=True)
    assert folder.find("model.safetensors") is None
    with pytest.raises(
        FileNotFoundError, match=r"owner/name has no x.json \(why\)\. The hub's cache holds: config.json"
    ):
        folder.require("x.json", "why")
    with pytest.raises(FileNotFoundError, match=r"and the hub may not be asked \(local_files_only\)\.$"):
        folder.require("x.json", "why")
    unknown = PretrainedFolder("owner/other", cache_dir=cache, local_files_only=True)
    with pytest.raises(
        FileNotFoundError, match=r"owner/other is no folder on this machine and not in the hub's cache,"
    ):
        unknown.find("config.json")
    revision = PretrainedFolder("owner/name", cache_dir=cache, local_files_only=True, revision="v2")
    with pytest.raises(
        FileNotFoundError, match=r"not in the hub's cache at revision 'v2', and the hub may not be asked"
    ):
        revision.find("config.json")


def test_an_id_the_hub_would_refuse(cache: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^owner/na--me is no folder .* no repository of the hub"):
        PretrainedFolder("owner/na--me", cache_dir=cache, local_files_only=True).find("config.json")


def test_all_files_come_from_one_commit(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def download(repo_id: str, filename: str, revision: str | None = None, **options: object) -> str:
        asked.append(revision)
        return str(cache / "models--owner--name" / "snapshots" / COMMIT / "inner" / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    folder = PretrainedFolder("owner/name", subfolder="inner", revision="main", cache_dir=cache)
    folder.find("config.json")
    folder.find("model.safetensors")
    assert asked == ["main", COMMIT]


def response(status: int) -> Any:
    # Which class it is differs between versions of huggingface_hub.
    return MagicMock(status_code=status)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError("x", response=response(403)), r"access to owner/name must be asked for on its hub page"),
        (errors.RepositoryNotFoundError("x", response=response(404)), r"no repository of the hub that this account"),
        (errors.RevisionNotFoundError("x", response=response(404)), r"owner/name has no revision 'v2' on the hub"),
        (
            errors.HfHubHTTPError("too many requests", response=response(429)),
            r"could not be read .*: too many requests",
        ),
        (ConnectionError("cable cut"), r"owner/name could not be read from the hub: cable cut"),
    ],
)
def test_errors_of_the_hub(error: Exception, message: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match=message) as caught:
        PretrainedFolder("owner/name", revision="v2", cache_dir=cache).find("config.json")
    assert caught.value.__cause__ is error


def test_a_file_the_repository_lacks_and_a_full_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[Exception] = [
        errors.RemoteEntryNotFoundError("x", response=response(404)),
        OSError(errno.ENOSPC, "No space left on device"),
    ]

    def download(*_: object, **__: object) -> str:
        raise raised.pop(0)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    folder = PretrainedFolder("owner/name", cache_dir=cache)
    assert folder.find("model.safetensors") is None
    with pytest.raises(OSError, match="No space left on device"):
        folder.find("model.safetensors")

"""What is known of the code: compared with a repository made for it."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from musicgen_train.provenance.git import git_state, uncommitted_patch


def git(folder: Path, *arguments: str) -> str:
    name = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *name, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "code.py").write_text("one = 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


def test_a_clean_repository_is_its_commit(repository: Path) -> None:
    assert git_state(repository) == {"commit": git(repository, "rev-parse", "HEAD"), "changed_files": 0}
    assert uncommitted_patch(repository) == ""


def test_a_patch_brings_the_changed_code_back(repository: Path, tmp_path: Path) -> None:
    git(repository, "config", "diff.external", "false")  # a user's own tool, which says nothing
    (repository / "code.py").write_text("one = 2\n")
    (repository / "new.py").write_text("")
    state = git_state(repository)
    patch = uncommitted_patch(repository)
    assert state["changed_files"] == 2
    assert state["diff_sha256"] == hashlib.sha256(patch.encode()).hexdigest()

    (tmp_path / "it.patch").write_text(patch)
    git(repository, "checkout", "--quiet", "code.py")
    git(repository, "apply", str(tmp_path / "it.patch"))
    assert (repository / "code.py").read_text() == "one = 2\n"


def test_a_folder_within_somebody_elses_repository_has_no_state(repository: Path, tmp_path: Path) -> None:
    installed = repository / "site-packages"
    installed.mkdir()
    assert git_state(installed) == {}
    assert git_state(tmp_path) == {}


def test_without_git_nothing_is_known(repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(repository) == {}
    assert uncommitted_patch(repository) == ""

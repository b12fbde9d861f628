"""Checkpoints on disk: whole or not there, damage is seen, nothing in them is executed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_train.files import write_atomically
from musicgen_train.hub.weights import CheckpointError
from musicgen_train.training.checkpoints.reading import damage, keep_also_as, newest_intact, read_plain, remove_partial
from musicgen_train.training.checkpoints.writing import AtomicCheckpointIO


def content(step: int, size: int = 1000) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"weight": torch.full((size,), float(step))}, "loops": {"a": [1, "b"]}}


def step_of(path: Path) -> int:
    """The step, after looking at every number."""
    loaded = torch.load(path, weights_only=True)
    assert (loaded["state_dict"]["weight"] == loaded["global_step"]).all()
    return int(loaded["global_step"])


@pytest.fixture
def last(tmp_path: Path) -> Path:
    AtomicCheckpointIO().save_checkpoint(content(1), tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def full_disk(last: Path) -> None:
    """What is written next to take its place meets the kernel's own full disk."""
    last.with_name(".saving-last.ckpt").symlink_to("/dev/full")


def test_saved_and_replaced(last: Path) -> None:
    assert step_of(last) == 1
    AtomicCheckpointIO().save_checkpoint(content(2), last)
    assert step_of(last) == 2
    assert os.listdir(last.parent) == ["last.ckpt"]
    assert AtomicCheckpointIO().load_checkpoint(last, weights_only=True)["loops"] == {"a": [1, "b"]}


def test_small_files_are_flushed_to_the_disk_too(tmp_path: Path, flushed: Callable[[Path], bool]) -> None:
    (tmp_path / "config.yaml").write_text("old")
    write_atomically(tmp_path / "config.yaml", "a: ä\n")
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == "a: ä\n"
    assert flushed(tmp_path / "config.yaml")
    assert flushed(tmp_path)
    (tmp_path / ".saving-config.yaml").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "config.yaml", "b")
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_killed_at_any_moment_of_a_save_there_is_a_whole_one(last: Path) -> None:
    moments = random.Random(3)
    steps, left = [], 0
    for life in range(12):
        child = os.fork()
        if child == 0:
            saving = AtomicCheckpointIO()
            for step in range(step_of(last) + 1, 10_000):
                saving.save_checkpoint(content(step, size=2_000_000), last)
            os._exit(0)
        if life % 2:  # as soon as a save is under way, however slow the machine is
            while not last.with_name(".saving-last.ckpt").exists():
                time.sleep(0.0002)
        else:
            time.sleep(moments.uniform(0.02, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left += len(remove_partial(last.parent))
        assert damage(last) is None
        steps.append(step_of(last))
        assert os.listdir(last.parent) == ["last.ckpt"]
    assert steps == sorted(steps)
    assert left > 0, "no kill came in the middle of a save: the test has lost its point"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_on_a_full_disk_the_old_one_stays(last: Path) -> None:
    full_disk(last)
    message = r"last\.ckpt of step 2 could not be saved \(No space left on device; it takes 2 MiB, \d+ MiB are free\)"
    with pytest.raises(OSError, match=message + r".*before are intact.*resume=auto"):
        AtomicCheckpointIO().save_checkpoint(content(2, size=600_000), last)
    assert step_of(last) == 1
    assert os.listdir(last.parent) == ["last.ckpt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_failure_waits_for_the_other_ranks(last: Path) -> None:
    full_disk(last)
    plugin = AtomicCheckpointIO(ranks_wait=True)
    plugin.save_checkpoint(content(2), last)
    assert "could not be saved" in str(plugin.failure)
    assert step_of(last) == 1


def test_a_folder_that_is_gone_is_made(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint(content(1), tmp_path / "new/folder/last.ckpt")
    assert step_of(tmp_path / "new/folder/last.ckpt") == 1


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("")
    with pytest.raises(OSError, match=r"could not be saved \((File exists|Not a directory)"):
        AtomicCheckpointIO().save_checkpoint(content(1), tmp_path / "folder/last.ckpt")


def test_every_cut_is_seen(last: Path) -> None:
    whole = last.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        last.write_bytes(whole[:length])
        assert damage(last) is not None, length
        with pytest.raises(CheckpointError, match="cut short, or no checkpoint at all"):
            read_plain(last)
    last.write_bytes(whole)
    assert damage(last) is None


def test_every_changed_byte_of_the_numbers_is_seen(last: Path) -> None:
    whole = last.read_bytes()
    with zipfile.ZipFile(last) as archive:
        record = next(info for info in archive.infolist() if info.file_size == 4000)
    first = whole.index(torch.full((1000,), 1.0).numpy().tobytes())
    for offset in random.Random(0).sample(range(record.file_size), 50):
        changed = bytearray(whole)
        changed[first + offset] ^= 1 << (offset % 8)
        last.write_bytes(changed)
        assert "is damaged (checksum of " in str(damage(last))


def test_the_newest_whole_one_is_found(tmp_path: Path) -> None:
    saving = AtomicCheckpointIO()
    for name, step in (("last", 30), ("previous", 20), ("best", 10), ("kept", 30)):
        saving.save_checkpoint(content(step), tmp_path / f"{name}.ckpt")
    (tmp_path / ".saving-last.ckpt").write_bytes(b"half")
    assert newest_intact(tmp_path, prefer="last.ckpt") == (tmp_path / "last.ckpt", [])
    (tmp_path / "kept.ckpt").unlink()

    flip(tmp_path / "last.ckpt")
    found, damaged = newest_intact(tmp_path, prefer="last.ckpt")
    assert found == tmp_path / "previous.ckpt"
    assert [one.path.name for one in damaged] == ["last.ckpt"]

    (tmp_path / "previous.ckpt").write_bytes((tmp_path / "previous.ckpt").read_bytes()[:500])
    found, damaged = newest_intact(tmp_path, prefer="last.ckpt")
    assert found == tmp_path / "best.ckpt"
    assert sorted(one.path.name for one in damaged) == ["last.ckpt", "previous.ckpt"]
    assert newest_intact(tmp_path / "nowhere", prefer="last.ckpt") == (None, [])


def flip(path: Path) -> None:
    """Change one number of a checkpoint on the disk."""
    whole = bytearray(path.read_bytes())
    step = torch.load(path, weights_only=True)["global_step"]
    whole[bytes(whole).index(torch.full((1000,), float(step)).numpy().tobytes()) + 5] ^= 1
    path.write_bytes(whole)


@pytest.mark.parametrize("links", [True, False])
def test_the_one_before_is_kept(last: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:

        def refuse(*args: object) -> None:
            raise OSError("no hard links here")

        monkeypatch.setattr(os, "link", refuse)
    saving = AtomicCheckpointIO()
    for step in (2, 3):
        keep_also_as(last, "previous.ckpt")
        assert last.exists() == links
        assert newest_intact(last.parent, prefer="last.ckpt")[0] is not None
        saving.save_checkpoint(content(step), last)
    assert (step_of(last), step_of(last.with_name("previous.ckpt"))) == (3, 2)
    assert sorted(os.listdir(last.parent)) == ["last.ckpt", "previous.ckpt"]


class Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.trace),))


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    torch.save({"global_step": 9, "state_dict": {}, "payload": Hostile(trace)}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"e\.g\. Python code; it was not loaded and nothing in it was executed"):
        read_plain(tmp_path / "last.ckpt")
    assert newest_intact(tmp_path, prefer="last.ckpt")[0] is None
    assert not trace.exists()
    # The file is what it is meant to be: loaded without care it does execute.
    torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert trace.exists()


def test_a_checkpoint_is_read_without_lightning() -> None:
    modules = [f"musicgen_train.training.{name}" for name in ("weights.starting", "weights.merged", "run_folder")]
    code = (
        f"import sys, {', '.join(modules)}; "
        "print([name for name in ('lightning', 'hydra', 'peft', 'wandb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"

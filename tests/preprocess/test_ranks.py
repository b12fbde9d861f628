"""Ranks are read from launchers' variables, and tracks are divided by their names."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from musicgen_train.preprocess.work.ranks import Rank, find_rank

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "none"}
SRUN = {
    "SLURM_NTASKS": "6", "SLURM_NTASKS_PER_NODE": "3", "SLURM_PROCID": "4", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_JOB_NAME": "latents",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*TORCHRUN, *SRUN}:
        monkeypatch.delenv(name, raising=False)


def test_one_process_is_all_there_is() -> None:
    assert find_rank() == Rank(number=0, world_size=1)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (TORCHRUN, Rank(number=5, world_size=8, local=1, local_size=4)),
        (SRUN, Rank(number=4, world_size=6, local=1)),
        # torchrun in a SLURM job with one task per node.
        ({**SRUN, **TORCHRUN}, Rank(number=5, world_size=8, local=1, local_size=4)),
        # An interactive shell of SLURM: the variables are there, but no tasks.
        ({**SRUN, "SLURM_JOB_NAME": "interactive"}, Rank()),
    ],
)
def test_launchers_are_understood(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Rank) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert find_rank() == expected
    assert find_rank(2, 3) == Rank(number=2, world_size=3)


def test_what_launchers_leave_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(ValueError, match=r"ntasks-per-node.*give rank=\.\.\. world_size=\.\.\."):
        find_rank()


@pytest.mark.parametrize(("rank", "size"), [(3, 3), (-1, 2), (0, 0)])
def test_a_rank_beyond_the_world_is_refused(rank: int, size: int) -> None:
    with pytest.raises(ValueError, match=re.escape(f"rank={rank} and world_size={size} do not go together")):
        find_rank(rank, size)


def test_each_track_has_one_owner_whatever_is_listed_with_it() -> None:
    names = [f"artist {number % 40}/song {number}.flac" for number in range(4000)]
    owners = {name: [rank for rank in range(5) if Rank(number=rank, world_size=5).owns(name)] for name in names}
    assert all(len(found) == 1 for found in owners.values())
    shares = Counter(found[0] for found in owners.values())
    # Five standard deviations of 4000 draws of one in five.
    assert all(abs(share - 800) < 127 for share in shares.values())

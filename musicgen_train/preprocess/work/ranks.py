"""Which of several processes this one is, and which tracks it encodes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

# torchrun and srun set these for each process they start.
_LAUNCHER_VARIABLES = ("WORLD_SIZE", "SLURM_NTASKS")


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One of several processes that share the work. They communicate through the work folder alone."""

    number: int = 0
    world_size: int = 1
    local: int = 0
    """The number of this process on its machine, which decides its GPU."""
    local_size: int = 1
    """How many processes share the machine's cores, as far as that is known."""

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.number < self.world_size:
            raise ValueError(
                f"rank={self.number} and world_size={self.world_size} do not go together; ranks count from 0, and "
                "world_size says how many there are"
            )

    def __str__(self) -> str:
        return f"rank {self.number} of {self.world_size}"

    def owns(self, track_id: str) -> bool:
        """Return True if this process encodes the track. The SHA-256 of its id decides, not where it is listed."""
        digest = hashlib.sha256(track_id.encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.world_size == self.number


def find_rank(
    rank: int | None = None, world_size: int | None = None, environment: Mapping[str, str] = os.environ
) -> Rank:
    """Return the rank that is given, else the rank that torchrun or SLURM state, else the only rank of one.

    Args:
        rank: the number of this process, from 0.
        world_size: how many processes there are.
        environment: the launchers' variables, which Lightning reads.

    Raises:
        ValueError: `rank` and `world_size` do not go together, or the launcher's variables are incomplete.
    """
    if rank is not None and world_size is not None:
        return Rank(number=rank, world_size=world_size)
    if not any(name in environment for name in _LAUNCHER_VARIABLES):
        return Rank()
    # Imported here, since it takes seconds and most runs are of one process.
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    try:
        # torchrun first: SLURM may have started it.
        if TorchElasticEnvironment.detect():
            launcher: TorchElasticEnvironment | SLURMEnvironment = TorchElasticEnvironment()
        elif SLURMEnvironment.detect():
            launcher = SLURMEnvironment()
        else:
            return Rank()
        return Rank(
            number=launcher.global_rank(),
            world_size=launcher.world_size(),
            local=launcher.local_rank(),
            # torchrun states it; SLURM gives each task cores of its own.
            local_size=int(environment.get("LOCAL_WORLD_SIZE", 1)),
        )
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"the launcher's variables are incomplete ({' '.join(str(error).split())}); give rank=... world_size=..."
        ) from error

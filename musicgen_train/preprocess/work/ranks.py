"""Which process of how many this one is, and which tracks are its own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

# What torchrun and srun say to each process they start.
_LAUNCHER_VARIABLES = ("WORLD_SIZE", "SLURM_NTASKS")


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One of several processes that share the work and talk to each other through the work folder alone."""

    number: int = 0
    world_size: int = 1
    local: int = 0
    """Its number among those of its machine, which decides its GPU."""
    local_size: int = 1
    """How many share the machine's cores, as far as that is known."""

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.number < self.world_size:
            raise ValueError(
                f"rank={self.number} and world_size={self.world_size} do not go together; ranks count from 0, and "
                "world_size says how many there are"
            )

    def __str__(self) -> str:
        return f"rank {self.number} of {self.world_size}"

    def owns(self, track_id: str) -> bool:
        """Whether a track is this process's. It goes by the SHA-256 of the name, wherever in the listing it comes."""
        digest = hashlib.sha256(track_id.encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.world_size == self.number


def find_rank(
    rank: int | None = None, world_size: int | None = None, environment: Mapping[str, str] = os.environ
) -> Rank:
    """The rank that is given, or else what torchrun or SLURM say, as Lightning reads it; or else the only one.

    Raises:
        ValueError: the two do not go together, or what SLURM says is incomplete.
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
            # Of torchrun's; SLURM gives each task cores of its own.
            local_size=int(environment.get("LOCAL_WORLD_SIZE", 1)),
        )
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"the launcher's variables are incomplete ({' '.join(str(error).split())}); give rank=... world_size=..."
        ) from error

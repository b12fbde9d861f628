"""Weights, gradients and optimizer state divided among devices (FSDP2), through Lightning's model-parallel strategy.

Each decoder layer is gathered when it is needed and dropped again. Checkpoints are put together into one file, the same
as those of a single process, so any number of processes and any strategy goes on from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from musicgen_train.models.causal_lm import MusicgenForCausalLM
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration
from musicgen_train.training.module import MusicgenTraining

# As a single process has it; in the memory of rank 0 where it is to be saved.
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy with all devices sharing the weights, and whole checkpoints.

    Args:
        process_group_backend: null for nccl on GPUs and gloo on CPUs.
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=process_group_backend
        )

    def setup_environment(self) -> None:
        # Lightning's "auto" is one copy of the weights per node.
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The whole state as an optimizer of a single process has it; on rank 0, and empty on the others.

        Lightning numbers the parameters of the module, also those that are frozen and that no optimizer knows, and
        leaves the names where an optimizer has no state.
        """
        assert self.lightning_module is not None
        found: dict[str, Any] = get_optimizer_state_dict(self.lightning_module, optimizer, options=_WHOLE)
        if self.global_rank != 0:
            return {}
        names = [name for group in found["param_groups"] for name in group["params"]]
        number = {name: index for index, name in enumerate(names)}
        # Their values as the optimizer has them: on the way here tuples become lists.
        groups = [
            {**own, "params": [number[name] for name in group["params"]]}
            for own, group in zip(optimizer.param_groups, found["param_groups"], strict=True)
        ]
        return {"state": {number[name]: value for name, value in found["state"].items()}, "param_groups": groups}

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read weights and optimizer state, saved by any number of processes; return all that the checkpoint holds."""
        module = self.lightning_module
        assert module is not None
        path = self.broadcast(checkpoint_path)
        # Memory-mapped: each rank reads its own shards only.
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True)
        options = StateDictOptions(full_state_dict=True, strict=module.strict_loading)
        set_model_state_dict(module, checkpoint["state_dict"], options=options)
        # There are none where weights are only validated.
        states = checkpoint["optimizer_states"] if self.optimizers else []
        for optimizer, state in zip(self.optimizers, states, strict=True):
            set_optimizer_state_dict(module, optimizer, _by_name(state, module, optimizer), options=options)
            for own, group in zip(optimizer.param_groups, state["param_groups"], strict=True):
                own.update({name: value for name, value in group.items() if name != "params"})
        return checkpoint


class ShardedTraining(MusicgenTraining):
    """The module for `FullySharded`.

    A class of its own, since Lightning treats every module with `configure_model` as one that may be sharded.
    """

    def configure_model(self) -> None:
        """Shard each layer, and the rest (embeddings, heads, last norm, projection) as one.

        Under bf16-mixed layers are gathered in bfloat16, half the traffic; gradients are added up in float32 and the
        weights themselves stay in float32. The rest stays in float32, so that the residual stream does.
        """
        if isinstance(self, FSDPModule):  # asked again for a validation
            return
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        policy = MixedPrecisionPolicy()
        if self.trainer.precision == "bf16-mixed":
            policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
        for layer in self.decoder.model.decoder.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(self, mesh=mesh)


def _by_name(state: dict[str, Any], module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state under the names of its parameters rather than their numbers."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    ordered = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    groups = [{**group, "params": [ordered[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {ordered[number]: value for number, value in state["state"].items()}, "param_groups": groups}


def whole_composite(
    composite: MusicgenForConditionalGeneration, state: Mapping[str, torch.Tensor], device: torch.device
) -> MusicgenForConditionalGeneration:
    """A composite around the same encoders whose decoder and projection are whole, for one rank to sample with.

    Args:
        composite: its own decoder may be sharded.
        state: of `MusicgenTraining`, put together from all ranks.
        device: of the new decoder and projection, which take as much memory there as the weights.
    """
    with torch.device("meta"):
        decoder = MusicgenForCausalLM(composite.decoder.config)
        whole = MusicgenForConditionalGeneration(
            text_encoder=composite.text_encoder, audio_encoder=composite.audio_encoder, decoder=decoder
        )
    for name in ("decoder", "enc_to_dec_proj"):
        part: nn.Module | None = getattr(whole, name)
        if part is not None:
            held = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            part.load_state_dict({key: value.to(device) for key, value in held.items()}, assign=True)
    return whole.eval()

"""Weights, gradients and optimizer state divided among devices (FSDP2), through Lightning's model-parallel strategy.

Each decoder layer is gathered when it is needed and freed afterwards. A checkpoint is gathered into one file like that
of a single process, so a run can be resumed with any number of processes and any strategy.
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

# The state is gathered as a single process has it, into the CPU memory of rank 0.
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class FullySharded(ModelParallelStrategy):
    """Lightning's model-parallel strategy that divides the weights among all devices, with whole checkpoints.

    Args:
        process_group_backend: None takes nccl on GPUs and gloo on CPUs.
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=process_group_backend
        )

    def setup_environment(self) -> None:
        # Lightning's "auto" would keep one copy of the weights per node.
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The whole state as an optimizer of a single process has it, on rank 0; empty on the others.

        Lightning's own numbers all parameters of the module, including frozen ones that no optimizer has, and keeps
        names instead of numbers if an optimizer has no state.
        """
        assert self.lightning_module is not None
        found: dict[str, Any] = get_optimizer_state_dict(self.lightning_module, optimizer, options=_WHOLE)
        if self.global_rank != 0:
            return {}
        names = [name for group in found["param_groups"] for name in group["params"]]
        number = {name: index for index, name in enumerate(names)}
        # The settings are taken from the optimizer itself: gathering turns tuples into lists.
        groups = [
            {**own, "params": [number[name] for name in group["params"]]}
            for own, group in zip(optimizer.param_groups, found["param_groups"], strict=True)
        ]
        return {"state": {number[name]: value for name, value in found["state"].items()}, "param_groups": groups}

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load weights and optimizer state, saved by any number of processes; return the whole checkpoint."""
        module = self.lightning_module
        assert module is not None
        path = self.broadcast(checkpoint_path)
        # Memory-mapped: each rank reads its own shards only.
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True)
        options = StateDictOptions(full_state_dict=True, strict=module.strict_loading)
        set_model_state_dict(module, checkpoint["state_dict"], options=options)
        # There are no optimizers if the weights are only validated.
        states = checkpoint["optimizer_states"] if self.optimizers else []
        for optimizer, state in zip(self.optimizers, states, strict=True):
            set_optimizer_state_dict(module, optimizer, _by_name(state, module, optimizer), options=options)
            for own, group in zip(optimizer.param_groups, state["param_groups"], strict=True):
                own.update({name: value for name, value in group.items() if name != "params"})
        return checkpoint


class ShardedTraining(MusicgenTraining):
    """The module for `FullySharded`.

    It is a class of its own because Lightning takes every module with `configure_model` for one that may be sharded.
    """

    def configure_model(self) -> None:
        """Shard each layer as a unit, and the rest (embeddings, heads, last norm, projection) as another.

        Under bf16-mixed, layers are gathered in bfloat16, which halves the traffic; gradients are added up in float32,
        and the weights themselves stay in float32. So does the rest, which keeps the residual stream in float32.
        """
        if isinstance(self, FSDPModule):  # already done: Lightning calls this again for a validation
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
    """An optimizer's state under the names of its parameters instead of their numbers."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    ordered = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    groups = [{**group, "params": [ordered[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {ordered[number]: value for number, value in state["state"].items()}, "param_groups": groups}


def whole_composite(
    composite: MusicgenForConditionalGeneration, state: Mapping[str, torch.Tensor], device: torch.device
) -> MusicgenForConditionalGeneration:
    """Make a composite with the same encoders and an unsharded decoder and projection, for one rank to sample with.

    Args:
        composite: a composite whose decoder may be sharded.
        state: the state dict of `MusicgenTraining`, gathered from all ranks.
        device: the device of the new decoder and projection, which take the memory of all weights there.
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

"""Generating samples in batches, each from a seed of its own, so that none depends on the others of its batch.

Axes: B batch, K codebooks, P prompt frames, L text length, D text width, C channels, S samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from musicgen_train.data.batch import Example, collate
from musicgen_train.evaluation.requests import Request
from musicgen_train.models.generation_config import GenerationConfig
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration
from musicgen_train.models.outputs import GenerateOutput


@dataclass(kw_only=True)
class SamplingSettings:
    """Settings for generating samples."""

    max_new_tokens: int
    guidance_scales: list[float]
    """Each request is generated with each of them; those without a text once, since guidance has no effect there."""
    repetitions: int
    """Samples of each request and scale."""
    seed: int
    batch_size: int
    options: dict[str, Any]
    """Fields of `GenerationConfig` that differ from the model's own: do_sample, temperature, top_k, top_p,
    extend_stride."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "repetitions", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if not self.guidance_scales or min(self.guidance_scales) < 1:
            raise ValueError(f"guidance_scale is {self.guidance_scales}; give numbers from 1 (no guidance) on")

    def generation_config(self, base: GenerationConfig, guidance_scale: float) -> GenerationConfig:
        """The model's own settings, changed by these.

        Raises:
            ValueError: a value that is not allowed.
        """
        return base.replace(
            max_new_tokens=self.max_new_tokens,
            guidance_scale=guidance_scale,
            num_return_sequences=1,
            **self.options,
        )


@dataclass(kw_only=True)
class Job:
    """One sample to make."""

    request: Request
    guidance_scale: float
    repetition: int
    """From 1 on."""
    seed: int


@dataclass(kw_only=True)
class Generated:
    """One sample as the model made it."""

    job: Job
    audio_CS: torch.Tensor
    """float32 on the CPU, what was continued included; it may exceed full scale."""
    codes_KT: torch.Tensor
    """int64 on the CPU."""


def plan(requests: Sequence[Request], settings: SamplingSettings) -> list[Job]:
    """All samples to make, in the order of the requests."""
    return [
        Job(
            request=request,
            guidance_scale=scale,
            repetition=repetition,
            seed=sample_seed(settings.seed, request.identity, repetition),
        )
        for request in requests
        for scale in (settings.guidance_scales if request.states_LD is not None else [1.0])
        for repetition in range(1, settings.repetitions + 1)
    ]


def sample_seed(seed: int, identity: str, repetition: int) -> int:
    """The seed of one sample's generator.

    It depends on the run's seed and the request alone: other lines of the prompts file, their order and the batch
    size do not change it, and neither does the guidance scale, so that scales are compared on equal luck.
    """
    digest = hashlib.sha256(f"{seed}/{repetition}/{identity}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def generate(
    model: MusicgenForConditionalGeneration,
    jobs: Sequence[Job],
    settings: SamplingSettings,
    on_frames: Callable[[int], None] | None = None,
) -> Iterator[Generated]:
    """Generate samples batch by batch. They come in the order of the batches, which differs from that of the jobs.

    Args:
        model: the composite.
        jobs: the samples, as `plan` gives them.
        settings: how to generate.
        on_frames: called with the number of new frames, over all rows, as they come.

    Raises:
        ValueError: the request is too short, or too long without `extend_stride`; see `generation.generate_codes`.
    """
    for batch in _batches(jobs, settings.batch_size):
        yield from _generate_batch(model, batch, settings, on_frames)


def _batches(jobs: Sequence[Job], size: int) -> Iterator[list[Job]]:
    # A batch has audio prompts of one length: shorter ones would have to be padded, and the padding would be heard.
    groups: dict[tuple[float, int], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.guidance_scale, job.request.prompt_frames), []).append(job)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _generate_batch(
    model: MusicgenForConditionalGeneration,
    jobs: list[Job],
    settings: SamplingSettings,
    on_frames: Callable[[int], None] | None,
) -> Iterator[Generated]:
    device = model.device
    config = settings.generation_config(model.generation_config, jobs[0].guidance_scale)
    states_BLD, mask_BL = _conditions([job.request for job in jobs], model.config.text_encoder.hidden_size)
    prompts = [job.request.prompt_codes_KP for job in jobs]
    prompt_frames = jobs[0].request.prompt_frames
    counted = 0

    def count(codes_BKT: torch.Tensor) -> None:
        nonlocal counted
        fresh = max(0, counted + codes_BKT.shape[-1] - prompt_frames) - max(0, counted - prompt_frames)
        counted += codes_BKT.shape[-1]
        if on_frames is not None and fresh:
            on_frames(fresh * len(jobs))

    output = model.generate(
        encoder_outputs=(states_BLD.to(device, model.dtype),),
        attention_mask=mask_BL.to(device),
        decoder_input_ids=torch.stack([p for p in prompts if p is not None]).to(device) if prompt_frames else None,
        generation_config=config,
        generator=[torch.Generator(device).manual_seed(job.seed) for job in jobs],
        streamer=count,
        return_dict_in_generate=True,
    )
    assert isinstance(output, GenerateOutput)
    assert output.sequences is not None
    assert output.codes is not None
    for job, audio_CS, codes_KT in zip(jobs, output.sequences, output.codes, strict=True):
        yield Generated(job=job, audio_CS=audio_CS.float().cpu(), codes_KT=codes_KT.cpu())


def _conditions(requests: Sequence[Request], text_width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded text states and their mask; no text is zero states behind a zero mask."""
    no_codes = torch.zeros(1, 0, dtype=torch.int16).numpy()
    batch = collate([Example(no_codes, request.states_LD) for request in requests], text_width)
    return batch.text_states, batch.text_mask

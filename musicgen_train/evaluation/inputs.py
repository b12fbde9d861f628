"""Everything that an evaluation reads before it generates, so that what cannot be used is named before hours of it.

Axes: C channels, S samples.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from musicgen_train.audio.io import AudioError, read_audio
from musicgen_train.data.latent_dataset import LatentDataset
from musicgen_train.devices import pick_device
from musicgen_train.evaluation.control.listener import Listener, load_listener
from musicgen_train.evaluation.control.pieces import ControlSet, dataset_clips, fresh_pieces
from musicgen_train.evaluation.generating import SamplingSettings
from musicgen_train.evaluation.model import EvaluatedModel, check_encoders, load_model
from musicgen_train.evaluation.requests import Request, all_requests, audio_files, read_prompts
from musicgen_train.evaluation.settings import EvaluationSettings
from musicgen_train.evaluation.split_clips import choose_split, spread_clips
from musicgen_train.latents.manifest import Manifest
from musicgen_train.metrics.embedders import Embedder, load_embedder
from musicgen_train.training.weights.model_source import find_model


@dataclass(frozen=True, kw_only=True)
class ControlTest:
    """A control test, ready to run."""

    listener: Listener
    captions: ControlSet
    sampling: SamplingSettings


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A model and all that it is to be evaluated on."""

    evaluated: EvaluatedModel
    dataset: LatentDataset | None
    sampling: SamplingSettings
    new_frames: int
    """Frames of codes that are generated for each sample."""
    requests: list[Request]
    control: ControlTest | None
    embedder: Embedder | None
    """None where no Frechet distance is asked for."""
    recordings: list[torch.Tensor]
    """The reference of the Frechet distance, where that is files: `(C, S)` each, no longer than a sample."""

    @property
    def new_seconds(self) -> float:
        """Length of what is generated for each sample."""
        return self.new_frames / self.evaluated.frame_rate


def read_inputs(settings: EvaluationSettings) -> Inputs:
    """Read the model, the data and the prompts.

    Raises:
        ValueError, OSError, CheckpointError: something cannot be used; the message says why.
    """
    source = find_model(settings.model, "model")
    # Cheap errors first: a typing error in a path should not wait for the weights of a large model.
    prompts = [] if settings.prompts is None else read_prompts(settings.prompts)
    continued = audio_files(settings.continuation.audio or [])
    reference = settings.metrics.reference_audio
    reference_files = [] if reference is None else audio_files([reference])
    embedder = load_embedder(settings.metrics.embedder) if settings.metrics.frechet else None
    listener = load_listener(settings.control.listener) if settings.control.clips else None
    dataset = _open_dataset(settings)
    device = pick_device(settings.device)
    evaluated = load_model(source, device=device, dtype=settings.torch_dtype())
    if dataset is not None:
        check_encoders(evaluated, dataset.manifest, str(settings.data.path))
    sampling = _sampling_settings(settings, evaluated)
    new_frames = sampling.max_new_tokens + 1 - evaluated.model.config.decoder.channel_codebooks
    return Inputs(
        evaluated=evaluated,
        dataset=dataset,
        sampling=sampling,
        new_frames=new_frames,
        control=None
        if listener is None
        else _control_test(settings, listener, evaluated, dataset, sampling, new_frames),
        embedder=embedder,
        recordings=[]
        if embedder is None
        else _recordings(reference_files[: settings.metrics.reference_clips], evaluated, new_frames),
        requests=all_requests(settings, evaluated, dataset, prompts, continued, new_frames),
    )


def _open_dataset(settings: EvaluationSettings) -> LatentDataset | None:
    path = settings.data.path
    return None if path is None else LatentDataset(path, choose_split(Manifest.load(path), settings.data.split))


def _sampling_settings(settings: EvaluationSettings, evaluated: EvaluatedModel) -> SamplingSettings:
    tokens = settings.max_new_tokens
    if tokens is None:
        delay = evaluated.model.config.decoder.channel_codebooks
        tokens = math.ceil(settings.duration * evaluated.frame_rate - 1e-9) + delay - 1
    own = evaluated.model.generation_config.guidance_scale
    return SamplingSettings(
        max_new_tokens=tokens,
        guidance_scales=settings.guidance_scale or [1.0 if own is None else max(1.0, own)],
        repetitions=settings.samples_per_prompt,
        seed=settings.seed,
        batch_size=settings.batch_size,
        options=settings.generation_options,
    )


def _control_test(
    settings: EvaluationSettings,
    listener: Listener,
    evaluated: EvaluatedModel,
    dataset: LatentDataset | None,
    sampling: SamplingSettings,
    new_frames: int,
) -> ControlTest:
    control = settings.control
    if new_frames < listener.shortest_seconds * evaluated.frame_rate:
        raise ValueError(
            f"samples of {new_frames / evaluated.frame_rate:.2f} s are too short for the control test, which needs "
            f"{listener.shortest_seconds:g} s, better 5 s; ask for a longer duration, or control.clips=0"
        )
    scales = control.guidance_scale or sampling.guidance_scales
    sampling = dataclasses.replace(sampling, guidance_scales=scales, repetitions=1)
    if control.source == "dataset":
        assert dataset is not None
        captions = dataset_clips(listener, spread_clips(dataset, control.clips, new_frames), new_frames)
    else:
        samples = new_frames * evaluated.hop_length
        captions = fresh_pieces(listener, control.clips, control.seed, samples, evaluated)
    return ControlTest(listener=listener, captions=captions, sampling=sampling)


def _recordings(files: Sequence[Path], evaluated: EvaluatedModel, new_frames: int) -> list[torch.Tensor]:
    recordings = []
    for file in files:
        try:
            audio_CS, _ = read_audio(file, sampling_rate=evaluated.sampling_rate, channels=evaluated.channels)
        except AudioError as error:
            raise ValueError(
                f"metrics.reference_audio: {file} cannot be compared with: {error}; remove or repair it"
            ) from error
        # A copy, so that the rest of the file need not be kept.
        recordings.append(audio_CS[:, : new_frames * evaluated.hop_length].clone())
    return recordings

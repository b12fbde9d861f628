"""Generation: from text states and a prompt of codes to more codes, one delayed step at a time.

It needs the decoder and its heads alone; the composite adds text and audio around it (`musicgen.py`).

Axes: B batch, K codebooks, T frames (aligned codes), S steps (delayed columns), P prompt frames, V codes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from musicgen_train.models.config import MusicgenDecoderConfig
from musicgen_train.models.decoder import MusicgenDecoder
from musicgen_train.models.delay_pattern import FREE, codebook_delays, generation_template, undo_delay
from musicgen_train.models.generation.sampling import Generators, guide, pick
from musicgen_train.models.generation.steps import MakeStep, Step, step_maker
from musicgen_train.models.generation_config import GenerationConfig
from musicgen_train.models.kv_cache import KVCache
from musicgen_train.models.layers import without_cudnn_attention

StoppingCriterion: TypeAlias = Callable[[torch.Tensor], "bool | torch.Tensor"]
"""Is called after every finished frame with all codes so far, `(batch, codebooks, frames)`. Returning True stops all
rows, a bool tensor `(batch,)` stops those rows. Frames of a row after its stop are not part of its result."""

Streamer: TypeAlias = Callable[[torch.Tensor], None]
"""Receives codes as they are generated, `(batch, codebooks, new frames)` on the model's device, the prompt's first.
Concatenated they are the result."""

# Preparing the weights takes about as long as five prepared steps save.
_STEPS_WORTH_PREPARING = 6


@dataclass
class _Text:
    """Holds the text states and their mask, one row per row of the batch."""

    states: torch.Tensor | None
    mask: torch.Tensor | None


@dataclass
class _Request:
    """Holds what is the same in all windows of a request."""

    decoder: MusicgenDecoder
    heads: nn.ModuleList
    settings: GenerationConfig
    text: _Text
    guided: bool
    generator: Generators
    make_step: MakeStep | None

    @property
    def config(self) -> MusicgenDecoderConfig:
        return self.decoder.config

    @property
    def delays(self) -> list[int]:
        return codebook_delays(self.config.num_codebooks, self.config.audio_channels)


def generate_codes(
    decoder: MusicgenDecoder,
    heads: nn.ModuleList,
    settings: GenerationConfig,
    *,
    encoder_hidden_states: torch.Tensor | None = None,
    encoder_attention_mask: torch.Tensor | None = None,
    prompt_codes: torch.Tensor | None = None,
    generator: Generators = None,
    stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None = None,
    streamer: Streamer | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generate aligned codes.

    Args:
        decoder, heads: put into eval mode while this runs.
        settings: sampling, length, guidance and windows.
        prompt_codes: codes to continue, int64 `(batch, codebooks, frames)`.
        encoder_hidden_states, encoder_attention_mask, generator, stopping_criteria, streamer: as for
            `MusicgenForCausalLM.generate`.

    Returns:
        Codes, int64 `(batch * num_return_sequences, codebooks, frames)`, and the frames of each row up to its stop,
        int64 `(batch * num_return_sequences,)`.

    Raises:
        ValueError: the request is too short or too long, or its parts contradict each other.
    """
    config, device = decoder.config, decoder.layer_norm.weight.device
    batch = _batch_size(encoder_hidden_states, prompt_codes)
    if prompt_codes is None:
        prompt_codes = torch.empty((batch, config.num_codebooks, 0), dtype=torch.long, device=device)
    frames = requested_frames(config, settings, prompt_codes.shape[-1])
    _check_window(config, settings, frames)

    if encoder_hidden_states is not None and encoder_attention_mask is None:
        encoder_attention_mask = torch.ones(
            encoder_hidden_states.shape[:2], dtype=torch.long, device=encoder_hidden_states.device
        )
    repeats = settings.num_return_sequences
    text = _Text(_repeat(encoder_hidden_states, repeats), _repeat(encoder_attention_mask, repeats))
    codes_BKT = prompt_codes.to(device).repeat_interleave(repeats, dim=0)
    _check_generators(generator, len(codes_BKT), device)

    guided = settings.guidance_scale is not None and settings.guidance_scale > 1 and text.states is not None
    progress = _Progress(codes_BKT, frames, _as_list(stopping_criteria), streamer)
    with _in_eval_mode(decoder, heads), without_cudnn_attention():
        make_step = None
        if frames - prompt_codes.shape[-1] >= _STEPS_WORTH_PREPARING:
            make_step = step_maker(decoder, heads, rows=len(codes_BKT) * (2 if guided else 1))
        request = _Request(decoder, heads, settings, text, guided, generator, make_step)
        while not progress.done:
            _generate_window(request, progress)
    return progress.codes, progress.lengths


@contextlib.contextmanager
def _in_eval_mode(*parts: nn.Module) -> Iterator[None]:
    modes = [part.training for part in parts]
    for part in parts:
        part.eval()
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.train(mode)


def requested_frames(config: MusicgenDecoderConfig, settings: GenerationConfig, prompt_frames: int) -> int:
    """Returns how many frames the settings ask for, the prompt's included.

    Raises:
        ValueError: too few steps for the delay pattern, or the prompt fills them.
    """
    delay = config.channel_codebooks
    length = settings.total_length(prompt_frames)
    frames = length - delay
    asked = (
        f"max_new_tokens={settings.max_new_tokens}"
        if settings.max_new_tokens is not None
        else f"max_length={settings.max_length}"
    )
    if frames <= prompt_frames:
        after = f" after a prompt of {prompt_frames} frames" if prompt_frames else ""
        raise ValueError(
            f"{asked} is too short{after}: {delay} codebooks are delayed against each other, so N new tokens give "
            f"N + 1 - {delay} new frames. Ask for max_new_tokens={delay} or more, e.g. {delay + 49} for 50 frames"
        )
    return frames


def _check_window(config: MusicgenDecoderConfig, settings: GenerationConfig, frames: int) -> None:
    window = window_frames(config, settings)
    if window < 1:
        raise ValueError(
            f"max_position_embeddings ({config.max_position_embeddings}) has no room for the delay of "
            f"{config.channel_codebooks} codebooks; no weight depends on it: load with a larger one"
        )
    if frames > window and settings.extend_stride is None:
        raise ValueError(
            f"{frames} frames are more than the {window} that the model makes in one go (max_window_frames "
            f"{settings.max_window_frames}, max_position_embeddings {config.max_position_embeddings}). Pass "
            f"extend_stride={window * 3 // 5 or 1} to go on in sliding windows, or, for a model trained on longer "
            "clips, raise these two"
        )
    if frames > window and settings.extend_stride is not None and settings.extend_stride >= window:
        raise ValueError(f"extend_stride is {settings.extend_stride}; it must be below the window of {window} frames")


def window_frames(config: MusicgenDecoderConfig, settings: GenerationConfig) -> int:
    """Returns the most frames of one context: `max_window_frames`, limited by the model's positions."""
    positions = config.max_position_embeddings - (config.channel_codebooks - 1)
    return min(settings.max_window_frames, positions)


def _generate_window(request: _Request, progress: _Progress) -> None:
    """Extends `progress` until the window is full, the request is done, or all rows have stopped."""
    config, settings, delays = request.config, request.settings, request.delays
    window = window_frames(config, settings)
    first_frame = 0
    if progress.codes.shape[-1] >= window or progress.windows:
        # A later window starts with the end of the one before: all but its first `extend_stride` frames.
        first_frame = progress.codes.shape[-1] - (window - (settings.extend_stride or 0))
    context_BKP = progress.codes[..., first_frame:]
    frames = min(window, progress.frames - first_frame)
    template_BKS = generation_template(context_BKP, delays, frames, config.bos_token_id)

    steps = template_BKS.shape[-1]
    start = 1 + context_BKP.shape[-1]
    # In most columns all codes are predicted; the others hold codes of the prompt, or of the pattern's two triangles.
    partly_known = (template_BKS != FREE).flatten(0, 1).any(dim=0).tolist()
    sequence_BKS = template_BKS.clone()
    logits_of = _Logits(request, steps)
    new_ids_BKS = sequence_BKS[..., :start]
    for step in range(start, steps):
        logits_BKV = logits_of(new_ids_BKS)
        if request.guided:
            assert settings.guidance_scale is not None
            logits_BKV = guide(logits_BKV, settings.guidance_scale)
        chosen_BK = pick(logits_BKV, settings, request.generator)
        if partly_known[step]:
            known_BK = template_BKS[..., step]
            chosen_BK = torch.where(known_BK == FREE, chosen_BK, known_BK)
        sequence_BKS[..., step] = chosen_BK
        new_ids_BKS = chosen_BK[..., None]

        finished = step - max(delays)  # frames of this window whose last codebook is known
        if progress.is_watched and finished > context_BKP.shape[-1]:
            newest = sequence_BKS[..., finished : step + 1]  # the columns that hold the newest frame, delayed
            progress.add(undo_delay(newest, delays))
            if progress.done:
                break
    _check_finite(logits_BKV)
    if not progress.is_watched:
        progress.add(undo_delay(sequence_BKS[..., start:], delays))
    progress.windows += 1


def _check_finite(logits_BKV: torch.Tensor) -> None:
    """Raises ValueError for NaN or infinite logits. Once a window is enough, since NaN stays in the cache."""
    if not bool(torch.isfinite(logits_BKV).all()):
        raise ValueError(
            "the model's logits are not finite: its weights or the text states hold NaN or infinity, or float16 has no "
            "room for what they compute. Look at the weights, or generate in float32 or bfloat16"
        )


class _Logits:
    """Computes logits after a window's newest columns, float32 `(rows, codebooks, vocab_size)`, null rows included.

    The first columns go through the decoder's forward pass, which fills the cache with them and the text. The others
    come one by one, and go through a prepared step if there is one.
    """

    def __init__(self, request: _Request, steps: int) -> None:
        self._request = request
        self._text = _with_null_rows(request.text) if request.guided else request.text
        self._steps = steps
        # Attention on a GPU is fastest if the number of keys is a multiple of eight.
        self._cache = KVCache(request.config.num_hidden_layers, capacity=-(-(steps - 1) // 8) * 8)
        self._step: Step | None = None

    def __call__(self, ids_BKS: torch.Tensor) -> torch.Tensor:
        if self._step is not None:
            return self._step(ids_BKS[..., 0])
        request, text = self._request, self._text
        embeddings = request.decoder.embed(ids_BKS.repeat(2, 1, 1) if request.guided else ids_BKS)
        output = request.decoder(embeddings, text_states=text.states, text_mask=text.mask, cache=self._cache)
        last_BD = output.last_hidden_state[:, -1]
        if request.make_step is not None:
            self._step = request.make_step(self._cache, self._steps, request.text.mask, request.guided)
        return torch.stack([head(last_BD) for head in request.heads], dim=1).float()


class _Progress:
    """Collects the codes so far, and passes them on to the streamer and the stopping criteria."""

    def __init__(
        self,
        prompt_BKP: torch.Tensor,
        frames: int,
        stopping_criteria: list[StoppingCriterion],
        streamer: Streamer | None,
    ) -> None:
        batch, num_codebooks, prompt_frames = prompt_BKP.shape
        self.frames = frames
        self.windows = 0
        self._stopping_criteria = stopping_criteria
        self._streamer = streamer
        self._codes = prompt_BKP.new_empty((batch, num_codebooks, frames))
        self._codes[..., :prompt_frames] = prompt_BKP
        self._filled = prompt_frames
        self._going_on = torch.ones(batch, dtype=torch.bool, device=prompt_BKP.device)
        self._lengths = torch.full((batch,), prompt_frames, dtype=torch.long, device=prompt_BKP.device)
        self._stopped = False
        if streamer is not None and prompt_frames:
            streamer(prompt_BKP)

    @property
    def codes(self) -> torch.Tensor:
        """Returns the aligned codes so far, `(batch, codebooks, frames)`."""
        return self._codes[..., : self._filled]

    @property
    def lengths(self) -> torch.Tensor:
        """Returns the number of frames of each row up to its stop, int64 `(batch,)`."""
        return self._lengths

    @property
    def done(self) -> bool:
        return self._stopped or self._filled == self.frames

    @property
    def is_watched(self) -> bool:
        """Returns True if every frame has to be passed on as soon as it is finished."""
        return self._streamer is not None or bool(self._stopping_criteria)

    def add(self, frames_BKT: torch.Tensor) -> None:
        """Append the next frames, pass them on, and ask the criteria whether to stop."""
        new = frames_BKT.shape[-1]
        self._codes[..., self._filled : self._filled + new] = frames_BKT
        self._filled += new
        self._lengths += new * self._going_on
        if self._streamer is not None:
            self._streamer(frames_BKT)
        for criterion in self._stopping_criteria:
            self._going_on &= ~torch.as_tensor(criterion(self.codes), device=self._going_on.device)
        if self._stopping_criteria:
            self._stopped = not bool(self._going_on.any())


def _with_null_rows(text: _Text) -> _Text:
    assert text.states is not None
    assert text.mask is not None
    return _Text(
        torch.cat([text.states, torch.zeros_like(text.states)]), torch.cat([text.mask, torch.zeros_like(text.mask)])
    )


def _batch_size(states: torch.Tensor | None, prompt: torch.Tensor | None) -> int:
    if states is not None and prompt is not None and states.shape[0] != prompt.shape[0]:
        raise ValueError(
            f"encoder_hidden_states are of {states.shape[0]} rows, the codes to continue of {prompt.shape[0]}. Under "
            "guidance give each row once: the null rows are added here"
        )
    if states is not None:
        return states.shape[0]
    return 1 if prompt is None else prompt.shape[0]


def _repeat(tensor: torch.Tensor | None, times: int) -> torch.Tensor | None:
    return None if tensor is None else tensor.repeat_interleave(times, dim=0)


def _as_list(criteria: StoppingCriterion | Sequence[StoppingCriterion] | None) -> list[StoppingCriterion]:
    if criteria is None:
        return []
    return [criteria] if callable(criteria) else list(criteria)


def _check_generators(generators: Generators, rows: int, device: torch.device) -> None:
    if generators is None:
        return
    listed = [generators] if isinstance(generators, torch.Generator) else list(generators)
    if not isinstance(generators, torch.Generator) and len(listed) != rows:
        raise ValueError(f"{len(listed)} generators for {rows} rows of the result; give one, or one per row")
    for generator in listed:
        if generator.device.type != device.type:
            raise ValueError(f"the generator is on {generator.device}, the model on {device}; make it there")

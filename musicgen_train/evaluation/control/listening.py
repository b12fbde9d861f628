"""Making the music of a control test and hearing what is in it.

Axes: C channels, S samples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from musicgen_train.demo.hearing import Hearing
from musicgen_train.evaluation.control.pieces import ControlSet
from musicgen_train.evaluation.control.scoring import RECORDINGS, ROUND_TRIP, ControlClip
from musicgen_train.evaluation.generating import SamplingSettings, generate, plan
from musicgen_train.evaluation.round_trip import decoded, round_trip
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration


def set_name(guidance_scale: float) -> str:
    """What samples of a guidance scale are called in the results."""
    return f"guidance {guidance_scale:g}"


def listen(
    control: ControlSet,
    model: MusicgenForConditionalGeneration,
    sampling: SamplingSettings,
    write: Callable[[str, torch.Tensor], str],
    on_frames: Callable[[int], None] | None = None,
) -> list[ControlClip]:
    """Generate from every caption and hear what came of it; hear the ceilings too.

    Args:
        control: captions, with recordings or their codes.
        model: the composite.
        sampling: how to generate; each caption once with each guidance scale.
        write: is given the stem of a file and audio `(C, S)`; writes it and returns its path for the record.
        on_frames: called with the number of new frames as they come.
    """
    hearing, rate = Hearing.load(), model.config.audio_encoder.sampling_rate
    clips = [
        ControlClip(caption=request.text, asked=asked, heard={}, files={})
        for request, asked in zip(control.requests, control.asked, strict=True)
    ]
    for number, (request, clip) in enumerate(zip(control.requests, clips, strict=True)):
        if control.recordings is not None:
            recording_CS = control.recordings[number]
            clip.heard[RECORDINGS] = hearing.hear(recording_CS, rate)
            clip.heard[ROUND_TRIP] = hearing.hear(round_trip(model, recording_CS), rate)
        elif request.reference_codes_KT is not None:
            clip.heard[ROUND_TRIP] = hearing.hear(decoded(model, request.reference_codes_KT), rate)
    for made in generate(model, plan(control.requests, sampling), sampling, on_frames):
        request, name = made.job.request, set_name(made.job.guidance_scale)
        audio_CS = torch.nan_to_num(made.audio_CS, nan=0.0, posinf=0.0, neginf=0.0)
        clip = clips[request.index - 1]
        clip.heard[name] = hearing.hear(audio_CS, rate)
        clip.files[name] = write(f"{request.file_stem}-g{made.job.guidance_scale:g}", audio_CS)
    return clips

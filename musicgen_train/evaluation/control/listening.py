"""Making the music of a control test and hearing what is in it.

Axes: C channels, S samples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from musicgen_train.evaluation.control.listener import Listener
from musicgen_train.evaluation.control.pieces import ControlSet
from musicgen_train.evaluation.control.scoring import RECORDINGS, ROUND_TRIP, ControlClip
from musicgen_train.evaluation.generating import SamplingSettings, generate, plan
from musicgen_train.evaluation.model import EvaluatedModel


def set_name(guidance_scale: float) -> str:
    """The name of a guidance scale's samples in the results."""
    return f"guidance {guidance_scale:g}"


def listen(
    listener: Listener,
    control: ControlSet,
    evaluated: EvaluatedModel,
    sampling: SamplingSettings,
    write: Callable[[str, torch.Tensor], str],
    on_frames: Callable[[int], None] | None = None,
) -> list[ControlClip]:
    """Generate from every caption, and have the listener judge the samples, the recordings and their round trips.

    Args:
        listener: who hears.
        control: captions, with recordings or their codes.
        evaluated: the model.
        sampling: how to generate; each caption once with each guidance scale.
        write: is given the stem of a file's name and audio `(C, S)`; writes it and returns its path for the record.
        on_frames: called with the number of new frames as they come.
    """
    rate = evaluated.sampling_rate
    clips = [
        ControlClip(caption=request.text, asked=dict(listener.requested(request.text)), heard={}, files={})
        for request in control.requests
    ]

    def hear(clip: ControlClip, name: str, audio_CS: torch.Tensor) -> None:
        clip.heard[name] = dict(listener.hear(audio_CS, rate))

    for number, (request, clip) in enumerate(zip(control.requests, clips, strict=True)):
        if control.recordings is not None:
            recording_CS = control.recordings[number]
            hear(clip, RECORDINGS, recording_CS)
            hear(clip, ROUND_TRIP, evaluated.through_codec(recording_CS))
        elif request.reference_codes_KT is not None:
            hear(clip, ROUND_TRIP, evaluated.decode(request.reference_codes_KT))
    for made in generate(evaluated.model, plan(control.requests, sampling), sampling, on_frames):
        request, name = made.job.request, set_name(made.job.guidance_scale)
        audio_CS = torch.nan_to_num(made.audio_CS, nan=0.0, posinf=0.0, neginf=0.0)
        clip = clips[request.index - 1]
        hear(clip, name, audio_CS)
        clip.files[name] = write(f"{request.file_stem}-g{made.job.guidance_scale:g}", audio_CS)
    return clips

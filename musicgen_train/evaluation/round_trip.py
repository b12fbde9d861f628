"""Audio of codes, and recordings through the codec and back: what a model with this codec can at best be.

Axes: K codebooks, T frames, C channels, S samples.
"""

from __future__ import annotations

import torch

from musicgen_train.models.musicgen import MusicgenForConditionalGeneration


@torch.no_grad()
def decoded(model: MusicgenForConditionalGeneration, codes_KT: torch.Tensor) -> torch.Tensor:
    """Audio `(C, S)` of codes, float32 on the CPU."""
    return model.decode_audio(codes_KT[None].to(model.device))[0].float().cpu()


@torch.no_grad()
def round_trip(model: MusicgenForConditionalGeneration, audio_CS: torch.Tensor) -> torch.Tensor:
    """A recording as the codec gives it back, of the same length; float32 on the CPU."""
    codes_BKT, _ = model.encode_audio(audio_CS[None].to(model.device, model.dtype))
    return decoded(model, codes_BKT[0])[:, : audio_CS.shape[1]]

"""The delay pattern of MusicGen (Copet et al. 2023, section 2.2): codebook k lags behind codebook 0 by some frames.

Training and generation both use this module, so they cannot disagree.

Axes: B batch, K codebooks, T frames (aligned codes), S steps (delayed columns).
With K = 4 codebooks and T = 5 frames, P the special id and column 0 the start:

    step        0  1  2  3  4  5  6  7  8
    codebook 0  P  a0 a1 a2 a3 a4 P  P  P
    codebook 1  P  P  b0 b1 b2 b3 b4 P  P
    codebook 2  P  P  P  c0 c1 c2 c3 c4 P
    codebook 3  P  P  P  P  d0 d1 d2 d3 d4

Stereo interleaves left and right, `[1L, 1R, 2L, 2R, ...]`, and delays each pair alike: 0, 0, 1, 1, 2, 2, 3, 3.
"""

from __future__ import annotations

import torch

# Marks a code of a generation template that is still to be predicted.
FREE = -1


def codebook_delays(num_codebooks: int, audio_channels: int = 1) -> list[int]:
    """Returns the frames by which each codebook lags: 0, 1, 2, ... for mono, each twice for stereo."""
    return [codebook // audio_channels for codebook in range(num_codebooks)]


def apply_delay(codes_BKT: torch.Tensor, delays: list[int], fill: int) -> torch.Tensor:
    """Shifts each codebook right by its delay.

    Args:
        codes_BKT: aligned codes, `(batch, codebooks, frames)`.
        delays: one per codebook, the first of them 0.
        fill: value in the two triangles, before a codebook begins and after it ends.

    Returns:
        `(batch, codebooks, frames + max delay)`; the start column is not part of it.
    """
    batch, num_codebooks, frames = codes_BKT.shape
    _check_codebooks(num_codebooks, delays)
    delayed_BKS = codes_BKT.new_full((batch, num_codebooks, frames + max(delays)), fill)
    for codebook, delay in enumerate(delays):
        delayed_BKS[:, codebook, delay : delay + frames] = codes_BKT[:, codebook]
    return delayed_BKS


def undo_delay(delayed_BKS: torch.Tensor, delays: list[int]) -> torch.Tensor:
    """Inverts `apply_delay`: returns aligned codes, `(batch, codebooks, steps - max delay)`.

    Works on any tensor whose first three axes are batch, codebooks and steps, e.g. also on logits.
    """
    num_codebooks, steps = delayed_BKS.shape[1:3]
    _check_codebooks(num_codebooks, delays)
    frames = steps - max(delays)
    if frames < 0:
        raise ValueError(f"{steps} steps are fewer than the largest delay, {max(delays)}")
    rows = [delayed_BKS[:, codebook, delay : delay + frames] for codebook, delay in enumerate(delays)]
    return torch.stack(rows, dim=1)


def training_labels(codes_BKT: torch.Tensor, delays: list[int], special_id: int) -> torch.Tensor:
    """Makes labels of `MusicgenForCausalLM` from aligned codes, which are delayed and cut to the number of frames.

    As in audiocraft, codebook k is scored on its first `frames - delay` codes; the others would need steps beyond the
    clip. One triangle holds `special_id`, which is an input and never scored. Frames of padding may hold -100, which
    stays -100.

    Args:
        codes_BKT: aligned codes, `(batch, codebooks, frames)`.
        delays: one per codebook.
        special_id: the id of pad and start, `config.pad_token_id`.

    Returns:
        `(batch, frames, codebooks)`.
    """
    frames = codes_BKT.shape[-1]
    return apply_delay(codes_BKT, delays, special_id)[..., :frames].transpose(1, 2).contiguous()


def generation_template(prompt_BKP: torch.Tensor, delays: list[int], frames: int, special_id: int) -> torch.Tensor:
    """Lays out the sequence of a generation: start column, prompt, the two triangles, and `FREE` where to predict.

    Args:
        prompt_BKP: aligned codes to continue, `(batch, codebooks, prompt frames)`; may have no frames.
        delays: one per codebook.
        frames: length of the result, the prompt's frames included.
        special_id: the id of pad and start.

    Returns:
        `(batch, codebooks, 1 + frames + max delay)`. All columns up to the prompt's last are known, so the first
        column with anything `FREE` is number `1 + prompt frames`.

    Raises:
        ValueError: the prompt leaves no frame to generate.
    """
    batch, num_codebooks, prompt_frames = prompt_BKP.shape
    if frames <= prompt_frames:
        raise ValueError(f"a result of {frames} frames leaves nothing to generate after a prompt of {prompt_frames}")
    free = prompt_BKP.new_full((batch, num_codebooks, frames - prompt_frames), FREE)
    start = prompt_BKP.new_full((batch, num_codebooks, 1), special_id)
    return torch.cat([start, apply_delay(torch.cat([prompt_BKP, free], dim=2), delays, special_id)], dim=2)


def _check_codebooks(num_codebooks: int, delays: list[int]) -> None:
    if num_codebooks != len(delays):
        raise ValueError(f"codes have {num_codebooks} codebooks, the delay pattern is one of {len(delays)}")

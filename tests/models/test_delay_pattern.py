"""The delay pattern against brute force, against audiocraft, and as a property."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from musicgen_train.models.delay_pattern import (
    FREE,
    apply_delay,
    codebook_delays,
    generation_template,
    training_labels,
    undo_delay,
)

ASSETS = Path(__file__).parents[1] / "assets"
SPECIAL = 99

shapes = st.tuples(st.integers(1, 3), st.sampled_from([(1, 1), (2, 1), (4, 1), (2, 2), (8, 2)]), st.integers(1, 16))


def codes_of(batch: int, codebooks: int, frames: int) -> torch.Tensor:
    return torch.arange(batch * codebooks * frames).view(batch, codebooks, frames)


@given(shapes)
@settings(max_examples=200, derandomize=True, deadline=None)
def test_every_place_holds_what_the_definition_says(shape: tuple[int, tuple[int, int], int]) -> None:
    batch, (codebooks, channels), frames = shape
    codes = codes_of(batch, codebooks, frames)
    delays = codebook_delays(codebooks, channels)
    delayed = apply_delay(codes, delays, SPECIAL)
    assert delayed.shape == (batch, codebooks, frames + codebooks // channels - 1)
    for b in range(batch):
        for k in range(codebooks):
            for step in range(delayed.shape[2]):
                frame = step - k // channels
                expected = codes[b, k, frame].item() if 0 <= frame < frames else SPECIAL
                assert delayed[b, k, step].item() == expected
    assert torch.equal(undo_delay(delayed, delays), codes)


@given(shapes, st.integers(0, 15))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_a_template_keeps_the_prompt_and_frees_the_rest(
    shape: tuple[int, tuple[int, int], int], prompt_frames: int
) -> None:
    batch, (codebooks, channels), frames = shape
    if prompt_frames >= frames:
        return
    delays = codebook_delays(codebooks, channels)
    prompt = codes_of(batch, codebooks, prompt_frames)
    template = generation_template(prompt, delays, frames, SPECIAL)
    for b in range(batch):
        for k in range(codebooks):
            for step in range(template.shape[2]):
                frame = step - 1 - delays[k]
                if frame < 0 or frame >= frames:
                    expected = SPECIAL
                else:
                    expected = prompt[b, k, frame].item() if frame < prompt_frames else FREE
                assert template[b, k, step].item() == expected
    first_free = int((template == FREE).any(dim=1).any(dim=0).nonzero()[0])
    assert first_free == 1 + prompt_frames


@pytest.mark.parametrize(
    ("name", "channels", "frames"),
    [("pattern_mono_K4", 1, frames) for frames in (1, 2, 3, 4, 7, 16)]
    + [("pattern_stereo_K8", 2, frames) for frames in (1, 3, 4, 7, 16)],
)
def test_equals_audiocraft(name: str, channels: int, frames: int) -> None:
    fixture = load_file(ASSETS / "audiocraft" / f"{name}.safetensors")
    codes = fixture[f"T{frames}.codes"]
    delays = codebook_delays(codes.shape[1], channels)

    whole = fixture[f"T{frames}.full.build.values"]
    free = generation_template(codes[..., :0], delays, frames, SPECIAL)
    assert torch.equal(torch.where(free == FREE, whole, free), whole)
    assert torch.equal(apply_delay(codes, delays, SPECIAL), whole[..., 1:])
    assert torch.equal(undo_delay(whole[..., 1:], delays), fixture[f"T{frames}.full.revert.values"])

    # Logits stand where the code before theirs is the input, so the last column predicts nothing.
    logits = fixture[f"T{frames}.full.logits.input"].permute(0, 2, 3, 1)  # (B, K, S, V)
    aligned = undo_delay(logits[:, :, :-1], delays).permute(0, 3, 1, 2)
    assert torch.equal(aligned, fixture[f"T{frames}.full.logits.values"])

    training = fixture[f"T{frames}.valid.build.values"]
    assert torch.equal(training_labels(codes, delays, SPECIAL).transpose(1, 2), training[..., 1:])


def test_labels_keep_ignored_frames() -> None:
    codes = codes_of(1, 2, 4)
    codes[..., 3:] = -100
    labels = training_labels(codes, [0, 1], SPECIAL)
    assert labels[0].tolist() == [[0, SPECIAL], [1, 4], [2, 5], [-100, 6]]


def test_stereo_delays_pairs_alike() -> None:
    assert codebook_delays(8, audio_channels=2) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_wrong_number_of_codebooks_is_refused() -> None:
    with pytest.raises(ValueError, match="codes have 3 codebooks, the delay pattern is one of 4"):
        apply_delay(codes_of(1, 3, 5), codebook_delays(4), SPECIAL)


def test_a_prompt_that_fills_the_request_is_refused() -> None:
    with pytest.raises(ValueError, match="a result of 5 frames leaves nothing to generate after a prompt of 5"):
        generation_template(codes_of(1, 4, 5), codebook_delays(4), 5, SPECIAL)


def test_too_few_steps_to_undo_are_refused() -> None:
    with pytest.raises(ValueError, match="2 steps are fewer than the largest delay, 3"):
        undo_delay(codes_of(1, 4, 2), codebook_delays(4))

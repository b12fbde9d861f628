"""Batches that change nothing, seeds of one's own, and the model's own generation as the reference."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_world import FRAME_RATE, World

from musicgen_train.data.latent_dataset import LatentDataset
from musicgen_train.evaluation.generating import Generated, SamplingSettings, generate, plan, sample_seed
from musicgen_train.evaluation.requests import Request, dataset_requests, text_requests
from musicgen_train.evaluation.split_clips import SplitClips

SETTINGS = SamplingSettings(max_new_tokens=22, guidance_scales=[3.0], repetitions=1, seed=5, batch_size=8, options={})
PROMPTS = ["jazz guitar", "", "lofi beat, slow, with a long text behind it", "drums"]


@pytest.fixture(scope="module")
def requests(world: World) -> list[Request]:
    """Prompts, one of them null, and two clips to go on from."""
    clips = SplitClips(LatentDataset(world.latents, "validation"), [0, 1], 1000)
    return text_requests(PROMPTS, world.model, str(world.composite)) + dataset_requests(
        clips, max_frames=100, prompt_frames=7
    )


def run(world: World, requests: list[Request], **changes: object) -> list[Generated]:
    settings = dataclasses.replace(SETTINGS, **changes)  # type: ignore[arg-type]
    jobs = plan(requests, settings)
    made = {id(one.job): one for one in generate(world.model, jobs, settings)}
    assert len(made) == len(jobs)
    return [made[id(job)] for job in jobs]


def test_the_batch_size_changes_nothing(world: World, requests: list[Request]) -> None:
    one, three, all_at_once = (run(world, requests, batch_size=size) for size in (1, 3, 8))
    assert len({tuple(made.codes_KT.flatten().tolist()) for made in one}) == 6
    for alone, among, together in zip(one, three, all_at_once, strict=True):
        assert torch.equal(alone.codes_KT, among.codes_KT)
        assert torch.equal(alone.codes_KT, together.codes_KT)
        torch.testing.assert_close(alone.audio_CS, together.audio_CS, rtol=1e-4, atol=1e-5)


def test_it_is_what_the_model_generates(world: World, requests: list[Request]) -> None:
    made = run(world, requests)
    first, null, continued = made[0], made[1], made[4]
    assert first.job.request.states_LD is not None
    audio = world.model.generate(
        encoder_outputs=(first.job.request.states_LD[None],),
        attention_mask=torch.ones(1, len(first.job.request.states_LD)),
        generator=torch.Generator().manual_seed(first.job.seed),
        max_new_tokens=22,
        guidance_scale=3.0,
    )
    assert isinstance(audio, torch.Tensor)
    assert audio.shape == (1, 1, 19 * 8)
    torch.testing.assert_close(first.audio_CS, audio[0], rtol=1e-4, atol=1e-5)
    codes = world.model.decoder.generate(generator=torch.Generator().manual_seed(null.job.seed), max_new_tokens=22)
    assert isinstance(codes, torch.Tensor)
    assert torch.equal(null.codes_KT, codes[0])
    assert torch.equal(continued.codes_KT[:, :7], world.clips[0][:, :7])
    assert continued.codes_KT.shape == (4, 7 + 19)


def test_plan_and_seeds(requests: list[Request]) -> None:
    settings = dataclasses.replace(SETTINGS, guidance_scales=[1.0, 4.0], repetitions=2)
    jobs = plan(requests[:2], settings)
    assert [(job.request.index, job.guidance_scale, job.repetition) for job in jobs] == [
        (1, 1.0, 1),
        (1, 1.0, 2),
        (1, 4.0, 1),
        (1, 4.0, 2),
        (2, 1.0, 1),
        (2, 1.0, 2),
    ]
    # Scales are compared on equal luck; repetitions and seeds differ.
    assert jobs[0].seed == jobs[2].seed != jobs[1].seed
    assert plan(requests[:1], settings)[0].seed == jobs[0].seed
    assert plan(requests[:1], dataclasses.replace(settings, seed=6))[0].seed != jobs[0].seed
    assert sample_seed(0, "prompt/1/jazz", 1) == 0xC732009CF5A7  # sha256sum of 0/1/prompt/1/jazz


def test_scale_and_repetition_matter(world: World, requests: list[Request]) -> None:
    made = run(world, requests[:1], guidance_scales=[1.0, 4.0], repetitions=2)
    assert len({tuple(one.codes_KT.flatten().tolist()) for one in made}) == 4


def test_frames_are_counted_without_the_prompt(world: World, requests: list[Request]) -> None:
    counts: list[int] = []
    jobs = plan(requests[3:], SETTINGS)
    list(generate(world.model, jobs, SETTINGS, counts.append))
    assert sum(counts) == 3 * 19
    assert set(counts) == {1, 2}


def test_windows(world: World, requests: list[Request]) -> None:
    options = {"max_window_frames": 20, "extend_stride": 8}
    (made,) = run(world, requests[:1], max_new_tokens=50, options=options)
    assert made.audio_CS.shape == (1, 47 * 320 // FRAME_RATE)
    with pytest.raises(ValueError, match="Pass extend_stride=12"):
        run(world, requests[:1], max_new_tokens=50, options={"max_window_frames": 20})


def test_what_is_refused(world: World, requests: list[Request]) -> None:
    with pytest.raises(ValueError, match="repetitions is 0; it must be 1 or more"):
        dataclasses.replace(SETTINGS, repetitions=0)
    with pytest.raises(ValueError, match=r"guidance_scale is \[0\.5\]; give numbers from 1"):
        dataclasses.replace(SETTINGS, guidance_scales=[0.5])
    with pytest.raises(ValueError, match="max_new_tokens=3 is too short"):
        run(world, requests[:1], max_new_tokens=3)

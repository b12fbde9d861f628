"""A model that trains learns a handful of clips by heart, and can say them."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_latents import ClipSpec, codes_of, write_latents
from tiny_run import RunWith

from musicgen_train import MusicgenForConditionalGeneration
from musicgen_train.data.latent_dataset import LatentDataset

CLIPS = [ClipSpec(37, (0,)), ClipSpec(40, (1,)), ClipSpec(43, (2,))]


def test_greedy_generation_gives_the_clips_back(run_with: RunWith, composite: Path, tmp_path: Path) -> None:
    latents = write_latents(tmp_path / "latents", composite, CLIPS, captions=["one", "two", "three"])
    run = run_with(
        tmp_path / "run",
        "experiment=overfit",
        f"data.path={latents}",
        "data.global_batch_size=3",
        "init_from=scratch",
        "model=tiny",
        "model.architecture.hidden_size=64",
        "model.architecture.num_hidden_layers=2",
        "model.architecture.ffn_dim=128",
        "optimizer.lr=4e-3",
        "trainer.max_steps=250",
    )
    assert run.trainer.callback_metrics["train/loss"] < 0.02

    model = MusicgenForConditionalGeneration.from_pretrained(run.composite)
    dataset = LatentDataset(latents, "train")
    for row, clip in enumerate(CLIPS):
        states = dataset.states(clip.captions[0])[None].float()
        result = model.generate(
            encoder_outputs=(states,),
            attention_mask=torch.ones(states.shape[:2]),
            do_sample=False,
            guidance_scale=1.0,
            max_new_tokens=clip.frames + 3,
            return_dict_in_generate=True,
        )
        codes = torch.from_numpy(codes_of(latents, "train", row).astype("int64"))
        assert result.codes.shape == (1, 4, clip.frames)
        for codebook in range(4):
            # The last codes of the delayed codebooks lie beyond a clip's steps and are never trained on.
            scored = clip.frames - codebook
            assert torch.equal(result.codes[0, codebook, :scored], codes[codebook, :scored])

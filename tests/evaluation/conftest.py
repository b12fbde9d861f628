"""A tiny composite, a latent dataset made with its encoders, and a run's folder around it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny import DECODER
from tiny_world import FRAMES, World, make_composite, save_composite, save_dataset


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Five clips; the third has no caption, the fourth has two."""
    folder = tmp_path_factory.mktemp("world")
    model = make_composite()
    composite = save_composite(model, folder / "composite")
    generator = torch.Generator().manual_seed(5)
    # Low codes are likelier, so that the unigram entropy is below the uniform one.
    clips = [(torch.rand(4, frames, generator=generator) ** 2 * DECODER["vocab_size"]).long() for frames in FRAMES]
    captions = [[0], [1], [], [2, 0], [1]]
    latents = save_dataset(model, composite, folder / "latents", clips, captions)
    return World(model=model, composite=composite, latents=latents, clips=clips, captions=captions)


@pytest.fixture
def training_run(world: World, tmp_path: Path) -> Path:
    """A run's folder: composite, one checkpoint of other weights, curves."""
    run = tmp_path / "run"
    shutil.copytree(world.composite, run / "composite")
    trained = make_composite(seed=7)
    state = {
        name: value for name, value in trained.state_dict().items() if name.startswith(("decoder.", "enc_to_dec_proj."))
    }
    (run / "checkpoints").mkdir()
    about = {
        "decoder_config": trained.decoder.config.to_dict(),
        "generation_config": world.model.generation_config.to_dict(),
        "encoders": {"text": str(world.composite), "audio": str(world.composite)},
    }
    torch.save({"global_step": 3, "state_dict": state, "musicgen_train": about}, run / "checkpoints" / "last.ckpt")
    (run / "config.yaml").write_text("seed: 0\n")
    (run / "provenance.json").write_text("{}")
    lines = ["step,epoch,train/loss,train/ce_q1,val/loss,val/ce_q1,val/ce_q2,lr,grad_norm"]
    for step in range(1, 41):
        lines.append(f"{step},0,{4 / step + 1},{3 / step + 1},,,,{1e-3 * step},{1 / step}")
        if step % 10 == 0:
            lines.append(f"{step},0,,,{4 / step + 1.5},{3 / step + 1.2},nan,,")
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    return run

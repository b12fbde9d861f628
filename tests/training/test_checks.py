"""What is looked at before the first step."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_latents import codes_of
from tiny_run import RunWith

from musicgen_train import MusicgenForConditionalGeneration
from musicgen_train.data.latent_dataset import LatentDataset
from musicgen_train.training.checks import describe_scores, first_scores, write_round_trips
from musicgen_train.training.step.scores import Scores


def test_round_trips_are_the_codecs_decoding(composite: Path, latents: Path, tmp_path: Path) -> None:
    model = MusicgenForConditionalGeneration.from_pretrained(composite)
    paths = write_round_trips(model, LatentDataset(latents, "train"), 3, tmp_path / "checks")
    assert [path.name for path in paths] == ["row_000000.wav", "row_000005.wav", "row_000010.wav"]
    for row, path in zip((0, 5, 10), paths, strict=True):
        codes = torch.from_numpy(codes_of(latents, "train", row).astype(np.int64))
        with torch.no_grad():
            expected = model.audio_encoder.decode(codes[None, None], [None]).audio_values[0, 0]
        expected = expected / max(1.0, float(expected.abs().max()))
        found, rate = soundfile.read(path, dtype="float32")
        assert rate == 320
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-3)
    lines = (tmp_path / "checks" / "captions.txt").read_text().splitlines()
    assert lines[0] == "row_000000.wav\ttrain/0.wav\t0.00 s\tdrums and bass | a quiet flute"
    assert lines[1] == "row_000005.wav\ttrain/5.wav\t1.25 s\ta quiet flute"


def test_first_scores_are_of_the_untouched_model(run_with: RunWith, tmp_path: Path) -> None:
    made = run_with(tmp_path / "run", "model.dropout=0.5")
    made.module.train()
    scores = first_scores(made.module, made.data, batches=99)
    assert made.module.training
    made.module.eval()
    expected = [made.module.score(batch) for batch in made.data.val_dataloader()]
    torch.testing.assert_close(scores.sums_K.float(), sum(part.sums_K for part in expected), rtol=1e-5, atol=1e-5)
    assert scores.counts_K.tolist() == sum(part.counts_K for part in expected).tolist()


@pytest.mark.parametrize(
    ("ce", "verdict"),
    [(9.0, "worse than knowing nothing"), (7.6, "as of a model that knows nothing"), (4.0, "knows something")],
)
def test_the_first_loss_is_judged_beside_chance(ce: float, verdict: str) -> None:
    scores = Scores(torch.tensor([10 * ce, 20 * ce]), torch.tensor([10, 20]), torch.tensor([0, 0]))
    line = describe_scores(scores, 2048)
    assert f"{ce:.3f} (q1 {ce:.3f}, q2 {ce:.3f}); ln(2048) = {math.log(2048):.3f}" in line
    assert verdict in line

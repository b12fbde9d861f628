"""Steps that are not finite are left out, counted and named; spikes of the loss are seen."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from omegaconf import OmegaConf
from poisoned_latents import BAD_ROW, write_poisoned_latents
from tiny_latents import ClipSpec
from tiny_run import RunWith

from musicgen_train import MusicgenForConditionalGeneration
from musicgen_train.data.datamodule import DataSettings, LatentDataModule
from musicgen_train.training.module import MusicgenTraining
from musicgen_train.training.step.health import (
    Health,
    HealthSettings,
    LossSpikes,
    NotFinite,
    UnhealthyRunError,
    not_finite,
)
from musicgen_train.training.step.schedule import ScheduleSettings
from musicgen_train.training.step.verdict import leave_out

SETTINGS = HealthSettings(max_skipped_in_a_row=3, max_skipped=5, spike_threshold=8.0, spike_window=20)
LIMIT = 0.05
RUN = [
    "trainer.max_steps=5",
    "data.global_batch_size=4",
    "data.cfg_dropout=0",
    "data.validation_clips=0",
    "trainer.precision=64-true",
    "optimizer.lr=0.01",
    f"trainer.gradient_clip_val={LIMIT}",
]


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def by_hand(
    composite: Path, latents: Path, factors: list[float]
) -> tuple[dict[str, torch.Tensor], list[float], list[int]]:
    """Plain torch: the weights, the norms of the gradients, and the steps that were left out for their bad batch."""
    model = MusicgenForConditionalGeneration.from_pretrained(composite).double()
    parameters = [*model.decoder.parameters(), *model.enc_to_dec_proj.parameters()]  # type: ignore[union-attr]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    settings = DataSettings(
        path=str(latents),
        crop_seconds=30,
        global_batch_size=4,
        micro_batch_size=None,
        cfg_dropout=0,
        validation_clips=0,
        workers=0,
    )
    data = LatentDataModule(settings, seed=0, total_steps=len(factors))
    norms, left_out = [], []
    for step, (batch, factor) in enumerate(zip(data.train_dataloader(), factors, strict=True)):
        if (0, BAD_ROW) in batch.clips:
            left_out.append(step)
            continue
        text = model.project_text(batch.text_states.double(), batch.text_mask)
        labels = batch.labels(model.decoder.delays, model.decoder.config.pad_token_id)
        model.decoder(labels=labels, encoder_hidden_states=text, encoder_attention_mask=batch.text_mask).loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, LIMIT).item())
        optimizer.param_groups[0]["lr"] = 0.01 * factor
        optimizer.step()
        optimizer.zero_grad()
    names = ("decoder.", "enc_to_dec_proj.")
    return {name: value for name, value in model.state_dict().items() if name.startswith(names)}, norms, left_out


@pytest.mark.parametrize("micro_batch", [4, 1])
def test_a_step_that_is_not_finite_changes_nothing(
    run_with: RunWith,
    composite: Path,
    poisoned: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    micro_batch: int,
) -> None:
    output = tmp_path / "run"
    made = run_with(output, *RUN, f"data.path={poisoned}", f"data.micro_batch_size={micro_batch}")
    # Warm-up of one step, then a cosine over the rest: the schedule goes on over the step that is left out.
    factors = [0.5, *(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4))]
    config = OmegaConf.load(output / "config.yaml")
    assert (config.schedule.shape, config.schedule.warmup_steps, config.optimizer.weight_decay) == ("cosine", 1, 0.1)
    factors = [0.5, *(config.schedule.floor + (f - 0.1) / 0.9 * (1 - config.schedule.floor) for f in factors[1:])]
    expected, norms, left_out = by_hand(composite, poisoned, factors)
    assert 0 < len(left_out) < 3

    found = made.module.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-10)
    rows = [row for row in rows_of(output) if row["lr"]]
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.01 * factor for factor in factors], rel=1e-5)
    made_steps = [row for number, row in enumerate(rows) if number not in left_out]
    assert [float(row["grad_norm"]) for row in made_steps] == pytest.approx(norms, rel=1e-5)
    assert min(norms) > LIMIT  # logged as they were before clipping
    assert [float(row["skipped_steps"]) for row in rows] == [sum(bad <= step for bad in left_out) for step in range(5)]
    assert [math.isnan(float(row["train/loss"])) for row in rows] == [step in left_out for step in range(5)]

    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(lines) == len(left_out)
    for number, (step, line) in enumerate(zip(left_out, lines, strict=True), start=1):
        assert line.startswith(
            f"step {step + 1} left out (1 in a row, {number} in all): the loss of q1, q2, q3, q4 is not finite; "
        )
        # All clips of the micro-batch, and of no other.
        assert f"row {BAD_ROW} of {poisoned} (train/{BAD_ROW}.wav" in line
        assert line.count("row ") == micro_batch


def test_gradients_are_clipped_one_by_one_on_request(run_with: RunWith, composite: Path, tmp_path: Path) -> None:
    plain = ["optimizer=sgd", "optimizer.lr=1", "optimizer.momentum=0", "schedule=constant", "schedule.warmup_steps=0"]
    clip = ["trainer.gradient_clip_val=1e-4", "+trainer.gradient_clip_algorithm=value", "trainer.max_steps=1"]
    found = run_with(tmp_path / "run", *plain, *clip, "data.validation_clips=0").module.state_dict()
    before = MusicgenForConditionalGeneration.from_pretrained(composite).state_dict()
    moved = torch.cat([(found[name] - before[name]).flatten().abs() for name in found])
    assert moved.max().item() == pytest.approx(1e-4, rel=1e-2)
    assert (moved < 0.5e-4).any()


def test_too_many_of_them_stop_the_run(run_with: RunWith, composite: Path, tmp_path: Path) -> None:
    latents = write_poisoned_latents(tmp_path / "latents", composite, [ClipSpec(20)] * 4)
    where = [f"data.path={latents}", "data.global_batch_size=1", "data.cfg_dropout=0", "data.validation_clips=0"]
    steps = ["trainer.max_steps=60", "callbacks.last.every_n_train_steps=1"]
    with pytest.raises(UnhealthyRunError, match=r"3 steps in all were not finite \(health\.max_skipped=3\)") as stopped:
        run_with(tmp_path / "run", *where, *steps, "health.max_skipped=3")
    assert f"row {BAD_ROW} of {latents}" in str(stopped.value)
    assert "resume=auto" in str(stopped.value)
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert last["musicgen_train"]["health"]["skipped"] == 2
    assert all(value.isfinite().all() for value in last["state_dict"].values())
    # The count is that of the run, so it goes on with the run.
    with pytest.raises(UnhealthyRunError, match=r"4 steps in all .*health\.max_skipped=4"):
        run_with(tmp_path / "run", *where, *steps, "health.max_skipped=4", "resume=auto")


def test_weights_that_are_not_finite_are_never_saved(
    run_with: RunWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = MusicgenTraining.on_train_batch_start

    def break_weights(self: MusicgenTraining, batch: Any, batch_idx: int) -> None:
        begin(self, batch, batch_idx)
        if self.global_step == 3:
            with torch.no_grad():
                self.decoder.model.decoder.layers[1].fc1.weight[0, 0] = math.inf

    monkeypatch.setattr(MusicgenTraining, "on_train_batch_start", break_weights)
    constant = ["callbacks.last.every_n_train_steps=1", "validate_every=10"]
    with pytest.raises(UnhealthyRunError, match=r"the weights of decoder\.model\.decoder\.layers\.1\.fc1\.weight are"):
        run_with(tmp_path / "run", *constant)
    for name in ("last.ckpt", "best.ckpt"):
        path = tmp_path / "run/checkpoints" / name
        if path.exists():
            state = torch.load(path, weights_only=True)["state_dict"]
            assert all(value.isfinite().all() for value in state.values())
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    assert not (tmp_path / "run/composite").exists()


def test_the_last_save_looks_at_the_weights(run_with: RunWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_weights(self: MusicgenTraining) -> None:
        with torch.no_grad():
            self.decoder.lm_heads[2].weight[0, 0] = math.nan

    monkeypatch.setattr(MusicgenTraining, "on_train_epoch_end", break_weights)
    with pytest.raises(UnhealthyRunError, match=r"nothing saved: the weights of decoder\.lm_heads\.2\.weight are not"):
        run_with(tmp_path / "run", "callbacks.last.every_n_train_steps=3")
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3


@pytest.mark.filterwarnings("ignore")  # of Lightning and torch, about the trainer that is made here by hand
@pytest.mark.parametrize("fused", [False, True])
def test_the_scaler_of_fp16_looks_for_its_scale(latents: Path, composite: Path, fused: bool) -> None:
    # fp16 on a CPU, which Lightning only does when it is handed the plugin.
    model = MusicgenForConditionalGeneration.from_pretrained(composite)
    module = MusicgenTraining(
        model.decoder,
        model.enc_to_dec_proj,
        make_optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, fused=fused),
        schedule=ScheduleSettings(shape="constant", warmup_steps=0, floor=0.0),
        total_steps=12,
        health=HealthSettings(max_skipped_in_a_row=1, max_skipped=1),
    )
    settings = DataSettings(
        path=str(latents),
        crop_seconds=None,
        global_batch_size=4,
        micro_batch_size=2,
        cfg_dropout=0.0,
        validation_clips=0,
        workers=0,
    )
    before = {name: value.clone() for name, value in module.state_dict().items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=12,
        max_epochs=-1,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)],
    )
    trainer.fit(module, datamodule=LatentDataModule(settings, seed=0, total_steps=12))
    assert 2 < module.health.scaler_skips < 10
    assert scaler.get_scale() == 2.0 ** (30 - module.health.scaler_skips)
    assert module.health.skipped == 0  # none of that is a fault
    assert all(value.isfinite().all() for value in module.state_dict().values())
    moved = max((before[name] - value).abs().max().item() for name, value in module.state_dict().items())
    # AdamW moves a weight by up to lr in a step: the steps that were made, at their clipped and unscaled gradients.
    assert 1e-3 <= moved < 1.2e-3 * (12 - module.health.scaler_skips)
    assert float(module._step_metrics["grad_norm"]) < 10  # unscaled


def test_scores_of_spikes_by_numpy() -> None:
    random = np.random.default_rng(0)
    losses = [*(4 + 0.05 * random.standard_normal(60)).tolist()]
    losses[45] = 6.0
    spikes = LossSpikes(window=30)
    for step, loss in enumerate(losses):
        before = np.array(losses[max(0, step - 30) : step])
        expected = 0.0
        if len(before) >= 20:
            median = np.median(before)
            expected = (loss - median) / (1.4826 * np.median(np.abs(before - median)))
        found = spikes.score(loss)
        assert found.deviations == pytest.approx(expected)
        assert found.usual == pytest.approx(np.median(before) if step else loss)


def test_a_spike_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    health = Health(SETTINGS)
    begins = [health.kept(loss) for loss in [*(2.0 + 0.01 * (step % 5) for step in range(25)), 3.0, 9.0, 2.0, 4.0]]
    assert [step for step, new in enumerate(begins) if new] == [25, 28]
    first = begins[25]
    assert first is not None
    health.report_spike(26, 3.0, first, ["row 3 of DATA (a.wav at 2 s)"])
    printed = capsys.readouterr().err
    # Of 0, 1, 2, 3 and 4 hundredths above 2, five times each: the median is 2.02, the deviation 1.4826 * 0.01. Neither
    # the higher loss after it nor the loss itself is in them.
    assert printed.startswith("step 26: the loss is 3.000, 66 standard deviations above the usual 2.020;")
    assert printed.strip().endswith("; clips: row 3 of DATA (a.wav at 2 s)")
    assert health.metrics()["train/loss_spike"] > SETTINGS.spike_threshold
    assert health.metrics()["train/loss_spike"] == 0.0  # since the last row


def test_losses_that_hardly_differ_are_no_spikes() -> None:
    health = Health(SETTINGS)
    assert all(health.kept(0.001 + 1e-6 * step**2) is None for step in range(60))


def test_spikes_of_a_run_are_those_of_its_losses(
    run_with: RunWith, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Without learning, losses only differ from batch to batch.
    steps = [
        "optimizer.lr=0",
        "trainer.max_steps=34",
        "health.spike_threshold=0.5",
        "health.spike_window=20",
        "validate_every=100",
    ]
    run_with(tmp_path / "run", *steps, "callbacks.last.every_n_train_steps=100", "data.micro_batch_size=1")
    rows = [row for row in rows_of(tmp_path / "run") if row["train/loss"]]
    spikes, losses = LossSpikes(window=20), [float(row["train/loss"]) for row in rows]
    expected = [max(0.0, spikes.score(loss).deviations) for loss in losses]
    assert [float(row["train/loss_spike"]) for row in rows] == pytest.approx(expected, rel=1e-2, abs=1e-2)
    began = [step for step in range(1, 34) if expected[step] > 0.5 >= expected[step - 1]]
    said = [line for line in capsys.readouterr().err.splitlines() if "standard deviations" in line]
    assert [line.partition(":")[0] for line in said] == [f"step {step + 1}" for step in began]
    assert began  # there is something to see
    assert all(line.count("row ") == 2 for line in said)  # the clips of both micro-batches


def test_state_goes_through_a_checkpoint() -> None:
    health = Health(SETTINGS)
    for loss in (1.0, 2.0, 3.0):
        health.kept(loss)
    leave_out(4, NotFinite(codebooks=[1]), health)
    again = Health(SETTINGS)
    again.load_state_dict(json.loads(json.dumps(health.state_dict())))
    assert again.state_dict() == health.state_dict()
    assert again.metrics() == health.metrics()


def test_a_spike_that_a_checkpoint_falls_into_is_neither_said_again_nor_lost() -> None:
    health = Health(SETTINGS)
    begins = [health.kept(loss) for loss in [*(2.0 + 0.01 * (step % 5) for step in range(25)), 9.0]]
    assert begins[-1] is not None
    again = Health(SETTINGS)
    again.load_state_dict(json.loads(json.dumps(health.state_dict())))
    assert again.kept(8.0) is None  # it goes on, lower
    assert again.metrics()["train/loss_spike"] == pytest.approx(begins[-1].deviations)


def test_limits_in_a_row_and_in_all() -> None:
    health = Health(SETTINGS)
    for step in (1, 2):
        leave_out(step, NotFinite(), health)
    assert not health.kept(1.0)  # not in a row any more
    for step in (4, 5):
        leave_out(step, NotFinite(), health)
    with pytest.raises(UnhealthyRunError, match=r"stopped at step 6: 3 steps in a row .*max_skipped_in_a_row=3"):
        leave_out(6, NotFinite(), health)


def test_what_is_not_finite_is_named() -> None:
    one = NotFinite(codebooks=[3], clips=["a"])
    other = NotFinite(codebooks=[1, 3], clips=[f"b{number}" for number in range(12)])
    assert str(one + other).startswith("the loss of q1, q3 is not finite; clips: a, b0, b1, ")
    assert "and " in str(one + other)  # not all thirteen
    gradients = NotFinite(gradients=["decoder.fc1"]) + NotFinite(gradients=["decoder.fc1", "decoder.fc2"])
    assert str(gradients) == "the loss is finite, the gradient of decoder.fc1, decoder.fc2 is not; clips: unknown"
    assert str(NotFinite()) == "the norm of the gradients is not finite; clips: unknown"
    good, bad = torch.ones(3), torch.tensor([1.0, math.nan])
    assert not_finite([("good", good), ("bad", bad), ("none", None), ("inf", bad / 0)]) == ["bad", "inf"]
    assert not_finite([]) == []


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("max_skipped=0", r"health\.max_skipped is 0; it must be 1 or more"),
        ("max_skipped_in_a_row=0", r"health\.max_skipped_in_a_row is 0"),
        ("spike_threshold=0", r"health\.spike_threshold is 0; it must be above 0"),
        ("spike_window=5", r"health\.spike_window is 5; it must be 20 or more"),
    ],
)
def test_settings_out_of_range_are_refused(run_with: RunWith, tmp_path: Path, setting: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        run_with(tmp_path / "run", f"health.{setting}")
    assert not (tmp_path / "run").exists()

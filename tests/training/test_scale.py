"""Devices, micro-batches, sharding and compilation change how a step is computed, not what it is."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from poisoned_latents import BAD_ROW
from tiny_latents import ClipSpec, write_latents
from tiny_run import QUICK, RunWith
from torch import nn
from torch.nn import functional as F

from musicgen_train import MusicgenForConditionalGeneration
from musicgen_train.data.batch import Batch
from musicgen_train.data.datamodule import DataSettings, LatentDataModule
from musicgen_train.training.checkpoints.reading import CHECKPOINT_KEY
from musicgen_train.training.module import MusicgenTraining
from musicgen_train.training.settings import resolve_precision
from musicgen_train.training.step.schedule import ScheduleSettings
from musicgen_train.training.step.verdict import measure_step

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"

# Some clips are so short that their last codebooks have nothing to score, and with them whole ranks.
UNEVEN = [ClipSpec(frames, captions) for frames, captions in [(1, (0,)), (2, ()), (30, (1,)), (3, (0, 1)), (19, (0,))]]


@pytest.fixture(scope="module")
def uneven(composite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("uneven") / "latents", composite, UNEVEN, [ClipSpec(9)] * 5)


def data_of(latents: Path, *, global_batch: int, micro_batch: int, world_size: int, rank: int) -> LatentDataModule:
    settings = DataSettings(
        path=str(latents),
        crop_seconds=None,
        global_batch_size=global_batch,
        micro_batch_size=micro_batch,
        cfg_dropout=0.3,
        validation_clips=None,
        workers=0,
    )
    data = LatentDataModule(settings, seed=3, total_steps=2, world_size=world_size)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank, strategy=SimpleNamespace(root_device=torch.device("cpu"))
    )
    return data


def module_of(composite: Path) -> tuple[MusicgenTraining, MusicgenForConditionalGeneration]:
    model = MusicgenForConditionalGeneration.from_pretrained(composite).double()
    module = MusicgenTraining(
        model.decoder,
        model.enc_to_dec_proj,
        make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        schedule=ScheduleSettings(shape="constant", warmup_steps=0, floor=0.0),
        total_steps=2,
    )
    return module, model


def loss_of_clips(model: MusicgenForConditionalGeneration, batches: Sequence[Batch]) -> torch.Tensor:
    """The mean over codebooks of the mean over all codes, from logits of one clip at a time."""
    by_codebook: list[list[torch.Tensor]] = [[] for _ in range(4)]
    for batch in batches:
        for row, frames in enumerate(batch.frames.tolist()):
            codes_KT = batch.codes[row, :, :frames]
            mask = batch.text_mask[row : row + 1]
            text = model.project_text(batch.text_states[row : row + 1].double(), mask)
            delayed_KT = torch.full((4, frames), 64)
            for codebook in range(4):
                delayed_KT[codebook, codebook:] = codes_KT[codebook, : max(0, frames - codebook)]
            inputs = F.pad(delayed_KT[:, :-1], (1, 0), value=64)[None]
            logits = model.decoder(
                inputs, encoder_hidden_states=text, encoder_attention_mask=mask, use_cache=False
            ).logits
            for codebook in range(min(4, frames)):
                target = delayed_KT[codebook, codebook:]
                losses = F.cross_entropy(logits[codebook, codebook:], target, reduction="none")
                by_codebook[codebook].append(losses)
    return torch.stack([torch.cat(losses).mean() for losses in by_codebook if losses]).mean()


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 4), (1, 1), (2, 2), (2, 1), (4, 1)])
def test_parts_of_a_step_add_up_to_its_loss_and_gradient(
    composite: Path, uneven: Path, world_size: int, micro_batch: int
) -> None:
    module, model = module_of(composite)
    accumulate = 4 // (world_size * micro_batch)
    module._trainer = SimpleNamespace(  # type: ignore[assignment]
        accumulate_grad_batches=accumulate, world_size=world_size
    )
    whole = list(data_of(uneven, global_batch=4, micro_batch=4, world_size=1, rank=0).train_dataloader())
    for step in range(2):
        module.zero_grad()
        expected = loss_of_clips(model, whole[step : step + 1])
        expected.backward()
        gradients = {name: value.grad.clone() for name, value in module.named_parameters() if value.grad is not None}
        module.zero_grad()
        total = 0.0
        for rank in range(world_size):
            data = data_of(uneven, global_batch=4, micro_batch=micro_batch, world_size=world_size, rank=rank)
            parts = list(data.train_dataloader())[step * accumulate : (step + 1) * accumulate]
            for part in parts:
                part.text_states = part.text_states.double()
                # As Lightning divides by the micro-batches, and DDP and FSDP by the ranks.
                share = module.training_step(part, 0) / accumulate / world_size
                share.backward()
                total += share.item()
        # The loss is taken in float32; weights and the rest are double here.
        assert total == pytest.approx(expected.item(), rel=1e-6)
        for name, value in module.named_parameters():
            assert value.grad is not None
            torch.testing.assert_close(value.grad, gradients[name], rtol=1e-4, atol=1e-8)


def test_codebooks_without_anything_to_score_in_a_whole_step_do_not_count(composite: Path, tmp_path: Path) -> None:
    # Clips of two frames: nothing of the third and fourth codebook is ever scored.
    short = write_latents(tmp_path / "latents", composite, [ClipSpec(2)] * 4, [ClipSpec(9)])
    module, model = module_of(composite)
    module._trainer = SimpleNamespace(accumulate_grad_batches=2, world_size=1)  # type: ignore[assignment]
    whole = next(iter(data_of(short, global_batch=4, micro_batch=4, world_size=1, rank=0).train_dataloader()))
    data = data_of(short, global_batch=4, micro_batch=2, world_size=1, rank=0)
    total = 0.0
    for part in list(data.train_dataloader())[:2]:
        part.text_states = part.text_states.double()
        total += module.training_step(part, 0).item() / 2
    assert total == pytest.approx(loss_of_clips(model, [whole]).item(), rel=1e-6)


def test_scores_since_the_last_row_are_counted_once_among_the_ranks_that_go_on(composite: Path) -> None:
    saved = {"sums_K": torch.arange(4.0), "counts_K": torch.arange(4) + 2, "correct_K": torch.ones(4).long()}
    found = []
    for rank in range(3):
        module, _ = module_of(composite)
        module._trainer = SimpleNamespace(global_rank=rank)  # type: ignore[assignment]
        module.on_load_checkpoint({CHECKPOINT_KEY: {"since_log": saved}})
        assert module._since_log is not None
        found.append(vars(module._since_log))
    for name, value in saved.items():
        assert torch.equal(sum(each[name] for each in found), value)


@pytest.mark.parametrize(("world_size", "size"), [(1, 2), (2, 2), (3, 1), (4, 2)])
def test_ranks_validate_every_clip_once(uneven: Path, world_size: int, size: int) -> None:
    seen, lengths = [], set()
    for rank in range(world_size):
        data = data_of(uneven, global_batch=4 * world_size, micro_batch=size, world_size=world_size, rank=rank)
        batches = list(data.val_dataloader())
        lengths.add(len(batches))
        seen += [clip for batch in batches for clip in batch.clips]
    assert sorted(seen) == [(0, row) for row in range(5)]
    assert len(lengths) == 1  # or ranks would wait for each other


# AdamW, clipping that bites, accumulation, a schedule, captions left out, and a step that is left out for NaN.
WHOLE = [
    *("optimizer=adamw", "optimizer.lr=0.01", "trainer.gradient_clip_val=0.1"),
    *("data.global_batch_size=4", "data.cfg_dropout=0.3", "data.validation_clips=3", "schedule=constant"),
    # With this seed it is the third.
    *("seed=3", "callbacks.last.every_n_train_steps=1", "validate_every=2"),
]
SHARDED = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "data.micro_batch_size=1"]


def in_processes(
    composite: Path, latents: Path, output: Path, *overrides: str, warnings: Sequence[str] = ("-W", "error")
) -> subprocess.CompletedProcess[str]:
    """`scripts/train.py` as it is started by hand; the other processes are started by Lightning."""
    where = [f"data.path={latents}", f"init_from={composite}", f"output={output}"]
    command = [sys.executable, *warnings, str(SCRIPT), *where, *QUICK, *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return done


def numbers_of(run: Path) -> list[dict[str, float]]:
    timings = {"tokens_per_s", "audio_s_per_s", "data_wait", "peak_mem_mb"}
    with (run / "metrics.csv").open() as file:
        return [
            {name: float(value) for name, value in row.items() if value and name not in timings}
            for row in csv.DictReader(file)
        ]


def test_sharded_among_two_processes_equals_one_and_goes_on_from_it_and_back(
    run_with: RunWith, composite: Path, poisoned: Path, tmp_path: Path
) -> None:
    where = [f"data.path={poisoned}", *WHOLE]
    straight = run_with(tmp_path / "straight", *where, "trainer.max_steps=5")
    # One step in one process, three in two that share the weights, the last in one again.
    output = tmp_path / "run"
    run_with(output, *where, "trainer.max_steps=1")
    shutil.rmtree(output / "composite")
    options = ["model.activation_checkpointing=true", "samples.every=4", "samples.seconds=0.3", "samples.seed=5"]
    done = in_processes(composite, poisoned, output, *WHOLE, *SHARDED, *options, "trainer.max_steps=4", "resume=auto")
    assert done.stdout.count("done: 4 steps") == 1  # one of them speaks
    skipped = {row["step"]: row["skipped_steps"] for row in numbers_of(output) if "skipped_steps" in row}
    assert done.stderr.count("left out (") == skipped[4] - skipped[1] > 0
    assert f"row {BAD_ROW} of {poisoned}" in done.stderr
    sharded = torch.load(output / "checkpoints/last.ckpt", weights_only=True)
    exported = MusicgenForConditionalGeneration.from_pretrained(output / "composite").state_dict()
    assert all(torch.equal(exported[name], value) for name, value in sharded["state_dict"].items())
    assert len(list((output / "samples/step_0000004").glob("*.wav"))) == 3

    last = run_with(output, *where, "trainer.max_steps=5", "resume=auto")
    for name, value in straight.module.state_dict().items():
        torch.testing.assert_close(last.module.state_dict()[name], value, rtol=1e-4, atol=2e-5)
    states = [made.trainer.optimizers[0].state_dict() for made in (straight, last)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for number, state in states[0]["state"].items():
        assert state["step"] == states[1]["state"][number]["step"]
        torch.testing.assert_close(states[1]["state"][number]["exp_avg"], state["exp_avg"], rtol=1e-3, atol=1e-6)
    # Losses, norms of gradients, learning rates, skipped steps and validation of every step, made one way or the other.
    # (Each end of a run validates, too.)
    found = {(row["step"], "val/loss" in row): row for row in numbers_of(output)}
    for row in numbers_of(tmp_path / "straight"):
        assert found[row["step"], "val/loss" in row] == pytest.approx(row, rel=1e-3, abs=1e-5, nan_ok=True)


def test_ranks_begin_with_the_same_weights_and_draw_dropout_of_their_own(
    composite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Clips of one length, so that masks of all ranks have the same size. From scratch, so that weights are drawn too.
    latents = write_latents(tmp_path / "latents", composite, [ClipSpec(24)] * 8, [ClipSpec(24)])
    support = Path(__file__).parents[1] / "support"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(support), os.environ.get("PYTHONPATH", "")]))
    size = ["model=tiny", "model.architecture.hidden_size=16", "model.architecture.num_hidden_layers=1"]
    witness = ["+callbacks.witness._target_=rank_witness.RankWitness", f"+callbacks.witness.folder={tmp_path}"]
    drawing = ["model.dropout=0.4", "data.cfg_dropout=0", "trainer.max_steps=2", "data.global_batch_size=4"]
    two = ["trainer.devices=2", "trainer.strategy=ddp", "data.micro_batch_size=1", "init_from=scratch"]
    in_processes(composite, latents, tmp_path / "run", *size, *witness, *drawing, *two)
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    for state in ("made", "trained"):
        assert ranks[0]["weights"][state] == ranks[1]["weights"][state]
    assert len(ranks[0]["steps"]) == len(ranks[1]["steps"]) == 4  # micro-batches
    seen: set[str] = set()
    for number, steps in enumerate(zip(*(rank["steps"] for rank in ranks), strict=True)):
        one, other = steps
        assert len(one["masks"]) == len(other["masks"]) > 3
        for masks in zip(one["masks"], other["masks"], strict=True):
            assert len(masks[0]) == len(masks[1])
            agree = sum(mine == theirs for mine, theirs in zip(*masks, strict=True)) / len(masks[0])
            # Of two independent masks 0.4 * 0.4 + 0.6 * 0.6 = 0.52 agree.
            assert 0.4 < agree < 0.65, f"micro-batch {number}"
            assert 0.5 < masks[0].count("1") / len(masks[0]) < 0.7
        seen |= {"".join(step["masks"]) for step in steps}
        # What a callback draws, too.
        assert one["drawn"] != other["drawn"]
    assert len(seen) == 8  # nor are a rank's own the same again
    # Four of the eight clips a step, two steps: each rank has its own, and together they have all.
    clips = [tuple(clip) for rank in ranks for step in rank["steps"] for clip in step["clips"]]
    assert sorted(clips) == [(0, row) for row in range(8)]


@pytest.mark.heavy
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_equals_eager_alone_and_sharded(
    run_with: RunWith, composite: Path, latents: Path, tmp_path: Path
) -> None:
    steps = [*WHOLE, "trainer.max_steps=3"]
    eager = run_with(tmp_path / "eager", *steps).module.state_dict()
    # Samples in between, since generation leaves the compiled layers alone. torch warns of its own doings.
    sampled = ["model.compile=true", "samples.every=2", "samples.seconds=0.3"]
    checkpointed = ["model.compile=true", "model.activation_checkpointing=true", *SHARDED]
    for name, options in (("alone", ["trainer=cpu", *sampled]), ("sharded", checkpointed)):
        in_processes(composite, latents, tmp_path / name, *steps, *options, warnings=())
        found = torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        assert set(found) == set(eager)  # compiling renames nothing
        for key, value in eager.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=2e-5)


@pytest.mark.heavy
def test_sharded_in_bfloat16_stays_close(run_with: RunWith, composite: Path, latents: Path, tmp_path: Path) -> None:
    steps = [*WHOLE, "trainer.max_steps=3", "optimizer.lr=0.001"]
    run_with(tmp_path / "exact", *steps)
    in_processes(composite, latents, tmp_path / "half", *steps, *SHARDED, "trainer.precision=bf16-mixed")
    for expected, found in zip(numbers_of(tmp_path / "exact"), numbers_of(tmp_path / "half"), strict=True):
        if "train/loss" in expected:
            assert found["train/loss"] == pytest.approx(expected["train/loss"], abs=0.02)
            assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0.05)
    state = torch.load(tmp_path / "half/checkpoints/last.ckpt", weights_only=True)
    assert {value.dtype for value in state["state_dict"].values()} == {torch.float32}
    assert state["musicgen_train"]["precision"] == "bf16-mixed"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sharded_compiled_and_checkpointed_on_a_gpu(composite: Path, latents: Path, tmp_path: Path) -> None:
    steps = [*WHOLE, "trainer.max_steps=3", "trainer.devices=1", "optimizer.lr=0.001", "trainer.precision=32-true"]
    in_processes(composite, latents, tmp_path / "plain", *steps, "trainer=gpu", warnings=())
    options = ["trainer=fsdp", "model.compile=true", "model.activation_checkpointing=true", "samples.every=2"]
    in_processes(composite, latents, tmp_path / "sharded", *steps, *options, "samples.seconds=0.3", warnings=())
    plain, sharded = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("plain", "sharded")
    )
    for name, value in plain.items():
        torch.testing.assert_close(sharded[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_waits_for_no_device(composite: Path, checkpointing: bool) -> None:
    """On tensors without values: what looks at one raises, as it would have to wait for a GPU."""
    module, _ = module_of(composite)
    module.float().to("meta").train()
    if checkpointing:
        module.decoder.gradient_checkpointing_enable()
    module._trainer = SimpleNamespace(accumulate_grad_batches=1, world_size=1)  # type: ignore[assignment]
    frames = torch.tensor([9, 7], device="meta")
    batch = Batch(
        torch.zeros(2, 4, 9, dtype=torch.long, device="meta"),
        torch.zeros(2, 5, 12, device="meta"),
        torch.zeros(2, 5, dtype=torch.bool, device="meta"),
        frames,
        step_frames=frames,
    )
    module.training_step(batch, 0).backward()
    parameters = list(module.parameters())
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    nn.utils.clip_grads_with_norm_(parameters, 1.0, norm)
    torch.optim.AdamW(parameters).step()
    with pytest.raises(RuntimeError):  # the one look of a step
        measure_step(module._parts[0].share, norm)


def test_every_parameter_is_used_where_sharding_gathers_it(composite: Path) -> None:
    # Weights are gathered when a layer or the module itself is called; what is called otherwise would find shards.
    module, _ = module_of(composite)
    layers = set(module.decoder.model.decoder.layers)
    called: set[nn.Module] = set()
    for part in (module, *layers):
        part.register_forward_pre_hook(lambda part, *_: called.add(part))
    frames = torch.tensor([9])
    batch = Batch(
        torch.zeros(1, 4, 9, dtype=torch.long), torch.zeros(1, 2, 12).double(), torch.ones(1, 2).bool(), frames
    )
    module.score(batch)
    assert called == {module, *layers}


@pytest.mark.parametrize(
    ("precision", "accelerator", "cuda", "bf16", "expected"),
    [
        ("auto", "auto", True, True, "bf16-mixed"),
        ("auto", "gpu", True, True, "bf16-mixed"),
        ("auto", "cuda", True, False, "32-true"),
        ("auto", "cpu", True, True, "32-true"),
        ("auto", "auto", False, False, "32-true"),
        ("16-mixed", "gpu", True, True, "16-mixed"),
        ("bf16-true", "cpu", False, False, "bf16-true"),
    ],
)
def test_precision_follows_the_hardware(
    monkeypatch: pytest.MonkeyPatch, precision: str, accelerator: str, cuda: bool, bf16: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 and not including_emulation)
    assert resolve_precision(precision, accelerator) == expected


def test_the_precision_of_a_run_is_said_and_saved(
    run_with: RunWith, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run_with(tmp_path / "run", "trainer.precision=auto")
    assert ", 32-true on cpu" in capsys.readouterr().out
    assert OmegaConf.load(tmp_path / "run/config.yaml").trainer.precision == "32-true"
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert last["musicgen_train"]["precision"] == "32-true"
    assert "precision: 32-true" in (made.composite / "README.md").read_text()


@pytest.mark.parametrize(
    ("override", "problem"),
    [("callbacks=ema", "callbacks=ema"), ("adapter=lora", "an adapter")],
)
def test_what_sharding_cannot_do_is_refused(run_with: RunWith, tmp_path: Path, override: str, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"{problem} needs whole weights on each device, .*; use trainer=ddp"):
        run_with(tmp_path / "run", "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", override)
    assert not (tmp_path / "run").exists()

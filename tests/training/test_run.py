"""Whole runs: what they leave behind, what they refuse, and what they print."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import soundfile
import torch
import transformers
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue
from tiny_latents import ClipSpec, write_latents
from tiny_run import QUICK, RunWith, compose

from musicgen_train import MusicgenForConditionalGeneration, MusicgenProcessor
from musicgen_train.hub.weights import CheckpointError
from musicgen_train.training.export import compare_with_folder
from musicgen_train.training.logs.metrics_file import columns
from musicgen_train.training.run import Run, run


def test_a_run_leaves_everything_behind(
    run_with: RunWith, composite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    made = run_with(output, "samples.every=2", "samples.seconds=0.5", "checks.enabled=true", "optimizer.lr=0.01")
    # Where the code that runs was changed, the changes are there too.
    assert {path.name for path in output.iterdir() if path.suffix != ".patch"} == {
        *("checkpoints", "checks", "composite", "config.yaml", "metrics.csv", "provenance.json", "samples")
    }

    with (output / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == columns(4)
    assert [(row["step"], bool(row["train/loss"]), bool(row["val/loss"])) for row in rows] == [
        *(("1", True, False), ("2", True, False), ("2", False, True)),
        *(("3", True, False), ("4", True, False), ("4", False, True)),
    ]
    assert all(row[name] for row in rows[:2] for name in columns(4) if not name.startswith("val/"))
    assert all(rows[2][name] for name in columns(4) if name.startswith("val/"))
    assert float(rows[3]["epoch"]) == pytest.approx(3 * 2 / 11)

    for step in (0, 2, 4):
        folder = output / "samples" / f"step_{step:07d}"
        for prompt in range(3):
            audio, rate = soundfile.read(folder / f"prompt_{prompt}.wav")
            assert (len(audio), rate) == (160, 320)  # half a second
            assert (folder / f"prompt_{prompt}.png").read_bytes().startswith(b"\x89PNG")
        assert len(json.loads((folder / "prompts.json").read_text())["prompts"]) == 3

    config = OmegaConf.load(output / "config.yaml")
    assert config.trainer.max_steps == 4
    assert config.callbacks.last.dirpath == f"{output}/checkpoints"
    origin = json.loads((output / "provenance.json").read_text())
    assert origin["init_from"] == str(composite)
    assert origin["latents"][0]["audio_encoder"]["fingerprint"] == made.data.manifest.audio_encoder.fingerprint
    assert origin["versions"]["torch"] == torch.__version__

    printed = capsys.readouterr().out
    assert "data: 11 clips" in printed
    assert "steps: 4 of 2 clips = 1 device(s) x 1 x 2; 0.7 passes" in printed
    assert "ln(64) = 4.159" in printed
    assert f"the trained model, read back and compared: {output / 'composite'}" in printed


def test_the_composite_is_the_base_with_what_was_trained(run_with: RunWith, composite: Path, tmp_path: Path) -> None:
    made = run_with(tmp_path / "run", "optimizer.lr=0.01")
    base = MusicgenForConditionalGeneration.from_pretrained(composite)
    found = MusicgenForConditionalGeneration.from_pretrained(made.composite)
    trained = made.module.state_dict()
    for name, value in found.state_dict().items():
        if name.startswith(("decoder.", "enc_to_dec_proj.")):
            assert torch.equal(value, trained[name])
            assert not torch.equal(value, base.state_dict()[name])
        else:
            assert torch.equal(value, base.state_dict()[name])
    assert found.generation_config == base.generation_config
    text = ["drums and bass", "a flute"]
    ours = MusicgenProcessor.from_pretrained(made.composite)(text=text, padding=True, return_tensors="pt")
    bases = MusicgenProcessor.from_pretrained(composite)(text=text, padding=True, return_tensors="pt")
    assert torch.equal(ours["input_ids"], bases["input_ids"])
    card = (made.composite / "README.md").read_text()
    assert f"Started from `{composite}`, trained for 4 steps" in card
    assert "| val/loss | " in card


def test_transformers_reads_the_composite_and_agrees(run_with: RunWith, tmp_path: Path) -> None:
    made = run_with(tmp_path / "run", "optimizer.lr=0.01")
    theirs = transformers.MusicgenForConditionalGeneration.from_pretrained(made.composite)
    ours = MusicgenForConditionalGeneration.from_pretrained(made.composite)
    inputs = MusicgenProcessor.from_pretrained(made.composite)(text=["drums"], padding=True, return_tensors="pt")
    labels = torch.randint(0, 64, (1, 9, 4))
    expected = theirs(**inputs, labels=labels).logits
    torch.testing.assert_close(ours(**inputs, labels=labels).logits, expected, rtol=1e-4, atol=1e-5)


def test_checkpoints_hold_what_is_trained_and_nothing_frozen(run_with: RunWith, tmp_path: Path) -> None:
    made = run_with(tmp_path / "run")
    content = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert set(content["state_dict"]) == set(made.module.state_dict())
    assert {name.partition(".")[0] for name in content["state_dict"]} == {"decoder", "enc_to_dec_proj"}
    trained = sum(value.numel() for value in made.module.parameters())
    moments = content["optimizer_states"][0]["state"].values()
    assert sum(value["exp_avg"].numel() for value in moments) == trained


def test_the_best_weights_can_be_exported(run_with: RunWith, tmp_path: Path) -> None:
    # So large a step that it only gets worse.
    made = run_with(tmp_path / "run", "export.weights=best", "optimizer.lr=1", "validate_every=1")
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] < 4
    found = MusicgenForConditionalGeneration.from_pretrained(made.composite).state_dict()
    assert all(torch.equal(found[name], value) for name, value in best["state_dict"].items())


def test_an_export_that_differs_is_not_called_done(run_with: RunWith, composite: Path, tmp_path: Path) -> None:
    made = run_with(tmp_path / "run")
    other = MusicgenForConditionalGeneration.from_pretrained(composite)
    state = {name: value for name, value in other.state_dict().items() if name not in other.tied_keys}
    with pytest.raises(CheckpointError, match=r"read back with other tensors than were written: decoder\."):
        compare_with_folder(other, state, made.composite, made.data.probe(10))


def test_training_is_in_train_mode(run_with: RunWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from musicgen_train.training.module import MusicgenTraining

    modes = []
    step = MusicgenTraining.training_step

    def watch(self: MusicgenTraining, batch: object, batch_idx: int) -> torch.Tensor:
        modes.append({part.training for part in self.modules()})
        return step(self, batch, batch_idx)  # type: ignore[arg-type]

    monkeypatch.setattr(MusicgenTraining, "training_step", watch)
    # Sampling and validation in between leave it as it was.
    run_with(tmp_path / "run", "samples.every=1", "samples.seconds=0.2", "validate_every=1", "checks.enabled=true")
    assert modes == [{True}] * 4


def test_sampling_leaves_no_trace(run_with: RunWith, tmp_path: Path) -> None:
    drawing = ["model.dropout=0.2", "data.cfg_dropout=0.5"]
    silent = run_with(tmp_path / "silent", *drawing).module.state_dict()
    sampled = run_with(tmp_path / "sampled", *drawing, "samples.every=1", "samples.seconds=0.3", "checks.enabled=true")
    assert all(torch.equal(silent[name], value) for name, value in sampled.module.state_dict().items())


def test_fixed_seeds_give_the_same_samples_from_the_same_weights(run_with: RunWith, tmp_path: Path) -> None:
    # The weights stay; what training drew in between does not matter.
    run_with(tmp_path / "run", "samples.every=2", "samples.seconds=0.3", "samples.seed=5", "optimizer.lr=0")
    for prompt in range(3):
        files = [tmp_path / f"run/samples/step_000000{step}/prompt_{prompt}.wav" for step in (0, 2, 4)]
        assert len({file.read_bytes() for file in files}) == 1
    assert len({path.read_bytes() for path in (tmp_path / "run/samples/step_0000000").glob("*.wav")}) == 3


def test_steps_are_counted_in_optimizer_steps(run_with: RunWith, tmp_path: Path) -> None:
    run_with(tmp_path / "run", "data.micro_batch_size=1", "samples.every=2", "samples.seconds=0.2")
    with (tmp_path / "run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["train/loss"]] == ["1", "2", "3", "4"]
    assert [row["step"] for row in rows if row["val/loss"]] == ["2", "4"]
    assert sorted(path.name[-1] for path in (tmp_path / "run/samples").iterdir()) == ["0", "2", "4"]


def test_a_run_without_validation(run_with: RunWith, composite: Path, tmp_path: Path) -> None:
    latents = write_latents(tmp_path / "latents", composite, [ClipSpec(20), ClipSpec(25)])
    run_with(tmp_path / "run", f"data.path={latents}", "checks.enabled=true")
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_the_end_is_validated_and_saved_where_the_schedule_misses_it(run_with: RunWith, tmp_path: Path) -> None:
    run_with(tmp_path / "run", "validate_every=3", "callbacks.last.every_n_train_steps=3")
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    with (tmp_path / "run/metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["val/loss"]] == ["3", "4"]


def test_a_run_that_ended_can_be_made_longer(run_with: RunWith, tmp_path: Path) -> None:
    constant = ["schedule=constant", "data.cfg_dropout=0.5"]
    straight = run_with(tmp_path / "straight", *constant, "trainer.max_steps=7").module.state_dict()
    run_with(tmp_path / "run", *constant, "trainer.max_steps=4")
    longer = run_with(tmp_path / "run", *constant, "trainer.max_steps=7", "resume=auto")
    assert longer.trainer.global_step == 7
    assert all(torch.equal(straight[name], value) for name, value in longer.module.state_dict().items())


def test_resume_auto_begins_where_there_is_nothing(run_with: RunWith, tmp_path: Path) -> None:
    assert run_with(tmp_path / "run", "resume=auto").trainer.global_step == 4


def test_a_run_is_not_overwritten(run_with: RunWith, tmp_path: Path) -> None:
    run_with(tmp_path / "run")
    with pytest.raises(FileExistsError, match="holds a run already; add resume=auto to go on with it"):
        run_with(tmp_path / "run")


@pytest.mark.parametrize("resume", [[], ["resume=auto"]])
def test_a_folder_of_something_else_is_refused_and_left_alone(
    run_with: RunWith, tmp_path: Path, resume: list[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_bytes(b"cat")
    with pytest.raises(FileExistsError, match=r"holds something else \(cat\.jpg\); choose another folder"):
        run_with(tmp_path / "photos", *resume)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_a_file_as_output_is_refused(run_with: RunWith, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file; give a folder"):
        run_with(tmp_path / "file")


def test_a_checkpoint_that_is_not_there(run_with: RunWith, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"resume=nowhere\.ckpt: there is no such checkpoint"):
        run_with(tmp_path / "run", "resume=nowhere.ckpt")


def test_a_loss_that_is_not_finite_stops_the_run(run_with: RunWith, tmp_path: Path) -> None:
    broken = ["optimizer.lr=1e30", "trainer.gradient_clip_val=null", "health.max_skipped_in_a_row=2"]
    with pytest.raises(ValueError, match=r"stopped at step 3: 2 steps in a row were not finite .* Lower optimizer\.lr"):
        run_with(tmp_path / "run", *broken)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("trainer.max_steps=0", r"trainer\.max_steps is 0"),
        ("validate_every=0", "validate_every is 0"),
        ("export.weights=first", r"export\.weights is 'first'; expected one of last, best"),
        ("samples.every=-1", r"samples\.every is -1"),
        ("samples.seconds=0", r"samples\.seconds is 0"),
        ("samples.temperature=0", r"samples\.temperature is 0; it must be above 0"),
        ("samples.top_k=-1", r"samples\.top_k is -1"),
        ("samples.guidance_scale=0", r"samples\.guidance_scale is 0"),
        ("samples.prompts='a calm piano'", r"samples\.prompts is 'a calm piano'; expected a list"),
        ("trainer.max_steps=2.5", r"trainer\.max_steps is 2\.5; expected a whole number"),
        ("seed=true", r"seed is true; expected a whole number"),
        ("checks.batches=0", r"checks\.batches is 0; it must be 1 or more\. checks\.enabled=false"),
        ("checks.round_trips=-1", r"checks\.round_trips is -1"),
        ("data.micro_batch_size=3", r"data\.global_batch_size=2 is no multiple of data\.micro_batch_size=3"),
    ],
)
def test_settings_out_of_range_are_refused(run_with: RunWith, tmp_path: Path, override: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        run_with(tmp_path / "run", override)
    assert not (tmp_path / "run").exists()


def test_a_whole_number_may_be_written_as_1e5(run_with: RunWith, tmp_path: Path) -> None:
    made = run_with(tmp_path / "run", "trainer.max_steps=2e0")
    assert (made.trainer.global_step, made.trainer.max_steps) == (2, 2)


def test_a_setting_that_was_not_given(latents: Path, tmp_path: Path) -> None:
    config = compose("train", f"data.path={latents}", f"output={tmp_path}", *QUICK)
    with pytest.raises(MissingMandatoryValue, match="init_from"):
        run(config)


def test_best_weights_need_a_validation(run_with: RunWith, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"export\.weights=best needs a validation split"):
        run_with(tmp_path / "run", "export.weights=best", "data.validation_clips=0")


def test_wandb_logs_numbers_sounds_and_pictures_offline(
    run_with: RunWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    made: Run = run_with(tmp_path / "run", "logger=wandb", "samples.every=4", "samples.seconds=0.3")
    import wandb

    wandb.teardown()  # as at the end of a process: wait for the one beside it, which writes the file
    assert made.trainer.global_step == 4
    [folder] = (tmp_path / "run/wandb").glob("offline-run-*")
    media = sorted(path.relative_to(folder / "files").parts[1] for path in (folder / "files").rglob("*_0_*.*"))
    assert {"audio", "images"} <= set(media)
    [log] = folder.glob("*.wandb")
    content = log.read_bytes()
    for name in (b"train/ce_q1", b"val/loss", b"samples/prompt_0", b"samples/prompt_2_mel"):
        assert name in content

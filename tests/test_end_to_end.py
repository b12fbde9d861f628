"""The three scripts in order, as a user runs them, and the trained folder in Python: ours and transformers'."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import soundfile
import torch
import transformers

from musicgen_train import AutoProcessor, MusicgenForConditionalGeneration

REPOSITORY = Path(__file__).parents[1]
STEPS = ["trainer.max_steps=1"]


def run(script: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """One command of the repository, from its root."""
    process = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
    )
    if check:
        assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return process


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with music/, encoders/, latents/, run/ and report/, each made by its command."""
    folder = tmp_path_factory.mktemp("end_to_end")
    run("-m", "musicgen_train.demo", "corpus", folder / "music", "--tracks", 6, "--seconds", 4, "--seed", 3)
    run("-m", "musicgen_train.demo", "encoders", folder / "encoders")
    (folder / "music" / "broken.wav").write_bytes(b"no sound")
    run(
        "scripts/preprocess.py", f"input={folder / 'music'}", f"output={folder / 'latents'}",
        f"encoders={folder / 'encoders'}", "clip_seconds=2", "dry_run=false", "split.validation=0.2",
    )  # fmt: skip
    run(
        "scripts/train.py", f"data.path={folder / 'latents'}", f"init_from={folder / 'encoders'}",
        f"output={folder / 'run'}", "trainer.max_steps=6", "trainer=cpu", "samples.seconds=1", "data.workers=0",
        "data.global_batch_size=4",
    )  # fmt: skip
    prompts = folder / "prompts.txt"
    prompts.write_text("a fast techno track with a bright lead\n\n")
    run(
        "scripts/evaluate.py", f"model={folder / 'run'}", f"output={folder / 'report'}", f"prompts={prompts}",
        f"data.path={folder / 'latents'}", "max_new_tokens=53", "seed=0",
    )  # fmt: skip
    return folder


def test_the_latents_open_with_plain_datasets_and_say_what_was_refused(made: Path) -> None:
    splits = datasets.load_from_disk(str(made / "latents"))
    manifest = json.loads((made / "latents" / "manifest.json").read_text())
    assert sum(len(split) for split in splits.values()) == 6 * 2
    assert {name: record["clips"] for name, record in manifest["splits"].items() if record["clips"]} == {
        name: len(split) for name, split in splits.items()
    }
    rejected = [json.loads(line) for line in (made / "latents" / "rejected.jsonl").read_text().splitlines()]
    assert [Path(line["file"]).name for line in rejected] == ["broken.wav"]
    assert rejected[0]["reason"]
    tracks = {name: {row["track"] for row in split} for name, split in splits.items()}
    assert not set.intersection(*tracks.values())


def test_the_composite_plays_in_ours_and_in_transformers(made: Path) -> None:
    folder = made / "run" / "composite"
    ours = MusicgenForConditionalGeneration.from_pretrained(folder)
    theirs, report = transformers.MusicgenForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    text = ["a slow ambient piece"]
    inputs = AutoProcessor.from_pretrained(folder)(text=text, padding=True, return_tensors="pt")
    their_inputs = transformers.AutoProcessor.from_pretrained(folder)(text=text, padding=True, return_tensors="pt")
    assert torch.equal(inputs.input_ids, their_inputs.input_ids)
    request = {"do_sample": False, "guidance_scale": 3.0, "max_new_tokens": 20}
    audio = ours.generate(**inputs, **request)
    torch.testing.assert_close(audio, theirs.generate(**their_inputs, **request), rtol=1e-3, atol=1e-4)


def test_training_changed_the_decoder_and_nothing_else(made: Path) -> None:
    before = MusicgenForConditionalGeneration.from_pretrained(made / "encoders").state_dict()
    after = MusicgenForConditionalGeneration.from_pretrained(made / "run" / "composite").state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed <= {"decoder", "enc_to_dec_proj"}
    assert "decoder" in changed


def test_the_report_has_a_file_per_prompt_and_all_numbers(made: Path) -> None:
    report = made / "report"
    results = json.loads((report / "results.json").read_text())
    assert "a fast techno track with a bright lead" in (report / "report.html").read_text()
    files = list(report.rglob("*.wav"))
    assert len(files) >= 2
    for path in files:
        audio, rate = soundfile.read(path)
        assert rate == 32_000
        assert abs(audio).max() < 1.0
    assert results


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("scripts/preprocess.py", ["input=nowhere", "output={made}/x", "encoders={made}/encoders"], "nowhere"),
        ("scripts/preprocess.py", ["input={made}/music", "output={made}/x", "encoders={made}/music"], "music"),
        ("scripts/preprocess.py", ["input={made}/music", "output={made}/run", "encoders={made}/encoders"], "run"),
        (
            "scripts/train.py",
            ["data.path={made}/music", "init_from={made}/encoders", "output={made}/y", *STEPS],
            "manifest",
        ),
        ("scripts/train.py", ["data.pth=x", "init_from=x", "output=y", *STEPS], "data.path"),
        ("scripts/evaluate.py", ["model={made}/nothing", "output={made}/z"], "nothing"),
    ],
)
def test_a_wrong_command_is_one_clear_line(made: Path, script: str, arguments: list[str], message: str) -> None:
    process = run(script, *(argument.format(made=made) for argument in arguments), check=False)
    assert process.returncode not in (0, None)
    assert "Traceback" not in process.stderr
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, process.stderr
    assert message in lines[0]

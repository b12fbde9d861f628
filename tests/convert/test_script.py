"""`musicgen-train convert` and `scripts/convert.py`, as people run them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_audiocraft import lm_state_by_hand, settings_by_hand, write_package

from musicgen_train.convert.__main__ import main as verb

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert.py"


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def main(arguments: Sequence[str | Path]) -> int:
    """The verb in this process, for the cases that need no process of their own."""
    return verb([str(argument) for argument in arguments])


def test_there_to_stereo_and_back(
    tmp_path: Path, audiocraft_folder: Path, text_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The flags of the published command, with a folder in the place of a size.
    done = run(
        *("--checkpoint", audiocraft_folder, "--pytorch_dump_folder", "hub", "--safe_serialization"),
        *("--text-encoder", text_encoder),
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("wrote hub: config.json, generation_config.json, model.safetensors, preprocessor_con")
    # Embeddings and heads, layers of attention twice, feed-forward and 3 norms, the last norm, the projection.
    layer = 8 * 24 * 24 + 2 * 24 * 72 + 3 * 2 * 24
    numbers = 4 * (17 + 16) * 24 + 2 * layer + 2 * 24 + (24 * 20 + 24)
    assert f"{numbers:,} parameters, 2 layers of width 24, 4 codebooks of 16 codes, mono" in done.stdout
    assert "read back and equal: 36 tensors of the language model" in done.stdout

    assert main(["to-stereo", tmp_path / "hub", tmp_path / "stereo"]) == 0
    assert "8 codebooks of 16 codes, stereo" in capsys.readouterr().out
    assert main(["to-audiocraft", tmp_path / "hub", tmp_path / "back", "--text-encoder-name", "t5-base"]) == 0
    first = torch.load(audiocraft_folder / "state_dict.bin", weights_only=True)["best_state"]
    second = torch.load(tmp_path / "back" / "state_dict.bin", weights_only=True)["best_state"]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_user_error_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    done = run("from-audiocraft", tmp_path / "nowhere" / "state_dict.bin", tmp_path / "hub", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "hub").exists()


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def broken(kind: str, path: Path, reference: Any) -> str:
    """Damage the language model's file; returns what the error must say."""
    settings = settings_by_hand(reference)[0]
    state = lm_state_by_hand(reference)
    if kind == "code":
        torch.save({"best_state": {}, "xp.cfg": _Trap(path.with_name("sprung"))}, path)
        return "could run code and are never loaded"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
        return "damaged or cut short (5,000 bytes)"
    if kind == "melody":
        settings["conditioners"]["self_wav"] = {"model": "chroma_stem"}
        state["condition_provider.conditioners.self_wav.output_proj.weight"] = torch.zeros(24, 12)
        write_package(path, state, settings)
        return "a melody model; use a plain MusicGen"
    if kind == "no settings":
        write_package(path, state, None)
        return "give the model's size (small, medium, large"
    path.unlink()
    return "has no state_dict.bin"


@pytest.mark.parametrize("kind", ["code", "truncated", "melody", "no settings", "missing"])
def test_files_that_cannot_be_converted(
    kind: str,
    tmp_path: Path,
    audiocraft_folder: Path,
    text_encoder: Path,
    reference: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = broken(kind, audiocraft_folder / "state_dict.bin", reference)
    code = main(["from-audiocraft", audiocraft_folder, tmp_path / "hub", "--text-encoder", text_encoder])
    captured = capsys.readouterr()
    assert (code, captured.out) == (1, "")
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert expected in captured.err
    assert not (tmp_path / "hub").exists()
    assert not (audiocraft_folder / "sprung").exists()


def test_what_is_there_stays_unless_told_otherwise(
    tmp_path: Path, audiocraft_folder: Path, text_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: list[str | Path] = [
        "from-audiocraft",
        audiocraft_folder,
        tmp_path / "hub",
        "--text-encoder",
        text_encoder,
    ]
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("of another model")
    assert main(arguments) == 1
    assert "has config.json already" in capsys.readouterr().err
    assert (tmp_path / "hub" / "config.json").read_text() == "of another model"
    assert main([*arguments, "--overwrite"]) == 0
    assert (tmp_path / "hub" / "config.json").read_text() != "of another model"


def test_a_codec_that_is_not_beside_the_language_model(
    tmp_path: Path, audiocraft_folder: Path, text_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codec = (audiocraft_folder / "compression_state_dict.bin").rename(tmp_path / "codec.bin")
    arguments: list[str | Path] = [
        "from-audiocraft",
        audiocraft_folder,
        tmp_path / "hub",
        "--text-encoder",
        text_encoder,
    ]
    assert main(arguments) == 1
    assert "give a codec with --codec" in capsys.readouterr().err
    assert main([*arguments, "--codec", codec, "--dtype", "float16"]) == 0
    assert load_file(tmp_path / "hub" / "model.safetensors")["decoder.lm_heads.0.weight"].dtype == torch.float16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: command"),
        (["from-audiocraft", "only"], "give the output once"),
        (["--checkpoint", "small"], "give the output once"),
        (["from-audiocraft", "a", "b", "--checkpoint", "c"], "give the source once"),
        (["to-stereo", "a"], "the following arguments are required: output"),
        (["to-stereo", "a", "b", "--size", "small"], "unrecognized arguments: --size small"),
    ],
)
def test_command_lines_that_cannot_be_understood(
    arguments: list[str | Path], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err

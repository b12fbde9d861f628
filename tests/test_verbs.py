"""`musicgen-train VERB`: what it lists, what it refuses, and that a verb is what its script is."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from musicgen_train import __main__ as command_line
from musicgen_train import launch
from musicgen_train.__main__ import VERBS, main
from musicgen_train.demo import walkthrough

ROOT = Path(__file__).parents[1]


def command(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_verbs_are_listed_a_line_each(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [
        *("train", "preprocess", "evaluate", "convert", "doctor", "demo")
    ]


@pytest.mark.parametrize(("verb", "nearest"), [("trian", "; the nearest is train"), ("xyzzy", "")])
def test_an_unknown_verb_is_one_line(verb: str, nearest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "x=1"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: there is no verb {verb}{nearest}. There are: {', '.join(VERBS)}\n"


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"musicgen-train {importlib.metadata.version('musicgen-train')}\n"


def test_a_command_line_is_read_before_torch_is_there(tmp_path: Path) -> None:
    lines = [["train", "--help"], ["train", "data.pth=x"], ["preprocess", "--help"], ["preprocess", "inputt=x"]]
    lines += [["evaluate", "--help"], ["evaluate", "modell=x"], ["convert", "--help"], ["convert", "to-stero"]]
    lines += [["demo", "--help"], ["demo", "corpse"]]
    code = f"""
import sys
from musicgen_train.__main__ import main
for line in {lines!r}:
    sys.argv = ["musicgen-train", *line]
    try:
        code = main()
    except SystemExit as end:
        code = end.code
    print("\\ncode", code or 0, [name for name in ("torch", "lightning", "datasets") if name in sys.modules])
"""
    done = command("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    codes = [line for line in done.stdout.splitlines() if line.startswith("code ")]
    assert codes == [f"code {code} []" for code in (0, 1, 0, 1, 0, 1, 0, 2, 0, 2)]
    assert "the nearest is data.path" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_has_a_help_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["doctor", "--help"])
    assert "usage: musicgen-train doctor" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "wrong", "code"),
    [
        ("train", "nothing=1", 1),
        ("preprocess", "nothing=1", 1),
        ("evaluate", "nothing=1", 1),
        ("convert", "to-stero", 2),
    ],
)
def test_a_script_is_its_verb(verb: str, wrong: str, code: int, tmp_path: Path) -> None:
    by_script = command(ROOT / f"scripts/{verb}.py", wrong, cwd=tmp_path)
    by_verb = command("-m", "musicgen_train", verb, wrong, cwd=tmp_path)
    assert (by_script.returncode, by_script.stdout) == (by_verb.returncode, by_verb.stdout) == (code, "")
    assert by_script.stderr == by_verb.stderr
    assert wrong.partition("=")[0] in by_verb.stderr


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], list[list[str]]]:
    """`steps(code)`: the commands that the demo runs where each ends with that exit code."""
    monkeypatch.chdir(tmp_path)
    asked: list[list[str]] = []

    def of(code: int) -> list[list[str]]:
        def run(words: list[str], check: bool) -> subprocess.CompletedProcess[str]:
            asked.append(words)
            return subprocess.CompletedProcess(words, code)

        monkeypatch.setattr(subprocess, "run", run)
        return asked

    return of


def test_the_demo_goes_from_music_to_a_report(
    steps: Callable[[int], list[list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = steps(0)
    assert main(["demo"]) == 0
    assert [words[:3] for words in asked] == [[sys.executable, "-m", "musicgen_train"]] * 5
    assert [words[3] for words in asked] == ["demo", "demo", "preprocess", "train", "evaluate"]
    assert f"prompts={walkthrough.PROMPTS}" in asked[-1]
    assert walkthrough.PROMPTS.is_file()
    assert "Open outputs/demo/report/report.html: " in capsys.readouterr().out


def test_the_demo_ends_with_the_step_that_fails(steps: Callable[[int], list[list[str]]]) -> None:
    asked = steps(3)
    assert main(["demo", "output=elsewhere"]) == 3
    assert len(asked) == 1
    assert "elsewhere/music" in asked[0]


def test_the_demo_leaves_a_folder_with_something_in_it_alone(
    steps: Callable[[int], list[list[str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    asked = steps(0)
    assert main(["demo", "output=mine"]) == 1
    assert capsys.readouterr().err == "error: mine is not empty; remove it, or give another folder with output=FOLDER\n"
    assert not asked


@pytest.mark.parametrize(
    ("argv", "arguments", "program"),
    [
        (["bin/musicgen-train", "train", "a=1"], None, ["bin/musicgen-train", "train"]),
        ([command_line.__file__, "train", "a=1"], None, ["musicgen-train", "train"]),
        (["scripts/train.py", "a=1"], ["train", "a=1"], ["scripts/train.py"]),
    ],
)
def test_a_stage_is_told_the_words_that_people_type(
    argv: list[str], arguments: list[str] | None, program: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[object] = []
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(launch, "run_stage", lambda run, *rest: got.extend(rest))
    assert main(arguments) == 0
    assert got == ["train", program, ["a=1"]]

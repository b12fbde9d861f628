"""Where a report may be written, and what becomes of it after an error."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from musicgen_train.evaluation.output import PROGRAM, report_folder


def make(output: Path, *, overwrite: bool = False, error: BaseException | None = None, files: str = "") -> None:
    """Write a report with these files, and fail in the end if asked to."""
    with report_folder(output, overwrite=overwrite) as folder:
        for name in files.split():
            (folder / name).write_text("sound")
        if error is not None:
            raise error


def write_report_into(folder: Path, content: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"program": PROGRAM, "content": content}))


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("exists", [False, True])
def test_it_appears_when_all_is_done(tmp_path: Path, exists: bool) -> None:
    output = tmp_path / "deep" / "report"
    if exists:
        output.mkdir(parents=True)
    with report_folder(output, overwrite=False) as folder:
        (folder / "a.wav").write_text("sound")
        assert exists == output.exists()
        assert not exists or not contents(output)
    assert contents(output) == ["a.wav"]
    assert contents(output.parent) == ["report"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_something_else_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="already holds something else"):
        make(tmp_path, overwrite=overwrite)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(FileExistsError, match="already holds something else"):
        make(tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == ["results.json", "thesis.txt"]
    with pytest.raises(NotADirectoryError, match="is a file"):
        make(tmp_path / "thesis.txt", overwrite=overwrite)


def test_an_earlier_report_is_replaced_only_when_asked(tmp_path: Path) -> None:
    output = tmp_path / "report"
    write_report_into(output, "old")
    with pytest.raises(FileExistsError, match="overwrite=true to replace it"):
        make(output, files="new.wav")
    assert contents(output) == ["results.json"]
    make(output, overwrite=True, files="new.wav")
    assert contents(output) == ["new.wav"]
    assert contents(tmp_path) == ["report"]


def test_after_an_error_what_was_made_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "report"
    write_report_into(output, "old")
    with pytest.raises(KeyboardInterrupt):
        make(output, overwrite=True, error=KeyboardInterrupt(), files="a.wav")
    assert json.loads((output / "results.json").read_text())["content"] == "old"
    (partial,) = set(tmp_path.iterdir()) - {output}
    assert (partial / "a.wav").read_text() == "sound"
    assert f"what was made so far is in {partial}" in capsys.readouterr().err


def test_after_an_error_without_anything_made_nothing_stays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mistyped"):
        make(tmp_path / "report", error=ValueError("mistyped"))
    assert contents(tmp_path) == []


def test_what_came_meanwhile_is_not_touched_either(tmp_path: Path) -> None:
    output = tmp_path / "report"
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(report_folder(output, overwrite=True))
        (folder / "a.wav").write_text("sound")
        output.mkdir()
        (output / "somebody.txt").write_text("else")
        with pytest.raises(FileExistsError, match="already holds something else"):
            stack.close()
    assert contents(output) == ["somebody.txt"]
    assert contents(folder) == ["a.wav"]


def test_the_earlier_report_comes_back_if_the_new_one_cannot_be_put_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "report"
    write_report_into(output, "old")
    rename = Path.rename

    def rename_unless_partial(path: Path, target: Path) -> Path:
        if ".partial-" in path.name:
            raise OSError("disk full")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_unless_partial)
    with pytest.raises(OSError, match="disk full"):
        make(output, overwrite=True, files="a.wav")
    assert contents(output) == ["results.json"]


def test_where_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    write_report_into(tmp_path / "disk" / "report", "old")
    output = tmp_path / "link"
    output.symlink_to(tmp_path / "disk" / "report")
    make(output, overwrite=True, files="new.wav")
    assert output.is_symlink()
    assert contents(tmp_path / "disk") == ["report"]
    assert contents(output) == ["new.wav"]

"""The example in docs/latent-dataset.md runs as printed, and its tables name the columns that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from audio_corpus import SettingsMaker, write_track

from musicgen_train.latents.format import CAPTION_FEATURES, CLIP_FEATURES
from musicgen_train.preprocess.run import preprocess

TEXT = (Path(__file__).parents[2] / "docs" / "latent-dataset.md").read_text(encoding="utf-8")


def test_the_example_reads_a_dataset_without_this_package(tmp_path: Path, make_settings: SettingsMaker) -> None:
    write_track(tmp_path / "input" / "a.wav", 1.7, caption="jazz guitar")
    preprocess(make_settings(output=str(tmp_path / "LATENTS")))
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
    assert "musicgen_train" not in code
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["(4, 50) a.wav 0.0", "(3, 20) jazz guitar"], done.stderr


def test_the_tables_name_the_columns() -> None:
    columns = re.findall(r"^\| `(\w+)` \|", TEXT, flags=re.M)
    assert columns == [*CLIP_FEATURES, *CAPTION_FEATURES]

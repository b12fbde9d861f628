"""Reading rows, compared with plain `datasets`; and what is said of folders that cannot be read."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_latents import ClipSpec, codes_of, write_latents
from tiny_run import TRAIN, VALIDATION

from musicgen_train.data.latent_dataset import LatentDataset
from musicgen_train.latents.format import CLIP_FEATURES
from musicgen_train.latents.manifest import Manifest


@pytest.fixture
def copied(latents: Path, tmp_path: Path) -> Path:
    shutil.copytree(latents, tmp_path / "latents")
    return tmp_path / "latents"


def test_rows_equal_those_of_plain_datasets(latents: Path) -> None:
    dataset = LatentDataset(latents, "train")
    plain = datasets.load_from_disk(str(latents))["train"]
    assert len(dataset) == len(plain) == len(TRAIN)
    assert dataset.frames.tolist() == [spec.frames for spec in TRAIN]
    for number, spec in enumerate(TRAIN):
        clip = dataset[number]
        assert clip.codes_KT.dtype == np.int16
        assert clip.codes_KT.shape == (4, spec.frames)
        assert np.array_equal(clip.codes_KT, codes_of(latents, "train", number))
        assert clip.captions == list(spec.captions) == plain[number]["captions"]
        assert clip.track == f"train/{number}.wav"
        assert clip.start_seconds == 0.25 * number
    assert dataset.seconds == sum(spec.frames for spec in TRAIN) / 40


def test_captions_come_with_their_states(latents: Path) -> None:
    dataset = LatentDataset(latents, "validation")
    plain = datasets.load_from_disk(str(latents / "captions"))
    assert [dataset.caption(number) for number in (0, 1)] == ["drums and bass", "a quiet flute"]
    for number, length in ((0, 3), (1, 5)):
        states = dataset.states(number)
        assert states.shape == (length, 12)
        assert states.dtype == torch.float16
        expected = np.frombuffer(plain[number]["states"], dtype="<f2").reshape(length, 12)
        assert np.array_equal(states.numpy(), expected)
    assert dataset[1].captions == []


def test_rows_of_many_files_are_read_in_order(composite: Path, tmp_path: Path) -> None:
    folder = write_latents(tmp_path / "latents", composite, [ClipSpec(number + 5) for number in range(23)])
    whole = datasets.load_from_disk(str(folder / "train"))
    rows = list(whole["codes"])
    whole.save_to_disk(str(tmp_path / "sharded"), num_shards=7)
    shutil.rmtree(folder / "train")
    shutil.move(tmp_path / "sharded", folder / "train")
    dataset = LatentDataset(folder, "train")
    assert [dataset[number].codes_KT.tobytes() for number in range(23)] == rows


def test_a_row_beyond_the_last_is_an_error(latents: Path) -> None:
    dataset = LatentDataset(latents, "validation")
    with pytest.raises(IndexError, match="row 3 of 3"):
        dataset[3]


def test_it_can_be_sent_to_another_process(latents: Path) -> None:
    dataset = LatentDataset(latents, "train")
    packed = pickle.dumps(dataset)
    assert len(packed) < 4000  # files are opened anew, nothing of them is sent
    assert np.array_equal(pickle.loads(packed)[3].codes_KT, dataset[3].codes_KT)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is no latent dataset: it has no manifest\.json"):
        LatentDataset(tmp_path / "nowhere", "train")


def test_a_missing_split_is_named(latents: Path) -> None:
    with pytest.raises(ValueError, match="has no split 'test'; it has train, validation"):
        LatentDataset(latents, "test")


def test_a_split_that_is_gone_is_damage(copied: Path) -> None:
    shutil.rmtree(copied / "train")
    with pytest.raises(ValueError, match=r"latents is damaged: train/ cannot be read .*Preprocess again"):
        LatentDataset(copied, "train")


def test_a_file_cut_short_is_damage(copied: Path) -> None:
    [file] = (copied / "train").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"is damaged: train/ cannot be read"):
        LatentDataset(copied, "train")


def test_rows_that_are_not_all_there_are_damage(copied: Path) -> None:
    fewer = datasets.load_from_disk(str(copied / "train")).select(range(4))
    fewer.save_to_disk(str(copied / "fewer"))
    shutil.rmtree(copied / "train")
    shutil.move(copied / "fewer", copied / "train")
    with pytest.raises(ValueError, match="train/ holds 4 rows, its manifest says 11"):
        LatentDataset(copied, "train")


def test_other_columns_are_damage(copied: Path) -> None:
    shutil.rmtree(copied / "captions")
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(copied / "captions"))
    with pytest.raises(ValueError, match="captions/ has other columns than text, states, length"):
        LatentDataset(copied, "train")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_codebooks": 3}, "row 2 holds 216 bytes for 3 x 27 codes"),
        ({"codebook_size": 40}, r"row 2 has codes from 0 to 62"),
    ],
)
def test_a_row_that_does_not_fit_the_manifest_is_damage(
    composite: Path, tmp_path: Path, changes: dict[str, int], problem: str
) -> None:
    folder = write_latents(tmp_path / "latents", composite, TRAIN, VALIDATION)
    dataset = LatentDataset(folder, "train")
    for name, value in changes.items():
        setattr(dataset.manifest, name, value)
    with pytest.raises(ValueError, match=problem):
        dataset[2]


def test_states_of_another_width_are_damage(latents: Path) -> None:
    dataset = LatentDataset(latents, "train")
    dataset.manifest.text_width = 6
    with pytest.raises(ValueError, match=r"caption 0 has states \[3, 12\]"):
        dataset.states(0)


def write_many(folder: Path, latents: Path, rows: int) -> Path:
    """The latents, their training split replaced by so many clips of two frames."""
    shutil.copytree(latents, folder)
    shutil.rmtree(folder / "train")
    column: dict[str, Any] = {
        "codes": pa.array([bytes(16)], pa.binary()),
        "frames": pa.array([2], pa.int32()),
        "captions": pa.array([[0]], pa.list_(pa.int32())),
        "track": pa.array(["a.wav"]),
        "start_seconds": pa.array([0.0], pa.float32()),
        "silent": pa.array([False]),
        "metadata": pa.array(["{}"]),
    }
    same = pa.array(np.zeros(rows, dtype=np.int64))
    table = pa.table({name: values.take(same) for name, values in column.items()}, CLIP_FEATURES.arrow_schema)
    datasets.Dataset(datasets.table.InMemoryTable(table)).save_to_disk(str(folder / "train"))
    manifest = Manifest.load(folder)
    manifest.splits["train"].clips = rows
    manifest.save(folder)
    return folder


MEASURE = """
import sys
from musicgen_train.data.latent_dataset import LatentDataset
import musicgen_train.data.datamodule

def anonymous_kib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

LatentDataset(sys.argv[1], "train")[0]
before = anonymous_kib()
dataset = LatentDataset(sys.argv[2], "train")
for row in range(0, len(dataset), len(dataset) // 1000):
    dataset.states(dataset[row].captions[0])
print((anonymous_kib() - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, which tells a process's own memory")
def test_a_million_rows_take_less_than_100_mb(latents: Path, tmp_path: Path) -> None:
    rows = 250_000
    few, many = write_many(tmp_path / "few", latents, 10), write_many(tmp_path / "many", latents, rows)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(few), str(many)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) * (1_000_000 / rows) < 100e6


def test_the_fingerprint_is_that_of_the_content(latents: Path, composite: Path, tmp_path: Path) -> None:
    mine = LatentDataset(latents, "train").fingerprint()
    moved = shutil.copytree(latents, tmp_path / "moved")
    assert LatentDataset(moved, "train").fingerprint() == mine
    again = write_latents(tmp_path / "again", composite, TRAIN, VALIDATION, created="another day", command="another")
    assert LatentDataset(again, "train").fingerprint() == mine
    others = [
        write_latents(tmp_path / "codes", composite, TRAIN, VALIDATION, seed=1),
        write_latents(tmp_path / "grown", composite, [*TRAIN, ClipSpec(9)], VALIDATION),
        write_latents(tmp_path / "lengths", composite, [*TRAIN[:-1], ClipSpec(9)], VALIDATION),
        write_latents(tmp_path / "captions", composite, [ClipSpec(spec.frames) for spec in TRAIN], VALIDATION),
    ]
    assert len({mine, *(LatentDataset(folder, "train").fingerprint() for folder in others)}) == 5

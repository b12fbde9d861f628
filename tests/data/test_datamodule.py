"""What the loaders give: the same for any number of workers, drawn anew in every pass, scored alike in every batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_latents import ClipSpec, codes_of, write_latents
from tiny_run import TRAIN, VALIDATION

from musicgen_train.data.batch import Batch
from musicgen_train.data.datamodule import DataSettings, LatentDataModule
from musicgen_train.data.latent_dataset import LatentDataset


def settings(path: Path, **changes: Any) -> DataSettings:
    values: dict[str, Any] = {
        "path": str(path),
        "crop_seconds": None,
        "global_batch_size": 4,
        "micro_batch_size": None,
        "cfg_dropout": 0.0,
        "validation_clips": None,
        "workers": 0,
    }
    return DataSettings(**{**values, **changes})


def module_of(path: Path, steps: int = 6, seed: int = 0, world_size: int = 1, **changes: Any) -> LatentDataModule:
    return LatentDataModule(settings(path, **changes), seed=seed, total_steps=steps, world_size=world_size)


def equal(one: Batch, other: Batch) -> bool:
    names = ("codes", "text_states", "text_mask", "frames", "step_frames")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def clip_of(batch: Batch, row: int) -> np.ndarray:
    return batch.codes[row, :, : batch.frames[row]].numpy()


def test_batches_do_not_depend_on_the_workers(latents: Path) -> None:
    options: dict[str, Any] = {"crop_seconds": 0.5, "cfg_dropout": 0.4}
    here = list(module_of(latents, **options).train_dataloader())
    elsewhere = list(module_of(latents, workers=2, **options).train_dataloader())
    assert len(here) == len(elsewhere) == 6
    assert all(equal(one, other) for one, other in zip(here, elsewhere, strict=True))


def test_another_seed_gives_other_batches(latents: Path) -> None:
    one, other = (next(iter(module_of(latents, seed=seed).train_dataloader())) for seed in (0, 1))
    assert not equal(one, other)


def test_uncropped_clips_are_whole(latents: Path) -> None:
    known = {codes_of(latents, "train", row).tobytes(): TRAIN[row].frames for row in range(len(TRAIN))}
    seen = set()
    for batch in module_of(latents, steps=11).train_dataloader():
        for row in range(4):
            packed = clip_of(batch, row).astype("<i2").tobytes()
            assert known[packed] == batch.frames[row]
            seen.add(packed)
    assert seen == set(known)


def test_crops_lie_within_their_clips_and_differ(composite: Path, tmp_path: Path) -> None:
    folder = write_latents(tmp_path / "latents", composite, [ClipSpec(30)])
    whole = codes_of(folder, "train", 0)
    offsets = []
    for batch in module_of(folder, steps=60, global_batch_size=1, crop_seconds=0.5).train_dataloader():
        crop = clip_of(batch, 0)
        assert crop.shape == (4, 20)
        offsets += [first for first in range(11) if np.array_equal(whole[:, first : first + 20], crop)]
    assert len(offsets) == 60
    assert set(offsets) == set(range(11))  # the first and the last frame too


def test_each_caption_is_drawn_and_so_is_none(composite: Path, tmp_path: Path) -> None:
    folder = write_latents(tmp_path / "latents", composite, [ClipSpec(9, (0, 1, 2))], captions=["a", "b", "c"])
    module = module_of(folder, steps=400, global_batch_size=1, cfg_dropout=0.3)
    lengths = [int(batch.text_mask.sum()) for batch in module.train_dataloader()]
    shares = [lengths.count(length) / 400 for length in (0, 3, 5, 7)]  # null, then the captions' lengths
    assert sum(shares) == 1
    # Three standard deviations of a share of 0.3 in 400 draws are 0.07.
    assert shares == pytest.approx([0.3, 0.7 / 3, 0.7 / 3, 0.7 / 3], abs=0.07)
    text = LatentDataset(folder, "train")
    for batch in list(module.train_dataloader())[:20]:
        length = int(batch.text_mask.sum())
        if length:
            assert torch.equal(batch.text_states[0], text.states((length - 3) // 2).float())


def test_the_whole_step_is_known_to_each_of_its_parts(latents: Path) -> None:
    whole = list(module_of(latents).train_dataloader())
    parts = list(module_of(latents, micro_batch_size=1).train_dataloader())
    assert len(parts) == 4 * len(whole)
    for number, batch in enumerate(whole):
        mine = parts[4 * number : 4 * number + 4]
        assert [part.frames.item() for part in mine] == batch.frames.tolist()
        for row, part in enumerate(mine):
            assert torch.equal(part.step_frames, batch.frames)
            assert np.array_equal(clip_of(part, 0), clip_of(batch, row))
            assert part.index == 4 * number + row


def test_validation_is_all_of_it_and_always_the_same(latents: Path) -> None:
    module = module_of(latents, micro_batch_size=2, cfg_dropout=1.0)
    first, again = list(module.val_dataloader()), list(module.val_dataloader())
    assert [batch.frames.tolist() for batch in first] == [[17, 23], [29]]
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(first, again, strict=True))
    clips = [clip_of(batch, row) for batch in first for row in range(len(batch))]
    for row, clip in enumerate(clips):  # the specs are in order of length
        assert np.array_equal(clip, codes_of(latents, "validation", row))
    assert [batch.text_mask.sum(dim=1).tolist() for batch in first] == [[3, 0], [5]]


@pytest.mark.parametrize(("size", "world", "count"), [(1, 2, 2), (2, 2, 1), (1, 5, 1), (2, 1, 2)])
def test_validation_is_shared_out_evenly(latents: Path, size: int, world: int, count: int) -> None:
    clips = module_of(latents).validation_clips
    assert clips is not None
    per_rank = [clips.batches(size, rank, world) for rank in range(world)]
    assert [len(batches) for batches in per_rank] == [count] * world
    assert sorted(row for batches in per_rank for batch in batches for row in batch.tolist()) == [0, 1, 2]
    scored = sum(int(clips[batch].frames.sum()) for batches in per_rank for batch in batches)
    assert scored == 17 + 23 + 29


def test_validation_crops_take_the_beginning(latents: Path) -> None:
    [batch] = module_of(latents, crop_seconds=0.5).val_dataloader()
    assert batch.frames.tolist() == [17, 20, 20]
    assert np.array_equal(clip_of(batch, 2), codes_of(latents, "validation", 2)[:, :20])


@pytest.mark.parametrize(("limit", "clips"), [(None, 3), (2, 2), (0, None)])
def test_validation_can_be_cut(latents: Path, limit: int | None, clips: int | None) -> None:
    found = module_of(latents, validation_clips=limit).validation_clips
    assert (None if found is None else len(found.frames)) == clips


def test_a_dataset_without_validation_has_no_such_loader(composite: Path, tmp_path: Path) -> None:
    folder = write_latents(tmp_path / "latents", composite, TRAIN)
    assert module_of(folder).val_dataloader() == []


def test_a_resumed_module_goes_on_in_its_data(latents: Path) -> None:
    whole = list(module_of(latents, crop_seconds=0.5, micro_batch_size=2).train_dataloader())
    resumed = module_of(latents, crop_seconds=0.5, micro_batch_size=1, workers=2)
    resumed.load_state_dict({"steps": 4, "global_batch_size": 4, "seed": 0, "clips": 11})
    rest = list(resumed.train_dataloader())
    assert len(rest) == 8
    for number, batch in enumerate(whole[8:]):
        for row in range(2):
            assert np.array_equal(clip_of(rest[2 * number + row], 0), clip_of(batch, row))


@pytest.mark.parametrize("changed", [{"global_batch_size": 8}, {"seed": 1}, {"clips": 12}])
def test_a_resumed_run_must_draw_alike(latents: Path, changed: dict[str, int]) -> None:
    module = module_of(latents)
    [name] = changed
    with pytest.raises(ValueError, match=f"the run to resume has {name}="):
        module.load_state_dict({**module.state_dict(), **changed})


def test_batches_among_devices(latents: Path) -> None:
    module = module_of(latents, global_batch_size=12, world_size=3)
    assert (module.micro_batch, module.accumulate) == (4, 1)
    module = module_of(latents, global_batch_size=12, world_size=3, micro_batch_size=2)
    assert (module.micro_batch, module.accumulate) == (2, 2)
    with pytest.raises(ValueError, match=r"data\.global_batch_size=10 cannot be divided among 3 devices"):
        module_of(latents, global_batch_size=10, world_size=3)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"cfg_dropout": 1.5}, r"data\.cfg_dropout is 1\.5; it must be 0 to 1"),
        ({"crop_seconds": 0}, r"data\.crop_seconds is 0; it must be above 0, or null"),
        ({"global_batch_size": 0}, r"data\.global_batch_size is 0"),
        ({"validation_clips": -1}, r"data\.validation_clips is -1"),
    ],
)
def test_settings_out_of_range_are_refused(latents: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        settings(latents, **changes)


def test_the_loader_knows_how_long_it_was_waited_for(latents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that moves by a second whenever it is looked at: two looks per batch, and two at the end.
    ticks = iter(range(1000))
    monkeypatch.setattr("musicgen_train.data.datamodule.time.perf_counter", lambda: float(next(ticks)))
    loader = module_of(latents, steps=3).train_dataloader()
    assert len(list(loader)) == 3
    assert loader.waited == 4.0


def test_a_train_split_without_clips_is_refused(composite: Path, tmp_path: Path) -> None:
    folder = write_latents(tmp_path / "latents", composite, [], VALIDATION)
    with pytest.raises(ValueError, match="has no clips in its split train; preprocess more audio"):
        module_of(folder)

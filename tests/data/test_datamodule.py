"""What the loaders give: the same for any number of workers, drawn anew in every pass, scored alike in every batch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_latents import ClipSpec, codes_of, write_latents
from tiny_run import TRAIN, VALIDATION

from musicgen_train.data.batch import Batch
from musicgen_train.data.datamodule import DataSettings, LatentDataModule
from musicgen_train.data.latent_dataset import LatentDataset


def settings(folder: Path, **changes: Any) -> DataSettings:
    values: dict[str, Any] = {
        "path": str(folder),
        "crop_seconds": None,
        "global_batch_size": 4,
        "micro_batch_size": None,
        "cfg_dropout": 0.0,
        "validation_clips": None,
        "workers": 0,
    }
    return DataSettings(**{**values, **changes})


def mixed(parts: dict[Path, float], steps: int = 6, **changes: Any) -> LatentDataModule:
    mix = [{"path": str(path), "weight": weight} for path, weight in parts.items()]
    given = {**settings(Path("none")).__dict__, "path": None, "mix": mix, **changes}
    del given["parts"]
    return LatentDataModule(DataSettings(**given), seed=0, total_steps=steps)


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
    assert sum(shares) == pytest.approx(1)
    # Three standard deviations of a share of 0.3 in 400 draws are 0.07.
    assert shares == pytest.approx([0.3, 0.7 / 3, 0.7 / 3, 0.7 / 3], abs=0.07)
    text = LatentDataset(folder, "train")
    for batch in list(module.train_dataloader())[:20]:
        length = int(batch.text_mask.sum())
        if length:
            assert torch.equal(batch.text_states[0], text.states((length - 3) // 2).float())


@pytest.mark.parametrize(("cfg_dropout", "with_caption"), [(0.0, 200), (1.0, 0)])
def test_captions_are_dropped_never_or_always(
    composite: Path, tmp_path: Path, cfg_dropout: float, with_caption: int
) -> None:
    folder = write_latents(tmp_path / "latents", composite, [ClipSpec(9, (0, 1))])
    module = module_of(folder, steps=200, global_batch_size=1, cfg_dropout=cfg_dropout)
    assert sum(bool(batch.text_mask.any()) for batch in module.train_dataloader()) == with_caption


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
    rows = [row for batches in per_rank for batch in batches for row in batch.rows.tolist()]
    assert sorted(rows) == [0, 1, 2]
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


def state_after(steps: int, module: LatentDataModule) -> dict[str, Any]:
    """What a checkpoint of that step has."""
    return {**module.state_dict(), "steps": steps, "done": [list(stretch) for stretch in module.stream.done(steps)]}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_resumed_module_goes_on_in_its_data(latents: Path, workers: int) -> None:
    module = module_of(latents, crop_seconds=0.5, micro_batch_size=2)
    whole = list(module.train_dataloader())
    resumed = module_of(latents, crop_seconds=0.5, micro_batch_size=1, workers=workers)
    resumed.load_state_dict(state_after(4, module))
    assert resumed.state_dict() == state_after(4, module)
    rest = list(resumed.train_dataloader())
    assert len(rest) == 8
    for number, batch in enumerate(whole[8:]):
        for row in range(2):
            assert np.array_equal(clip_of(rest[2 * number + row], 0), clip_of(batch, row))


def test_what_workers_have_read_ahead_is_not_counted(latents: Path) -> None:
    module = module_of(latents, steps=12, workers=2)
    place = SimpleNamespace(root_device=torch.device("cpu"))
    module.trainer = SimpleNamespace(global_rank=0, global_step=3, strategy=place)  # type: ignore[assignment]
    batches = iter(module.train_dataloader())
    taken = [next(batches) for _ in range(3)]  # each worker has two more ready
    state = module.state_dict()
    assert (state["steps"], state["done"]) == (3, [[3, 4]])
    resumed = module_of(latents, steps=12)
    resumed.load_state_dict(state)
    assert all(equal(one, other) for one, other in zip(batches, resumed.train_dataloader(), strict=True))
    assert len(taken) == 3


Content = list[tuple[bytes, bytes]]


def contents_of(batches: list[Batch]) -> dict[tuple[int, int], Content]:
    """What was made of each clip: the crop and the text of its first pass, its second and so on."""
    found: dict[tuple[int, int], Content] = {}
    for batch in batches:
        for row, clip in enumerate(batch.clips):
            text = batch.text_states[row][batch.text_mask[row]].numpy().tobytes()
            found.setdefault(clip, []).append((clip_of(batch, row).tobytes(), text))
    return found


@pytest.mark.parametrize(
    ("world", "batch", "micro", "workers"), [(2, 4, None, 0), (1, 4, 1, 2), (4, 4, 1, 0), (2, 6, 1, 1), (1, 3, 3, 0)]
)
def test_each_clip_of_each_pass_is_made_alike_at_any_scale(
    latents: Path, world: int, batch: int, micro: int | None, workers: int
) -> None:
    """A run of 5 steps goes on with other devices, micro-batches and workers, and with another global batch."""
    options: dict[str, Any] = {"crop_seconds": 0.5, "cfg_dropout": 0.4}
    straight = module_of(latents, steps=20, **options)
    batches = list(straight.train_dataloader())
    expected = contents_of(batches)

    changes: dict[str, Any] = {"global_batch_size": batch, "micro_batch_size": micro, "workers": workers}
    module = module_of(latents, steps=5 + 60 // batch, world_size=world, **{**options, **changes})
    module.load_state_dict(state_after(5, straight))
    per_rank = []
    for rank in range(world):
        place = SimpleNamespace(root_device=torch.device("cpu"))
        module.trainer = SimpleNamespace(global_rank=rank, strategy=place)  # type: ignore[assignment]
        per_rank.append(list(module.train_dataloader()))
    found = contents_of([*batches[:5], *(batch for parts in zip(*per_rank, strict=True) for batch in parts)])

    assert found.keys() == expected.keys() == {(0, row) for row in range(11)}
    for clip, contents in expected.items():
        passes = min(len(contents), len(found[clip]))
        assert passes >= 7  # of 80 draws
        assert found[clip][:passes] == contents[:passes]
    assert all(len(set(contents)) > 1 for contents in expected.values())  # passes differ


@pytest.mark.parametrize("changed", [{"seed": 1}, {"clips": [12]}, {"shares": [0.5, 0.5]}, {"data": ["0"]}])
def test_a_resumed_run_must_draw_alike(latents: Path, changed: dict[str, Any]) -> None:
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
    monkeypatch.setattr("musicgen_train.data.loader.time.perf_counter", lambda: float(next(ticks)))
    loader = module_of(latents, steps=3).train_dataloader()
    assert len(list(loader)) == 3
    assert loader.waited == 4.0


def test_a_train_split_without_clips_is_refused(composite: Path, tmp_path: Path) -> None:
    folder = write_latents(tmp_path / "latents", composite, [], VALIDATION)
    with pytest.raises(ValueError, match="has no clips in its split train; preprocess more audio"):
        module_of(folder)


@pytest.fixture(scope="module")
def prior(composite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prior") / "prior"
    return write_latents(folder, composite, [ClipSpec(12, (0,))] * 5, [ClipSpec(19), ClipSpec(14)], seed=5)


def test_a_mix_draws_from_each_dataset_what_its_weight_says(latents: Path, prior: Path) -> None:
    module = mixed({latents: 0.75, prior: 0.25}, steps=40)
    batches = list(module.train_dataloader())
    folders = [latents, prior]
    for batch in batches:
        assert [dataset for dataset, _ in batch.clips].count(1) == 1  # of 4
        for row, (dataset, number) in enumerate(batch.clips):
            assert np.array_equal(clip_of(batch, row), codes_of(folders[dataset], "train", number))
    drawn = Counter(clip for batch in batches for clip in batch.clips)
    assert {clip: count for clip, count in drawn.items() if clip[0] == 1} == {(1, row): 8 for row in range(5)}
    assert {count for clip, count in drawn.items() if clip[0] == 0} == {10, 11}  # 120 draws of 11 clips


def test_a_mix_goes_on_where_it_was(latents: Path, prior: Path) -> None:
    parts = {latents: 0.6, prior: 0.4}
    module = mixed(parts, steps=12, crop_seconds=0.5, cfg_dropout=0.3)
    whole = list(module.train_dataloader())
    resumed = mixed(parts, steps=12, crop_seconds=0.5, cfg_dropout=0.3, workers=2)
    resumed.load_state_dict(state_after(7, module))
    assert all(equal(one, other) for one, other in zip(whole[7:], resumed.train_dataloader(), strict=True))
    with pytest.raises(ValueError, match=r"the run to resume has shares=\[0\.6, 0\.4\], this one \[0\.5, 0\.5\]"):
        mixed({latents: 1, prior: 1}).load_state_dict(state_after(7, module))


def test_each_dataset_of_a_mix_is_validated_on(latents: Path, prior: Path, composite: Path, tmp_path: Path) -> None:
    module = mixed({latents: 3, prior: 1}, micro_batch_size=2)
    batches = list(module.val_dataloader())
    assert [batch.clips for batch in batches] == [((0, 0), (0, 1)), ((0, 2),), ((1, 1), (1, 0))]
    assert np.array_equal(clip_of(batches[2], 0), codes_of(prior, "validation", 1))
    without = write_latents(tmp_path / "without", composite, TRAIN)
    [batch] = mixed({without: 3, prior: 1}, micro_batch_size=2).val_dataloader()
    assert batch.clips == ((1, 1), (1, 0))
    limited = mixed({latents: 3, prior: 1}, micro_batch_size=2, validation_clips=1)
    assert [batch.clips for batch in limited.val_dataloader()] == [((0, 0),), ((1, 0),)]


def test_a_mix_says_what_it_is(latents: Path, prior: Path) -> None:
    assert module_of(latents).describe_mix() == []
    lines = mixed({latents: 3, prior: 1}, steps=10).describe_mix()
    assert lines[0].startswith(f"data: 75.0% of the clips from latents ({latents}): 11 clips, 0.00 h, 2.7 passes")
    assert lines[1].endswith("5 clips, 0.00 h, 2.0 passes")


def test_clips_are_named_for_people(latents: Path) -> None:
    module = module_of(latents)
    assert module.describe_clips([(0, 3)]) == [f"row 3 of {latents} (train/3.wav at 0.75 s)"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"path": None}, r"give either data\.path=LATENTS for one dataset, or data=mix"),
        ({"mix": [{"path": "a"}]}, r"give either data\.path=LATENTS for one dataset, or data=mix"),
        ({"path": None, "mix": []}, r"data\.mix has the datasets \(none\); it needs one or more"),
        ({"path": None, "mix": [{"path": "a/x"}, {"path": "b/x"}]}, "has the datasets x, x; .* add name: NAME"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(latents: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        settings(latents, **changes)


def test_datasets_that_do_not_belong_together_are_refused(latents: Path, composite: Path, tmp_path: Path) -> None:
    other = write_latents(tmp_path / "other", composite, TRAIN, sampling_rate=640)
    with pytest.raises(ValueError, match=f"{latents} and {other} cannot be trained on together; they differ in"):
        mixed({latents: 1, other: 1})

"""Settings: which values are allowed, and what the error for any other says."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest

import musicgen_train.preprocess
from musicgen_train.latents import format as latent_format
from musicgen_train.preprocess.settings import PreprocessSettings

GIVEN = {"input": "a", "output": "b", "encoders": "c"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clip_seconds": 0}, "clip_seconds is 0.0; allowed is more than 0"),
        ({"hop_seconds": -1}, "hop_seconds is -1.0; allowed is more than 0, or null"),
        ({"min_clip_seconds": 31}, "min_clip_seconds is 31.0; allowed is more than 0 and at most clip_seconds, 30"),
        ({"min_clip_seconds": 0}, "min_clip_seconds is 0.0; allowed is more than 0"),
        ({"audio_channels": 3}, "audio_channels is 3; allowed is 1"),
        ({"states_dtype": "int8"}, "states_dtype is 'int8'; expected one of float16, bfloat16, float32"),
        ({"input_format": "zip"}, "input_format is 'zip'; expected one of auto, folder"),
        ({"batch_seconds": 0}, "batch_seconds is 0.0"),
        ({"text_batch_tokens": 0}, "text_batch_tokens is 0"),
        ({"shard_tracks": 0}, "shard_tracks is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"rank": 0}, "rank and world_size go together: give both, or neither"),
        ({"captions": {"variants": 0}}, r"captions\.variants is 0; allowed is at least 1"),
        ({"captions": {"word_dropout": 1.0}}, r"captions\.word_dropout is 1\.0; allowed is 0 or more and below 1"),
        ({"captions": {"max_tokens": 0}}, r"captions\.max_tokens is 0"),
        ({"captions": {"templates": ["{genre"]}}, r"captions\.templates: '\{genre' is no template"),
        ({"captions": {"templates": ["music"]}}, r"must name metadata fields in braces"),
        ({"captions": {"templates": ["{a.__class__}"]}}, r"must name metadata fields in braces"),
        ({"split": {"validation": 1.0}}, r"split\.validation is 1\.0; allowed is a share"),
        ({"split": {"validation": 0.6, "test": 0.5}}, r"split\.validation \+ split\.test is 1\.1; allowed is below 1"),
        ({"encoders": None}, "no encoders: give encoders=FOLDER"),
        ({"encoders": None, "text_encoder": "t"}, "no encoders: give encoders=FOLDER"),
        ({"clip_second": 3}, "no setting is called clip_second; there are input, output"),
        ({"captions": {"count": 3}}, r"no setting is called captions\.count; there are captions\.variants"),
        ({"workers": "many"}, "workers is 'many'; expected a whole number or null"),
        ({"workers": 1.5}, "workers is 1.5; expected a whole number or null"),
        ({"dry_run": "maybe"}, "dry_run is 'maybe'; expected true or false"),
        ({"clip_seconds": None}, "clip_seconds is null; expected a number"),
    ],
)
def test_what_is_not_allowed_is_told(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreprocessSettings.from_dict({**GIVEN, **values})


def test_values_take_the_declared_types() -> None:
    made = PreprocessSettings.from_dict(
        {**GIVEN, "clip_seconds": 5, "workers": 2.0, "captions": {"fields": ["a", "b"]}}
    )
    assert isinstance(made.clip_seconds, float)
    assert isinstance(made.workers, int)
    assert made.captions.fields == ("a", "b")
    assert PreprocessSettings.from_dict({**GIVEN, "captions": {"fields": "a"}}).captions.fields == ("a",)
    assert made.hop == 5.0
    assert made.shortest == 1.0
    assert PreprocessSettings.from_dict({**GIVEN, "clip_seconds": 0.4}).shortest == 0.4
    assert PreprocessSettings.from_dict(made.to_dict()) == made


def test_the_dtypes_are_the_formats() -> None:
    declared = typing.get_type_hints(PreprocessSettings)["states_dtype"]
    assert typing.get_args(declared) == tuple(latent_format.STATES_DTYPES)


def test_only_the_top_of_the_stage_takes_all_settings() -> None:
    package = Path(musicgen_train.preprocess.__file__).parent
    found = {path.name for path in package.rglob("*.py") if "PreprocessSettings" in path.read_text(encoding="utf-8")}
    # The work folder records them.
    assert found == {"entry.py", "run.py", "settings.py", "work_folder.py"}


def test_what_decides_the_content_and_what_does_not() -> None:
    def decisive(**changed: Any) -> dict[str, Any]:
        return PreprocessSettings.from_dict({**GIVEN, **changed}).decisive()

    for changed in (
        {"output": "z"}, {"workers": 3}, {"device": "cpu"}, {"hub": {"streaming": True}}, {"limit": 3},
        {"rank": 1, "world_size": 2}, {"batch_seconds": 30}, {"stop_on_rejected": True}, {"keep_work": False},
    ):  # fmt: skip
        assert decisive(**changed) == decisive(), changed
    for changed in ({"clip_seconds": 7}, {"audio_channels": 2}, {"captions": {"seed": 1}}, {"states_dtype": "float32"}):
        assert decisive(**changed) != decisive(), changed
    assert sorted(decisive()) == [
        "audio_channels", "captions", "clip_seconds", "hop_seconds", "min_clip_seconds", "states_dtype",
    ]  # fmt: skip

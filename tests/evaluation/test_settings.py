"""The settings of an evaluation: the config's values in the types they are declared with."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf
from reports import config

from musicgen_train.evaluation.settings import EvaluationSettings


def settings(**overrides: Any) -> EvaluationSettings:
    values: Any = OmegaConf.to_container(config(model="m", output="o", **overrides), resolve=True)
    return EvaluationSettings.from_dict(values)


def test_one_value_or_several() -> None:
    found = settings(guidance_scale=3, control__guidance_scale=[1, 3], continuation__audio="a.wav")
    assert (found.guidance_scale, found.control.guidance_scale) == ([3.0], [1.0, 3.0])
    assert found.continuation.audio == ["a.wav"]
    assert settings(unconditional=1).guidance_scale is None


def test_options_that_are_given_and_no_others() -> None:
    assert settings(unconditional=1).generation_options == {}
    assert settings(unconditional=1, do_sample=False, top_k=0, temperature=1).generation_options == {
        "do_sample": False,
        "temperature": 1.0,
        "top_k": 0,
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"top_k": "many"}, "top_k is 'many'; expected a whole number or null"),
        ({"do_sample": "sometimes"}, "do_sample is 'sometimes'; expected true or false or null"),
        ({"control__guidance_scale": "high"}, r"control\.guidance_scale\[0\] is 'high'; expected a number"),
        ({"metrics__max_clips": 0}, r"metrics\.max_clips is 0; it must be 1 or more"),
        ({"data": "latents"}, r"data is 'latents'; expected a section with path, split, rows"),
    ],
)
def test_what_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(unconditional=1, **overrides)


def test_a_key_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"no setting is called report\.embed; there are report\.embed_megabytes"):
        EvaluationSettings.from_dict({"report": {"embed": 3}})

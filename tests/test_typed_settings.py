"""A plain mapping to a dataclass: what is taken for what, and what errors say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from musicgen_train.typed_settings import from_plain


@dataclass(frozen=True, kw_only=True)
class Adapter:
    rank: int
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Data:
    path: str | None = None
    folder: Path = Path()
    weights: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int
    lr: float = 1e-4
    verbose: bool = False
    precision: Literal["32-true", "bf16-mixed", 16] = "32-true"
    scales: list[float] | None = None
    devices: int | str = "auto"
    every: float | int | None = None
    data: Data = field(default_factory=Data)
    adapter: Adapter | None = None
    start: str | Adapter | None = None
    mix: list[Data] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    anything: Any = None
    computed: int = field(default=7, init=False)


def made(**values: Any) -> Settings:
    return from_plain(Settings, {"steps": 10, **values})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", 100_000.0, 100_000),
        ("steps", "12", 12),
        ("steps", "12345678901234567890", 12345678901234567890),
        ("lr", 1, 1.0),
        ("lr", "1e-4", 1e-4),
        ("verbose", True, True),
        ("precision", 16, 16),
        ("scales", None, None),
        ("scales", (1, 2.5), [1.0, 2.5]),
        ("devices", 8, 8),
        ("devices", "8", "8"),
        ("devices", "auto", "auto"),
        ("every", 3, 3),
        ("every", 0.5, 0.5),
        ("data", {"path": 2024, "folder": "a/b"}, Data(path="2024", folder=Path("a/b"))),
        ("data", {"weights": {"a": 1}}, Data(weights={"a": 1.0})),
        ("adapter", {"rank": 8, "modules": ["q", "v"]}, Adapter(rank=8, modules=("q", "v"))),
        ("start", "scratch", "scratch"),
        ("start", {"rank": 2}, Adapter(rank=2)),
        ("mix", [{"path": "a"}, {"path": "b"}], [Data(path="a"), Data(path="b")]),
        ("options", {"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}),
        ("anything", [1, "x"], [1, "x"]),
    ],
)
def test_values_take_the_declared_types(name: str, value: Any, expected: Any) -> None:
    found = getattr(made(**{name: value}), name)
    assert found == expected
    assert type(found) is type(expected)


def test_what_is_not_given_keeps_its_default() -> None:
    assert made() == Settings(steps=10)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": None}, "steps is null; expected a whole number"),
        ({"steps": 1.5}, "steps is 1.5; expected a whole number"),
        ({"steps": True}, "steps is true; expected a whole number"),
        ({"steps": float("inf")}, "steps is inf; expected a whole number"),
        ({"steps": "many"}, "steps is 'many'; expected a whole number"),
        ({"lr": False}, "lr is false; expected a number"),
        ({"lr": [1]}, "lr is [1]; expected a number"),
        ({"verbose": 1}, "verbose is 1; expected true or false"),
        ({"verbose": "yes"}, "verbose is 'yes'; expected true or false"),
        ({"precision": "16"}, "precision is '16'; expected one of 32-true, bf16-mixed, 16"),
        ({"scales": 3}, "scales is 3; expected a list or null"),
        ({"scales": [1, "high"]}, "scales[1] is 'high'; expected a number"),
        ({"devices": None}, "devices is null; expected a whole number or text"),
        ({"devices": True}, "devices is true; expected a whole number or text"),
        ({"every": "often"}, "every is 'often'; expected a number or a whole number or null"),
        ({"data": "latents"}, "data is 'latents'; expected a section with path, folder, weights"),
        ({"data": {"path": ["a"]}}, "data.path is ['a']; expected text or null"),
        ({"data": {"folder": None}}, "data.folder is null; expected a path"),
        ({"data": {"weights": {"a": "most"}}}, "data.weights.a is 'most'; expected a number"),
        ({"data": {"paht": "a"}}, "no setting is called data.paht; there are data.path, data.folder, data.weights"),
        ({"adapter": {}}, "adapter.rank is not given; expected a whole number"),
        ({"adapter": {"rank": 8, "modules": "q"}}, "adapter.modules is 'q'; expected a list"),
        ({"start": {"rank": "high"}}, "start.rank is 'high'; expected a whole number"),
        ({"start": ["a"]}, "start is ['a']; expected text or a section with rank, modules or null"),
        ({"mix": [{"path": "a"}, {"path": []}]}, "mix[1].path is []; expected text or null"),
        ({"options": 3}, "options is 3; expected a section"),
        ({"computed": 3}, "no setting is called computed; there are steps, lr, "),
    ],
)
def test_what_is_refused_is_told(values: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        made(**values)


def test_a_setting_without_default_has_to_be_given() -> None:
    with pytest.raises(ValueError, match=r"^training\.steps is not given; expected a whole number$"):
        from_plain(Settings, {}, "training.")


def test_single_values_are_lists_where_that_is_asked_for() -> None:
    values = {"steps": 1, "scales": 3, "adapter": {"rank": 1, "modules": "q"}}
    found = from_plain(Settings, values, wrap_single=True)
    assert (found.scales, found.adapter) == ([3.0], Adapter(rank=1, modules=("q",)))
    assert from_plain(Settings, {"steps": 1, "scales": None}, wrap_single=True).scales is None
    with pytest.raises(ValueError, match=r"scales is \{'a': 1\}; expected a list or null"):
        from_plain(Settings, {"steps": 1, "scales": {"a": 1}}, wrap_single=True)


def test_a_resolved_config_is_plain() -> None:
    config = OmegaConf.create({"steps": "${data.weights.a}", "lr": 1e-3, "data": {"weights": {"a": 3}}})
    values: Any = OmegaConf.to_container(config, resolve=True)
    assert from_plain(Settings, values) == Settings(steps=3, lr=1e-3, data=Data(weights={"a": 3.0}))


def test_a_type_that_cannot_be_read_is_a_bug() -> None:
    @dataclass
    class Odd:
        number: complex

    Odd.__annotations__["number"] = complex
    with pytest.raises(TypeError, match="number is declared as <class 'complex'>"):
        from_plain(Odd, {"number": 1})

"""Reads a resolved configuration into dataclasses: each value gets its field's type, or an error says why it cannot.

A stage declares its settings as a dataclass, with one more for each section of its YAML file, and reads them with
`from_plain`. Ranges, and checks of several values together, belong in the dataclass's own `__post_init__`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def from_plain(kind: type[T], values: Mapping[str, Any], prefix: str = "", *, wrap_single: bool = False) -> T:
    """Make a dataclass from a plain mapping, as `OmegaConf.to_container(config, resolve=True)` returns it.

    Fields may be declared as `bool`, `int`, `float`, `str`, `Path`, `Literal[...]`, another dataclass (a section),
    `dict[str, X]`, `list[X]`, `tuple[X, ...]`, unions of these such as `X | None`, and `Any`, which
    takes everything as it is. YAML and command lines are loose about types, so these are converted: a whole number
    to `float`, `1e5` to `int`, text with a number in it (from an environment variable) to a number, and a number to
    `str` or `Path` (a folder called 2024). Only true and false are a `bool`, and they are nothing else. If several
    members of a union fit, the one that keeps the value's type wins, else the first.

    Args:
        kind: the dataclass. Fields that `values` lacks keep their defaults.
        values: the fields' values by name.
        prefix: put before names in errors: "" for a whole configuration, "data." for its section `data`.
        wrap_single: where a list or tuple is declared, take a single value as a list of one.

    Raises:
        ValueError: no field has this key, a field has no value, or a value has another type.
    """
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    if unknown := sorted(str(name) for name in values if name not in fields):
        known = ", ".join(prefix + name for name in fields)
        raise ValueError(f"no setting is called {prefix}{unknown[0]}; there are {known}")
    types = get_type_hints(kind)
    arguments = {
        name: _converted(types[name], value, prefix + name, _words(types[name]), wrap_single)
        for name, value in values.items()
    }
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{prefix}{name} is not given; expected {_words(types[name])}")
    return kind(**arguments)


def _converted(declared: Any, value: Any, key: str, expected: str, wrap_single: bool) -> Any:
    """Convert a value to the declared type. `expected` names everything allowed, of which `declared` may be a part."""
    kind, parts = get_origin(declared) or declared, get_args(declared)
    if kind is Any or (kind is NoneType and value is None):
        return value
    if kind in (Union, UnionType):
        return _as_member(parts, value, key, expected, wrap_single)
    if kind is Literal:
        if any(value == choice and type(value) is type(choice) for choice in parts):
            return value
    elif kind in (list, tuple):
        items = [value] if wrap_single and not isinstance(value, list | tuple | Mapping | None) else value
        if isinstance(items, list | tuple):
            words = _words(parts[0])
            return kind(
                _converted(parts[0], item, f"{key}[{number}]", words, wrap_single) for number, item in enumerate(items)
            )
    elif dataclasses.is_dataclass(kind):
        if isinstance(value, Mapping):
            return from_plain(kind, value, f"{key}.", wrap_single=wrap_single)  # type: ignore[arg-type]
    elif kind is dict:
        if isinstance(value, Mapping):
            inner, words = parts[1], _words(parts[1])
            return {name: _converted(inner, each, f"{key}.{name}", words, wrap_single) for name, each in value.items()}
    elif kind is bool:
        if isinstance(value, bool):
            return value
    elif kind in (int, float):
        number = _number(value)
        if number is not None and (kind is float or isinstance(number, int) or number.is_integer()):
            return kind(number)
    elif kind in (str, Path):
        if isinstance(value, str | PathLike | int | float) and not isinstance(value, bool):
            return kind(str(value))
    elif kind is not NoneType:
        raise TypeError(f"{key} is declared as {declared}, which no setting can be read as")
    example = f", as in [{value}]" if kind in (list, tuple) and isinstance(value, str) else ""
    raise ValueError(f"{key} is {_shown(value)}; expected {expected}{example}")


def _as_member(members: tuple[Any, ...], value: Any, key: str, expected: str, wrap_single: bool) -> Any:
    """Convert a value to the member of a union that fits it best."""
    fitting, problems = [], []
    for member in members:
        try:
            fitting.append(_converted(member, value, key, expected, wrap_single))
        except ValueError as error:
            problems.append(error)
    if not fitting:
        # A section's error names the key within it; the other members all say the same.
        raise next((each for each in problems if not str(each).startswith(f"{key} is ")), problems[0])
    return next((each for each in fitting if type(each) is type(value)), fitting[0])


def _number(value: Any) -> int | float | None:
    if isinstance(value, str):
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _words(declared: Any) -> str:
    """Return in words what is allowed."""
    kind, parts = get_origin(declared) or declared, get_args(declared)
    if kind in (Union, UnionType):
        return " or ".join(_words(part) for part in sorted(parts, key=lambda part: part is NoneType))
    if kind is NoneType:
        return "null"
    if kind is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if kind in (list, tuple):
        return "a list"
    if dataclasses.is_dataclass(kind):
        return f"a section with {', '.join(field.name for field in dataclasses.fields(kind) if field.init)}"
    return _WORDS.get(kind, "a section" if kind is dict else str(kind))


def _shown(value: Any) -> str:
    """Spell a value as YAML does."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)

"""Rendering the report's Jinja2 templates, which lie beside this file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from musicgen_train.evaluation.records import Unit


def render(template: str, /, **values: Any) -> Markup:
    """Fill in a template; another template may hold the result as it is.

    Args:
        template: the name of a file in this folder.
        values: what the template uses.
    """
    return Markup(_TEMPLATES.get_template(template).render(values))


def in_unit(value: float | None, unit: Unit) -> str:
    """A measured number as the page shows it; `-` for one that is not known or not finite."""
    if value is None or not math.isfinite(value):
        return "-"
    if unit == "percent":
        return f"{value:.1%}"
    if unit in ("count", "hertz"):
        return f"{value:.0f}" + (" Hz" if unit == "hertz" else "")
    if unit == "decibels":
        return f"{value:.1f} dB"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


# Everything that a template is given is escaped: prompts, captions and file names are a user's text.
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["in_unit"] = in_unit

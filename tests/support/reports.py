"""The settings that a report is asked for with, and the page that comes of it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

ROOT = Path(__file__).parents[2]


def config(**overrides: Any) -> DictConfig:
    """configs/evaluate.yaml with some keys given, those of groups as `data__path`."""
    loaded = OmegaConf.load(ROOT / "configs" / "evaluate.yaml")
    assert isinstance(loaded, DictConfig)
    given = {"duration": 0.5, "device": "cpu", **overrides}
    for key, value in given.items():
        OmegaConf.update(loaded, key.replace("__", "."), value, force_add=False)
    return loaded


class Page(HTMLParser):
    """What a report shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

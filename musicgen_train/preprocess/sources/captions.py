"""Sorts what a source says of a track into captions, tags and metadata, and makes the texts that are stored."""

from __future__ import annotations

import hashlib
import json
import random
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from musicgen_train.preprocess.settings import CaptionSettings

# Random texts tried per text wanted: a short caption has few distinct ways to drop words.
_TRIES = 8


@dataclass(kw_only=True)
class Description:
    """What a source says of one track."""

    captions: list[str] = field(default_factory=list)
    """The source's own captions, the main one first; those of white space alone are left out."""
    tags: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    """All fields, those of captions and tags included, as JSON values."""

    @classmethod
    def from_fields(
        cls, fields: Mapping[str, Any], settings: CaptionSettings, captions: Iterable[str] = ()
    ) -> Description:
        """Sort the fields of a row or JSON file into captions, tags and metadata.

        Args:
            fields: values by name. A caption field is a string or a list of strings, a tag field a list or "a, b, c".
            settings: which fields are captions and which are tags, in order of preference.
            captions: captions that come before those of the fields.
        """
        found = list(captions)
        for name in settings.fields:
            found += _texts(fields.get(name))
        tags: list[str] = []
        for name in settings.tag_fields:
            value = fields.get(name)
            tags += value.split(",") if isinstance(value, str) else _texts(value)
        return cls(captions=_distinct(found), tags=_distinct(tags), metadata=jsonable(dict(fields)))


def caption_variants(description: Description, track: str, settings: CaptionSettings) -> list[str]:
    """Make the texts that a track's clips are stored with, all different, the best first.

    All of the source's own captions are kept. Then others are added until there are `settings.variants`: first the
    joined tags, then each template whose fields the metadata has, then random texts by turns: the first caption with
    shuffled tags behind it (or the shuffled tags alone), and one of the texts so far with each word dropped with
    probability `word_dropout`. Random texts depend on nothing but the seed and the track's id. A track of which the
    source says nothing gets no text: the null condition.

    Args:
        description: what the source says of the track.
        track: the track's id.
        settings: how many texts, and how to make them.
    """
    made = [", ".join(description.tags)] if settings.tags else []
    made += [text for template in settings.templates if (text := fill(template, description.metadata)) is not None]
    own = _distinct(description.captions)
    texts = _distinct([*own, *made])[: max(settings.variants, len(own))]

    sources = texts.copy()
    digest = hashlib.sha256(f"{settings.seed}:{track}".encode("utf-8", "surrogatepass")).digest()
    rng = random.Random(int.from_bytes(digest, "big"))
    for turn in range(_TRIES * settings.variants if sources else 0):
        if len(texts) >= settings.variants:
            break
        text = ""
        if turn % 2 == 0:
            if settings.tags and len(description.tags) > 1:
                shuffled = ", ".join(rng.sample(description.tags, len(description.tags)))
                text = _sentence(description.captions[0], shuffled) if description.captions else shuffled
        elif settings.word_dropout > 0:
            text = drop_words(rng.choice(sources), settings.word_dropout, rng)
        # A text that lost all words would be the null condition, for which training has a setting of its own.
        if text and text not in texts:
            texts.append(text)
    return texts


def drop_words(text: str, probability: float, rng: random.Random) -> str:
    """Return the text with each word left out with this probability."""
    return " ".join(word for word in text.split() if rng.random() >= probability)


def fill(template: str, metadata: Mapping[str, Any]) -> str | None:
    """Fill a template like "{genre}, {bpm} bpm" from metadata; None where a field is missing or empty."""
    text = ""
    for literal, name, _, _ in string.Formatter().parse(template):
        text += literal
        if name is not None:
            value = _as_text(metadata.get(name))
            if not value:
                return None
            text += value
    return _clean(text) or None


def jsonable(value: Any) -> Any:
    """Return a value as JSON can hold it: bytes are left out, and unknown types become their `str`."""
    if isinstance(value, Mapping):
        return {_clean(str(key)): jsonable(each) for key, each in value.items() if not isinstance(each, bytes)}
    if isinstance(value, list | tuple | set):
        return [jsonable(each) for each in value if not isinstance(each, bytes)]
    if isinstance(value, str):
        return _encodable(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        # Tables write NaN for an empty cell, and JSON has no NaN.
        return value if value == value and abs(value) != float("inf") else None
    return _encodable(str(value))


def metadata_json(metadata: Mapping[str, Any]) -> str:
    """Return metadata as the one line of JSON that the dataset stores."""
    return json.dumps(metadata, ensure_ascii=False, sort_keys=True)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return [each for each in value if isinstance(each, str)]
    return []


def _as_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(filter(None, map(_as_text, value)))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None or isinstance(value, Mapping | bool) else str(value).strip()


def _distinct(texts: Iterable[str]) -> list[str]:
    """Clean texts, drop empty ones and repetitions, and keep the order."""
    return list(dict.fromkeys(filter(None, map(_clean, texts))))


def _clean(text: str) -> str:
    return " ".join(_encodable(text).split())


def _encodable(text: str) -> str:
    # Neither Arrow nor the tokenizer takes lone surrogates, from "\ud800" in JSON or a file name that is no UTF-8.
    return text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "")


def _sentence(caption: str, tags: str) -> str:
    return f"{caption} {tags}" if caption.endswith((".", "!", "?")) else f"{caption}. {tags}"

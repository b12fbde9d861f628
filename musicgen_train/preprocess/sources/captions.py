"""What a source says of a track, read as captions, tags and metadata, and the texts made of them."""

from __future__ import annotations

import hashlib
import json
import random
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from musicgen_train.preprocess.settings import CaptionSettings

# Random texts tried per text wanted: a short caption has few distinct ways of dropping words.
_TRIES = 8


@dataclass(kw_only=True)
class Description:
    """What a source says of one track."""

    captions: list[str] = field(default_factory=list)
    """Captions as they stand, the main one first; none where there is nothing but white space."""
    tags: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    """All fields, those of captions and tags included, as values that JSON holds."""


def describe(fields: Mapping[str, Any], settings: CaptionSettings, captions: Iterable[str] = ()) -> Description:
    """Sort the fields of a row or JSON file into captions, tags and metadata.

    Args:
        fields: by name; a caption field is a string or a list of strings, a tag field a list or "a, b, c".
        settings: which fields are which, in order.
        captions: captions that come before those of the fields.
    """
    found = list(captions)
    for name in settings.fields:
        found += _texts(fields.get(name))
    tags: list[str] = []
    for name in settings.tag_fields:
        value = fields.get(name)
        tags += value.split(",") if isinstance(value, str) else _texts(value)
    return Description(captions=_distinct(found), tags=_distinct(tags), metadata=jsonable(dict(fields)))


def caption_variants(description: Description, track: str, settings: CaptionSettings) -> list[str]:
    """The texts that a track's clips are stored with, all different, the best first.

    The source's own captions, all of them; then, until there are `settings.variants`: the tags, joined; the templates
    whose fields the metadata has; random ones in turn, which are the first caption with shuffled tags behind it (or
    the tags shuffled), and one of the texts before with words dropped, each with probability `word_dropout`. These
    are drawn from the seed and the track's name alone. A track of which nothing is said gets none: the null condition.
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
        # What lost all its words would be the null condition, which training has its own share for.
        if text and text not in texts:
            texts.append(text)
    return texts


def drop_words(text: str, probability: float, rng: random.Random) -> str:
    """The text without some of its words, each left out with this probability."""
    return " ".join(word for word in text.split() if rng.random() >= probability)


def fill(template: str, metadata: Mapping[str, Any]) -> str | None:
    """A template like "{genre}, {bpm} bpm" over metadata; None where a field is missing or says nothing."""
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
    """A value as JSON holds it: bytes left out, anything unknown as its text."""
    if isinstance(value, Mapping):
        return {_clean(str(key)): jsonable(each) for key, each in value.items() if not isinstance(each, bytes)}
    if isinstance(value, list | tuple | set):
        return [jsonable(each) for each in value if not isinstance(each, bytes)]
    if isinstance(value, str):
        return _encodable(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        # JSON has no NaN, which is how tables spell an empty cell.
        return value if value == value and abs(value) != float("inf") else None
    return _encodable(str(value))


def metadata_json(metadata: Mapping[str, Any]) -> str:
    """Metadata as the one line of JSON that the dataset stores."""
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
    """Cleaned texts, each once, in their order, without empty ones."""
    return list(dict.fromkeys(filter(None, map(_clean, texts))))


def _clean(text: str) -> str:
    return " ".join(_encodable(text).split())


def _encodable(text: str) -> str:
    # Lone surrogates, from "\ud800" in JSON or a file name that is no UTF-8, fit neither Arrow nor the tokenizer.
    return text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "")


def _sentence(caption: str, tags: str) -> str:
    return f"{caption} {tags}" if caption.endswith((".", "!", "?")) else f"{caption}. {tags}"

"""Who judges the control test: a listener reads properties off captions and hears them in audio.

The demo's listener knows the demo's corpus. Another one, for other music, is a class of yours with the attributes of
`Listener`, named in the config as `module:Class`.

Axes: C channels, S samples.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

PropertyValues = Mapping[str, str]
"""Properties that are asked for or heard: values by the property's name, such as `{"key": "Bb", "drums": "no"}`."""


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One comparison of what a caption asks for with what is heard: a line of the control table.

    Args:
        label: its name in the table.
        needs: properties that a caption has to name, and audio to have, to be compared.
        agree: tells whether the second, what is heard, has what the first asks for.
        meaning: says in plain words what counts.
        lenient: a milder form of another criterion, which the mean over all of them leaves out.
    """

    label: str
    needs: tuple[str, ...]
    agree: Callable[[PropertyValues, PropertyValues], bool]
    meaning: str
    lenient: bool = False

    def is_named(self, asked: PropertyValues) -> bool:
        """Tells whether a caption asks for all that is compared."""
        return all(name in asked for name in self.needs)

    def is_met(self, asked: PropertyValues, heard: PropertyValues) -> bool:
        """Tells whether audio does what a caption asks for; audio without one of the properties does not."""
        return all(name in heard for name in self.needs) and self.agree(asked, heard)

    @classmethod
    def same(cls, name: str, meaning: str) -> Criterion:
        """The criterion that a property's value is the one that is asked for."""
        return cls(label=name, needs=(name,), agree=lambda asked, heard: asked[name] == heard[name], meaning=meaning)


class Listener(Protocol):
    """Judges whether music has the properties that captions ask for."""

    key: str
    """Names the table in `results.json`; changes with the method, so that unlike numbers are not compared."""
    method: str
    """Describes how it hears, for the reader of the report."""
    shortest_seconds: float
    """The least length of audio that `hear` takes."""
    criteria: Sequence[Criterion]
    """The comparisons to make; at least one is not lenient."""

    def requested(self, caption: str) -> PropertyValues:
        """The properties that a caption names; empty if it names none that can be heard."""
        ...

    def hear(self, audio_CS: torch.Tensor, sampling_rate: int) -> PropertyValues:
        """The properties of audio `(channels, samples)`, float32 of full scale 1, on the CPU; empty for silence."""
        ...


@runtime_checkable
class PieceMaker(Protocol):
    """A listener that can also make new music whose captions and properties it knows."""

    corpus: str
    """Describes the pieces, for the reader of the report."""

    def make_piece(
        self, seed: int, index: int, samples: int, sampling_rate: int, channels: int
    ) -> tuple[str, torch.Tensor]:
        """A caption and its music.

        Args:
            seed: of the set of pieces.
            index: of the piece in it.
            samples: the length of the music.
            sampling_rate: in Hz.
            channels: 1 or 2.

        Returns:
            A caption that names what the listener can hear, and float32 `(channels, samples)`. The same arguments give
            the same piece.
        """
        ...


def load_listener(name: str) -> Listener:
    """Make the listener that is named as `module:Class`, without arguments.

    Raises:
        ValueError: there is no such class, or it lacks what `Listener` asks for.
    """
    try:
        made: Any = pkgutil.resolve_name(name)()
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"control.listener={name} cannot be loaded: {error}; give module:Class") from error
    missing = [field for field in (*Listener.__annotations__, "requested", "hear") if not hasattr(made, field)]
    if missing:
        raise ValueError(f"control.listener={name} is no listener: it has no {', '.join(missing)}")
    return made

"""What is made while lasting objects are made is passed over by the collector; all else is collected as before."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from musicgen_train.garbage_collection import lasting_objects


class Ring:
    """Something that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Leaves the collector as it was."""
    was_enabled = gc.isenabled()
    yield
    gc.unfreeze()
    (gc.enable if was_enabled else gc.disable)()


def ring() -> weakref.ref[Ring]:
    return weakref.ref(Ring())


@pytest.mark.parametrize("was_enabled", [True, False])
def test_what_lasts_is_passed_over(was_enabled: bool) -> None:
    (gc.enable if was_enabled else gc.disable)()
    with lasting_objects():
        assert not gc.isenabled()
        lasting = ring()
    assert gc.isenabled() == was_enabled
    later = ring()
    gc.collect()
    assert lasting() is not None
    assert later() is None


def test_an_import_that_fails_leaves_the_collector_at_work() -> None:
    gc.enable()
    with pytest.raises(ImportError), lasting_objects():
        raise ImportError
    assert gc.isenabled()

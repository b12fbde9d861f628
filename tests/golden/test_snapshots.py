"""Names, shapes, settings, files and signatures are what they were: a difference is shown as a diff."""

from __future__ import annotations

import difflib

import pytest
from golden_inputs import GOLDEN
from golden_snapshots import SNAPSHOTS


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_nothing_has_another_name_or_shape(name: str) -> None:
    before, now = (GOLDEN / name).read_text(), SNAPSHOTS[name]()
    diff = difflib.unified_diff(before.splitlines(), now.splitlines(), name, "now", n=1, lineterm="")
    anew = "if that is meant: python tests/golden/make_golden.py snapshots"
    assert before == now, "\n".join([anew, *diff])

"""Shared by the tests of models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from musicgen_train.models.kernels import compiler


@pytest.fixture(params=["", "-DWIDE", "-DNARROW"], ids=["as_compiled_here", "wide", "narrow"])
def variant(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The code for this processor, and those for registers of 64 and of 32 bytes, which any processor can run.

    With 64, pairs of bfloat16 numbers are multiplied, with 32 they are not. Gives what the compiler is told.
    """
    if not request.param:
        yield ""
        return
    # Compiled once for all tests.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "other_c_code"))
    monkeypatch.setattr(compiler, "_FLAGS", (*compiler._FLAGS, request.param))
    compiler._load.cache_clear()
    yield request.param
    compiler._load.cache_clear()

"""Latents of which one clip's caption has NaN for its text states, as a damaged disk or a bad encoder would make it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from tiny_latents import ClipSpec, write_latents

BAD_CAPTION = 2
BAD_ROW = 4


def write_poisoned_latents(folder: Path, composite: Path, train: Sequence[ClipSpec], **options: Any) -> Path:
    """As `write_latents`, with another clip at row `BAD_ROW` whose only caption is NaN."""
    clips = [*train[:BAD_ROW], ClipSpec(26, (BAD_CAPTION,)), *train[BAD_ROW:]]
    captions = ("drums and bass", "a quiet flute", "broken")
    write_latents(folder, composite, clips, captions=captions, **options)
    texts = datasets.load_from_disk(str(folder / "captions"))
    rows = texts.to_list()
    rows[BAD_CAPTION]["states"] = np.full(len(rows[BAD_CAPTION]["states"]) // 2, np.nan, dtype="<f2").tobytes()
    features = texts.features
    del texts
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(folder / "again"))
    for path in sorted((folder / "again").iterdir()):
        path.replace(folder / "captions" / path.name)
    (folder / "again").rmdir()
    return folder

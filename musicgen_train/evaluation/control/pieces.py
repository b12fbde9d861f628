"""Captions for the control test: they name properties, and the music they were written for is known.

Axes: C channels, S samples.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from musicgen_train.evaluation.control.listener import Listener, PieceMaker
from musicgen_train.evaluation.model import EvaluatedModel
from musicgen_train.evaluation.requests import Request, dataset_requests, encode_texts
from musicgen_train.evaluation.split_clips import SplitClips


@dataclass(kw_only=True)
class ControlSet:
    """The requests of a control test.

    Args:
        requests: of kind "control".
        recordings: the music of each caption, float32 `(channels, samples)` at the codec's rate; None where only its
            codes are known, which are then the requests' references.
        source: where the captions come from, for the reader.
    """

    requests: list[Request]
    recordings: list[torch.Tensor] | None
    source: str


def fresh_pieces(
    listener: Listener,
    count: int,
    seed: int,
    samples: int,
    evaluated: EvaluatedModel,
) -> ControlSet:
    """Pieces that the listener makes on the spot, with their captions.

    Args:
        listener: who makes them.
        count: how many.
        seed: of the pieces; one that nothing was trained on.
        samples: length of the recordings at the codec's rate, that of what is generated.
        evaluated: the model, for the texts and the recordings' rate and channels.

    Raises:
        ValueError: the listener makes no pieces.
    """
    if not isinstance(listener, PieceMaker):
        raise ValueError(
            f"control.source=demo takes new pieces of the listener, but {type(listener).__name__} makes none; give "
            "control.source=dataset and data.path"
        )
    pieces = [
        listener.make_piece(seed, index, samples, evaluated.sampling_rate, evaluated.channels) for index in range(count)
    ]
    states = encode_texts([caption for caption, _ in pieces], evaluated.model, evaluated.text_source)
    requests = [
        Request(
            kind="control",
            index=index + 1,
            text=caption,
            states_LD=states[index],
            identity=f"control/{seed}/{index + 1}",
            title=caption,
            origin={"corpus_seed": seed, "corpus_index": index},
        )
        for index, (caption, _) in enumerate(pieces)
    ]
    recordings = [audio_CS for _, audio_CS in pieces]
    return ControlSet(requests=requests, recordings=recordings, source=f"{listener.corpus} (seed {seed})")


def dataset_clips(listener: Listener, clips: SplitClips, max_frames: int) -> ControlSet:
    """Clips of a dataset with their own captions; their codes, decoded, are the ceiling.

    Args:
        listener: who reads the captions.
        clips: the rows.
        max_frames: the clips are cut to this length, that of what is generated.

    Raises:
        ValueError: fewer than two of the clips are long enough and have a caption that names a property.
    """
    least = listener.shortest_seconds * clips.dataset.manifest.frame_rate
    naming = [
        request
        for request in dataset_requests(clips, max_frames=max_frames)
        if listener.requested(request.text) and _frames(request) >= least
    ]
    requests = [
        dataclasses.replace(request, kind="control", index=index, identity=f"control/{request.identity}")
        for index, request in enumerate(naming, start=1)
    ]
    if len(requests) < 2:
        properties = dict.fromkeys(name for criterion in listener.criteria for name in criterion.needs)
        raise ValueError(
            f"only {len(requests)} of {len(clips)} clips of the split {clips.dataset.split} last "
            f"{listener.shortest_seconds:g} s and have a caption that names something the control test can hear "
            f"({', '.join(properties)}); take more with control.clips, or the listener's own pieces with "
            "control.source=demo"
        )
    return ControlSet(requests=requests, recordings=None, source=f"clips of the split {clips.dataset.split}")


def _frames(request: Request) -> int:
    return 0 if request.reference_codes_KT is None else request.reference_codes_KT.shape[1]

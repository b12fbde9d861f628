"""What the control test generates: captions that name properties, with the music they were written for where it is
known.

Axes: C channels, S samples.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch

from musicgen_train.audio.analysis import SHORTEST_SECONDS
from musicgen_train.audio.io import resample, to_channels
from musicgen_train.demo.corpus import make_track
from musicgen_train.demo.hearing import requested
from musicgen_train.demo.synthesis import SAMPLE_RATE
from musicgen_train.evaluation.requests import Request, dataset_requests, encode_texts
from musicgen_train.evaluation.split_clips import SplitClips
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration


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

    @property
    def asked(self) -> list[dict[str, str]]:
        """What each caption asks for."""
        return [requested(request.text) for request in self.requests]


def fresh_pieces(
    count: int, seed: int, samples: int, model: MusicgenForConditionalGeneration, text_source: str
) -> ControlSet:
    """Pieces of the demo's corpus that are made on the spot, with the captions that name everything.

    Args:
        count: how many; styles take turns.
        seed: of the corpus; one that nothing was trained on.
        samples: length of the recordings at the codec's rate, that of what is generated.
        model: the composite, for the texts and the recordings' rate and channels.
        text_source: folder or hub id of its tokenizer.
    """
    rate, channels = model.config.audio_encoder.sampling_rate, model.config.decoder.audio_channels
    recordings, captions = [], []
    for index in range(count):
        # No shorter than what is cut off, whichever way the rates round.
        track = make_track(seed, index, math.ceil(samples / rate * 10) / 10, stereo=channels == 2)
        audio_CS = resample(torch.from_numpy(track.audio), SAMPLE_RATE, rate)
        recordings.append(to_channels(audio_CS, channels)[:, :samples])
        captions.append(track.description)
    requests = [
        Request(
            kind="control",
            index=index,
            text=text,
            states_LD=states_LD,
            identity=f"control/{seed}/{index}",
            title=text,
            origin={"corpus_seed": seed, "corpus_index": index - 1},
        )
        for index, (text, states_LD) in enumerate(
            zip(captions, encode_texts(captions, model, text_source), strict=True), start=1
        )
    ]
    return ControlSet(requests=requests, recordings=recordings, source=f"new pieces of the demo's corpus (seed {seed})")


def dataset_clips(clips: SplitClips, max_frames: int) -> ControlSet:
    """Clips of a dataset with their own captions; their codes, decoded, are the ceiling.

    Args:
        clips: the rows.
        max_frames: the clips are cut to this length, that of what is generated.

    Raises:
        ValueError: fewer than two of the clips are long enough and have a caption that names a property.
    """
    least = SHORTEST_SECONDS * clips.dataset.manifest.frame_rate
    naming = [
        request
        for request in dataset_requests(clips, max_frames=max_frames)
        if requested(request.text) and _frames(request) >= least
    ]
    requests = [
        dataclasses.replace(request, kind="control", index=index, identity=f"control/{request.identity}")
        for index, request in enumerate(naming, start=1)
    ]
    if len(requests) < 2:
        raise ValueError(
            f"only {len(requests)} of {len(clips)} clips of the split {clips.dataset.split} last "
            f"{SHORTEST_SECONDS:g} s and have a caption that names a tempo, a key, an instrument or another property "
            "that the control test can hear; take more with control.clips, or captions of the demo's corpus with "
            "control.source=demo"
        )
    return ControlSet(requests=requests, recordings=None, source=f"clips of the split {clips.dataset.split}")


def _frames(request: Request) -> int:
    return 0 if request.reference_codes_KT is None else request.reference_codes_KT.shape[1]

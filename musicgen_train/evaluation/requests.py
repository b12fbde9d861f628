"""Requests for samples: from prompts, clips of a dataset, no text at all, or as a continuation of audio.

Axes: K codebooks, T frames, P prompt frames, L text length, D text width, C channels, S samples.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from musicgen_train.audio.io import AUDIO_EXTENSIONS, AudioError, read_audio
from musicgen_train.data.latent_dataset import LatentDataset
from musicgen_train.evaluation.model import EvaluatedModel
from musicgen_train.evaluation.settings import EvaluationSettings
from musicgen_train.evaluation.split_clips import SplitClips, spread_clips
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration
from musicgen_train.processing.t5_tokenizer import T5Tokenizer

Kind = Literal["prompt", "unconditional", "dataset", "continuation", "control"]

_SLUG_LENGTH = 48


@dataclass(kw_only=True)
class Request:
    """One thing to generate, as often as there are guidance scales and repetitions."""

    kind: Kind
    index: int
    """From 1 on, among requests of its kind."""
    text: str
    """The prompt; "" is the null condition."""
    states_LD: torch.Tensor | None
    """The text encoder's states, without padding; None is the null condition."""
    identity: str
    """Decides its seed: the same whatever else is asked for."""
    title: str
    """The text that the file's name is made of."""
    prompt_codes_KP: torch.Tensor | None = None
    """Codes of the audio that is continued."""
    reference_codes_KT: torch.Tensor | None = None
    """Codes of the recording that the text belongs to, for comparison."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Where it comes from, for the record."""

    @property
    def prompt_frames(self) -> int:
        """Frames of the audio that is continued."""
        return 0 if self.prompt_codes_KP is None else self.prompt_codes_KP.shape[1]

    @property
    def file_stem(self) -> str:
        """`001-a-sad-piano`."""
        return f"{self.index:03d}-{slug(self.title)}"


def all_requests(
    settings: EvaluationSettings,
    evaluated: EvaluatedModel,
    dataset: LatentDataset | None,
    prompts: Sequence[str],
    files: Sequence[Path],
    new_frames: int,
) -> list[Request]:
    """Everything that the settings ask for but the control test.

    Args:
        settings: of the evaluation.
        evaluated: the model.
        dataset: for clips beside their recordings and for continuations; None where none is given.
        prompts: the lines of the prompts file.
        files: audio to continue.
        new_frames: how many frames are generated for each.
    """
    source = evaluated.text_source
    requests = text_requests(prompts, evaluated.model, source) + unconditional_requests(settings.unconditional)
    prompt_frames = max(1, round(settings.continuation.seconds * evaluated.frame_rate))
    continued: list[Request] = []
    if dataset is not None:
        clips = spread_clips(dataset, settings.data.rows, new_frames)
        requests += dataset_requests(clips, max_frames=new_frames)
        longest = prompt_frames + new_frames
        to_continue = spread_clips(dataset, settings.continuation.rows, longest)
        continued = dataset_requests(to_continue, max_frames=longest, prompt_frames=prompt_frames)
    if files:
        continued += continuation_requests(
            files,
            evaluated.model,
            seconds=settings.continuation.seconds,
            text=settings.continuation.text or "",
            source=source,
            first_index=len(continued) + 1,
        )
    return requests + continued


def read_prompts(path: str | Path) -> list[str]:
    """The lines of a text file, stripped; an empty one is the null condition.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, or no text.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"prompts={path} is no file; give a text file with a prompt on each line")
    try:
        # The signature that some editors put first is no part of the first prompt.
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts={path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not lines:
        raise ValueError(f"prompts={path} is empty; put a prompt on each line (an empty line is unconditional)")
    return [line.strip() for line in lines]


def text_requests(prompts: Sequence[str], model: MusicgenForConditionalGeneration, source: str) -> list[Request]:
    """One request per prompt; each text is encoded alone, so that the others do not change its states.

    Args:
        prompts: as `read_prompts` gives them.
        model: the composite.
        source: folder or hub id of its tokenizer.
    """
    states = encode_texts(prompts, model, source)
    seen: dict[str, int] = {}
    requests = []
    for index, (text, states_LD) in enumerate(zip(prompts, states, strict=True), start=1):
        # The same line again is another sample.
        seen[text] = seen.get(text, 0) + 1
        requests.append(
            Request(
                kind="prompt",
                index=index,
                text=text,
                states_LD=states_LD,
                identity=f"prompt/{seen[text]}/{text}",
                title=text or "unconditional",
                origin={"line": index},
            )
        )
    return requests


def unconditional_requests(count: int) -> list[Request]:
    """Requests under the null condition."""
    return [
        Request(
            kind="unconditional",
            index=index,
            text="",
            states_LD=None,
            identity=f"unconditional/{index}",
            title="unconditional",
        )
        for index in range(1, count + 1)
    ]


def dataset_requests(clips: SplitClips, *, max_frames: int, prompt_frames: int = 0) -> list[Request]:
    """The stored text of each clip, with its own codes as reference; with `prompt_frames`, as a continuation of it.

    Args:
        clips: the rows.
        max_frames: the reference is cut to this length, that of what is generated.
        prompt_frames: so many frames of the clip are given; 0 for its text alone. Clips without more are left out.
    """
    requests: list[Request] = []
    for number, row in enumerate(clips.rows):
        codes_KT, clip = clips.codes(number), clips.clip(number)
        if codes_KT.shape[1] <= prompt_frames:
            continue
        text = clips.caption(number)
        origin = {
            "split": clips.dataset.split,
            "row": row,
            "track": clip.track,
            "start_seconds": clip.start_seconds,
            "caption": clip.captions[0] if clip.captions else None,
        }
        requests.append(
            Request(
                kind="continuation" if prompt_frames else "dataset",
                index=len(requests) + 1,
                text=text,
                states_LD=clips.states(number),
                identity=f"dataset/{clip.track}/{clip.start_seconds:g}/{prompt_frames}",
                title=text or Path(clip.track).stem,
                prompt_codes_KP=codes_KT[:, :prompt_frames] if prompt_frames else None,
                reference_codes_KT=codes_KT[:, :max_frames],
                origin=origin,
            )
        )
    return requests


def continuation_requests(
    files: Sequence[Path],
    model: MusicgenForConditionalGeneration,
    *,
    seconds: float,
    text: str,
    source: str,
    first_index: int = 1,
) -> list[Request]:
    """Continuations of audio files.

    Args:
        files: the audio.
        model: the composite, whose codec encodes it.
        seconds: so much of the beginning is given, in whole frames.
        text: the prompt of all of them.
        source: folder or hub id of the tokenizer.
        first_index: the number of the first request.

    Raises:
        ValueError: a file cannot be read as audio, or is shorter than one frame of codes.
    """
    (states_LD,) = encode_texts([text], model, source)
    codec = model.config.audio_encoder
    requests = []
    for index, file in enumerate(files, start=first_index):
        try:
            audio_CS, _ = read_audio(
                file, sampling_rate=codec.sampling_rate, channels=model.config.decoder.audio_channels
            )
        except AudioError as error:
            raise ValueError(f"{file} cannot be continued: {error}") from error
        # Whole frames: the last one of others would be half silence.
        frames = int(min(seconds * codec.sampling_rate, audio_CS.shape[1])) // codec.hop_length
        if frames < 1:
            raise ValueError(f"{file} cannot be continued: it is shorter than {codec.hop_length} samples")
        codes, _ = model.encode_audio(audio_CS[None, :, : frames * codec.hop_length].to(model.device, model.dtype))
        requests.append(
            Request(
                kind="continuation",
                index=index,
                text=text,
                states_LD=states_LD,
                identity=f"continuation/{file.name}/{frames}/{text}",
                title=file.stem,
                prompt_codes_KP=codes[0].cpu(),
                origin={"file": str(file)},
            )
        )
    return requests


@torch.no_grad()
def encode_texts(
    texts: Sequence[str], model: MusicgenForConditionalGeneration, source: str
) -> list[torch.Tensor | None]:
    """Text states `(L, D)` of each text, on the CPU; None for "", which is the null condition.

    The processor alone would give "" one token, its end, which a model was not trained on as "no text".
    """
    if not any(texts):
        return [None] * len(texts)
    tokenizer = T5Tokenizer.from_pretrained(source)
    states: list[torch.Tensor | None] = []
    for text in texts:
        if not text:
            states.append(None)
            continue
        tokens = tokenizer([text], return_tensors="pt").to(model.device)
        encoded = model.text_encoder(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        states.append(encoded.last_hidden_state[0].float().cpu())
    return states


def audio_files(given: Sequence[str]) -> list[Path]:
    """Audio files by path; a folder stands for those in it, sorted by name.

    Raises:
        FileNotFoundError: a path is neither a file nor a folder, or a folder has no audio files.
    """
    files: list[Path] = []
    for name in given:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in AUDIO_EXTENSIONS)
            if not inside:
                raise FileNotFoundError(f"the folder {path} has no audio files")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f"{path} is neither an audio file nor a folder of them")
    return files


def slug(text: str) -> str:
    """Turn any text into a part of a file name: lower-case letters, digits and dashes, never empty."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return words[:_SLUG_LENGTH].strip("-") or "sample"

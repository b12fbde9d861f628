"""What is asked for: prompts, files, rows, and the names of what comes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_world import CAPTIONS, World

from musicgen_train import MusicgenProcessor
from musicgen_train.audio.io import write_audio
from musicgen_train.data.latent_dataset import LatentDataset
from musicgen_train.evaluation.requests import (
    audio_files,
    continuation_requests,
    dataset_requests,
    read_prompts,
    slug,
    text_requests,
    unconditional_requests,
)
from musicgen_train.evaluation.split_clips import SplitClips


def test_lines_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeff a sad piano \r\n\r\nété 日本\n".encode())
    assert read_prompts(file) == ["a sad piano", "", "été 日本"]
    file.write_text("\n")
    assert read_prompts(file) == [""]


def test_files_that_are_no_prompts(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no file; give a text file"):
        read_prompts(tmp_path / "missing.txt")
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(ValueError, match="is empty; put a prompt on each line"):
        read_prompts(tmp_path / "empty.txt")
    (tmp_path / "song.wav").write_bytes(b"RIFF\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_prompts(tmp_path / "song.wav")


@torch.no_grad()
def test_texts_are_encoded_and_empty_ones_are_null(world: World) -> None:
    requests = text_requests(["jazz guitar", "", "lofi"], world.model, str(world.composite))
    assert [request.file_stem for request in requests] == ["001-jazz-guitar", "002-unconditional", "003-lofi"]
    assert requests[1].states_LD is None
    tokens = MusicgenProcessor.from_pretrained(world.composite)(text=["jazz guitar"], return_tensors="pt")
    expected = world.model.text_encoder(**tokens).last_hidden_state[0]
    torch.testing.assert_close(requests[0].states_LD, expected)


def test_a_line_twice_is_two_samples_and_other_lines_change_nothing(world: World) -> None:
    alone = text_requests(["lofi"], world.model, str(world.composite))
    among = text_requests(["jazz", "lofi", "", "lofi"], world.model, str(world.composite))
    assert among[1].identity == alone[0].identity != among[3].identity


def test_rows_of_a_dataset(world: World) -> None:
    clips = SplitClips(LatentDataset(world.latents, "validation"), [0, 2, 3], 1000)
    requests = dataset_requests(clips, max_frames=19)
    assert [request.text for request in requests] == [CAPTIONS[0], "", CAPTIONS[2]]
    assert [request.file_stem for request in requests] == ["001-jazz-guitar", "002-track-2", "003-a-drum-solo-120-bpm"]
    assert requests[1].states_LD is None
    assert requests[2].origin == {
        "split": "validation",
        "row": 3,
        "track": "folder/track 3.wav",
        "start_seconds": 1.5,
        "caption": 2,
    }
    assert all(request.reference_codes_KT is not None for request in requests)
    assert torch.equal(requests[0].reference_codes_KT, world.clips[0][:, :19])  # type: ignore[arg-type]
    assert torch.equal(requests[1].reference_codes_KT, world.clips[2])  # type: ignore[arg-type]
    assert [request.prompt_frames for request in requests] == [0, 0, 0]


def test_clips_to_go_on_from(world: World) -> None:
    clips = SplitClips(LatentDataset(world.latents, "validation"), range(5), 1000)
    requests = dataset_requests(clips, max_frames=29, prompt_frames=17)
    # The clip of 17 frames has nothing beyond its prompt to compare with.
    assert [request.origin["row"] for request in requests] == [0, 1, 3, 4]
    assert [request.index for request in requests] == [1, 2, 3, 4]
    assert {request.kind for request in requests} == {"continuation"}
    assert torch.equal(requests[1].prompt_codes_KP, world.clips[1][:, :17])  # type: ignore[arg-type]


def test_audio_to_go_on_from(world: World, tmp_path: Path) -> None:
    audio = 0.5 * torch.sin(torch.arange(200) / 3)[None]
    write_audio(tmp_path / "a loop.wav", audio, 320)
    write_audio(tmp_path / "b.flac", audio, 640)
    files = audio_files([str(tmp_path)])
    assert [file.name for file in files] == ["a loop.wav", "b.flac"]
    requests = continuation_requests(files, world.model, seconds=0.33, text="lofi", source=str(world.composite))
    # 0.33 s are 105 samples of 320 Hz, that is 13 whole frames of 8.
    assert [request.prompt_frames for request in requests] == [13, 12]
    expected, _ = world.model.encode_audio((audio * 32767).round()[None, :, :104] / 32768)
    assert torch.equal(requests[0].prompt_codes_KP, expected[0])  # type: ignore[arg-type]
    assert requests[0].file_stem == "001-a-loop"
    assert requests[0].text == "lofi"
    assert requests[0].states_LD is not None


def test_audio_that_cannot_be_continued(world: World, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither an audio file nor a folder"):
        audio_files([str(tmp_path / "missing.wav")])
    with pytest.raises(FileNotFoundError, match="has no audio files"):
        audio_files([str(tmp_path)])
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(ValueError, match=r"text.wav cannot be continued: it cannot be decoded"):
        continuation_requests([tmp_path / "text.wav"], world.model, seconds=1, text="", source="")
    write_audio(tmp_path / "short.wav", torch.zeros(1, 7), 320)
    with pytest.raises(ValueError, match="shorter than 8 samples"):
        continuation_requests([tmp_path / "short.wav"], world.model, seconds=1, text="", source="")


def test_unconditional() -> None:
    requests = unconditional_requests(2)
    assert [request.file_stem for request in requests] == ["001-unconditional", "002-unconditional"]
    assert [request.states_LD for request in requests] == [None, None]
    assert requests[0].identity != requests[1].identity


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A sad, slow piano!", "a-sad-slow-piano"),
        ("../../etc/passwd", "etc-passwd"),
        ("été à Zürich", "ete-a-zurich"),
        ("日本", "sample"),
        ("", "sample"),
        ("x" * 45 + " yyyy", "x" * 45 + "-yy"),
        ("x" * 47 + " y", "x" * 47),
    ],
)
def test_names_are_safe(text: str, expected: str) -> None:
    assert slug(text) == expected

"""Tests reading and writing sound against soundfile, torchaudio and values worked out by hand."""

from __future__ import annotations

import io
import math
import shutil
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from musicgen_train.audio import io as audio_io
from musicgen_train.audio.io import AudioError, read_audio, read_header, resample, to_channels, write_audio


def sine(seconds: float, rate: int, pitch: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(
    ("suffix", "subtype", "rate", "tolerance"),
    [
        ("wav", "PCM_U8", 8_000, 1 / 128),
        ("wav", "PCM_16", 44_100, 1 / 32768),
        ("wav", "PCM_24", 192_000, 1e-6),
        ("wav", "DOUBLE", 22_050, 1e-7),
        ("flac", "PCM_16", 96_000, 1 / 32768),
        ("aiff", "PCM_16", 16_000, 1 / 32768),
        ("ogg", "VORBIS", 44_100, 0.05),
        ("mp3", "MPEG_LAYER_III", 48_000, 0.05),
    ],
)
def test_formats_on_a_bare_machine(tmp_path: Path, suffix: str, subtype: str, rate: int, tolerance: float) -> None:
    samples = np.stack([sine(0.3, rate), sine(0.3, rate, 550.0)], axis=1)
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, samples, rate, subtype=subtype)
    for source in (path, path.read_bytes()):
        audio, found = read_audio(source)
        assert (found, audio.dtype, audio.shape[0]) == (rate, torch.float32, 2)
        assert abs(audio.shape[1] - len(samples)) <= (0 if suffix != "mp3" else 2500)
        inner = slice(2000, len(samples) - 2000) if suffix == "mp3" else slice(None)
        assert np.abs(audio.numpy().T[: len(samples)][inner] - samples[inner]).max() <= tolerance
        header = read_header(source)
        assert (header.sampling_rate, header.channels) == (rate, 2)
        assert header.seconds == pytest.approx(audio.shape[1] / rate, abs=0.06)


def test_a_long_file_comes_whole_from_its_blocks(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (100_003, 3)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 8000, subtype="FLOAT")
    assert np.array_equal(read_audio(tmp_path / "a.wav")[0].numpy(), samples.T)
    mono = read_audio(tmp_path / "a.wav", channels=1)[0]
    assert torch.allclose(mono, to_channels(torch.from_numpy(samples.T.copy()), 1), atol=1e-6)


def test_rate_and_channels_on_request(tmp_path: Path) -> None:
    samples = np.stack([sine(1.0, 44_100), np.zeros(44_100, np.float32)], axis=1)
    soundfile.write(tmp_path / "a.wav", samples, 44_100, subtype="FLOAT")
    audio, rate = read_audio(tmp_path / "a.wav", sampling_rate=32_000, channels=1)
    expected = torchaudio.functional.resample(torch.from_numpy(samples.mean(axis=1)), 44_100, 32_000)
    assert rate == 32_000
    assert torch.allclose(audio[0], expected, atol=1e-6)


def test_what_is_no_audio_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.mp3").write_text("hello, this is no sound at all")
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 1), np.float32), 8000)
    (tmp_path / "junk.m4a").write_bytes(b"\x00" * 100)
    for name, reason in (
        ("empty.wav", "the file is empty"),
        ("none.wav", "it has a header and no samples"),
        ("text.mp3", "it cannot be decoded: "),
        ("gone.wav", "it cannot be opened: No such file or directory"),
    ):
        for read in (read_audio, read_header):
            with pytest.raises(AudioError, match=reason):
                read(tmp_path / name)
    with pytest.raises(AudioError, match="the file is empty"):
        read_audio(b"")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    samples = np.stack([sine(0.1, 8000)] * 2, axis=1)
    samples[3, 1] = samples[5, 0] = value
    soundfile.write(tmp_path / "a.wav", samples, 8000, subtype="FLOAT")
    with pytest.raises(AudioError, match="2 samples are NaN or infinite"):
        read_audio(tmp_path / "a.wav")


def test_sound_before_a_damaged_place_is_kept(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 120_000)
    soundfile.write(tmp_path / "a.flac", samples, 8000)
    content = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(content[: len(content) * 3 // 4])
    audio, _ = read_audio(tmp_path / "a.flac")
    assert 0.4 * 120_000 < audio.shape[1] < 0.8 * 120_000
    assert np.abs(audio[0].numpy() - samples[: audio.shape[1]]).max() <= 1 / 32768


def test_files_for_ffmpeg_say_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_io, "_has_torchcodec", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (tmp_path / "a.m4a").write_bytes(b"\x00" * 100)
    for read in (read_audio, read_header):
        with pytest.raises(AudioError, match=r"\.m4a files need torchcodec or the ffmpeg command"):
            read(tmp_path / "a.m4a")


FFMPEG = """#!{python}
import json, struct, sys
arguments = sys.argv[1:]
name = arguments[arguments.index("-i") + 1] if "-i" in arguments else arguments[-1]
if "broken" in name:
    sys.exit("moov atom not found")
if sys.argv[0].endswith("ffprobe"):
    print(json.dumps({{"streams": [{{"sample_rate": "16000", "channels": 2}}], "format": {{"duration": "0.000125"}}}}))
else:
    sys.stdout.buffer.write(struct.pack("<4f", 0.5, -0.5, 0.25, -1.0))
"""


def test_the_ffmpeg_command_reads_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a stand-in for the command, which a bare machine lacks: checks its arguments and how its output is read."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("ffmpeg", "ffprobe"):
        (tools / name).write_text(FFMPEG.format(python=sys.executable))
        (tools / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr(audio_io, "_has_torchcodec", lambda: False)
    for name in ("a.m4a", "broken.m4a"):
        (tmp_path / name).write_bytes(b"\x00" * 100)
    audio, rate = read_audio(tmp_path / "a.m4a")
    assert rate == 16_000
    assert audio.tolist() == [[0.5, 0.25], [-0.5, -1.0]]
    assert read_audio(tmp_path / "a.m4a", channels=1)[0].tolist() == [[0.0, -0.375]]
    assert read_header(tmp_path / "a.m4a").seconds == 0.000125
    with pytest.raises(AudioError, match="ffprobe: moov atom not found"):
        read_audio(tmp_path / "broken.m4a")


def test_downmix_by_hand() -> None:
    half = math.sqrt(0.5)
    # One channel of 5.1 at a time: L, R, C, LFE, Ls, Rs.
    stereo = to_channels(torch.eye(6), 2) * (1 + 2 * half)
    expected = torch.tensor([[1, 0, half, 0, half, 0], [0, 1, half, 0, 0, half]])
    assert torch.allclose(stereo, expected)
    assert torch.allclose(to_channels(torch.eye(6), 1), to_channels(torch.eye(6), 2).mean(0, keepdim=True))
    assert torch.equal(to_channels(torch.tensor([[1.0, 2.0]]), 2), torch.tensor([[1.0, 2.0], [1.0, 2.0]]))
    assert torch.equal(to_channels(torch.tensor([[1.0], [0.0]]), 1), torch.tensor([[0.5]]))


@pytest.mark.parametrize("given", [1, 2, 3, 4, 5, 6, 7, 8, 11])
@pytest.mark.parametrize("wanted", [1, 2])
def test_no_mix_is_louder_than_its_loudest_channel(given: int, wanted: int) -> None:
    mixed = to_channels(torch.ones(given, 5), wanted)
    assert mixed.shape == (wanted, 5)
    assert torch.allclose(mixed, torch.ones(wanted, 5))


def test_only_mono_and_stereo_are_mixed_to() -> None:
    with pytest.raises(ValueError, match=r"channels is 3; allowed are 1 \(mono\) and 2 \(stereo\)"):
        to_channels(torch.ones(1, 2), 3)


@pytest.mark.parametrize(("rate", "new_rate"), [(44_100, 32_000), (44_099, 32_000), (32_000, 44_099), (8_000, 32_003)])
def test_resampling_keeps_a_tone(rate: int, new_rate: int) -> None:
    audio = torch.from_numpy(sine(1.3, rate))[None]
    found = resample(audio, rate, new_rate)[0].numpy()
    assert len(found) == math.ceil(audio.shape[1] * new_rate / rate)
    expected = sine(len(found) / new_rate, new_rate)[: len(found)]
    # The ends see silence beyond them.
    inner = slice(new_rate // 10, -new_rate // 10)
    assert np.abs(found[inner] - expected[inner]).max() < 3e-3


def test_resampling_through_the_spectrum_removes_what_is_too_high() -> None:
    high = torch.from_numpy(sine(1.0, 44_099, pitch=18_000.0))[None]
    found = resample(high, 44_099, 32_000)
    assert found[0, 3200:-3200].abs().max() < 1e-3


def test_rates_must_be_positive() -> None:
    with pytest.raises(ValueError, match="sampling rates must be positive, got 8000 and 0 Hz"):
        resample(torch.ones(1, 9), 8000, 0)


def test_written_audio_is_sixteen_bits_and_as_loud_as_given(tmp_path: Path) -> None:
    audio = torch.from_numpy(np.stack([sine(0.2, 8000), -sine(0.2, 8000, 300.0)]))
    assert write_audio(tmp_path / "a.wav", audio, 8000) == 1.0
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"
    again, rate = read_audio(tmp_path / "a.wav")
    assert rate == 8000
    assert (again - audio).abs().max() < 1e-4
    write_audio(tmp_path / "mono.flac", audio[0], 8000)
    assert read_audio(tmp_path / "mono.flac")[0].shape == (1, 1600)


def test_audio_beyond_full_scale_is_turned_down_not_clipped(tmp_path: Path) -> None:
    audio = 3.0 * torch.from_numpy(sine(0.2, 8000))
    gain = write_audio(tmp_path / "a.wav", audio, 8000)
    assert gain == pytest.approx(1 / float(audio.abs().max()))
    samples, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert np.abs(samples).max() == 32767
    assert np.abs(samples / 32767 - audio.numpy() * gain).max() < 1e-4


def test_loudness_on_request(tmp_path: Path) -> None:
    audio = 0.02 * torch.from_numpy(sine(2.0, 32_000, 997.0))
    write_audio(tmp_path / "a.wav", audio, 32_000, loudness=-23.0)
    # By the standard a full-scale tone of 997 Hz in one channel measures -3.01 LUFS.
    samples, _ = soundfile.read(tmp_path / "a.wav")
    assert 20 * math.log10(np.abs(samples).max()) == pytest.approx(-23.0 + 3.01, abs=0.1)
    write_audio(tmp_path / "b.wav", audio, 32_000, loudness=+20.0)
    assert np.abs(soundfile.read(tmp_path / "b.wav", dtype="int16")[0]).max() == 32767
    assert write_audio(tmp_path / "c.wav", torch.zeros(1, 32_000), 32_000, loudness=-16.0) == 1.0


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"audio is \[0\]|audio is \[1, 0\]"):
        write_audio(tmp_path / "a.wav", torch.zeros(0), 8000)
    with pytest.raises(ValueError, match="samples are NaN or infinite"):
        write_audio(tmp_path / "a.wav", torch.tensor([0.0, math.nan]), 8000)
    with pytest.raises(OSError, match="cannot be written"):
        write_audio(tmp_path / "nowhere" / "a.wav", torch.zeros(9), 8000)
    assert list(tmp_path.iterdir()) == []


def test_bytes_are_read_like_files() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, sine(0.1, 8000), 8000, format="WAV")
    assert read_audio(buffer.getvalue())[0].shape == (1, 800)

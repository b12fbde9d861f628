"""Reads audio files with what the machine has, converts channels and sampling rates, and writes 16-bit files.

libsndfile (through `soundfile`, which brings it along) reads WAV, FLAC, OGG, Opus, MP3, AIFF and more everywhere.
What it cannot read is decoded by torchcodec if that is installed, else by the `ffmpeg` command if there is one.

Axes: C channels, S samples.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import json
import math
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

# libsndfile reads the first on any machine; the others need torchcodec or ffmpeg.
# fmt: off
NATIVE_EXTENSIONS = frozenset({
    ".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64",
    ".rf64",
})
OTHER_EXTENSIONS = frozenset({".m4a", ".aac", ".wma", ".mka", ".ac3", ".eac3", ".amr", ".wv", ".tta", ".ape"})
# fmt: on
AUDIO_EXTENSIONS = NATIVE_EXTENSIONS | OTHER_EXTENSIONS

# This many frames are decoded at a time: a file of many channels is never in memory with all of them, and a damaged
# place costs no more than this many frames before it.
_BLOCK = 1 << 15
# torchaudio's table of filters is used up to this many numbers (64 MB); `resample` takes another way above it.
_LARGEST_FILTER = 1 << 24
_HALF = math.sqrt(0.5)
# Loudspeaker layouts by number of channels, in the order of WAV and FLAC: each channel's part in left and right.
# ITU-R BS.775 puts centre and surrounds in at -3 dB and leaves the low-frequency channel out.
_LEFT, _RIGHT, _CENTRE, _NOTHING = (1.0, 0.0), (0.0, 1.0), (_HALF, _HALF), (0.0, 0.0)
_SIDE_LEFT, _SIDE_RIGHT, _BACK = (_HALF, 0.0), (0.0, _HALF), (0.5, 0.5)
_DOWNMIX = {
    3: (_LEFT, _RIGHT, _CENTRE),
    4: (_LEFT, _RIGHT, _SIDE_LEFT, _SIDE_RIGHT),
    5: (_LEFT, _RIGHT, _CENTRE, _SIDE_LEFT, _SIDE_RIGHT),
    6: (_LEFT, _RIGHT, _CENTRE, _NOTHING, _SIDE_LEFT, _SIDE_RIGHT),
    7: (_LEFT, _RIGHT, _CENTRE, _NOTHING, _BACK, _SIDE_LEFT, _SIDE_RIGHT),
    8: (_LEFT, _RIGHT, _CENTRE, _NOTHING, _SIDE_LEFT, _SIDE_RIGHT, _SIDE_LEFT, _SIDE_RIGHT),
}


class AudioError(ValueError):
    """Raised for a file that cannot be used as audio; the message is the reason, without the file's name."""


@dataclass(frozen=True, kw_only=True)
class AudioInfo:
    """Holds what a file's header says."""

    seconds: float
    sampling_rate: int
    channels: int


def read_audio(
    source: str | os.PathLike[str] | bytes, *, sampling_rate: int | None = None, channels: int | None = None
) -> tuple[torch.Tensor, int]:
    """Decode a whole file.

    Args:
        source: a path, or the bytes of an encoded file.
        sampling_rate: resample to this rate, in Hz; None keeps the file's rate.
        channels: 1 or 2, to mix down or to copy mono to both sides (see `to_channels`); None keeps the file's channels.

    Returns:
        The audio, float32 `(channels, samples)` with at least one sample, all finite; and its rate in Hz. Full scale is
        1; files of floating-point samples may exceed it.

    Raises:
        AudioError: nothing in it can be decoded, it holds no samples, or some are NaN or infinite.
        ValueError: `channels` is neither 1 nor 2, or `sampling_rate` is not positive.
    """
    audio_CS, rate = _decode(source, channels)
    if audio_CS.shape[-1] == 0:
        raise AudioError("it has a header and no samples")
    # If any value is not finite, the least or the largest is not, either.
    if not torch.stack(torch.aminmax(audio_CS)).isfinite().all():
        raise AudioError(f"{int((~audio_CS.isfinite()).sum())} samples are NaN or infinite")
    if sampling_rate is not None:
        audio_CS = resample(audio_CS, rate, sampling_rate)
        rate = sampling_rate
    return audio_CS, rate


def read_header(source: str | os.PathLike[str] | bytes) -> AudioInfo:
    """Read length, rate and channels from the header, without decoding.

    Raises:
        AudioError: this machine cannot read it as audio, or the header says that it has no samples.
    """
    import soundfile

    _check_size(source)
    try:
        found = soundfile.info(_for_soundfile(source))
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        return _header_by_ffprobe(source, _reason(error, source))
    if found.frames <= 0:
        raise AudioError("it has a header and no samples")
    return AudioInfo(seconds=found.frames / found.samplerate, sampling_rate=found.samplerate, channels=found.channels)


def to_channels(audio_CS: torch.Tensor, channels: int) -> torch.Tensor:
    """Convert any number of channels to mono or stereo, never louder than the loudest channel.

    Mono is the mean of left and right; a single channel is copied to both sides. 3 to 8 channels are taken for the
    usual loudspeaker layouts (5.1 is L, R, C, LFE, Ls, Rs) and mixed to stereo as ITU-R BS.775 says, divided by the sum
    of the factors. More than 8 have unknown places, so each side is their mean.

    Args:
        audio_CS: `(any channels, samples)`.
        channels: 1 or 2.
    """
    if channels not in (1, 2):
        raise ValueError(f"channels is {channels}; allowed are 1 (mono) and 2 (stereo)")
    given = audio_CS.shape[0]
    if given == channels:
        return audio_CS
    if given == 1:
        return audio_CS.expand(2, -1)
    if given > 2:
        weights = torch.tensor(_DOWNMIX.get(given, ((1.0, 1.0),) * given), dtype=audio_CS.dtype).T
        audio_CS = (weights / weights.sum(dim=1, keepdim=True)) @ audio_CS
    # Half of the sum is the mean, which torch takes twenty times as long for where samples of both sides alternate.
    return audio_CS if channels == 2 else (audio_CS[:1] + audio_CS[1:]) / 2


def resample(audio_CS: torch.Tensor, rate: int, new_rate: int) -> torch.Tensor:
    """Resample to `ceil(samples * new_rate / rate)` samples with `torchaudio.functional.resample`.

    For two rates with next to no common divisor (44099 and 32000) torchaudio would build a table of gigabytes, so they
    are resampled through the spectrum instead.

    Raises:
        ValueError: a rate is not positive.
    """
    if rate <= 0 or new_rate <= 0:
        raise ValueError(f"sampling rates must be positive, got {rate} and {new_rate} Hz")
    if rate == new_rate:
        return audio_CS
    divisor = math.gcd(rate, new_rate)
    # torchaudio makes one filter per output phase, each at least as long as one period of the input.
    if (rate // divisor) * (new_rate // divisor) > _LARGEST_FILTER:
        return _resample_spectrum(audio_CS, rate // divisor, new_rate // divisor)
    import torchaudio

    resampled: torch.Tensor = torchaudio.functional.resample(audio_CS, rate, new_rate)
    return resampled


def write_audio(
    path: str | os.PathLike[str], audio_CS: torch.Tensor, sampling_rate: int, *, loudness: float | None = None
) -> float:
    """Write 16-bit audio that never clips, in the format of the suffix: `.wav`, `.flac`.

    Args:
        path: the file.
        audio_CS: floating-point `(channels, samples)` or `(samples,)`, full scale 1, on any device.
        sampling_rate: in Hz.
        loudness: bring it to this integrated loudness in LUFS (ITU-R BS.1770) as far as the peaks allow, e.g. -16;
            without it the level is only turned down, and only where a peak exceeds full scale.

    Returns:
        The factor that the audio was multiplied by.

    Raises:
        ValueError: another shape, no samples, or samples that are NaN or infinite.
        OSError: the file cannot be written.
    """
    import soundfile

    audio_CS = audio_CS.detach().to("cpu", torch.float32)
    audio_CS = audio_CS[None] if audio_CS.dim() == 1 else audio_CS
    if audio_CS.dim() != 2 or audio_CS.numel() == 0:
        raise ValueError(f"audio is {list(audio_CS.shape)}; expected (channels, samples), at least one of each")
    if not audio_CS.isfinite().all():
        raise ValueError(f"{path} was not written: samples are NaN or infinite")
    gain = 1.0 if loudness is None else _loudness_gain(audio_CS, sampling_rate, loudness)
    peak = float(audio_CS.abs().max()) * gain
    gain = gain / peak if peak > 1.0 else gain
    try:
        # +-32767 and no dither: the loudest sample of a scaled file must not wrap.
        scaled = (audio_CS * (gain * 32767)).round().clamp(-32767, 32767).to(torch.int16)
        soundfile.write(os.fspath(path), scaled.T.contiguous().numpy(), sampling_rate, subtype="PCM_16")
    except soundfile.LibsndfileError as error:
        raise OSError(f"{path} cannot be written: {error.error_string}") from error
    return gain


def _decode(source: str | os.PathLike[str] | bytes, channels: int | None) -> tuple[torch.Tensor, int]:
    import soundfile

    _check_size(source)
    blocks: list[torch.Tensor] = []
    try:
        with soundfile.SoundFile(_for_soundfile(source)) as file:
            rate = int(file.samplerate)
            while len(frames_SC := file.read(_BLOCK, dtype="float32", always_2d=True)):
                block_CS = torch.from_numpy(frames_SC.T)
                blocks.append(block_CS if channels is None else to_channels(block_CS, channels))
            empty = torch.zeros(channels or file.channels, 0)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        if blocks:
            # The sound before a damaged place is kept; nothing can read the rest of the file.
            return torch.cat(blocks, dim=1), rate
        audio_CS, rate = _decode_otherwise(source, _reason(error, source))
        return (audio_CS if channels is None else to_channels(audio_CS, channels)), rate
    return torch.cat(blocks, dim=1).contiguous() if blocks else empty, rate


def _for_soundfile(source: str | os.PathLike[str] | bytes) -> io.BytesIO | bytes | str:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    # Given as bytes, since soundfile does not encode names that are not UTF-8; on Windows names are always text.
    return os.fspath(source) if os.name == "nt" else os.fsencode(source)


def _decode_otherwise(source: str | os.PathLike[str] | bytes, reason: str) -> tuple[torch.Tensor, int]:
    if _has_torchcodec():
        try:
            decoded = _torchcodec_decoder(source).get_all_samples()
        except (RuntimeError, ValueError) as error:
            raise AudioError(_one_line(error)) from error
        return decoded.data.to(torch.float32), int(decoded.sample_rate)
    if shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None:
        raise AudioError(reason)
    found = _header_by_ffprobe(source, reason)
    raw = _run_ffmpeg(
        ["ffmpeg", "-nostdin", "-v", "error", "-i", _ffmpeg_name(source), "-map", "0:a:0", "-f", "f32le", "-"], source
    )
    samples = np.frombuffer(raw, dtype="<f4").reshape(-1, found.channels)
    return torch.from_numpy(samples.T.copy()), found.sampling_rate


def _header_by_ffprobe(source: str | os.PathLike[str] | bytes, reason: str) -> AudioInfo:
    if shutil.which("ffprobe") is None:
        if _has_torchcodec():
            try:
                metadata = _torchcodec_decoder(source).metadata
            except (RuntimeError, ValueError) as error:
                raise AudioError(_one_line(error)) from error
            return AudioInfo(
                seconds=float(metadata.duration_seconds or 0.0),
                sampling_rate=int(metadata.sample_rate or 0),
                channels=int(metadata.num_channels or 0),
            )
        raise AudioError(reason)
    asked = "format=duration:stream=sample_rate,channels,duration"
    command = ["ffprobe", "-v", "error", "-select_streams", "a:0", "-show_entries", asked, "-of", "json"]
    answer: dict[str, Any] = json.loads(_run_ffmpeg([*command, _ffmpeg_name(source)], source) or b"{}")
    streams = answer.get("streams") or []
    if not streams:
        raise AudioError("ffmpeg finds no sound in it")
    length = streams[0].get("duration") or answer.get("format", {}).get("duration") or 0.0
    return AudioInfo(
        seconds=0.0 if length == "N/A" else float(length),
        sampling_rate=int(streams[0]["sample_rate"]),
        channels=int(streams[0]["channels"]),
    )


def _run_ffmpeg(command: list[str], source: str | os.PathLike[str] | bytes) -> bytes:
    done = subprocess.run(command, input=source if isinstance(source, bytes) else b"", capture_output=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise AudioError(f"{command[0]}: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return done.stdout


def _ffmpeg_name(source: str | os.PathLike[str] | bytes) -> str:
    # "file:" keeps names with a colon or a leading dash from being read as a protocol or an option.
    return "pipe:0" if isinstance(source, bytes) else f"file:{os.fspath(source)}"


def _torchcodec_decoder(source: str | os.PathLike[str] | bytes) -> Any:
    decoders = importlib.import_module("torchcodec.decoders")
    return decoders.AudioDecoder(source if isinstance(source, bytes) else os.fspath(source))


@functools.cache
def _has_torchcodec() -> bool:
    if importlib.util.find_spec("torchcodec") is None:
        return False
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, RuntimeError, OSError):
        # It is installed but does not find the FFmpeg libraries or does not fit this torch: as good as absent.
        return False
    return True


def _check_size(source: str | os.PathLike[str] | bytes) -> None:
    if isinstance(source, bytes):
        size = len(source)
    else:
        try:
            size = os.stat(source).st_size
        except OSError as error:
            raise AudioError(f"it cannot be opened: {error.strerror}") from error
    if size == 0:
        raise AudioError("the file is empty")


def _reason(error: Exception, source: str | os.PathLike[str] | bytes) -> str:
    import soundfile

    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else _one_line(error)
    extension = "" if isinstance(source, bytes) else Path(os.fspath(source)).suffix.lower()
    if extension in OTHER_EXTENSIONS:
        return f"{extension} files need torchcodec or the ffmpeg command, and this machine has neither"
    return f"it cannot be decoded: {text.strip().rstrip('.')}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _resample_spectrum(audio_CS: torch.Tensor, rate: int, new_rate: int) -> torch.Tensor:
    """Resample through the spectrum; the rates have no common divisor left.

    A whole number of periods goes in, hence a whole number of samples comes out, and silence of at least one period
    at either end keeps the ends from meeting.
    """
    samples = audio_CS.shape[-1]
    periods = -(-samples // rate) + 2
    padded = torch.nn.functional.pad(audio_CS.double(), (rate, periods * rate - rate - samples))
    spectrum = torch.fft.rfft(padded)
    length = periods * new_rate
    bins = min(spectrum.shape[-1], length // 2 + 1)
    kept = torch.zeros(*spectrum.shape[:-1], length // 2 + 1, dtype=spectrum.dtype)
    kept[..., :bins] = spectrum[..., :bins]
    resampled = torch.fft.irfft(kept, n=length) * (new_rate / rate)
    return resampled[..., new_rate : new_rate + math.ceil(samples * new_rate / rate)].to(audio_CS.dtype)


def _loudness_gain(audio_CS: torch.Tensor, sampling_rate: int, target: float) -> float:
    import torchaudio

    # BS.1770 measures blocks of 0.4 s; silence and shorter sounds have no loudness.
    if audio_CS.shape[-1] < 0.4 * sampling_rate:
        return 1.0
    measured = float(torchaudio.functional.loudness(audio_CS, sampling_rate))
    return 10 ** ((target - measured) / 20) if math.isfinite(measured) else 1.0

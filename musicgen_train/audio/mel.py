"""Computes log-mel spectrograms and draws them as PNG files.

Axes: C channels, M mel bands, F frames of the spectrogram.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torchaudio.functional import melscale_fbanks

# A window of 64 ms resolves the partials of low notes, and its hop of 16 ms drum hits.
_WINDOW_SECONDS = 0.064
_HOPS_PER_WINDOW = 4
_MOST_BANDS = 96
_SMALLEST_WINDOW = 16

FLOOR_DB = -80.0
"""A picture shows this level and all below as black; 0 dB is about a sine at full scale."""

# These are points of a perceptually even colour map (matplotlib's "magma", CC0), from silence to loudest.
_COLOURS = (
    (0, 0, 4), (28, 16, 68), (79, 18, 123), (129, 37, 129), (181, 54, 122), (229, 80, 100), (251, 135, 97),
    (254, 194, 135), (252, 253, 191),
)  # fmt: skip


class MelSettings(NamedTuple):
    """Holds window and hop in samples, and the number of mel bands."""

    window: int
    hop: int
    bands: int


def mel_settings(sampling_rate: int) -> MelSettings:
    """Return the settings of `log_mel`: 64 ms windows (to the nearest power of two), a quarter of one as hop, 96 bands.

    A rate too low for that has as many bands as its window can tell apart.

    Raises:
        ValueError: the rate is not above 0.
    """
    if sampling_rate <= 0:
        raise ValueError(f"a sampling rate of {sampling_rate} Hz; it must be above 0")
    ideal = max(_SMALLEST_WINDOW, sampling_rate * _WINDOW_SECONDS)
    window = 2 ** round(torch.tensor(ideal).log2().item())
    return MelSettings(window, window // _HOPS_PER_WINDOW, min(_MOST_BANDS, window // 4))


def log_mel(audio_CT: torch.Tensor, sampling_rate: int, *, bands: int | None = None) -> torch.Tensor:
    """Compute the mel spectrogram in dB. 0 dB is about a sine at full scale; levels below -100 dB are set to -100.

    It is the power of a Hann-windowed Fourier transform, summed in triangles on the HTK mel scale from 0 Hz to half the
    sampling rate.

    Args:
        audio_CT: `(channels, samples)`, floating-point, full scale 1.
        sampling_rate: in Hz.
        bands: mel bands, in place of those of `mel_settings`.

    Returns:
        float32 `(channels, bands, frames)`; frame f is centred on sample `f * hop`, and there are
        `samples // hop + 1` of them.

    Raises:
        ValueError: the audio does not have two axes, or has no samples.
    """
    if audio_CT.dim() != 2 or audio_CT.numel() == 0:
        raise ValueError(f"audio is {list(audio_CT.shape)}; expected (channels, samples), both above 0")
    settings = mel_settings(sampling_rate)
    window = torch.hann_window(settings.window, device=audio_CT.device)
    # Zeros at the ends: reflection, the other choice, needs half a window of samples.
    spectrum = torch.stft(
        audio_CT.float(),
        settings.window,
        settings.hop,
        window=window,
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    # A sine of amplitude 1 gives a peak of half the window's sum.
    power_CBF = (spectrum.abs() / (window.sum() / 2)).square()
    filters_BM = melscale_fbanks(
        settings.window // 2 + 1, 0.0, sampling_rate / 2, bands or settings.bands, sampling_rate, mel_scale="htk"
    ).to(audio_CT.device)
    mel_CMF = (power_CBF.transpose(1, 2) @ filters_BM).transpose(1, 2)
    return 10 * mel_CMF.clamp(min=1e-10).log10()


def mel_picture(audio_CT: torch.Tensor, sampling_rate: int, *, width: int = 640, height: int = 160) -> bytes:
    """Draw the mel spectrogram: time to the right, frequency upwards, from black at -80 dB to light at 0 dB.

    The scale is fixed, so pictures can be compared by eye and silence is black. Channels are averaged in power.

    Args:
        audio_CT: `(channels, samples)`, full scale 1.
        sampling_rate: in Hz.
        width, height: the size of the picture in pixels.

    Returns:
        The bytes of a PNG file.

    Raises:
        ValueError: `log_mel` refuses the audio, or the width or height is below 1.
    """
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width} x {height} pixels; both must be 1 or more")
    decibels_CMF = log_mel(audio_CT.detach().cpu(), sampling_rate)
    power_MF = (10 ** (decibels_CMF / 10)).mean(dim=0)
    resized_HW = _resize(power_MF, height, width).flip(0)
    # Steps of 1 dB: finer ones cannot be seen, and compress badly.
    levels = (10 * resized_HW.log10() - FLOOR_DB).round().clamp(0, -FLOOR_DB).to(torch.uint8)
    # Imported here so that importing the package stays cheap.
    from PIL import Image

    image = Image.fromarray(levels.numpy())
    image.putpalette(_palette(int(-FLOOR_DB) + 1))
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _resize(values_MF: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Average where the picture has fewer points than the spectrogram, interpolate where it has more."""
    values = values_MF[None, None]
    for axis, size in ((2, height), (3, width)):
        fewer = size <= values.shape[axis]
        shape = (size, values.shape[3]) if axis == 2 else (values.shape[2], size)
        if fewer:
            values = F.adaptive_avg_pool2d(values, shape)
        else:
            values = F.interpolate(values, shape, mode="bilinear", align_corners=False)
    return values[0, 0]


def _palette(size: int) -> bytes:
    """Return `size` colours of three bytes, evenly spaced along the colour map."""
    colours = torch.tensor(_COLOURS, dtype=torch.float32).T[None]  # (1, 3, points)
    even = F.interpolate(colours, size, mode="linear", align_corners=True)[0].T
    return even.round().to(torch.uint8).numpy().tobytes()

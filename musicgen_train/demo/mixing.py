"""Turns a piece into a recording: plays its parts, balances and pans them, adds reverb, and masters the mix.

Axis letters: C channels, L samples.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from musicgen_train.demo.composition import BRIGHTNESSES, ENERGIES, TICK, Part, Piece
from musicgen_train.demo.draws import Draws, Signal
from musicgen_train.demo.synthesis import INSTRUMENTS, KITS, SAMPLE_RATE

Recording = npt.NDArray[np.float64]

# Levels of the parts: the RMS of bass, chords and lead; for drums a factor for each kit, and for each drum below.
_LEVELS = {"bass": 0.11, "chords": 0.085, "lead": 0.085}
_DRUMS = {"electronic": 0.42, "acoustic": 0.4, "brushes": 0.28, "dusty": 0.34, "chip": 0.34}
_DRUM_LEVELS = {
    "kick": 1.0,
    "snare": 0.75,
    "clap": 0.7,
    "rim": 0.6,
    "hat": 0.45,
    "open hat": 0.4,
    "shaker": 0.5,
    "tom": 0.8,
    "crash": 0.45,
    "ride": 0.35,
}
# Panning of the parts, from -1 (left) to 1 (right).
_PLACES = {"bass": 0.0, "chords": -0.35, "lead": 0.3}
_DRUM_PLACES = {"hat": 0.3, "open hat": 0.3, "shaker": -0.4, "ride": -0.35, "tom": 0.2, "crash": -0.3, "rim": -0.15}

# For dark, neutral and bright: octaves by which instruments are brighter, and the boost above 2 kHz in dB.
_TONES = dict(zip(BRIGHTNESSES, (-1.3, 0.0, 0.9), strict=True))
_TILTS = dict(zip(BRIGHTNESSES, (-11.0, 0.0, 5.0), strict=True))
_LOUDNESS = dict(zip(ENERGIES, (-21.0, -18.0, -16.0), strict=True))  # dB of full scale, RMS

_PEAK = 0.89  # -1 dB
_TICK = round(TICK * SAMPLE_RATE)
_LOUDNESS_STEPS = 12  # notes of nearly the same loudness share their samples
_FADE_IN, _FADE_OUT = 0.003, 0.15  # seconds


def mix_down(piece: Piece, channels: int) -> Recording:
    """Play and mix a piece.

    Args:
        piece: the piece.
        channels: 1 or 2.

    Returns:
        float64 `(channels, round(seconds * 32000))`, with a peak of at most 0.89 and silence at both ends.
    """
    length = round(piece.seconds * SAMPLE_RATE)
    dry = np.zeros((channels, length))
    wet = np.zeros((channels, length))
    kicks = [_sample_at(piece, hit.start) for hit in piece.hits if hit.drum == "kick"]
    duck = _ducking(kicks, length, piece.style.pump)
    for part in piece.parts:
        sound = _play(piece, part, length)
        sound *= _LEVELS[part.role] / max(_active_rms(sound), 1e-9)
        if part.role != "lead":
            sound *= duck
        placed = _gains(_PLACES[part.role], channels) * sound
        dry += placed
        if part.role != "bass":
            wet += placed
        if part.role == "lead" and piece.style.echo:
            echoes = _echo(sound, piece, channels)
            dry += echoes
            wet += 0.5 * echoes
    for name, sound in _play_drums(piece, length).items():
        placed = _gains(_DRUM_PLACES.get(name, 0.0), channels) * sound
        dry += placed
        if name not in ("kick", "hat"):
            wet += 0.5 * placed
    if piece.style.space:
        dry += piece.style.space * _reverb(wet, 0.9 + 2.5 * piece.style.space)
    return _master(dry, piece)


def _sample_at(piece: Piece, beat: float) -> int:
    return piece.ticks_at(beat) * _TICK


def _play(piece: Piece, part: Part, length: int) -> Signal:
    instrument = INSTRUMENTS[part.instrument]
    tone = _TONES[piece.brightness]
    played: dict[tuple[int, int, int], Signal] = {}
    # A second more, for notes that end after the piece.
    sound = np.zeros(length + SAMPLE_RATE)
    for note in part.notes:
        start = _sample_at(piece, note.start)
        if start >= length:
            continue
        held = max(_sample_at(piece, note.start + note.length) - start, _TICK)
        step = max(1, round(note.loudness * _LOUDNESS_STEPS))
        samples = played.get((note.pitch, held, step))
        if samples is None:
            samples = instrument.play(note.pitch, held, step / _LOUDNESS_STEPS, tone)
            played[note.pitch, held, step] = samples
        room = sound[start : start + len(samples)]
        room += samples[: len(room)]
    return sound[:length]


def _play_drums(piece: Piece, length: int) -> dict[str, Signal]:
    """The sound of each drum of the piece, by name."""
    kit = KITS[piece.style.kit]
    tone = _TONES[piece.brightness]
    drums: dict[str, Signal] = {}
    # Two sounds a drum, since repeating one sounds mechanical; a kit always has the same two.
    strokes: dict[str, list[Signal]] = {}
    for number, hit in enumerate(piece.hits):
        start = _sample_at(piece, hit.start)
        if start >= length:
            continue
        if hit.drum not in strokes:
            strokes[hit.drum] = [
                kit[hit.drum].strike(tone, Draws("drums", piece.style.kit, hit.drum, i)) for i in range(2)
            ]
            drums[hit.drum] = np.zeros(length)
        gain = hit.loudness * _DRUM_LEVELS[hit.drum] * _DRUMS[piece.style.kit]
        room = drums[hit.drum][start : start + len(strokes[hit.drum][0])]
        room += gain * strokes[hit.drum][number % 2][: len(room)]
    return drums


def _gains(place: float, channels: int) -> Recording:
    """Panning gains of constant power, `(C, 1)`."""
    if channels == 1:
        return np.ones((1, 1))
    angle = (place + 1) * np.pi / 4
    return np.array([[np.cos(angle)], [np.sin(angle)]]) * 2**0.5


def _ducking(kicks: list[int], length: int, depth: float) -> Signal:
    """A gain that falls by `depth` at every kick and recovers within about 0.2 s (side-chain compression)."""
    gain = np.ones(length)
    if not depth or not kicks:
        return gain
    time = np.arange(round(0.3 * SAMPLE_RATE)) / SAMPLE_RATE
    dip = 1 - depth * np.exp(-(((time - 0.02) / 0.1) ** 2))
    dip[: len(time) // 20] = 1 + (dip[len(time) // 20] - 1) * np.arange(len(time) // 20) / (len(time) // 20)
    for start in kicks:
        room = gain[start : start + len(dip)]
        np.minimum(room, dip[: len(room)], out=room)
    return gain


def _echo(sound: Signal, piece: Piece, channels: int) -> Recording:
    """Three repeats, three sixteenths apart, each softer than the one before; in stereo they alternate sides."""
    echoes = np.zeros((channels, len(sound)))
    step = round(0.75 * piece.ticks_per_beat) * _TICK
    for repeat in range(1, 4):
        late = repeat * step
        if late < len(sound):
            place = 0.7 if repeat % 2 else -0.7
            share = piece.style.echo * 0.55 ** (repeat - 1)
            echoes[:, late:] += share * _gains(place, channels) * sound[:-late]
    return echoes


def _reverb(sound_CL: Recording, seconds: float) -> Recording:
    """Convolve with decaying noise, different in each channel, whose high frequencies decay first."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    size = fast_length(sound_CL.shape[1] + len(time))
    frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    wet = np.zeros_like(sound_CL)
    for channel, sound in enumerate(sound_CL):
        noise = Draws("room", channel).noise(len(time))
        spectrum = np.fft.rfft(noise * 10 ** (-3 * time / seconds), size) / (1 + (frequency / 4500) ** 2)
        spectrum += np.fft.rfft(noise * 10 ** (-6 * time / seconds), size) * 0.5
        # Low frequencies are cut, since the reverb would boom.
        spectrum *= 1 / (1 + (180 / np.maximum(frequency, 1)) ** 4)
        spectrum *= 12 / np.sqrt(len(time))
        wet[channel] = np.fft.irfft(spectrum * np.fft.rfft(sound, size), size)[: len(sound)]
    return wet


def _master(mix_CL: Recording, piece: Piece) -> Recording:
    """Equalize, set the loudness, limit peaks softly, remove DC, and fade in and out."""
    mix_CL = _equalize(mix_CL, _TILTS[piece.brightness])
    mix_CL = mix_CL * (10 ** (_LOUDNESS[piece.energy] / 20) / max(_active_rms(mix_CL), 1e-9))
    knee, room = 0.5, 0.35
    size = np.abs(mix_CL)
    mix_CL = np.where(size > knee, np.sign(mix_CL) * (knee + room * np.tanh((size - knee) / room)), mix_CL)
    # Limiting an asymmetric waveform adds DC, which is removed again.
    mix_CL = _equalize(mix_CL, 0.0)
    rise, fall = round(_FADE_IN * SAMPLE_RATE), round(_FADE_OUT * SAMPLE_RATE)
    fade = np.ones(mix_CL.shape[1])
    rise, fall = min(rise, len(fade) // 2), min(fall, len(fade) // 2)
    fade[:rise] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(rise) / max(rise, 1))
    fade[len(fade) - fall :] *= 0.5 + 0.5 * np.cos(np.pi * np.arange(1, fall + 1) / max(fall, 1))
    mix_CL = mix_CL * fade
    return mix_CL * min(1.0, _PEAK / max(float(np.abs(mix_CL).max()), 1e-9))


def _equalize(sound_CL: Recording, tilt: float) -> Recording:
    """Cut below 25 Hz, remove DC, and boost by `tilt` dB above 2 kHz."""
    # Zeros after the end keep the filter's tail from wrapping around to the start.
    size = fast_length(sound_CL.shape[1] + SAMPLE_RATE // 4)
    frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    with np.errstate(divide="ignore"):
        response = 1 / (1 + (25 / frequency) ** 4)
    shelf = 10 ** (tilt / 20)
    above = (frequency / 2000) ** 2
    response *= (1 + shelf * above) / (1 + above)
    return np.fft.irfft(np.fft.rfft(sound_CL, size) * response, size)[:, : sound_CL.shape[1]]


def _active_rms(sound: npt.NDArray[np.float64]) -> float:
    """RMS over the samples that are not silent."""
    loud = sound[np.abs(sound) > 1e-4]
    return float(np.sqrt(np.mean(loud**2))) if loud.size else 0.0


def fast_length(at_least: int) -> int:
    """The smallest length of the form 2^a 3^b 5^c from `at_least` on, for which Fourier transforms are fast."""
    best = 1 << (at_least - 1).bit_length()
    fives = 1
    while fives < best:
        threes = fives
        while threes < best:
            size = threes << max(0, -(-at_least // threes) - 1).bit_length()
            best = min(best, size)
            threes *= 3
        fives *= 5
    return best

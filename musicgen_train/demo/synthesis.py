"""Synthesizes the sound of instruments and drums, at 32 kHz in float64.

Tones are made in three ways, all of which leave out harmonics that would alias:

- scanned wavetables (`Subtractive`, `Plucked`, `Additive`): the rows of a table are single cycles, built from the
  amplitudes of harmonics, in the order of an opening filter or of a decaying string; a note reads them at its pitch
  while it moves from row to row;
- frequency modulation (`Modulated`; Chowning, "The Synthesis of Complex Audio Spectra by Means of Frequency
  Modulation", 1973);
- drums: sums of decaying sines and filtered noise.

Axis letters: R rows of a table, H harmonics, P places of a cycle, L samples.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from musicgen_train.demo.draws import Draws, Signal

SAMPLE_RATE = 32_000

_HIGHEST = 14_000.0  # Hz; harmonics above are left out
_PLACES = 2048
_CUTOFFS = np.geomspace(60.0, 16_000.0, 24)  # Hz; a row of the table for each

Table = npt.NDArray[np.float64]


def frequency_of(pitch: float) -> float:
    """The frequency in Hz of a MIDI number."""
    return 440.0 * 2.0 ** ((pitch - 69) / 12)


@dataclass(frozen=True)
class Envelope:
    """Attack to 1, decay towards `sustain`, release to 0; times in seconds, `decay` is the time constant."""

    attack: float
    decay: float = 1.0
    sustain: float = 1.0
    release: float = 0.05

    def over(self, held: int) -> Signal:
        """The amplitude of a note held for `held` samples, until the end of its release."""
        release = max(8, round(self.release * SAMPLE_RATE))
        time = np.arange(held + release) / SAMPLE_RATE
        level = self.sustain + (1 - self.sustain) * np.exp(-np.maximum(time - self.attack, 0) / self.decay)
        # Attack and release are cosine-shaped, since corners would click.
        level *= 0.5 - 0.5 * np.cos(np.pi * np.minimum(time / self.attack, 1))
        level[held:] *= 0.5 + 0.5 * np.cos(np.pi * np.arange(1, release + 1) / release)
        return level


class Instrument(Protocol):
    """Plays notes."""

    def play(self, pitch: int, held: int, loudness: float, tone: float) -> Signal:
        """Synthesize one note.

        Args:
            pitch: MIDI number.
            held: samples until the release.
            loudness: 0 to 1; louder is also brighter.
            tone: octaves by which the sound is brighter (above 0) or darker than usual.

        Returns:
            `(L,)` with L above `held`, with a peak of about 1 at most.
        """
        ...


@dataclass(frozen=True)
class Subtractive:
    """Subtractive synthesis: a wave with many harmonics through a low-pass filter that an envelope opens.

    Args:
        wave: `saw`, `square`, `pulse` (a quarter wide) or `triangle`.
        cutoff: the filter's cutoff in Hz at rest.
        envelope: the amplitude's envelope.
        sweep: octaves by which the filter is open at the start of a note.
        sweep_time: time constant in seconds with which it closes.
        resonance: how much the filter boosts its cutoff, 0 to 2.
        voices: the detuning of each oscillator in cents.
        vibrato: depth of the vibrato in cents.
        tracking: octaves by which the cutoff rises with an octave of pitch.
        formants: frequencies in Hz that are boosted, as in a voice.
    """

    wave: str
    cutoff: float
    envelope: Envelope
    sweep: float = 0.0
    sweep_time: float = 0.2
    resonance: float = 0.0
    voices: tuple[float, ...] = (0.0,)
    vibrato: float = 0.0
    tracking: float = 0.4
    formants: tuple[float, ...] = ()

    def play(self, pitch: int, held: int, loudness: float, tone: float) -> Signal:
        frequency = frequency_of(pitch)
        level = self.envelope.over(held)
        time = np.arange(len(level)) / SAMPLE_RATE
        octaves = tone + (loudness - 0.8) * 1.5 + self.tracking * (pitch - 60) / 12
        opened = octaves + self.sweep * np.exp(-time / self.sweep_time)
        row = (opened + math.log2(self.cutoff / _CUTOFFS[0])) / math.log2(_CUTOFFS[1] / _CUTOFFS[0])
        table = _filtered_wave(self.wave, frequency, self.resonance, self.formants)
        row = np.clip(row, 0, len(table) - 1.0)
        phase = _phase(frequency, time, self.vibrato)
        sound = np.zeros(len(level))
        for i, cents in enumerate(self.voices):
            # Fixed phases that differ: with equal ones all oscillators would begin with the same edge.
            sound += scan(table, row, phase * 2.0 ** (cents / 1200) + 0.381966 * i)
        return sound * level * (loudness / len(self.voices) ** 0.5)


@dataclass(frozen=True)
class Plucked:
    """A plucked string after Karplus and Strong ("Digital Synthesis of Plucked-String and Drum Timbres", 1983).

    Their loop sends a burst of noise round a delay line and averages neighbouring samples at every turn, by which
    harmonic h is multiplied by about `cos(pi h f / rate)` each time. Here the decay of each harmonic is computed in
    closed form, so the pitch is exact and needs no loop over samples.

    Args:
        decay: time constant of the low harmonics in seconds, at middle C.
        damping: how much faster high harmonics decay; 1 is the plain algorithm.
        brightness: frequency in Hz above which the burst has little energy.
        position: where the string is plucked, as a share of its length; at 0.5 there are no even harmonics.
        release: seconds until silence after the note ends.
        drive: gain of an overdriven amplifier; 0 for none.
        noise: how irregular the harmonics' amplitudes are: 0 for a struck string, 1 for a burst of noise.
    """

    decay: float
    damping: float = 1.0
    brightness: float = 3000.0
    position: float = 0.2
    release: float = 0.08
    drive: float = 0.0
    noise: float = 0.5

    def play(self, pitch: int, held: int, loudness: float, tone: float) -> Signal:
        level = Envelope(attack=0.002, release=self.release).over(held)
        frequency = frequency_of(pitch)
        table, rows_per_root_second = _string(self, frequency, round(tone + (loudness - 0.8) * 2.0, 2))
        time = np.arange(len(level)) / SAMPLE_RATE
        row = np.minimum(np.sqrt(time) * rows_per_root_second, len(table) - 1.0)
        sound = scan(table, row, frequency * time)
        if self.drive:
            # A louder note is distorted more; `brightness` stands for the filter of the loudspeaker.
            sound = np.tanh(sound * self.drive * (0.6 + 0.4 * loudness)) * 0.7
        return sound * level * loudness


@dataclass(frozen=True)
class Additive:
    """Harmonics with fixed amplitudes: organs, flutes, whistles.

    Args:
        harmonics: amplitudes of the harmonics 1, 2, 3, ...
        envelope: the amplitude's envelope.
        vibrato: depth of the vibrato in cents.
        breath: amplitude of the noise around the tone.
        slope: `tone` multiplies harmonic h by h to the power of `slope * tone`.
    """

    harmonics: tuple[float, ...]
    envelope: Envelope
    vibrato: float = 0.0
    breath: float = 0.0
    slope: float = 0.8

    def play(self, pitch: int, held: int, loudness: float, tone: float) -> Signal:
        frequency = frequency_of(pitch)
        level = self.envelope.over(held)
        time = np.arange(len(level)) / SAMPLE_RATE
        numbers = np.arange(1, len(self.harmonics) + 1)
        amplitudes = np.asarray(self.harmonics) * numbers ** (self.slope * (tone + loudness - 0.8))
        amplitudes = np.where(numbers * frequency < _HIGHEST, amplitudes, 0)
        table = _cycles((amplitudes / np.abs(amplitudes).sum())[None])
        sound = scan(table, np.zeros(len(level)), _phase(frequency, time, self.vibrato))
        if self.breath:
            noise = _band(Draws("breath", pitch).noise(len(level)), frequency, 6 * frequency)
            sound = sound + self.breath * noise
        return sound * level * loudness


@dataclass(frozen=True)
class Modulated:
    """Frequency modulation: a sine modulates the phase of another; a third adds a short, high strike.

    Args:
        ratio: the modulator's frequency over the note's.
        index: radians of modulation at the start.
        index_decay: time constant in seconds of the index.
        envelope: the amplitude's envelope.
        strike: the strike's frequency over the note's; 0 for none.
        tremolo: depth of the tremolo, 0 to 1.
    """

    ratio: float
    index: float
    index_decay: float
    envelope: Envelope
    strike: float = 0.0
    tremolo: float = 0.0

    def play(self, pitch: int, held: int, loudness: float, tone: float) -> Signal:
        frequency = frequency_of(pitch)
        level = self.envelope.over(held)
        time = np.arange(len(level)) / SAMPLE_RATE
        # Carson's rule: sidebands reach about (index + 1) times the modulator's frequency away from the carrier.
        largest = max(0.0, (_HIGHEST / frequency - 1) / self.ratio - 1)
        index = min(self.index * 2.0 ** (tone * 0.7) * (0.3 + 0.9 * loudness), largest)
        phase = 2 * np.pi * frequency * time
        sound = np.sin(phase + index * np.exp(-time / self.index_decay) * np.sin(self.ratio * phase))
        if self.strike and frequency * self.strike < _HIGHEST:
            sound += 0.3 * loudness * 2.0**tone * np.exp(-time / 0.03) * np.sin(self.strike * phase)
        if self.tremolo:
            sound *= 1 - self.tremolo * (0.5 - 0.5 * np.cos(2 * np.pi * 4.5 * time))
        return sound * level * loudness


_PAD = Envelope(attack=0.25, release=0.5)

INSTRUMENTS: dict[str, Instrument] = {
    "sub bass": Additive((1.0, 0.25, 0.06), Envelope(0.01, 1.5, 0.7, 0.06)),
    "synth bass": Subtractive(
        "saw", 320, Envelope(0.004, 0.5, 0.6, 0.05), sweep=2.2, sweep_time=0.12, resonance=0.8, voices=(-5.0, 5.0)
    ),
    "electric bass": Plucked(decay=2.5, brightness=900, position=0.15, release=0.06, noise=0.2),
    "upright bass": Plucked(decay=1.2, brightness=500, position=0.35, release=0.08, noise=0.3),
    "triangle bass": Subtractive("triangle", 6000, Envelope(0.002, release=0.01)),
    "synth": Subtractive(
        "saw", 1800, Envelope(0.004, 0.5, 0.4, 0.1), sweep=1.2, sweep_time=0.15, resonance=0.5, voices=(-9.0, 0.0, 9.0)
    ),
    "warm pad": Subtractive("saw", 600, _PAD, voices=(-7.0, 0.0, 7.0)),
    "string pad": Subtractive("saw", 2200, Envelope(0.15, release=0.35), voices=(-8.0, 1.0, 7.0), vibrato=6),
    "choir": Subtractive(
        "saw", 2000, Envelope(0.2, release=0.4), voices=(-9.0, 0.0, 8.0), vibrato=12, formants=(700.0, 1150.0, 2800.0)
    ),
    "electric piano": Modulated(1.0, 1.3, 0.5, Envelope(0.003, 1.2, 0.0, 0.15), strike=14.0, tremolo=0.25),
    "piano": Plucked(decay=1.8, damping=1.5, brightness=2600, position=0.12, release=0.15, noise=0.15),
    "organ": Additive((1.0, 0.8, 0.7, 0.45, 0.1, 0.3, 0.05, 0.25), Envelope(0.006, release=0.04), vibrato=5),
    "accordion": Subtractive("pulse", 2600, Envelope(0.04, release=0.06), voices=(-8.0, 8.0)),
    "acoustic guitar": Plucked(decay=1.4, damping=1.2, brightness=3200, position=0.18, release=0.1),
    "muted guitar": Plucked(decay=0.18, damping=2.0, brightness=2800, position=0.1, release=0.03),
    "overdriven guitar": Plucked(decay=3.0, brightness=1800, position=0.2, release=0.05, drive=6.0, noise=0.2),
    "overdriven lead guitar": Plucked(decay=6.0, brightness=2400, position=0.15, release=0.06, drive=10.0, noise=0.2),
    "harp": Plucked(decay=1.0, damping=0.8, brightness=2400, position=0.4, release=0.5, noise=0.2),
    "pulse synth": Subtractive("pulse", 9000, Envelope(0.002, 0.15, 0.6, 0.01)),
    "pulse lead": Subtractive("pulse", 10000, Envelope(0.002, 0.4, 0.7, 0.01), vibrato=14),
    "square lead": Subtractive("square", 5000, Envelope(0.003, 0.4, 0.7, 0.02), vibrato=10),
    "saw lead": Subtractive(
        "saw", 2600, Envelope(0.006, 0.4, 0.7, 0.08), sweep=0.8, resonance=0.4, voices=(-7.0, 7.0), vibrato=8
    ),
    "brass": Subtractive("saw", 900, Envelope(0.03, 0.5, 0.8, 0.08), sweep=1.2, sweep_time=0.3, vibrato=8),
    "fiddle": Subtractive("saw", 3200, Envelope(0.05, release=0.07), vibrato=18, formants=(500.0, 1300.0, 3000.0)),
    "flute": Additive((1.0, 0.35, 0.15, 0.04), Envelope(0.05, release=0.08), vibrato=14, breath=0.05),
    "whistle": Additive((1.0, 0.06, 0.03), Envelope(0.04, release=0.06), vibrato=20, breath=0.03),
    "bells": Modulated(3.0, 2.2, 0.6, Envelope(0.002, 1.2, 0.0, 0.6), strike=9.0),
    "music box": Modulated(4.0, 0.9, 0.3, Envelope(0.002, 0.7, 0.0, 0.5), strike=7.0),
    "vibraphone": Modulated(4.0, 0.5, 0.4, Envelope(0.003, 1.3, 0.0, 0.3), tremolo=0.4),
    "marimba": Modulated(4.0, 0.8, 0.05, Envelope(0.002, 0.3, 0.0, 0.1)),
}


def scan(table_RP: Table, row_L: Signal, phase_L: Signal) -> Signal:
    """Read a table of cycles, with linear interpolation between rows and places.

    Args:
        table_RP: `(R, P + 1)`, the last place of a cycle equal to its first.
        row_L: the row for each sample, 0 to R - 1.
        phase_L: the phase of each sample in cycles, any number.
    """
    places = table_RP.shape[1] - 1
    at = (phase_L - np.floor(phase_L)) * places
    # A phase just below 1 may be rounded up to 1.
    place = np.minimum(at.astype(np.int64), places - 1)
    at -= place
    flat = table_RP.ravel()
    if len(table_RP) == 1:
        low = flat[place]
        return low + at * (flat[place + 1] - low)
    row = np.minimum(row_L.astype(np.int64), len(table_RP) - 2)
    between = row_L - row
    place += row * (places + 1)
    upper = flat[place]
    upper += at * (flat[place + 1] - upper)
    place += places + 1
    lower = flat[place]
    lower += at * (flat[place + 1] - lower)
    return upper + between * (lower - upper)


def _phase(frequency: float, time: Signal, vibrato: float) -> Signal:
    """The phase in cycles, with a vibrato of 5.3 Hz that grows for half a second."""
    phase = frequency * time
    if vibrato:
        depth = frequency * (2.0 ** (vibrato / 1200) - 1) / (2 * np.pi * 5.3)
        phase += depth * np.minimum(time / 0.5, 1) * np.sin(2 * np.pi * 5.3 * time)
    return phase


def _cycles(amplitudes_RH: Table) -> Table:
    """One cycle of a sum of sines for every row of amplitudes, `(R, P + 1)`, its first place repeated at the end."""
    spectrum = np.zeros((len(amplitudes_RH), _PLACES // 2 + 1), dtype=np.complex128)
    count = min(amplitudes_RH.shape[1], _PLACES // 2 - 1)
    spectrum[:, 1 : count + 1] = amplitudes_RH[:, :count] * (-0.5j * _PLACES)
    cycles = np.fft.irfft(spectrum, _PLACES)
    return np.concatenate((cycles, cycles[:, :1]), axis=1)


def _harmonics_below_limit(frequency: float) -> Signal:
    return np.arange(1, max(2, int(_HIGHEST / frequency) + 1), dtype=np.float64)


@functools.lru_cache(maxsize=512)
def _filtered_wave(wave: str, frequency: float, resonance: float, formants: tuple[float, ...]) -> Table:
    """One cycle of a wave after a low-pass filter of 12 dB an octave, for each of `_CUTOFFS`."""
    number = _harmonics_below_limit(frequency)
    odd = number % 2
    if wave == "saw":
        amplitude = 0.6 / number
    elif wave == "square":
        amplitude = 0.9 * odd / number
    elif wave == "triangle":
        amplitude = 0.8 * odd / number**2 * np.where(number % 4 == 1, 1, -1)
    else:
        assert wave == "pulse", wave
        amplitude = 0.8 * np.sin(np.pi * number / 4) / number
    if formants:
        # Each a third of an octave wide, over a floor that keeps the other harmonics.
        octaves = np.log2(number[None] * frequency / np.asarray(formants)[:, None])
        amplitude = amplitude * (0.15 + np.exp(-((octaves / 0.33) ** 2)).sum(0))
    octaves_RH = np.log2(number[None] * frequency / _CUTOFFS[:, None])
    response_RH = 1 / np.sqrt(1 + 2.0 ** (4 * octaves_RH)) + resonance * np.exp(-((octaves_RH / 0.35) ** 2))
    return _cycles(amplitude * response_RH)


@functools.lru_cache(maxsize=512)
def _string(string: Plucked, frequency: float, tone: float) -> tuple[Table, float]:
    """Cycles of a decaying string, and the rows per square root of a second, since most of the decay is early."""
    number = _harmonics_below_limit(frequency)
    irregular = Draws("string").noise(len(number))
    pluck = np.abs(np.sin(np.pi * number * string.position)) + 0.03
    cutoff = string.brightness * 2.0**tone
    amplitude = pluck / number**0.7 / (1 + (number * frequency / cutoff) ** 2)
    amplitude *= 1 - string.noise + string.noise * irregular
    turn = np.cos(np.minimum(np.pi * number * frequency / SAMPLE_RATE, 1.5))
    # Low strings decay more slowly, but by less than the loop of Karplus and Strong would give.
    rate = (frequency / 261.6) ** 0.4 / string.decay + string.damping * -np.log(turn) * (frequency * 261.6) ** 0.5
    rows, longest = 40, 6.0
    time = (np.arange(rows) / (rows - 1)) ** 2 * longest
    table = _cycles(amplitude * np.exp(-rate * time[:, None]))
    return table / np.abs(table[0]).max(), (rows - 1) / math.sqrt(longest)


def _band(noise: Signal, low: float, high: float) -> Signal:
    """Band-pass noise with soft slopes, keeping its RMS."""
    spectrum = np.fft.rfft(noise)
    frequency = np.maximum(np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE), 1.0)
    spectrum *= 1 / (1 + (low / frequency) ** 4) / (1 + (frequency / high) ** 4)
    filtered = np.fft.irfft(spectrum, len(noise))
    return filtered * np.sqrt(np.mean(noise**2) / np.mean(filtered**2))


@dataclass(frozen=True)
class Drum:
    """A drum: a sine that may fall in pitch, steady sines, and band-pass noise, each with its own decay.

    Args:
        seconds: length of the sound.
        tone: final frequency of the sine in Hz; 0 for none.
        drop: how far above `tone` the sine starts, in Hz.
        drop_time: time constant of the fall in seconds.
        tone_decay: time constant of the sine's amplitude in seconds.
        metal: frequencies of steady sines in Hz, as of a cymbal.
        noise: amplitude of the noise; the falling sine has 1.
        band: lowest and highest frequency of the noise in Hz.
        noise_decay: time constant of the noise's amplitude in seconds.
        bursts: number of onsets of the noise, 11 ms apart, as in a clap.
        crunch: samples that share one value, as in the noise of an 8-bit sound chip; 0 for none.
    """

    seconds: float
    tone: float = 0.0
    drop: float = 0.0
    drop_time: float = 0.03
    tone_decay: float = 0.15
    metal: tuple[float, ...] = ()
    noise: float = 0.0
    band: tuple[float, float] = (200.0, 14_000.0)
    noise_decay: float = 0.1
    bursts: int = 1
    crunch: int = 0

    def strike(self, tone: float, draws: Draws) -> Signal:
        """One hit at full loudness; `tone` in octaves as for `Instrument.play`."""
        time = np.arange(round(self.seconds * SAMPLE_RATE)) / SAMPLE_RATE
        sound = np.zeros(len(time))
        if self.tone:
            # The integral of tone + drop * exp(-t / drop_time).
            cycles = self.tone * time + self.drop * self.drop_time * (1 - np.exp(-time / self.drop_time))
            sound += np.sin(2 * np.pi * cycles) * np.exp(-time / self.tone_decay)
        for i, frequency in enumerate(self.metal):
            sound += np.sin(2 * np.pi * (frequency * time + 0.3 * i)) * np.exp(-time / self.noise_decay) * 0.25
        if self.noise:
            low, high = self.band
            if self.crunch:
                hiss = np.repeat(draws.noise(len(time) // self.crunch + 1), self.crunch)[: len(time)]
            else:
                hiss = _band(draws.noise(len(time)), low, min(high * 2.0**tone, 15_000.0))
            decay = np.zeros(len(time))
            for burst in range(self.bursts):
                since = time - 0.011 * burst
                fast = self.noise_decay if burst == self.bursts - 1 else 0.006
                decay = np.maximum(decay, np.where(since >= 0, np.exp(-np.maximum(since, 0) / fast), 0))
            sound += self.noise * hiss * decay
        edge = min(len(time) // 4, round(0.02 * SAMPLE_RATE))
        sound[-edge:] *= 0.5 + 0.5 * np.cos(np.pi * np.arange(1, edge + 1) / edge)
        sound[:16] *= np.arange(16) / 16
        return sound


_CYMBAL = (3140.0, 4210.0, 5430.0, 6790.0, 8210.0)

KITS: dict[str, dict[str, Drum]] = {
    "electronic": {
        "kick": Drum(0.45, tone=48, drop=230, drop_time=0.025, tone_decay=0.16, noise=0.08, noise_decay=0.004),
        "snare": Drum(0.3, tone=185, drop=60, tone_decay=0.06, noise=0.6, band=(900, 9000), noise_decay=0.09),
        "clap": Drum(0.3, noise=0.7, band=(900, 6000), noise_decay=0.08, bursts=4),
        "rim": Drum(0.08, tone=1700, tone_decay=0.012, noise=0.2, band=(2000, 8000), noise_decay=0.01),
        "hat": Drum(0.08, noise=0.35, band=(7500, 15000), noise_decay=0.018),
        "open hat": Drum(0.35, noise=0.35, band=(7000, 15000), noise_decay=0.1),
        "shaker": Drum(0.1, noise=0.2, band=(5000, 12000), noise_decay=0.03),
        "tom": Drum(0.35, tone=110, drop=70, drop_time=0.05, tone_decay=0.12),
        "crash": Drum(1.6, noise=0.35, band=(4000, 14000), noise_decay=0.5),
        "ride": Drum(0.5, metal=_CYMBAL, noise=0.1, band=(6000, 14000), noise_decay=0.16),
    },
    "acoustic": {
        "kick": Drum(0.35, tone=58, drop=120, drop_time=0.02, tone_decay=0.1, noise=0.12, noise_decay=0.006),
        "snare": Drum(0.3, tone=200, drop=40, tone_decay=0.08, noise=0.6, band=(400, 8000), noise_decay=0.11),
        "clap": Drum(0.3, noise=0.6, band=(900, 6000), noise_decay=0.08, bursts=3),
        "rim": Drum(0.08, tone=900, tone_decay=0.02, noise=0.2, band=(1500, 7000), noise_decay=0.012),
        "hat": Drum(0.12, metal=_CYMBAL, noise=0.3, band=(6000, 14000), noise_decay=0.03),
        "open hat": Drum(0.5, metal=_CYMBAL, noise=0.3, band=(6000, 14000), noise_decay=0.18),
        "shaker": Drum(0.1, noise=0.2, band=(4000, 11000), noise_decay=0.03),
        "tom": Drum(0.4, tone=120, drop=50, drop_time=0.06, tone_decay=0.16, noise=0.1, noise_decay=0.03),
        "crash": Drum(1.6, metal=_CYMBAL, noise=0.4, band=(3000, 14000), noise_decay=0.5),
        "ride": Drum(0.6, metal=_CYMBAL, noise=0.15, band=(5000, 12000), noise_decay=0.2),
    },
    "brushes": {
        "kick": Drum(0.3, tone=60, drop=60, drop_time=0.02, tone_decay=0.09),
        "snare": Drum(0.25, tone=190, tone_decay=0.04, noise=0.35, band=(600, 6000), noise_decay=0.09),
        "rim": Drum(0.08, tone=800, tone_decay=0.018, noise=0.1, band=(1500, 6000), noise_decay=0.012),
        "hat": Drum(0.1, metal=_CYMBAL, noise=0.2, band=(6000, 12000), noise_decay=0.025),
        "shaker": Drum(0.1, noise=0.25, band=(4000, 10000), noise_decay=0.03),
        "tom": Drum(0.35, tone=110, drop=30, tone_decay=0.12),
        "crash": Drum(1.2, metal=_CYMBAL, noise=0.2, band=(3000, 12000), noise_decay=0.4),
        "ride": Drum(0.5, metal=_CYMBAL, noise=0.12, band=(5000, 11000), noise_decay=0.15),
    },
    "dusty": {
        "kick": Drum(0.35, tone=54, drop=90, drop_time=0.025, tone_decay=0.11),
        "snare": Drum(0.22, tone=210, drop=30, tone_decay=0.05, noise=0.45, band=(500, 4000), noise_decay=0.07),
        "rim": Drum(0.08, tone=750, tone_decay=0.02, noise=0.1, band=(1000, 4000), noise_decay=0.01),
        "hat": Drum(0.08, noise=0.25, band=(4000, 7000), noise_decay=0.02),
        "shaker": Drum(0.1, noise=0.2, band=(3000, 7000), noise_decay=0.03),
        "tom": Drum(0.35, tone=105, drop=30, tone_decay=0.12),
        "crash": Drum(1.0, noise=0.2, band=(2500, 7000), noise_decay=0.3),
    },
    "chip": {
        "kick": Drum(0.12, tone=60, drop=400, drop_time=0.02, tone_decay=0.06),
        "snare": Drum(0.14, noise=0.5, noise_decay=0.05, crunch=3),
        "hat": Drum(0.05, noise=0.3, noise_decay=0.012, crunch=1),
        "tom": Drum(0.15, tone=140, drop=200, drop_time=0.03, tone_decay=0.07),
        "crash": Drum(0.5, noise=0.35, noise_decay=0.15, crunch=2),
    },
}

"""The procedural corpus: always the same, and really what its metadata and captions say."""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import hearing
import numpy as np
import pytest
import soundfile

from musicgen_train.demo import CorpusTrack, make_track, write_corpus
from musicgen_train.demo.__main__ import main
from musicgen_train.demo.composition import BASS_LINES, CHORD_FIGURES, compose
from musicgen_train.demo.corpus import captions_of
from musicgen_train.demo.descriptions import WORDS
from musicgen_train.demo.draws import Draws
from musicgen_train.demo.mixing import fast_length
from musicgen_train.demo.styles import PROGRESSIONS, STYLES
from musicgen_train.demo.synthesis import INSTRUMENTS, KITS

RATE = 32_000
NUMBER_OF_TRACKS = 22  # two of each style
SECONDS = 20


@pytest.fixture(scope="module")
def tracks() -> list[CorpusTrack]:
    return [make_track(11, index, SECONDS) for index in range(NUMBER_OF_TRACKS)]


def test_same_seed_and_index_same_track() -> None:
    first, again = make_track(3, 5, 2.0), make_track(3, 5, 2.0)
    assert np.array_equal(first.audio, again.audio)
    assert first.as_json() == again.as_json()


def test_another_seed_or_index_is_other_music() -> None:
    kept = [make_track(*place, 2.0).audio.tobytes() for place in ((3, 5), (3, 6), (4, 5))]
    assert len(set(kept)) == 3


def test_the_music_of_a_seed_never_changes() -> None:
    # Notes and captions are exact on every machine; the sum of a second of sound is told to 4 digits.
    track = make_track(0, 0, 1.0)
    piece = compose(0, 0, 20.0)
    notes = repr([(part.instrument, part.notes) for part in piece.parts] + [piece.hits])
    assert (piece.style_name, piece.bpm, piece.key, piece.mode) == FINGERPRINT[0]
    assert hashlib.sha256(notes.encode()).hexdigest()[:16] == FINGERPRINT[1]
    assert hashlib.sha256("\n".join(captions_of(0, 0)).encode()).hexdigest()[:16] == FINGERPRINT[2]
    assert float(np.abs(track.audio).sum()) == pytest.approx(FINGERPRINT[3], rel=1e-4)


FINGERPRINT = (("hip hop", 83, "F#", "major"), "5f1bdb9bb329cac8", "6e7ac0177290143f", 2977.001)


def test_draws_are_those_of_the_bit_generator() -> None:
    digest = hashlib.sha256(b"('a', 7)").digest()
    raw = np.random.PCG64(int.from_bytes(digest, "little")).random_raw(3)
    expected = [(int(value) >> 11) / 2**53 for value in raw]
    assert Draws("a", 7).units(3).tolist() == expected
    assert Draws("a").of(7).units(3).tolist() == expected


def test_levels(tracks: list[CorpusTrack]) -> None:
    for track in tracks:
        audio = track.audio
        assert audio.shape == (1, SECONDS * RATE)
        assert audio.dtype == np.float32
        assert np.isfinite(audio).all()
        assert 0.2 < np.abs(audio).max() <= 0.89
        assert abs(audio.mean()) < 1e-4
        assert -24 < 20 * np.log10(np.sqrt(np.mean(audio**2))) < -14
        # Starts and ends at silence.
        assert np.abs(audio[0, [0, -1]]).max() < 2e-3
        # 16 bits hold it exactly.
        assert np.array_equal(audio * 2**15, np.round(audio * 2**15))


def test_there_are_no_clicks() -> None:
    # A step in a smooth signal shows in its third differences, far above those of the music itself.
    audio = make_track(0, 3, 8.0, style="ambient", drums=False, brightness="dark").audio[0].astype(float)
    roughness = np.abs(np.diff(audio, 3))
    assert roughness.max() < 40 * np.sqrt(np.mean(roughness**2))
    clicked = audio.copy()
    clicked[100_000:] *= 0.7
    assert np.abs(np.diff(clicked, 3)).max() > 40 * np.sqrt(np.mean(roughness**2))


def test_tempo_is_heard(tracks: list[CorpusTrack]) -> None:
    drummed = [track for track in tracks if track.metadata["drums"]]
    heard = [hearing.tempo(track.audio[0]) / track.metadata["bpm"] for track in drummed]
    right = np.abs(np.array(heard) - 1) < 0.03
    assert len(drummed) >= 14
    # 93 % of 84 tracks of another seed; the rest are octaves, three halves, and very sparse drums.
    assert right.mean() >= 0.85


def test_key_and_mode_are_heard(tracks: list[CorpusTrack]) -> None:
    right = [hearing.key(track.audio[0]) == (track.metadata["key"], track.metadata["mode"]) for track in tracks]
    # 97 % of 110 tracks of another seed.
    assert np.mean(right) >= 0.85


def test_a_wish_changes_the_key_that_is_heard() -> None:
    for key, mode in (("E", "major"), ("Bb", "minor")):
        track = make_track(2, 4, 16.0, style="folk", key=key, mode=mode)
        assert hearing.key(track.audio[0]) == (key, mode)


def test_brightness_is_heard() -> None:
    for index, style in enumerate(("house", "folk", "rock", "ambient")):
        heard = [
            hearing.brightness(make_track(8, index, 5.0, style=style, brightness=brightness).audio[0])
            for brightness in ("dark", "neutral", "bright")
        ]
        assert heard[0] * 1.2 < heard[1] < heard[2] / 1.1


def test_drums_are_heard() -> None:
    for index, style in enumerate(("house", "folk", "jazz", "chiptune", "ambient")):
        played, silent = (
            hearing.attack(make_track(9, index, 6.0, style=style, drums=drums).audio[0]) for drums in (True, False)
        )
        assert played > 1.3 * silent


def test_energy_is_heard_as_loudness() -> None:
    loudness = [
        float(np.sqrt(np.mean(make_track(8, 1, 5.0, style="house", energy=energy).audio ** 2)))
        for energy in ("calm", "medium", "energetic")
    ]
    assert loudness[0] * 1.2 < loudness[1] < loudness[2] / 1.1


def test_a_wish_leaves_the_rest_as_it_was() -> None:
    free = compose(1, 2, 12.0)
    wished = compose(1, 2, 12.0, brightness="bright" if free.brightness != "bright" else "dark")
    assert wished.parts == free.parts
    assert wished.hits == free.hits


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"style": "polka"}, "style is 'polka'; allowed are house, "),
        ({"key": "H"}, "key is 'H'; allowed are C, "),
        ({"mode": "dorian"}, "mode is 'dorian'; allowed are major, minor"),
        ({"bpm": 300}, "bpm is 300; allowed are 40 to 240"),
        ({"energy": "wild"}, "energy is 'wild'"),
        ({"brightness": "pink"}, "brightness is 'pink'"),
        ({"seconds": 0.0}, "expected more than 0"),
    ],
)
def test_a_wish_that_cannot_be_met(wish: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_track(0, 0, **wish)  # type: ignore[arg-type]


def test_stereo_is_the_same_music_in_two_channels() -> None:
    mono, stereo = make_track(4, 7, 6.0), make_track(4, 7, 6.0, stereo=True)
    assert stereo.audio.shape == (2, 6 * RATE)
    assert stereo.as_json() == mono.as_json()
    left, right = stereo.audio
    assert not np.array_equal(left, right)
    mixed = (left + right) / 2
    assert np.corrcoef(mixed, mono.audio[0])[0, 1] > 0.9


def test_every_style_is_playable() -> None:
    assert len(STYLES) >= 5
    for style in STYLES.values():
        assert {*style.bass, *style.chords, *style.lead} <= INSTRUMENTS.keys()
        drums = {drum for groove in style.grooves for drum in groove} | {"tom", "crash"}
        assert drums <= KITS[style.kit].keys()
        assert {len(steps) for groove in style.grooves for steps in groove.values()} == {4 * style.beats}
        assert set(itertools.chain(*style.bass.values())) <= set(BASS_LINES)
        assert set(itertools.chain(*style.chords.values())) <= set(CHORD_FIGURES)
    assert all(progression[0] == 1 for progressions in PROGRESSIONS.values() for progression in progressions)


def test_instruments_play_in_tune_and_fall_silent() -> None:
    for name, instrument in INSTRUMENTS.items():
        sound = instrument.play(57, 16_000, 0.8, 0.0)  # A3, 220 Hz
        spectrum = np.abs(np.fft.rfft(sound[4000:16_000] * np.hanning(12_000), 1 << 17))
        frequency = np.fft.rfftfreq(1 << 17, 1 / RATE)
        near = (frequency > 200) & (frequency < 242)
        assert abs(frequency[near][spectrum[near].argmax()] - 220) < 3.5, name  # detuned voices beat
        # It is a tone of 220 Hz or its octaves: between harmonics there is next to nothing.
        between = np.abs(frequency / 220 - np.round(frequency / 220)) > 0.2
        assert (spectrum[between] ** 2).sum() < 0.05 * (spectrum**2).sum(), name
        assert np.abs(sound[-3:]).max() < 1e-3, name
        assert 0.1 < np.abs(sound).max() < 3, name


def test_every_round_of_tracks_has_all_styles() -> None:
    count = len(STYLES)
    rounds = [[compose(6, index, 4.0).style_name for index in range(count * i, count * (i + 1))] for i in range(2)]
    assert set(rounds[0]) == set(rounds[1]) == set(STYLES)
    assert rounds[0] != rounds[1]


def test_what_is_drawn_spreads() -> None:
    pieces = [compose(5, index, 4.0) for index in range(330)]
    for name, least in (("mode", 100), ("energy", 60), ("brightness", 60), ("key", 10)):
        counts = collections.Counter(getattr(piece, name) for piece in pieces)
        assert min(counts.values()) >= least, counts
    assert 40 < sum(not piece.has_drums for piece in pieces) < 160


def test_swing_delays_the_off_beats_only() -> None:
    # 24 ticks a beat.
    jazz, house = compose(0, 0, 8.0, style="jazz", bpm=125), compose(0, 0, 8.0, style="house", bpm=125)
    assert house.ticks_at(3.5) == 84
    assert jazz.ticks_at(3.0) == 72
    assert jazz.ticks_at(3.5) == round(72 + 0.65 * 24)
    assert jazz.ticks_at(3.25) == round(72 + 0.65 * 12)
    assert jazz.ticks_at(3.75) == round(96 - 0.35 * 12)


def test_a_bar_sounds_the_same_wherever_it_comes() -> None:
    # Four on the floor: every kick of a bar is the same samples at the same place of a frame.
    piece_bar = 4 * 24 * 640
    track = make_track(13, 0, 12.0, style="house", bpm=125, drums=True)
    kicks = [hit for hit in track.piece.hits if hit.drum == "kick" and hit.start % 4 == 0]
    assert len(kicks) > 3
    assert all(track.piece.ticks_at(hit.start) * 640 % piece_bar == 0 for hit in kicks)


def test_tempos_are_those_whose_eighths_last_whole_ticks() -> None:
    for index in range(44):
        piece = compose(14, index, 4.0)
        eighth = piece.ticks_per_beat / 2
        assert eighth == int(eighth)
        assert round(60 / (piece.ticks_per_beat * 0.02)) == piece.bpm


def test_notes_belong_to_the_key() -> None:
    tonics = dict(zip(hearing.KEYS, range(12), strict=True))
    scales = {"major": {0, 2, 4, 5, 7, 9, 11}, "minor": {0, 2, 3, 5, 7, 8, 10, 11}}
    for index in range(44):
        piece = compose(12, index, 16.0)
        notes = [note for part in piece.parts for note in part.notes if part.figure != "walking"]
        steps = {(note.pitch - tonics[piece.key]) % 12 for note in notes}
        assert steps <= scales[piece.mode]


def test_every_part_plays_most_of_the_time() -> None:
    for index in range(44):
        piece = compose(12, index, 20.0)
        for part in piece.parts:
            beats = {int(note.start) + i for note in part.notes for i in range(max(1, round(note.length)))}
            bars = {beat // piece.style.beats for beat in beats}
            assert len(bars) >= 0.6 * piece.bars, (index, part.role)


def test_descriptions_name_everything() -> None:
    for index in range(66):
        track_captions = captions_of(13, index)
        piece = compose(13, index)
        description = track_captions[0]
        assert f"{piece.key} {piece.mode}" in description
        assert re.search(rf"\b{piece.bpm} (BPM|beats per minute)", description)
        assert piece.style_name in description
        lowered = description.lower()
        assert all(part.instrument in lowered for part in piece.parts)
        assert _named("mode", description) == {piece.mode}
        assert _named("brightness", description) == {piece.brightness}
        if piece.has_drums:
            assert any(words in description for words in piece.style.drum_words)
        else:
            assert re.search("no drums|without drums|no percussion", description)


def test_no_caption_says_what_is_not_so() -> None:
    seen: collections.Counter[str] = collections.Counter()
    for index in range(66):
        piece = compose(13, index)
        truth = {
            "mode": piece.mode,
            "energy": piece.energy,
            "brightness": piece.brightness,
            "tempo": "slow" if piece.bpm < 90 else "medium" if piece.bpm < 120 else "fast",
        }
        captions = captions_of(13, index)
        assert len(set(captions)) == 6
        for caption in captions:
            for kind, value in truth.items():
                assert _named(kind, caption) <= {value}, caption
                seen[kind] += bool(_named(kind, caption))
            absent = INSTRUMENTS.keys() - set(piece.instruments)
            # "synth" is a word of "synth bass" and others.
            longer = {name for name in absent if not any(name in other for other in piece.instruments)}
            assert not [name for name in longer if re.search(rf"(?<!-){re.escape(name)}\b", caption)], caption
            if not piece.has_drums:
                assert not re.search(r"(?<!no )(?<!without )drum", caption), caption
            assert piece.style_name in caption.lower() or piece.style_name in caption
    assert min(seen.values()) > 100


def _named(kind: str, caption: str) -> set[str]:
    """The values of a property that a caption has words for."""
    return {
        value
        for value, words in WORDS[kind].items()
        if any(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w])", caption, re.IGNORECASE) for word in words)
    }


def test_words_have_one_meaning() -> None:
    words = [word for values in WORDS.values() for options in values.values() for word in options]
    assert len(words) == len(set(words))


def test_fast_lengths() -> None:
    by_hand = sorted(2**a * 3**b * 5**c for a in range(12) for b in range(8) for c in range(6))
    for least in (1, 2, 7, 11, 97, 641, 1025):
        assert fast_length(least) == next(size for size in by_hand if size >= least)


# Folders


@pytest.mark.parametrize(("audio_format", "stereo"), [("flac", False), ("wav", True)])
def test_folder(tmp_path: Path, audio_format: str, stereo: bool) -> None:
    made = write_corpus(tmp_path / "c", 2, 1.5, 9, stereo=stereo, audio_format=audio_format)
    assert made == 2
    names = sorted(path.name for path in (tmp_path / "c").iterdir())
    stems = ["track-00000", "track-00001"]
    assert names == ["corpus.json", *sorted(f"{stem}.{ending}" for stem in stems for ending in ("json", audio_format))]
    track = make_track(9, 1, 1.5, stereo=stereo)
    samples, rate = soundfile.read(tmp_path / "c" / f"track-00001.{audio_format}", dtype="float32", always_2d=True)
    assert rate == RATE
    assert np.array_equal(samples.T, track.audio)
    content = json.loads((tmp_path / "c" / "track-00001.json").read_text())
    assert content == track.as_json()
    assert isinstance(content["description"], str)
    assert all(isinstance(text, str) for text in content["captions"] + content["tags"])
    fields = {"bpm", "key", "mode", "meter", "style", "energy", "brightness", "instruments", "drums", "chords"}
    assert fields <= content.keys()


def test_a_second_run_keeps_what_is_there_and_adds_what_is_missing(tmp_path: Path) -> None:
    write_corpus(tmp_path, 2, 1.0)
    first = tmp_path / "track-00000.flac"
    before = first.stat().st_mtime_ns
    (tmp_path / "track-00001.flac").unlink()
    # What an interrupted run leaves.
    (tmp_path / "track-00001.flac.partial").write_bytes(b"half")
    reports: list[tuple[int, int]] = []
    assert write_corpus(tmp_path, 3, 1.0, report=lambda done, total: reports.append((done, total))) == 2
    assert reports == [(2, 3), (3, 3)]
    assert first.stat().st_mtime_ns == before
    assert not list(tmp_path.glob("*.partial"))


def test_files_are_on_the_disk_itself(tmp_path: Path, flushed: Callable[[Path], bool]) -> None:
    write_corpus(tmp_path, 2, 1.0)
    assert len(list(tmp_path.iterdir())) == 5
    assert [path.name for path in [tmp_path, *tmp_path.iterdir()] if not flushed(path)] == []


def test_other_settings_need_another_folder(tmp_path: Path) -> None:
    write_corpus(tmp_path, 2, 1.0)
    with pytest.raises(ValueError, match=r"holds a corpus made with seed 0 \(asked for: 5\)"):
        write_corpus(tmp_path, 2, 1.0, seed=5)


def test_a_folder_with_more_tracks_is_not_taken_for_a_smaller_corpus(tmp_path: Path) -> None:
    write_corpus(tmp_path, 2, 1.0)
    with pytest.raises(ValueError, match=r"more than the 1 tracks asked for: track-00001\.flac"):
        write_corpus(tmp_path, 1, 1.0)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"already holds something else \(thesis\.txt\)"):
        write_corpus(tmp_path, 1, 1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("setting", [{"tracks": 0}, {"seconds": 0.0}, {"workers": 0}, {"audio_format": "mp3"}])
def test_settings_that_are_not_allowed(tmp_path: Path, setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"expected|allowed are flac, wav"):
        write_corpus(tmp_path / "c", **setting)  # type: ignore[arg-type]
    assert not (tmp_path / "c").exists()


def test_workers_make_the_same_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "one", 2, 1.0, 7)
    options = ["--tracks", "2", "--seconds", "1", "--seed", "7", "--workers", "2"]
    assert main(["corpus", str(tmp_path / "two"), *options]) == 0
    assert "2 tracks, 0.0 minutes of captioned music (2 made now)" in capsys.readouterr().out
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_the_command_tells_an_error_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["corpus", str(tmp_path / "file"), "--tracks", "1"]) == 1
    error = capsys.readouterr().err
    assert error == f"error: {tmp_path / 'file'} is a file; give a folder for the corpus\n"

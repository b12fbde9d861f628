"""Tries to read sound files of several formats, and to tokenize text."""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from musicgen_train.audio.io import AudioError, read_audio
from musicgen_train.doctor.findings import Finding, note, ok, wrong
from musicgen_train.processing.t5_tokenizer import T5Tokenizer

_RATE = 32000
_SECONDS = 0.5
_HERTZ = 440.0
# The share of the energy near the note; lossy formats add noise.
_LEAST_SHARE_OF_NOTE = 0.9

# Extension and libsndfile's name of the format.
_SOUNDFILE = ((".wav", "WAV"), (".flac", "FLAC"), (".ogg", "OGG"), (".mp3", "MP3"), (".aiff", "AIFF"))
# Extension and the encoder that ffmpeg needs to make such a file; every ffmpeg reads them.
_FFMPEG = ((".m4a", "aac"), (".mka", "aac"))
_TEXTS = ("a calm piano melody with soft strings", "Energetic electronic dance music, 128 BPM!")


def look_at_audio() -> Iterator[Finding]:
    """Write half a second of a note in each format, read it back, and check that it is the note."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _through_soundfile(Path(folder))
        yield from _through_others(Path(folder))


def _through_soundfile(folder: Path) -> Iterator[Finding]:
    import soundfile

    topic = "libsndfile"
    readable, failed = [], []
    for extension, name in _SOUNDFILE:
        path = folder / f"note{extension}"
        try:
            soundfile.write(path, _note(), _RATE, format=name)
            _listen(path)
        except (soundfile.LibsndfileError, AudioError, ValueError, TypeError) as error:
            failed.append(f"{extension} ({' '.join(str(error).split())})")
        else:
            readable.append(extension)
    version = f"{soundfile.__libsndfile_version__}"
    if failed:
        yield wrong(topic, f"{version} does not read {', '.join(failed)}", "pip install --upgrade soundfile")
    if readable:
        yield ok(topic, f"{version} writes and reads {', '.join(readable)}")


def _through_others(folder: Path) -> Iterator[Finding]:
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        yield note(
            "ffmpeg",
            "not installed: .m4a, .aac and .wma are not read",
            "apt-get install ffmpeg, brew install ffmpeg, or conda install ffmpeg",
        )
        return
    read, unread = [], []
    for extension, encoder in _FFMPEG:
        path = folder / f"coded{extension}"
        command = [ffmpeg, "-nostdin", "-v", "error", "-i", str(folder / "note.wav"), "-c:a", encoder, str(path)]
        if subprocess.run(command, capture_output=True, timeout=20, check=False).returncode != 0:
            continue  # It cannot write the format, and may still read it.
        try:
            _listen(path)
        except (AudioError, OSError) as error:
            unread.append(f"{extension} ({error})")
        else:
            read.append(extension)
    if unread:
        yield wrong("ffmpeg", f"{ffmpeg} is there, and files it made are not read: {', '.join(unread)}")
    if read:
        yield ok("ffmpeg", f"{ffmpeg}; reads {', '.join(read)}")
    elif not unread:
        yield note("ffmpeg", f"{ffmpeg} has no AAC encoder, so reading .m4a was not tried")


def _note() -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * _HERTZ * np.arange(int(_SECONDS * _RATE)) / _RATE)).astype(np.float32)


def _listen(path: Path) -> None:
    audio_CS, rate = read_audio(path)
    spectrum = torch.fft.rfft(audio_CS[0].double()).abs().square()
    hertz = torch.fft.rfftfreq(audio_CS.shape[1], 1 / rate)
    share = float(spectrum[(hertz - _HERTZ).abs() < 20].sum() / spectrum.sum())
    if rate != _RATE or not share > _LEAST_SHARE_OF_NOTE:
        raise AudioError(f"a note of {_HERTZ:g} Hz came back as something else")


def look_at_tokenizer() -> Iterator[Finding]:
    """Train a small vocabulary, and compare the tokenizer's ids with those of sentencepiece."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXTS * 20),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spiece.model"
        path.write_bytes(model.getvalue())
        tokenizer = T5Tokenizer(path, extra_ids=0)
        for text in _TEXTS:
            ours, theirs = tokenizer(text)["input_ids"], [*reference.encode(text), reference.eos_id()]
            if list(ours) != theirs:
                yield wrong("tokenizer", f"{text!r} becomes {ours}, sentencepiece says {theirs}")
                return
    yield ok("tokenizer", f"ids equal those of sentencepiece {sentencepiece.__version__}")

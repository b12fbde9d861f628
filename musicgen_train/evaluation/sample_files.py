"""The audio files of a report: where each one goes, what is measured of it, and its record.

Axes: K codebooks, T frames, C channels, S samples.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from musicgen_train.audio.io import read_audio, write_audio
from musicgen_train.evaluation.generating import Generated, Job, SamplingSettings
from musicgen_train.evaluation.model import EvaluatedModel
from musicgen_train.evaluation.records import AudioRecord, SampleRecord
from musicgen_train.evaluation.requests import Request
from musicgen_train.metrics.signal_statistics import measure_signal, warnings_of

# Prompts are what a report is about: their files lie at its top.
_FOLDERS = {"prompt": "", "unconditional": "unconditional", "dataset": "dataset", "continuation": "continuations"}
_CONTROL_FOLDER = "control"
_REFERENCES = "references"


class SampleFiles:
    """Writes audio files and says what is in them.

    Args:
        folder: the report's.
        evaluated: the model, for its rates and to decode references.
        sampling: decides which parts a sample's name needs.
        audio_format: the files' ending, `wav` or `flac`.
        loudness: bring every file to this many LUFS; None leaves levels alone but for what would clip.
    """

    def __init__(
        self,
        folder: Path,
        evaluated: EvaluatedModel,
        sampling: SamplingSettings,
        *,
        audio_format: str,
        loudness: float | None,
    ) -> None:
        self._folder = folder
        self._evaluated = evaluated
        self._sampling = sampling
        self._audio_format = audio_format
        self._loudness = loudness
        self._references: dict[int, AudioRecord | None] = {}

    def write_sample(self, generated: Generated) -> SampleRecord:
        """Write a sample, and the recording that its text belongs to if that is known and not written yet."""
        job = generated.job
        request = job.request
        if id(request) not in self._references:
            self._references[id(request)] = self._write_reference(request)
        return SampleRecord(
            kind=request.kind,
            index=request.index,
            text=request.text,
            guidance_scale=job.guidance_scale,
            repetition=job.repetition,
            seed=job.seed,
            prompt_seconds=request.prompt_frames / self._evaluated.frame_rate,
            origin=request.origin,
            audio=self._write_measured(generated.audio_CS, generated.codes_KT, _FOLDERS[request.kind], self._stem(job)),
            reference=self._references[id(request)],
        )

    def write_control(self, stem: str, audio_CS: torch.Tensor) -> str:
        """Write a sample of the control test.

        Returns:
            Its path, relative to the report's folder.
        """
        file, _ = self._write(audio_CS, _CONTROL_FOLDER, stem)
        return file

    def read(self, record: AudioRecord) -> torch.Tensor:
        """A file's audio `(C, S)`, at the level at which the model made it."""
        audio_CS, _ = read_audio(self._folder / record.file)
        return audio_CS * 10 ** (-record.gain_db / 20)

    def _stem(self, job: Job) -> str:
        several_scales = len(self._sampling.guidance_scales) > 1 and job.request.states_LD is not None
        scale = f"-g{job.guidance_scale:g}" if several_scales else ""
        return job.request.file_stem + scale + (f"-s{job.repetition}" if self._sampling.repetitions > 1 else "")

    def _write_reference(self, request: Request) -> AudioRecord | None:
        if request.reference_codes_KT is None:
            return None
        audio_CS = self._evaluated.decode(request.reference_codes_KT)
        folder = f"{_FOLDERS[request.kind]}/{_REFERENCES}"
        return self._write_measured(audio_CS, request.reference_codes_KT, folder, request.file_stem)

    def _write_measured(self, audio_CS: torch.Tensor, codes_KT: torch.Tensor, folder: str, stem: str) -> AudioRecord:
        rate = self._evaluated.sampling_rate
        signal = measure_signal(audio_CS, rate, codes_KT, self._evaluated.frame_rate)
        file, gain = self._write(torch.nan_to_num(audio_CS, nan=0.0, posinf=0.0, neginf=0.0), folder, stem)
        return AudioRecord(
            file=file,
            seconds=audio_CS.shape[-1] / rate,
            gain_db=20 * math.log10(gain),
            signal=signal,
            warnings=warnings_of(signal),
        )

    def _write(self, audio_CS: torch.Tensor, folder: str, stem: str) -> tuple[str, float]:
        """The file's path, relative to the report's folder, and the gain that it was written with."""
        file = Path(folder) / f"{stem}.{self._audio_format}"
        (self._folder / file).parent.mkdir(parents=True, exist_ok=True)
        gain = write_audio(self._folder / file, audio_CS, self._evaluated.sampling_rate, loudness=self._loudness)
        return file.as_posix(), gain

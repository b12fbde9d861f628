"""The evaluation stage: `run(config)` is what `scripts/evaluate.py` calls."""

from __future__ import annotations

import dataclasses
import math
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from musicgen_train.audio.analysis import SHORTEST_SECONDS
from musicgen_train.audio.io import AudioError, read_audio, write_audio
from musicgen_train.data.latent_dataset import LatentDataset
from musicgen_train.devices import pick_device
from musicgen_train.evaluation.control.listening import listen, set_name
from musicgen_train.evaluation.control.pieces import ControlSet, dataset_clips, fresh_pieces
from musicgen_train.evaluation.control.scoring import ControlClip, control_table
from musicgen_train.evaluation.cross_entropy import code_use, score
from musicgen_train.evaluation.curves import charts_of_run, read_metrics
from musicgen_train.evaluation.generating import Generated, Job, SamplingSettings, generate, plan
from musicgen_train.evaluation.model import EvaluatedModel, check_encoders, load_model
from musicgen_train.evaluation.output import PROGRAM, REPORT_NAME, RESULTS_NAME, report_folder
from musicgen_train.evaluation.records import AudioRecord, MetricTable, SampleRecord, as_json
from musicgen_train.evaluation.report import Report, write_report
from musicgen_train.evaluation.requests import (
    Request,
    audio_files,
    continuation_requests,
    dataset_requests,
    read_prompts,
    text_requests,
    unconditional_requests,
)
from musicgen_train.evaluation.round_trip import decoded, round_trip
from musicgen_train.evaluation.settings import EvaluationSettings
from musicgen_train.evaluation.split_clips import Condition, SplitClips, choose_split, spread_rows
from musicgen_train.evaluation.tables import cross_entropy_table, frechet_table, signal_table
from musicgen_train.files import write_json
from musicgen_train.latents.manifest import Manifest
from musicgen_train.metrics.embedders import load_embedder
from musicgen_train.metrics.signal_statistics import SignalStatistics, measure, warnings_of
from musicgen_train.models.generation.loop import window_frames
from musicgen_train.progress import Progress
from musicgen_train.provenance.machine import versions
from musicgen_train.provenance.record import command, now, write_record
from musicgen_train.training.weights.model_source import find_model

# Folder of each kind's audio files within the report. Prompts are what it is about: one file each, at its top.
_FOLDERS = {"prompt": "", "unconditional": "unconditional", "dataset": "dataset", "continuation": "continuations"}
_CONTROL_FOLDER = "control"
_REFERENCES = "references"


def run(config: DictConfig) -> Path:
    """Evaluate a model as the config says.

    Returns:
        The report's folder.

    Raises:
        ValueError, OSError, CheckpointError: what is asked for cannot be done; the message says why.
    """
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    settings = EvaluationSettings.from_dict(values)
    output = Path(settings.output).expanduser()
    with report_folder(output, overwrite=settings.overwrite) as folder:
        evaluation = Evaluation(settings, folder)
        samples = evaluation.sample()
        control = evaluation.control()
        tables = evaluation.measure(samples, control)
        results = evaluation.results(samples, tables, control, values)
        write_json(folder / RESULTS_NAME, results)
        write_record(folder)
        metrics_file = evaluation.evaluated.source.metrics
        write_report(
            Report(
                samples=samples,
                tables=tables,
                control=control,
                charts=[] if metrics_file is None else charts_of_run(read_metrics(metrics_file)),
                results=results,
            ),
            folder,
            embed_bytes=int(settings.report.embed_megabytes * 10**6),
        )
    _say_where(output, samples)
    return output


class Evaluation:
    """One evaluation, its parts in the order in which they run.

    Args:
        settings: what to do.
        folder: where audio files go.
    """

    def __init__(self, settings: EvaluationSettings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.started = time.time()
        source = find_model(settings.model, "model")
        # Cheap errors first: a typing error in a path should not wait for the weights of a large model.
        self.prompts = [] if settings.prompts is None else read_prompts(settings.prompts)
        self.files = audio_files(settings.continuation.audio or [])
        reference = settings.metrics.reference_audio
        reference_files = [] if reference is None else audio_files([reference])
        self.embedder = load_embedder(settings.metrics.embedder) if settings.metrics.frechet else None
        self.dataset = self._open_dataset()
        self.device = pick_device(settings.device)
        self.evaluated: EvaluatedModel = load_model(source, device=self.device, dtype=settings.torch_dtype())
        self.model = self.evaluated.model
        if self.dataset is not None:
            check_encoders(self.evaluated, self.dataset.manifest, str(settings.data.path))
        codec = self.model.config.audio_encoder
        self.sampling_rate = codec.sampling_rate
        self.frame_rate = codec.sampling_rate / codec.hop_length
        self.sampling = self._sampling_settings()
        self.new_frames = self.sampling.max_new_tokens + 1 - self.model.config.decoder.channel_codebooks
        if settings.control.clips and self.new_frames < SHORTEST_SECONDS * self.frame_rate:
            raise ValueError(
                f"samples of {self.new_frames / self.frame_rate:.2f} s are too short for the control test, which needs "
                f"{SHORTEST_SECONDS:g} s and hears well from 5 s on; ask for a longer duration, or control.clips=0"
            )
        self.control_sampling = dataclasses.replace(
            self.sampling,
            guidance_scales=settings.control.guidance_scale or self.sampling.guidance_scales,
            repetitions=1,
        )
        # These too may turn out to be of no use, which is better known before hours of sampling.
        self.recordings = self._recordings(reference_files) if settings.metrics.frechet else []
        self.control_set = self._control_set() if settings.control.clips else None
        self.sampling_seconds = 0.0
        self.generated_seconds = 0.0

    def sample(self) -> list[SampleRecord]:
        """Generate everything that is asked for, and write each sample as soon as it is there."""
        jobs = plan(self._requests(), self.sampling)
        if not jobs:
            return []
        records: dict[int, SampleRecord] = {}
        references: dict[int, AudioRecord | None] = {}
        numbers = {id(job): number for number, job in enumerate(jobs)}
        with Progress("sampling", len(jobs) * self.new_frames / self.frame_rate, "s of audio") as progress:
            for generated in generate(
                self.model, jobs, self.sampling, lambda frames: progress.advance(frames / self.frame_rate)
            ):
                request = generated.job.request
                if id(request) not in references:
                    references[id(request)] = self._write_reference(request)
                records[numbers[id(generated.job)]] = self._record(generated, references[id(request)])
            self.sampling_seconds, self.generated_seconds = progress.elapsed, progress.done
        return [records[number] for number in sorted(records)]

    def control(self) -> list[ControlClip]:
        """Generate from captions that name properties, and hear whether the audio has them."""
        control = self.control_set
        if control is None:
            return []
        clips = len(control.requests) * len(self.control_sampling.guidance_scales)
        with Progress("control", clips * self.new_frames / self.frame_rate, "s of audio") as progress:
            return listen(
                control,
                self.model,
                self.control_sampling,
                self._write_control,
                lambda frames: progress.advance(frames / self.frame_rate),
            )

    def measure(self, samples: Sequence[SampleRecord], control: Sequence[ControlClip]) -> list[MetricTable]:
        """All tables that the settings and what is there allow."""
        tables = []
        if self.control_set is not None:
            generated = [set_name(scale) for scale in self.control_sampling.guidance_scales]
            tables.append(control_table(control, generated, self.control_set.source))
        if self.dataset is not None and self.settings.metrics.cross_entropy:
            tables.append(self._measure_cross_entropy(self.dataset))
        if self.embedder is not None and (self.dataset is not None or self.recordings):
            table = self._measure_frechet(samples)
            tables += [] if table is None else [table]
        references = {sample.reference.file: sample.reference.signal for sample in samples if sample.reference}
        sets: dict[str, Sequence[SignalStatistics]] = {
            **{name: [one.audio.signal for one in group] for name, group in _by_scale(samples).items()},
            "reference": list(references.values()),
        }
        if samples:
            tables.append(signal_table(sets))
        return tables

    def results(
        self,
        samples: Sequence[SampleRecord],
        tables: Sequence[MetricTable],
        control: Sequence[ControlClip],
        config: Any,
    ) -> dict[str, Any]:
        """The content of `results.json`."""
        source, model = self.evaluated.source, self.model
        return as_json(
            {
                "program": PROGRAM,
                "format_version": 1,
                "created": now(),
                "command": command(),
                "config": config,
                "versions": versions(),
                "device": _device_name(self.device),
                "model": {
                    "given": self.settings.model,
                    "composite": source.folder,
                    "text_encoder": self.evaluated.text_source,
                    "checkpoint": None if source.checkpoint is None else str(source.checkpoint),
                    "adapter": None if source.adapter is None else str(source.adapter),
                    "run": None if source.run is None else str(source.run),
                    "decoder_parameters": model.decoder.num_parameters(),
                    "text_encoder_fingerprint": self.evaluated.text_encoder,
                    "audio_encoder_fingerprint": self.evaluated.audio_encoder,
                    "sampling_rate": self.sampling_rate,
                    "frame_rate": self.frame_rate,
                    "codebooks": model.config.decoder.num_codebooks,
                    "codebook_size": model.config.decoder.vocab_size,
                },
                "data": None
                if self.dataset is None
                else {
                    "path": self.settings.data.path,
                    "split": self.dataset.split,
                    "clips": len(self.dataset),
                    "created": self.dataset.manifest.created,
                    "text_encoder": self.dataset.manifest.text_encoder,
                    "audio_encoder": self.dataset.manifest.audio_encoder,
                },
                "seed": self.settings.seed,
                "sampling": {
                    **self.sampling.generation_config(
                        model.generation_config, self.sampling.guidance_scales[0]
                    ).to_dict(),
                    "guidance_scale": self.sampling.guidance_scales,
                    "batch_size": self.sampling.batch_size,
                    "audio_seconds": self.generated_seconds,
                    "seconds": self.sampling_seconds,
                    # Seconds of computing per second of audio: below 1 is faster than playing.
                    "real_time_factor": self.sampling_seconds / self.generated_seconds
                    if self.generated_seconds
                    else None,
                },
                "samples": samples,
                "control": control,
                "metrics": {table.key: table.as_json() for table in tables},
                "warnings": overall_warnings(samples),
                "seconds": time.time() - self.started,
            }
        )

    def _open_dataset(self) -> LatentDataset | None:
        if self.settings.data.path is None:
            return None
        manifest = Manifest.load(self.settings.data.path)
        return LatentDataset(self.settings.data.path, choose_split(manifest, self.settings.data.split))

    def _recordings(self, files: Sequence[Path]) -> list[torch.Tensor]:
        """The reference of the Frechet distance, where that is files: `(C, S)` each, no longer than a sample."""
        longest = self.new_frames * self.model.config.audio_encoder.hop_length
        channels = self.model.config.decoder.audio_channels
        recordings = []
        for file in files[: self.settings.metrics.reference_clips]:
            try:
                audio_CS, _ = read_audio(file, sampling_rate=self.sampling_rate, channels=channels)
            except AudioError as error:
                raise ValueError(
                    f"metrics.reference_audio: {file} cannot be compared with: {error}; remove or repair it"
                ) from error
            recordings.append(audio_CS[:, :longest].clone())  # the rest of the file need not be kept
        return recordings

    def _sampling_settings(self) -> SamplingSettings:
        settings, delay = self.settings, self.model.config.decoder.channel_codebooks
        tokens = settings.max_new_tokens
        if tokens is None:
            tokens = math.ceil(settings.duration * self.frame_rate - 1e-9) + delay - 1
        own = self.model.generation_config.guidance_scale
        return SamplingSettings(
            max_new_tokens=tokens,
            guidance_scales=settings.guidance_scale or [1.0 if own is None else max(1.0, own)],
            repetitions=settings.samples_per_prompt,
            seed=settings.seed,
            batch_size=settings.batch_size,
            options=settings.generation_options,
        )

    def _requests(self) -> list[Request]:
        settings, source = self.settings, self.evaluated.text_source
        requests = text_requests(self.prompts, self.model, source)
        requests += unconditional_requests(settings.unconditional)
        prompt_frames = max(1, round(settings.continuation.seconds * self.frame_rate))
        continued: list[Request] = []
        if self.dataset is not None:
            rows = self._clips(settings.data.rows, self.new_frames)
            requests += dataset_requests(rows, max_frames=self.new_frames)
            going_on = self._clips(settings.continuation.rows, prompt_frames + self.new_frames)
            continued = dataset_requests(
                going_on, max_frames=prompt_frames + self.new_frames, prompt_frames=prompt_frames
            )
        if self.files:
            continued += continuation_requests(
                self.files,
                self.model,
                seconds=settings.continuation.seconds,
                text=settings.continuation.text or "",
                source=source,
                first_index=len(continued) + 1,
            )
        return requests + continued

    def _control_set(self) -> ControlSet:
        settings = self.settings
        if settings.control.source == "dataset":
            return dataset_clips(self._clips(settings.control.clips, self.new_frames), self.new_frames)
        samples = self.new_frames * self.model.config.audio_encoder.hop_length
        return fresh_pieces(
            settings.control.clips, settings.control.seed, samples, self.model, self.evaluated.text_source
        )

    def _clips(self, wanted: int | None, max_frames: int) -> SplitClips:
        assert self.dataset is not None
        total = len(self.dataset)
        return SplitClips(self.dataset, spread_rows(total, total if wanted is None else wanted), max_frames)

    def _record(self, generated: Generated, reference: AudioRecord | None) -> SampleRecord:
        job = generated.job
        request = job.request
        return SampleRecord(
            kind=request.kind,
            index=request.index,
            text=request.text,
            guidance_scale=job.guidance_scale,
            repetition=job.repetition,
            seed=job.seed,
            prompt_seconds=request.prompt_frames / self.frame_rate,
            origin=request.origin,
            audio=self._write(generated.audio_CS, generated.codes_KT, _FOLDERS[request.kind], self._stem(job)),
            reference=reference,
        )

    def _stem(self, job: Job) -> str:
        several_scales = len(self.sampling.guidance_scales) > 1 and job.request.states_LD is not None
        scale = f"-g{job.guidance_scale:g}" if several_scales else ""
        return job.request.file_stem + scale + (f"-s{job.repetition}" if self.sampling.repetitions > 1 else "")

    def _write_reference(self, request: Request) -> AudioRecord | None:
        if request.reference_codes_KT is None:
            return None
        audio_CS = decoded(self.model, request.reference_codes_KT)
        folder = f"{_FOLDERS[request.kind]}/{_REFERENCES}"
        return self._write(audio_CS, request.reference_codes_KT, folder, request.file_stem)

    def _write(self, audio_CS: torch.Tensor, codes_KT: torch.Tensor, folder: str, stem: str) -> AudioRecord:
        signal = measure(audio_CS, self.sampling_rate, codes_KT, self.frame_rate)
        file = Path(folder) / f"{stem}.{self.settings.audio_format}"
        (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
        playable = torch.nan_to_num(audio_CS, nan=0.0, posinf=0.0, neginf=0.0)
        gain = write_audio(self.folder / file, playable, self.sampling_rate, loudness=self.settings.loudness)
        return AudioRecord(
            file=file.as_posix(),
            seconds=audio_CS.shape[-1] / self.sampling_rate,
            gain_db=20 * math.log10(gain),
            signal=signal,
            warnings=warnings_of(signal),
        )

    def _write_control(self, stem: str, audio_CS: torch.Tensor) -> str:
        file = Path(_CONTROL_FOLDER) / f"{stem}.{self.settings.audio_format}"
        (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
        write_audio(self.folder / file, audio_CS, self.sampling_rate, loudness=self.settings.loudness)
        return file.as_posix()

    def _measure_cross_entropy(self, dataset: LatentDataset) -> MetricTable:
        decoder = self.model.decoder
        clips = self._clips(self.settings.metrics.max_clips, window_frames(decoder, decoder.generation_config))
        conditions: list[Condition] = ["own", "none"]
        if clips.has_other_captions():
            conditions.insert(1, "another clip's")
        seconds = sum(clips.codes(number).shape[1] for number in range(len(clips))) / self.frame_rate
        with Progress("cross-entropy", len(conditions) * seconds, "s of audio") as progress:
            scores = {
                condition: score(
                    self.model,
                    clips.batches(self.settings.metrics.batch_size, condition),
                    lambda batch: progress.advance(int(batch.frames.sum()) / self.frame_rate),
                )
                for condition in conditions
            }
        size = self.model.config.decoder.vocab_size
        use = code_use((clips.codes(number) for number in range(len(clips))), size)
        return cross_entropy_table(scores, use, size, dataset.split, len(clips))

    def _measure_frechet(self, samples: Sequence[SampleRecord]) -> MetricTable | None:
        assert self.embedder is not None
        generated = {
            name: [self._read(one.audio) for one in group]
            for name, group in _by_scale([one for one in samples if one.kind != "continuation"]).items()
        }
        reference = self.recordings
        if reference:
            name = f"{len(reference)} files of {self.settings.metrics.reference_audio}"
            ceiling = {"codec round trip": [round_trip(self.model, audio_CS) for audio_CS in reference]}
            meaning = "The same recordings through the codec: what no model with this codec can be better than."
        else:
            clips = self._clips(self.settings.metrics.reference_clips, self.new_frames)
            reference = [decoded(self.model, clips.codes(number)) for number in range(len(clips))]
            assert self.dataset is not None
            name = f"{len(clips)} clips of the split {self.dataset.split}, decoded"
            ceiling = {"other half of the reference": reference[1::2]} if len(reference) > 1 else {}
            meaning = (
                "Every second clip of the reference against all of it: about as close as other real clips would be. "
                "The reference is decoded from codes, so what the codec loses is in neither."
            )
        if not reference or not (generated or ceiling):
            return None
        return frechet_table(
            self.embedder,
            reference,
            {**generated, **ceiling},
            self.sampling_rate,
            name,
            dict.fromkeys(ceiling, meaning),
        )

    def _read(self, record: AudioRecord) -> torch.Tensor:
        audio_CS, _ = read_audio(self.folder / record.file)
        # At the level at which the model made it.
        return audio_CS * 10 ** (-record.gain_db / 20)


def overall_warnings(samples: Sequence[SampleRecord]) -> list[str]:
    """The samples' warnings together: each one's file and what is wrong with it."""
    return [f"{sample.audio.file}: {warning}" for sample in samples for warning in sample.audio.warnings]


def _by_scale(samples: Sequence[SampleRecord]) -> dict[str, list[SampleRecord]]:
    """Samples of one kind of condition and guidance scale, by a name for it."""
    groups: dict[str, list[SampleRecord]] = {}
    for sample in samples:
        conditioned = sample.text != ""
        name = f"generated, guidance {sample.guidance_scale:g}" if conditioned else "generated, no text"
        groups.setdefault(name, []).append(sample)
    return groups


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def _say_where(output: Path, samples: Sequence[SampleRecord]) -> None:
    warned = sum(bool(sample.audio.warnings) for sample in samples)
    print(f"{len(samples)} samples, {warned} of them with warnings. Report: {output / REPORT_NAME}")

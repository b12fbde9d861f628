"""The evaluation stage: `run(config)` is what `scripts/evaluate.py` calls."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from musicgen_train.evaluation.control.listening import listen
from musicgen_train.evaluation.control.scoring import ControlClip
from musicgen_train.evaluation.generating import generate, plan
from musicgen_train.evaluation.inputs import Inputs, read_inputs
from musicgen_train.evaluation.measuring import measure_all
from musicgen_train.evaluation.output import REPORT_NAME, RESULTS_NAME, report_folder
from musicgen_train.evaluation.report.curves import charts_of_run, read_metrics
from musicgen_train.evaluation.report.page import Report, write_report
from musicgen_train.evaluation.results_file import Sampled, results_of
from musicgen_train.evaluation.sample_files import SampleFiles
from musicgen_train.evaluation.settings import EvaluationSettings
from musicgen_train.files import write_json
from musicgen_train.progress import Progress
from musicgen_train.provenance.record import write_record


def run(config: DictConfig) -> Path:
    """Evaluate a model as the config says.

    Returns:
        The report's folder.

    Raises:
        ValueError, OSError, CheckpointError: what is asked for cannot be done; the message says why.
    """
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    settings = EvaluationSettings.from_dict(values)
    started, output = time.monotonic(), Path(settings.output).expanduser()
    with report_folder(output, overwrite=settings.overwrite) as folder:
        inputs = read_inputs(settings)
        files = SampleFiles(
            folder,
            inputs.evaluated,
            inputs.sampling,
            audio_format=settings.audio_format,
            loudness=settings.loudness,
        )
        sampled = _sample(inputs, files)
        control = _control(inputs, files)
        tables = measure_all(inputs, sampled.samples, control, files, settings.metrics)
        results = results_of(settings, inputs, sampled, control, tables, time.monotonic() - started)
        write_json(folder / RESULTS_NAME, results)
        write_record(folder)
        curves = inputs.evaluated.source.metrics
        report = Report(
            samples=sampled.samples,
            tables=tables,
            control=control,
            criteria=() if inputs.control is None else inputs.control.listener.criteria,
            charts=[] if curves is None else charts_of_run(read_metrics(curves)),
            results=results,
        )
        write_report(report, folder, embed_bytes=int(settings.report.embed_megabytes * 10**6))
    warned = sum(bool(sample.audio.warnings) for sample in sampled.samples)
    print(f"{len(sampled.samples)} samples, {warned} of them with warnings. Report: {output / REPORT_NAME}")
    return output


def _sample(inputs: Inputs, files: SampleFiles) -> Sampled:
    """Generate everything that is asked for, and write each sample as soon as it is there."""
    jobs = plan(inputs.requests, inputs.sampling)
    if not jobs:
        return Sampled(samples=[])
    records, frame_rate = {}, inputs.evaluated.frame_rate
    with Progress("sampling", len(jobs) * inputs.new_seconds, "s of audio") as progress:
        for generated in generate(
            inputs.evaluated.model, jobs, inputs.sampling, lambda frames: progress.advance(frames / frame_rate)
        ):
            records[id(generated.job)] = files.write_sample(generated)
        # Batches are of samples that fit together; the report has them as they were asked for.
        samples = [records[id(job)] for job in jobs]
        return Sampled(samples=samples, seconds=progress.elapsed, audio_seconds=progress.done)


def _control(inputs: Inputs, files: SampleFiles) -> list[ControlClip]:
    """Generate from captions that name properties, and have a listener say whether the audio has them."""
    test = inputs.control
    if test is None:
        return []
    samples = len(test.captions.requests) * len(test.sampling.guidance_scales)
    with Progress("control", samples * inputs.new_seconds, "s of audio") as progress:
        return listen(
            test.listener,
            test.captions,
            inputs.evaluated,
            test.sampling,
            files.write_control,
            lambda frames: progress.advance(frames / inputs.evaluated.frame_rate),
        )

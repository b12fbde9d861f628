"""Measures a model and its samples. The tables that come of it are laid out in `tables.py`."""

from __future__ import annotations

from collections.abc import Sequence

from musicgen_train.data.latent_dataset import LatentDataset
from musicgen_train.evaluation.control.listening import set_name
from musicgen_train.evaluation.control.scoring import ControlClip, control_table
from musicgen_train.evaluation.cross_entropy import code_use, score_split
from musicgen_train.evaluation.inputs import Inputs
from musicgen_train.evaluation.model import EvaluatedModel
from musicgen_train.evaluation.records import MetricTable, SampleRecord
from musicgen_train.evaluation.sample_files import SampleFiles
from musicgen_train.evaluation.settings import MetricsSettings
from musicgen_train.evaluation.split_clips import Condition, spread_clips
from musicgen_train.evaluation.tables import cross_entropy_table, frechet_table, signal_table
from musicgen_train.metrics.signal_statistics import SignalStatistics
from musicgen_train.models.generation.loop import window_frames
from musicgen_train.progress import Progress


def measure_all(
    inputs: Inputs,
    samples: Sequence[SampleRecord],
    control: Sequence[ControlClip],
    files: SampleFiles,
    settings: MetricsSettings,
) -> list[MetricTable]:
    """Compute every table that the settings ask for and the inputs allow."""
    tables: list[MetricTable | None] = []
    if inputs.control is not None:
        generated = [set_name(scale) for scale in inputs.control.sampling.guidance_scales]
        test = inputs.control
        tables.append(control_table(control, generated, test.captions.source, test.listener))
    if inputs.dataset is not None and settings.cross_entropy:
        tables.append(_measure_cross_entropy(inputs.evaluated, inputs.dataset, settings))
    tables.append(_measure_frechet(inputs, samples, files, settings))
    if samples:
        tables.append(_measure_signal(samples))
    return [table for table in tables if table is not None]


def _measure_cross_entropy(evaluated: EvaluatedModel, dataset: LatentDataset, settings: MetricsSettings) -> MetricTable:
    decoder, frame_rate = evaluated.model.decoder, evaluated.frame_rate
    clips = spread_clips(dataset, settings.max_clips, window_frames(decoder.config, decoder.generation_config))
    conditions: list[Condition] = ["own", "none"]
    if clips.has_other_captions():
        conditions.insert(1, "another clip's")
    seconds = sum(clips.codes(number).shape[1] for number in range(len(clips))) / frame_rate
    with Progress("cross-entropy", len(conditions) * seconds, "s of audio") as progress:
        scores = {
            condition: score_split(
                evaluated.model,
                clips.batches(settings.batch_size, condition),
                lambda batch: progress.advance(int(batch.frames.sum()) / frame_rate),
            )
            for condition in conditions
        }
    size = evaluated.model.config.decoder.vocab_size
    use = code_use((clips.codes(number) for number in range(len(clips))), size)
    return cross_entropy_table(scores, use, size, dataset.split, len(clips))


def _measure_frechet(
    inputs: Inputs, samples: Sequence[SampleRecord], files: SampleFiles, settings: MetricsSettings
) -> MetricTable | None:
    """The distances from the recordings, or else from the dataset; None where there is nothing to compare."""
    evaluated, dataset, reference = inputs.evaluated, inputs.dataset, inputs.recordings
    if inputs.embedder is None or (dataset is None and not reference):
        return None
    generated = {
        name: [files.read(one.audio) for one in group]
        for name, group in _by_scale([one for one in samples if one.kind != "continuation"]).items()
    }
    if reference:
        name = f"{len(reference)} files of {settings.reference_audio}"
        ceiling = {"codec round trip": [evaluated.through_codec(audio_CS) for audio_CS in reference]}
        meaning = "The same recordings through the codec: what no model with this codec can be better than."
    else:
        assert dataset is not None
        clips = spread_clips(dataset, settings.reference_clips, inputs.new_frames)
        reference = [evaluated.decode(clips.codes(number)) for number in range(len(clips))]
        name = f"{len(clips)} clips of the split {dataset.split}, decoded"
        ceiling = {"other half of the reference": reference[1::2]} if len(reference) > 1 else {}
        meaning = (
            "Every second clip of the reference against all of it: about as close as other real clips would be. "
            "The reference is decoded from codes, so what the codec loses is in neither."
        )
    if not generated and not ceiling:
        return None
    return frechet_table(
        inputs.embedder,
        reference,
        {**generated, **ceiling},
        evaluated.sampling_rate,
        name,
        dict.fromkeys(ceiling, meaning),
    )


def _measure_signal(samples: Sequence[SampleRecord]) -> MetricTable:
    references = {sample.reference.file: sample.reference.signal for sample in samples if sample.reference}
    sets: dict[str, Sequence[SignalStatistics]] = {
        **{name: [one.audio.signal for one in group] for name, group in _by_scale(samples).items()},
        "reference": list(references.values()),
    }
    return signal_table(sets)


def _by_scale(samples: Sequence[SampleRecord]) -> dict[str, list[SampleRecord]]:
    """Samples grouped by guidance scale, those without a text by themselves, under a name for the reader."""
    groups: dict[str, list[SampleRecord]] = {}
    for sample in samples:
        name = f"generated, guidance {sample.guidance_scale:g}" if sample.text else "generated, no text"
        groups.setdefault(name, []).append(sample)
    return groups

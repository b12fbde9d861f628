"""This makes `tests/assets/old_work/`: work of the code as it was before the package was reorganised.

    PYTHONPATH=. python tests/golden/make_old_work.py

It was run once, with the code of the commit that `golden.json` names, and stays as the record of how the assets were
made. Made again with later code they would say nothing, since it is the old files that later code must read.

Everything is made in `PLACE`, with paths below it, so that no asset knows of anybody's machine; checkpoints hold the
absolute folder of their run, as users' do.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import hydra
import numpy as np
import soundfile
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from safetensors.torch import save_file

import musicgen_train
import musicgen_train.evaluation.model
import musicgen_train.latents.format
import musicgen_train.latents.manifest
import musicgen_train.launch
import musicgen_train.models.fingerprint
import musicgen_train.preprocess.entry
import musicgen_train.provenance.record
import musicgen_train.training.checkpoints.last_checkpoint
import musicgen_train.training.run
import musicgen_train.training.weights.model_source

ASSETS = Path(__file__).parents[1] / "assets" / "old_work"
PLACE = Path("/tmp/musicgen-golden")
# Of the assets' files, so that nothing depends on when they were checked out: a grown input is known by it.
TIME_NS = 1_700_000_000 * 10**9

RATE = 1600  # 40 samples a frame, 40 frames a second
CODES = 16
TEXT_WIDTH = 12
TEXTS = ["drums and bass", "a quiet flute", "jazz guitar 120 bpm"]
TRAIN = [(21 + 3 * number, [[0, 1], [1], [2], []][number % 4]) for number in range(9)]
VALIDATION = [(17, [0]), (23, []), (29, [1, 2])]

WHERE = ["data.path=latents", "init_from=composite", "output=run"]
QUICK = [
    *("experiment=debug", "trainer=cpu", "samples.every=0", "checks.enabled=false"),
    *("+trainer.enable_progress_bar=false", "~callbacks.progress"),
]
# Everything that draws, counts or averages: dropout, captions, crops, micro-batches, a schedule, an average. Step 6 is
# in the third pass over the nine clips.
HALF = [
    *QUICK,
    *("callbacks=ema_early_stopping", "callbacks.ema.decay=0.8", "optimizer.lr=0.01", "trainer.max_steps=12"),
    *("model.dropout=0.1", "data.cfg_dropout=0.3", "data.crop_seconds=0.6", "seed=5"),
    *(
        "data.global_batch_size=4",
        "data.micro_batch_size=2",
        "validate_every=4",
        "callbacks.last.every_n_train_steps=6",
    ),
]
ADAPTER = [
    *("data.path=preprocessed", "init_from=composite", "output=adapter_run", *QUICK),
    *("adapter=lora", "adapter.rank=2", "callbacks=early_stopping", "callbacks.early_stopping.patience=1"),
    *("optimizer.lr=0.1", "trainer.max_steps=20", "validate_every=2", "callbacks.last.every_n_train_steps=20"),
]


class KilledError(Exception):
    """Stands for the end of the process."""


def compose(*overrides: str) -> DictConfig:
    """The config of a run, as the command line makes it."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(musicgen_train.launch.CONFIG_FOLDER), version_base="1.3"):
        return copy.deepcopy(hydra.compose("train", list(overrides)))


def train(*overrides: str) -> musicgen_train.training.run.Run:
    """A run, recorded as if it was started by hand."""
    sys.argv = ["scripts/train.py", *overrides]
    return musicgen_train.training.run.run(compose(*overrides))


def write_composite(folder: Path) -> None:
    """A composite whose weights all matter: logits of a few units, and codebooks that differ."""
    from sentencepiece_models import write_t5_tokenizer_folder

    torch.manual_seed(7)
    model = musicgen_train.MusicgenForConditionalGeneration(
        musicgen_train.MusicgenConfig(
            text_encoder=musicgen_train.T5Config(
                vocab_size=300, d_model=TEXT_WIDTH, d_kv=5, d_ff=18, num_layers=1, num_heads=3
            ),
            audio_encoder=musicgen_train.EncodecConfig(
                sampling_rate=RATE,
                target_bandwidths=[0.64],  # 4 codebooks of 4 bits, 40 frames a second
                codebook_size=CODES,
                hidden_size=16,
                codebook_dim=16,
                num_filters=4,
                upsampling_ratios=[8, 5],
                num_lstm_layers=1,
                use_causal_conv=False,
                use_conv_shortcut=False,
                normalize=False,
            ),
            decoder=musicgen_train.MusicgenDecoderConfig(
                vocab_size=CODES,
                pad_token_id=CODES,
                bos_token_id=CODES,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                ffn_dim=24,
                max_position_embeddings=128,
                dropout=0.0,
            ),
        )
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in (model.decoder, model.enc_to_dec_proj):
            assert part is not None
            for name, parameter in part.named_parameters():
                if "norm" not in name:
                    parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
        # Codebooks of what the random encoder puts out, without which all sound has the same codes.
        time = torch.arange(4 * RATE) / RATE
        sound = torch.sin(2 * torch.pi * (40 + 60 * time) * time) + 0.3 * torch.randn(len(time), generator=generator)
        rest_TD = model.audio_encoder.encoder((0.5 * sound)[None, :, None])[0]
        for layer in model.audio_encoder.quantizer.layers:
            table = layer.codebook.embed
            table.copy_(rest_TD[torch.randperm(len(rest_TD), generator=generator)[: len(table)]])
            rest_TD = rest_TD - table[torch.cdist(rest_TD, table).argmin(dim=1)]
    model.generation_config = model.generation_config.replace(max_length=30)
    model.save_pretrained(folder)
    write_t5_tokenizer_folder(folder / "tokenizer", vocab_size=200, normalization="identity")
    extractor = musicgen_train.EncodecFeatureExtractor(feature_size=1, sampling_rate=RATE)
    tokenizer = musicgen_train.T5Tokenizer.from_pretrained(folder / "tokenizer")
    musicgen_train.MusicgenProcessor(extractor, tokenizer).save_pretrained(folder)
    shutil.rmtree(folder / "tokenizer")


def write_latents(folder: Path) -> None:
    """A latent dataset of random codes, its train split in two files."""
    model = musicgen_train.MusicgenForConditionalGeneration.from_pretrained("composite")
    random = torch.Generator().manual_seed(0)
    parts = {"train": TRAIN, "validation": VALIDATION}
    for split, clips in parts.items():
        columns = {
            "codes": [
                musicgen_train.latents.format.pack_codes(torch.randint(0, CODES, (4, frames), generator=random))
                for frames, _ in clips
            ],
            "frames": [frames for frames, _ in clips],
            "captions": [captions for _, captions in clips],
            "track": [f"{split}/{number}.wav" for number in range(len(clips))],
            "start_seconds": [0.25 * number for number in range(len(clips))],
            "silent": [False] * len(clips),
            "metadata": [json.dumps({"bpm": 100 + number}) for number in range(len(clips))],
        }
        table = datasets.Dataset.from_dict(columns, features=musicgen_train.latents.format.CLIP_FEATURES)
        table.save_to_disk(str(folder / split), num_shards=2 if split == "train" else 1)
    states = [torch.randn(3 + 2 * number, TEXT_WIDTH, generator=random) for number in range(len(TEXTS))]
    columns = {
        "text": TEXTS,
        "states": [musicgen_train.latents.format.pack_states(each, "float16") for each in states],
        "length": [len(each) for each in states],
    }
    table = datasets.Dataset.from_dict(columns, features=musicgen_train.latents.format.CAPTION_FEATURES)
    table.save_to_disk(str(folder / musicgen_train.latents.format.CAPTIONS_FOLDER))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(parts)}))
    record, fingerprint = (
        musicgen_train.latents.manifest.EncoderRecord,
        musicgen_train.models.fingerprint.fingerprint,
    )
    musicgen_train.latents.manifest.Manifest(
        text_encoder=record(name="composite", fingerprint=fingerprint(model.text_encoder)),
        audio_encoder=record(name="composite", fingerprint=fingerprint(model.audio_encoder)),
        sampling_rate=RATE,
        frame_rate=40.0,
        num_codebooks=4,
        codebook_size=CODES,
        audio_channels=1,
        text_width=TEXT_WIDTH,
        states_dtype="float16",
        splits={
            name: musicgen_train.latents.manifest.SplitRecord(
                clips=len(clips), tracks=len(clips), hours=sum(frames for frames, _ in clips) / 40 / 3600
            )
            for name, clips in parts.items()
        },
        captions=len(TEXTS),
        counts={"files": len(TRAIN) + len(VALIDATION)},
        settings={},
        command="tests/golden/make_old_work.py",
        versions={},
        created="2026-11-30T00:00:00Z",
    ).save(folder)


def write_tracks(folder: Path, more: int = 0) -> None:
    """Tones of several lengths, some with captions and tags, one without, one that is too short, one that is broken.

    `more` adds tracks, as an input that has grown.
    """
    folder.mkdir()
    for number in range(6 + more):
        time = np.arange(round((0.5 + 0.35 * number) * RATE)) / RATE
        tone = 0.4 * np.sin(2 * np.pi * (50 + 30 * number) * time) * (1 + 0.3 * np.sin(7 * time))
        soundfile.write(folder / f"{number}.wav", tone.astype(np.float32), RATE)
        about = {"description": f"jazz number {number}", "tags": ["aa", "bb", "chorus"], "bpm": 90 + number}
        if number != 2:
            (folder / f"{number}.json").write_text(json.dumps(about))
    soundfile.write(folder / "blip.wav", np.full(160, 0.1, dtype=np.float32), RATE)
    (folder / "broken.wav").write_bytes(b"no sound")
    for path in folder.iterdir():
        os.utime(path, ns=(TIME_NS, TIME_NS))


def preprocess(output: str = "preprocessed") -> Any:
    """The stage as its command line runs it, on `tracks` and `composite` of the working directory."""
    from omegaconf import OmegaConf

    given = {
        "input": "tracks",
        "output": output,
        "encoders": "composite",
        "clip_seconds": 0.6,
        "min_clip_seconds": 0.3,
        "captions": {"variants": 3},
        "split": {"validation": 0.2},
        "device": "cpu",
        "workers": 0,
        "shard_tracks": 2,
    }
    config = OmegaConf.merge(OmegaConf.load(musicgen_train.launch.CONFIG_FOLDER / "preprocess.yaml"), given)
    assert isinstance(config, DictConfig)
    return musicgen_train.preprocess.entry.run(config)


def rows_digest(folder: Path) -> str:
    """SHA-256 of all values of a latent dataset, as plain `datasets` reads them."""
    digest = hashlib.sha256()
    splits = sorted(datasets.load_from_disk(str(folder)).items())
    for name, part in [*splits, ("captions", datasets.load_from_disk(str(folder / "captions")))]:
        for row in part:
            digest.update(repr((name, sorted(row.items()))).encode())
    return digest.hexdigest()


def greedy_codes(model: musicgen_train.MusicgenForConditionalGeneration, folder: Path) -> list[list[list[int]]]:
    """What a composite makes of two texts without drawing: one list per text and codebook."""
    processor = musicgen_train.MusicgenProcessor.from_pretrained(folder)
    inputs = processor(text=TEXTS[1:], padding=True, return_tensors="pt")
    made: Any = model.generate(
        **inputs, do_sample=False, guidance_scale=2.0, max_new_tokens=20, return_dict_in_generate=True
    )
    return made.codes.tolist()


def codes_of_model(name: str) -> list[list[list[int]]]:
    """What `model=NAME` of the evaluation makes; of the encoders of `composite`, which all of them have."""
    source = musicgen_train.training.weights.model_source.find_model(name, "model")
    return greedy_codes(musicgen_train.evaluation.model.load_model(source).model, Path("composite"))


def targets() -> list[str]:
    """Every `_target_` of `configs/`, sorted."""
    found = set()
    for path in musicgen_train.launch.CONFIG_FOLDER.rglob("*.yaml"):
        for line in path.read_text().splitlines():
            key, _, value = line.strip().partition(":")
            if key == "_target_":
                found.add(value.split("#")[0].strip())
    return sorted(found)


def die_after_the_first_checkpoint() -> Any:
    """Let the next run end as if it was killed once it has saved its place; returns what undoes that."""
    owner: Any = musicgen_train.training.checkpoints.last_checkpoint.LastCheckpoint
    save = owner._save

    def save_and_die(self: Any, trainer: Any) -> None:
        save(self, trainer)
        raise KilledError

    owner._save = save_and_die
    return lambda: setattr(owner, "_save", save)


def main() -> None:
    sys.path[:0] = [str(Path(__file__).parents[1] / "processing")]
    torch.set_num_threads(1)
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    os.chdir(PLACE)
    write_composite(Path("composite"))
    write_latents(Path("latents"))
    write_tracks(Path("tracks"))
    sys.argv = ["scripts/preprocess.py", "input=tracks", "output=preprocessed", "encoders=composite"]
    preprocess()

    undo = die_after_the_first_checkpoint()
    try:
        train(*WHERE, *HALF)
    except KilledError:
        undo()
    shutil.copytree("run", "half")
    ended = train(*WHERE, *HALF, "resume=auto")
    Path("expected").mkdir()
    state = {name: value.clone() for name, value in ended.module.state_dict().items()}
    save_file(state, "expected/weights.safetensors")
    shutil.copy("run/metrics.csv", "expected/metrics.csv")
    train(*ADAPTER)

    with Path("adapter_run/metrics.csv").open() as file:
        steps = max(int(row["step"]) for row in csv.DictReader(file))
    golden = {
        "made_with": musicgen_train.provenance.record.record(),
        "rows": {name: rows_digest(Path(name)) for name in ("latents", "preprocessed")},
        "adapter_steps": steps,
        "codes": {
            name: codes_of_model(name) for name in ("composite", "half", "run", "adapter_run", "adapter_run/adapter")
        },
    }
    Path("expected/golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    Path("expected/targets.txt").write_text("\n".join(targets()) + "\n")

    # `run` as it was when it was killed.
    shutil.rmtree("run")
    Path("half").rename("run")
    shutil.rmtree(ASSETS, ignore_errors=True)
    for name in ("composite", "latents", "preprocessed", ".preprocessed.work", "run", "adapter_run"):
        shutil.copytree(name, ASSETS / name.lstrip("."))
    for path in Path("expected").iterdir():
        shutil.copy(path, ASSETS / path.name)


if __name__ == "__main__":
    main()

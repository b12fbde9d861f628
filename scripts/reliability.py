"""Kill preprocessing and training with SIGKILL at random moments, resume, and compare with an uninterrupted run.

    python scripts/reliability.py                                 30 kills each; about half an hour on two cores
    python scripts/reliability.py --only train --kills 5          one of them, fewer kills
    python scripts/reliability.py --seed 1 --folder FOLDER        other moments; inputs and results kept in FOLDER

Each life of a command is a process group of its own, which is killed as a whole. The moment is drawn for every life:
while it starts, some time after a number of saves, or when a file that is being saved is seen on the disk. Moments are
counted in saves and not in seconds alone, so a slow machine takes longer but tests the same. A life that ends by itself
before it is killed ends a round; the next round begins from nothing, until there were enough kills. Training resumes
with another number of data workers each time.

At the end of each round the result is compared with that of an uninterrupted run. Preprocessing: every row of every
split and all captions, and the bytes of all tables. Training: every tensor and number of the last checkpoint (weights,
averaged weights, optimizer, schedule, counters), the rows of metrics.csv except speeds, the bytes of the exported model
and of all samples. The exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import sentencepiece
import soundfile
import torch

from musicgen_train import (
    EncodecConfig,
    EncodecFeatureExtractor,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenProcessor,
    T5Config,
    T5Tokenizer,
)
from musicgen_train.training.logs.speed import SPEED_COLUMNS

SCRIPTS = Path(__file__).parent
RATE = 8000
TRACKS = 120
STEPS = 150
# Training saves every other step, and validates, logs and samples at other intervals.
TRAINING = [
    "callbacks=ema_early_stopping",
    "~callbacks.progress",
    "callbacks.last.every_n_train_steps=2",
    "callbacks.early_stopping.patience=1000",
    "callbacks.ema.decay=0.9",
    "validate_every=7",
    "trainer=cpu",
    f"trainer.max_steps={STEPS}",
    "trainer.log_every_n_steps=5",
    "+trainer.enable_progress_bar=false",
    "optimizer.lr=0.001",
    "schedule.warmup_steps=20",
    "model.dropout=0.1",
    "data.cfg_dropout=0.3",
    "data.crop_seconds=1.0",
    "data.global_batch_size=8",
    "data.micro_batch_size=4",
    "samples.every=50",
    "samples.seconds=0.2",
    "samples.prompts=[drums]",
]
# The largest number of saves before a life is killed.
MOST_SAVES = 4
POLL_SECONDS = 0.003
# A life that takes longer hangs, which is a failure of the command.
LONGEST_LIFE_SECONDS = 1800.0
# The largest number of lives in a row without a save: a command that never gets further would be killed for ever.
MOST_BARREN_LIVES = 20


@dataclass
class Outcome:
    """The result for one of the two commands."""

    name: str
    kills: Counter[str] = field(default_factory=Counter)
    """Number of kills by what the command was doing."""
    rounds: int = 0
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        moments = ", ".join(f"{count} {moment}" for moment, count in sorted(self.kills.items()))
        verdict = "; ".join(self.differences) if self.differences else "identical to the run left alone, every time"
        return (
            f"{self.name}: {self.kills.total()} kills ({moments}) in {self.rounds} rounds, {self.seconds:.0f} s: "
            f"{verdict}"
        )


@dataclass
class Job:
    """A command that is killed and resumed."""

    name: str
    first: Callable[[], list[str]]
    """Returns the command that begins."""
    again: Callable[[random.Random], list[str]]
    """Returns the command that resumes."""
    output: Path
    partial: Callable[[], bool]
    """Tells whether a file is being written."""
    progress: Callable[[], Any]
    """Returns a value that changes with every save."""
    compare: Callable[[], list[str]]
    """Returns the differences from the uninterrupted run."""
    clear: Callable[[], None]
    """Removes what the command has made."""
    seconds_to_first_save: float = 10.0
    """An estimate, updated by every life."""

    @property
    def log(self) -> Path:
        return self.output.with_name(f"{self.name}.log")


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for. Returns the exit code: 0, or 1 if a result differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="number of kills of each command (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: 0)")
    parser.add_argument("--only", choices=("preprocess", "train"), help="only one of the commands")
    parser.add_argument("--folder", type=Path, help="a folder to make and keep; otherwise a temporary one")
    options = parser.parse_args(arguments)
    if options.kills < 1:
        parser.error("--kills must be 1 or more")
    if options.folder is not None and options.folder.exists() and any(options.folder.iterdir()):
        parser.error(f"--folder {options.folder} holds something; give a new one")
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        outcomes = _run(folder.absolute(), options)
    for outcome in outcomes:
        print(outcome)
    return 1 if any(outcome.differences for outcome in outcomes) else 0


def _run(folder: Path, options: argparse.Namespace) -> list[Outcome]:
    write_music(folder / "music")
    write_model(folder / "model")
    jobs = [_preprocessing(folder), _training(folder)]
    outcomes = []
    for job in jobs:
        straight = job.output.with_name("straight-" + job.output.name)
        # Both results have the same path, which is in what they write; so the first is moved aside.
        begin = time.monotonic()
        _finish(job.first(), job.log)
        job.output.rename(straight)
        job.clear()
        print(f"{job.name}: uninterrupted, {time.monotonic() - begin:.0f} s", flush=True)
        if options.only in (None, job.name):
            outcomes.append(torment(job, options.kills, random.Random(f"{options.seed}/{job.name}")))
        if outcomes and outcomes[-1].differences:
            break
    return outcomes


def torment(job: Job, kills: int, moments: random.Random) -> Outcome:
    """Kill a job `kills` times, and compare the result each time it finishes."""
    outcome, begin = Outcome(job.name), time.monotonic()
    begun, barren = False, 0
    while True:
        command = job.again(moments) if begun else job.first()
        if outcome.kills.total() >= kills:
            _finish(command, job.log)
            moment = None
        else:
            before = job.progress()
            moment = _live_and_die(command, job, moments)
            barren = barren + 1 if job.progress() == before else 0
            if barren >= MOST_BARREN_LIVES:
                outcome.differences.append(f"no progress in {barren} lives")
                break
        begun = True
        if moment is not None:
            outcome.kills[moment] += 1
            print(f"{job.name}: kill {outcome.kills.total()} of {kills}, {moment}", flush=True)
            continue
        outcome.rounds += 1
        outcome.differences += job.compare()
        if outcome.differences or outcome.kills.total() >= kills:
            break
        job.clear()
        begun = False
    outcome.seconds = time.monotonic() - begin
    return outcome


def _live_and_die(command: list[str], job: Job, moments: random.Random) -> str | None:
    """Run one life and kill it. Returns what it was doing, or None if it finished first."""
    plan = moments.choices(("starting", "working", "saving"), weights=(2, 5, 3))[0]
    saves, share = moments.randint(1, MOST_SAVES), moments.random()
    begin, before = time.monotonic(), job.progress()
    seen, saved = before, list[float]()
    process = _begin(command, job.log)
    try:
        while process.poll() is None:
            now = time.monotonic()
            if now - begin > LONGEST_LIFE_SECONDS:
                raise RuntimeError(f"{job.name} does nothing and does not end: {' '.join(command)}")
            if plan == "starting" and now - begin >= share * job.seconds_to_first_save:
                break
            last, seen = seen, job.progress()
            if seen != last:
                saved.append(now)
                job.seconds_to_first_save = saved[0] - begin
            if len(saved) >= saves:
                # At a random point before the next save, or during it.
                between = (saved[-1] - saved[0]) / (len(saved) - 1) if len(saved) > 1 else 1.0
                if now - saved[saves - 1] >= share * between if plan == "working" else job.partial():
                    break
            time.sleep(POLL_SECONDS)
        else:
            if process.returncode:
                raise _failed(command, job.log)
            return None
    finally:
        _kill_group(process)
    # The files that are left show what it was doing.
    if job.partial():
        return "in a save"
    return "at work" if job.progress() != before else "while starting"


def _begin(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # Even if the process itself has ended, others of its group may be running.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _finish(command: list[str], log: Path) -> None:
    process = _begin(command, log)
    try:
        if process.wait(timeout=LONGEST_LIFE_SECONDS):
            raise _failed(command, log)
    finally:
        _kill_group(process)


def _failed(command: list[str], log: Path) -> RuntimeError:
    return RuntimeError(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-3000:]}")


# Preprocessing


def _preprocessing(folder: Path) -> Job:
    output = folder / "latents"
    work = folder / ".latents.work"
    command = [
        *(sys.executable, str(SCRIPTS / "preprocess.py")),
        *(f"input={folder / 'music'}", f"output={output}", f"encoders={folder / 'model'}"),
        *("clip_seconds=1.5", "split.validation=0.1", "shard_tracks=2", "workers=1", "batch_seconds=12"),
    ]

    def clear() -> None:
        for made in (output, work):
            shutil.rmtree(made, ignore_errors=True)

    return Job(
        name="preprocess",
        first=lambda: command,
        again=lambda _: command,
        output=output,
        partial=lambda: any(_scanned(staged) for staged in work.glob("*/staging/*")),
        progress=lambda: (output.exists(), [len(_scanned(shards)) for shards in work.glob("*/shards")]),
        compare=lambda: compare_latents(output.with_name("straight-latents"), output),
        clear=clear,
    )


def _scanned(folder: Path) -> list[os.DirEntry[str]]:
    # The command creates and removes folders meanwhile.
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def compare_latents(straight: Path, killed: Path) -> list[str]:
    """Return the differences between two latent datasets."""
    manifests = [json.loads((one / "manifest.json").read_text()) for one in (straight, killed)]
    for manifest in manifests:
        for name in ("created", "command"):
            manifest.pop(name, None)
    found = [] if manifests[0] == manifests[1] else ["other manifest.json"]
    for split in sorted(path.name for path in straight.iterdir() if path.is_dir()):
        expected, got = (datasets.load_from_disk(str(one / split)) for one in (straight, killed))
        if expected.features != got.features or expected.num_rows != got.num_rows:
            found.append(f"{split} has {got.num_rows} rows for {expected.num_rows}")
        elif any(one != other for one, other in zip(expected, got, strict=True)):
            found.append(f"other rows in {split}")
    tables = [path.relative_to(straight) for path in straight.rglob("*.arrow")]
    other = [str(path) for path in tables if _digest(straight / path) != _digest(killed / path)]
    if other:
        found.append(f"the same rows in other bytes: {', '.join(other)}")
    return found


# Training


def _training(folder: Path) -> Job:
    output = folder / "run"
    latents = folder / "straight-latents"
    command = [
        *(sys.executable, str(SCRIPTS / "train.py")),
        *(f"data.path={latents}", f"init_from={folder / 'model'}", f"output={output}", *TRAINING),
    ]

    def progress() -> Any:
        try:
            return (output / "checkpoints/last.ckpt").stat().st_ino, (output / "checkpoints/last.ckpt").stat().st_mtime
        except FileNotFoundError:
            return None

    return Job(
        name="train",
        # With resume=auto from the start, since a run may be killed before its first checkpoint.
        first=lambda: [*command, "resume=auto"],
        again=lambda moments: [*command, "resume=auto", f"data.workers={moments.randrange(3)}"],
        output=output,
        partial=lambda: any(
            entry.name.startswith(".saving-") for place in (output, output / "checkpoints") for entry in _scanned(place)
        ),
        progress=progress,
        compare=lambda: compare_runs(output.with_name("straight-run"), output),
        clear=lambda: shutil.rmtree(output, ignore_errors=True),
    )


def compare_runs(straight: Path, killed: Path) -> list[str]:
    """Return the differences between two training runs."""
    contents = []
    for run in (straight, killed):
        content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
        del content["callbacks"]["Speed"]  # seconds
        # On resuming, Lightning skips the validation before the checkpoint but counts it again, which has no effect.
        del content["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
        for name, state in content["callbacks"].items():
            if name.startswith("ModelCheckpoint"):
                del state["current_score"]  # Lightning does not restore it, and nothing needs it
        contents.append(content)
    found = [f"last.ckpt{line}" for line in differences(*contents)][:10]
    if _rows(straight) != _rows(killed):
        found.append("other rows in metrics.csv")
    for name in ("composite/model.safetensors", *_samples(straight)):
        if _digest(straight / name) != _digest(killed / name):
            found.append(f"other {name}")
    return found


def differences(one: Any, other: Any, at: str = "") -> list[str]:
    """Return the paths at which two trees of plain values and tensors differ, bit by bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{at}: {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [line for key in one for line in differences(one[key], other[key], f"{at}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for number, (a, b) in pairs for line in differences(a, b, f"{at}/{number}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [f"{at}: other numbers"]
    return [] if one == other else [f"{at}: {one!r} != {other!r}"]


def _rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [
            {name: value for name, value in row.items() if name not in SPEED_COLUMNS} for row in csv.DictReader(file)
        ]


def _samples(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in (run / "samples").rglob("*.wav"))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"


# Inputs


def write_music(folder: Path) -> None:
    """Write noisy tones as audio files, with captions."""
    folder.mkdir(parents=True)
    words = ("drums", "bass", "a quiet flute", "slow", "fast", "guitar", "strings", "80s pop")
    random_numbers = np.random.default_rng(0)
    for number in range(TRACKS):
        seconds = 2.0 + 0.05 * (number % 40)
        moments = np.arange(round(seconds * RATE)) / RATE
        sound = 0.4 * np.sin(2 * np.pi * (110 + 5 * number) * moments) + 0.05 * random_numbers.normal(size=len(moments))
        soundfile.write(folder / f"track{number:03d}.wav", sound.astype(np.float32), RATE)
        (folder / f"track{number:03d}.txt").write_text(f"{words[number % 8]} and {words[(number // 8) % 8]}\n")


def write_model(folder: Path) -> None:
    """Write a small MusicGen with random weights, large enough that saving a checkpoint can be interrupted."""
    torch.manual_seed(0)
    codec = EncodecConfig(
        sampling_rate=RATE,
        target_bandwidths=[1.6],  # 4 codebooks of 8 bits at 50 frames a second
        codebook_size=256,
        hidden_size=32,
        codebook_dim=32,
        num_filters=8,
        upsampling_ratios=[8, 5, 4],
        num_lstm_layers=1,
        use_causal_conv=False,
        use_conv_shortcut=False,
        normalize=False,
    )
    decoder = MusicgenDecoderConfig(
        vocab_size=256,
        pad_token_id=256,
        bos_token_id=256,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        ffn_dim=384,
        max_position_embeddings=256,
    )
    text = T5Config(vocab_size=400, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    model = MusicgenForConditionalGeneration(MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=decoder))
    _fit_codebooks(model.audio_encoder)
    model.save_pretrained(folder)
    tokenizer = _tokenizer(folder / "spiece.model")
    extractor = EncodecFeatureExtractor(feature_size=1, sampling_rate=RATE)
    MusicgenProcessor(extractor, tokenizer).save_pretrained(folder)


def _fit_codebooks(codec: Any) -> None:
    """Draw codebooks from outputs of the random encoder; with random entries all sound would have the same codes."""
    moments = torch.arange(12 * RATE) / RATE
    sound = 0.4 * torch.sin(2 * torch.pi * (80 + 40 * moments) * moments) + 0.05 * torch.randn(len(moments))
    with torch.no_grad():
        rest_TD = codec.encoder(sound[None, :, None])[0]
        for layer in codec.quantizer.layers:
            table = layer.codebook.embed
            table.copy_(rest_TD[torch.randperm(len(rest_TD))[: len(table)]])
            rest_TD = rest_TD - table[torch.cdist(rest_TD, table).argmin(dim=1)]


def _tokenizer(path: Path) -> T5Tokenizer:
    letters = random.Random(0)
    lines = [
        " ".join("".join(letters.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=4)) for _ in range(6))
        for _ in range(800)
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=300,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return T5Tokenizer(path)


if __name__ == "__main__":
    sys.exit(main())

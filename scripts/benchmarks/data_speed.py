"""Time reading latents, decoding audio, and preprocessing, on data that it makes itself.

    python scripts/benchmarks/data_speed.py                              all of it
    python scripts/benchmarks/data_speed.py --only latents               some parts
    python scripts/benchmarks/data_speed.py --rows 1000 100000           other numbers of rows

How it is measured: inputs are written to a temporary folder, and each measurement runs in a process of its own.

- latents: rows of 30 s of codes with 4 captions each, and text states of about 40 tokens; if the codes would take more
  than 2.4 GB, clips are shorter. They are read in random order: rows alone, rows made into examples (with a random crop
  and caption), batches of 16, and batches from one worker process of the training loader. Before the first access the
  system is asked to drop the file's pages from its cache. Memory is the growth of the process, its own and with the
  pages of mapped files, which the system reclaims when it needs them. For comparison the same rows are stored in the
  common way: codes and states as nested lists of a `datasets` folder.
- decode: for each format, a file of noisy tones is decoded, mixed to mono and resampled to 32 kHz on one thread.
- preprocess: `scripts/preprocess.py` as a whole process, in turn with the codec alone on the same clips in the same
  batches, with the libraries' files in the system's cache. The codec has the shape of facebook/encodec_32khz, the text
  encoder that of T5-base; weights are random.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import soundfile
import torch
from benchmark_models import fit_codebooks, synthetic_audio
from benchmark_plan import CODEC_32KHZ, SMALL_T5, T5_BASE
from benchmark_run import (
    add_device,
    environment,
    fact_lines,
    megabytes,
    positive,
    progress,
    quiet,
    require_folders,
    settle_device,
    status_bytes,
    table_line,
    three_digits,
)

from musicgen_train.latents.format import (
    CAPTION_FEATURES,
    CAPTIONS_FOLDER,
    CLIP_FEATURES,
    pack_codes,
    pack_states,
)
from musicgen_train.latents.manifest import EncoderRecord, Manifest, SplitRecord

PARTS = ("latents", "decode", "preprocess")
CODEBOOKS, CODES, FRAME_RATE, TEXT_WIDTH = 4, 2048, 50, 768
MOST_CODE_BYTES = 2_400_000_000
MOST_CAPTIONS, CAPTIONS_PER_CLIP = 4000, 4
# Nested lists are read as fast with more rows, but writing them takes minutes.
MOST_NESTED_ROWS = 1000
BATCH = 16
# By name: extension, sampling rate and soundfile's name of the encoding.
FORMATS = {
    "WAV, 16 bit, 44.1 kHz": ("wav", 44_100, "PCM_16"),
    "FLAC, 16 bit, 44.1 kHz": ("flac", 44_100, "PCM_16"),
    "FLAC, 16 bit, 48 kHz": ("flac", 48_000, "PCM_16"),
    "MP3, 44.1 kHz": ("mp3", 44_100, "MPEG_LAYER_III"),
}
NEW_RATE = 32_000


def main(arguments: list[str]) -> int:
    """Run what the command line asks for."""
    if arguments[:1] == ["--worker"]:
        action, *given = arguments[1:]
        print(json.dumps(WORKERS[action](*map(json.loads, given))))
        return 0
    options = parse(arguments)
    tables: dict[str, Table] = {}
    with tempfile.TemporaryDirectory(prefix="musicgen-benchmark-data-") as name:
        measure: dict[str, Callable[[argparse.Namespace, Path], Table]] = {
            "latents": measure_latents,
            "decode": measure_decoding,
            "preprocess": measure_preprocessing,
        }
        for part in options.only:
            tables[part] = measure[part](options, Path(name))
    facts = environment(
        Path(__file__).name,
        arguments,
        {name: version(name) for name in ("torch", "numpy", "datasets", "pyarrow", "soundfile")},
        device=options.device,
        figures=f"median (min-max) of {options.repeats} processes each",
    )
    text = "\n\n".join(["\n".join(fact_lines(facts)), *map(str, tables.values())])
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")
    if options.json:
        found = {name: dataclasses.asdict(table) for name, table in tables.items()}
        options.json.write_text(json.dumps({"environment": facts, **found}, indent=2) + "\n")
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="NAME", default=PARTS, help="of: %(choices)s")
    parser.add_argument("--repeats", type=positive, default=3, help="of each measurement (default: 3)")
    parser.add_argument(
        "--rows",
        type=positive,
        nargs="+",
        default=[1000, 10_000, 100_000, 1_000_000],
        metavar="N",
        help="of the latent datasets (default: 1000 10000 100000 1000000, which takes 5 GB of temporary files)",
    )
    parser.add_argument("--reads", type=positive, default=3200, help="rows that are read (default: 3200)")
    parser.add_argument("--minutes", type=_above_zero, default=6.0, help="of audio to preprocess (default: 6)")
    parser.add_argument(
        "--encoders", choices=ENCODERS, default="full", help="of preprocessing: full size, or tiny ones (default: full)"
    )
    add_device(parser)  # of preprocessing
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed there")
    options = parser.parse_args(arguments)
    settle_device(parser, options)
    require_folders(parser, options.json, options.markdown)
    return options


# Reading latents


def measure_latents(options: argparse.Namespace, root: Path) -> Table:
    """Measure rows a second and memory, by number of rows."""
    table = Table(
        "Reading latents, rows/s",
        ["rows", "seconds a row", "rows, first access", "rows", "examples", "batches", "loader with one worker",
         "opening, s", "memory after opening, own / with mapped files", "after reading"],
    )  # fmt: skip
    for rows in options.rows:
        progress(f"{rows:,} rows of latents")
        folder = root / f"latents-{rows}"
        frames = write_latents(folder, rows)
        runs = [ask("latents", str(folder), options.reads) for _ in range(options.repeats)]
        columns = ("first_access", "rows", "examples", "batches", "loader")
        rates = [spread([options.reads / run[name] for run in runs]) for name in columns]
        memory = [
            " / ".join(megabytes(statistics.median(run[when][kind] for run in runs)) for kind in range(2))
            for when in ("opened", "read")
        ]
        seconds = f"{frames / FRAME_RATE:g}"
        table.add([f"{rows:,}", seconds, *rates, spread([run["open"] for run in runs]), *memory], runs)
        for path in sorted(folder.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()

    rows = min(MOST_NESTED_ROWS, *options.rows)
    progress(f"{rows:,} rows as nested lists")
    folder = root / "nested"
    write_nested(folder, rows)
    reads = max(1, options.reads // 32)
    runs = [ask("nested", str(folder), reads) for _ in range(options.repeats)]
    row_rate, batch_rate = (spread([reads / run[name] for run in runs]) for name in ("rows", "batches"))
    table.add(
        [f"{rows:,}, nested lists", f"{30:g}", "-", row_rate, "-", batch_rate, "-",
         spread([run["open"] for run in runs]), "-", "-"],
        runs,
    )  # fmt: skip
    return table


def write_latents(folder: Path, rows: int) -> int:
    """Write a latent dataset of random codes in the project's format; returns the frames of each clip."""
    frames = max(1, min(30 * FRAME_RATE, MOST_CODE_BYTES // (2 * CODEBOOKS * rows)))
    random = np.random.default_rng(0)
    # The same 64 clips are repeated, since drawing random codes would take longest; it does not matter to a reader.
    packed = [
        pack_codes(torch.from_numpy(codes_KT)) for codes_KT in random.integers(CODES, size=(64, CODEBOOKS, frames))
    ]
    captions = min(MOST_CAPTIONS, CAPTIONS_PER_CLIP * rows)
    folder.mkdir()
    stream = folder / "train.arrow"
    schema = CLIP_FEATURES.arrow_schema
    with pa.OSFile(str(stream), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for first in range(0, rows, 1000):
            numbers = range(first, min(first + 1000, rows))
            columns = {
                "codes": [packed[number % len(packed)] for number in numbers],
                "frames": [frames] * len(numbers),
                "captions": [
                    [(number * CAPTIONS_PER_CLIP + nth) % captions for nth in range(CAPTIONS_PER_CLIP)]
                    for number in numbers
                ],
                "track": [f"artist/album/{number}.flac" for number in numbers],
                "start_seconds": [0.0] * len(numbers),
                "silent": [False] * len(numbers),
                "metadata": ['{"genre": "house", "bpm": 124}'] * len(numbers),
            }
            writer.write_table(pa.table(columns, schema))
    datasets.disable_progress_bars()
    datasets.Dataset.from_file(str(stream)).save_to_disk(str(folder / "train"))
    stream.unlink()
    texts = [
        {"text": f"caption {number}", "states": pack_states(states_LD, "float16"), "length": len(states_LD)}
        for number, states_LD in enumerate(_states(captions))
    ]
    columns = {name: [text[name] for text in texts] for name in CAPTION_FEATURES}
    datasets.Dataset.from_dict(columns, features=CAPTION_FEATURES).save_to_disk(str(folder / CAPTIONS_FOLDER))
    encoder = EncoderRecord(name="random", fingerprint="0" * 64)
    Manifest(
        text_encoder=encoder,
        audio_encoder=encoder,
        sampling_rate=NEW_RATE,
        frame_rate=FRAME_RATE,
        num_codebooks=CODEBOOKS,
        codebook_size=CODES,
        audio_channels=1,
        text_width=TEXT_WIDTH,
        states_dtype="float16",
        splits={"train": SplitRecord(clips=rows, tracks=rows, hours=rows * frames / FRAME_RATE / 3600)},
        captions=captions,
        counts={},
        settings={},
        command="benchmark",
        versions={},
        created="",
    ).save(folder)
    return frames


def _states(count: int) -> Iterator[torch.Tensor]:
    """Text states of 32 to 48 tokens, float16 `(L, D)`."""
    everything = torch.randn(2 * 48, TEXT_WIDTH, generator=torch.Generator().manual_seed(0)).half()
    for number in range(count):
        first = number % 48
        yield everything[first : first + 32 + number % 17]


def write_nested(folder: Path, rows: int) -> None:
    """Write rows of 30 s of codes and the states of a caption, as nested lists."""
    random = np.random.default_rng(0)
    features = datasets.Features(
        {
            "codes": datasets.List(datasets.List(datasets.Value("int16"))),
            "states": datasets.List(datasets.List(datasets.Value("float32"))),
        }
    )
    codes = random.integers(CODES, size=(rows, CODEBOOKS, 30 * FRAME_RATE), dtype=np.int16)
    states = [states_LD.float().numpy() for states_LD in _states(rows)]
    columns = {"codes": list(codes), "states": states}
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder))


def time_latents(folder: str, reads: int) -> dict[str, Any]:
    """Seconds of reading rows of a latent dataset in each way, and memory in bytes."""
    from musicgen_train.data.datamodule import DataSettings, LatentDataModule
    from musicgen_train.data.latent_dataset import LatentDataset
    from musicgen_train.data.stream import Draw, MicroBatch

    torch.set_num_threads(1)
    forget(Path(folder))
    before = memory()
    begin = time.perf_counter()
    dataset = LatentDataset(folder, "train")
    opened = time.perf_counter() - begin
    found: dict[str, Any] = {"open": opened, "opened": [now - then for now, then in zip(memory(), before, strict=True)]}
    rows = np.random.default_rng(1).integers(len(dataset), size=reads).tolist()
    forget(Path(folder))
    found["first_access"] = seconds(lambda: [_read(dataset, row) for row in rows])
    found["rows"] = seconds(lambda: [_read(dataset, row) for row in rows])
    settings = DataSettings(
        path=folder,
        crop_seconds=30.0,
        global_batch_size=BATCH,
        micro_batch_size=None,
        cfg_dropout=0.1,
        validation_clips=0,
        workers=1,
    )
    module = LatentDataModule(settings, seed=0, total_steps=-(-reads // BATCH) + 8)
    clips = module.train_clips
    draws = [Draw(0, row, 0) for row in rows]
    frames = np.zeros(BATCH, dtype=np.int64)
    batches = [
        MicroBatch(tuple(draws[first : first + BATCH]), frames, index)
        for index, first in enumerate(range(0, reads, BATCH))
    ]
    found["examples"] = seconds(lambda: [clips.examples([draw]) is None for draw in draws])
    found["batches"] = seconds(lambda: [clips[batch] is None for batch in batches])
    found["read"] = [now - then for now, then in zip(memory(), before, strict=True)]
    loader = iter(module.train_dataloader())
    for _ in range(8):  # batches that the worker had prefetched
        next(loader)
    found["loader"] = seconds(lambda: [len(batch) for batch in loader])
    return found


def time_nested(folder: str, reads: int) -> dict[str, Any]:
    """Seconds of reading rows of nested lists, and of making batches of them."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    dataset = datasets.load_from_disk(folder)
    found: dict[str, Any] = {"open": time.perf_counter() - begin}
    rows = np.random.default_rng(1).integers(len(dataset), size=reads).tolist()

    def batch(numbers: Sequence[int]) -> None:
        examples = [dataset[number] for number in numbers]
        torch.stack([torch.tensor(example["codes"]) for example in examples])
        torch.nn.utils.rnn.pad_sequence([torch.tensor(example["states"]) for example in examples], batch_first=True)

    found["rows"] = seconds(lambda: [dataset[row] is None for row in rows])
    found["batches"] = seconds(lambda: [batch(rows[first : first + BATCH]) for first in range(0, reads, BATCH)])
    return found


def _read(dataset: Any, row: int) -> bool:
    """Read a clip and the states of its first caption."""
    clip = dataset[row]
    return clip.codes_KT is dataset.states(clip.captions[0])


# Decoding


def measure_decoding(options: argparse.Namespace, root: Path) -> Table:
    """Measure hours of audio an hour, by format."""
    table = Table(
        f"Decoding to mono at {NEW_RATE // 1000} kHz, hours of stereo audio an hour of one core",
        ["format", "decoding alone", "decoding and resampling"],
    )
    for name, (ending, rate, subtype) in FORMATS.items():
        progress(name)
        path = root / f"decoded.{ending}"
        write_music(path, rate, 60.0, subtype)
        runs = [ask("decode", str(path)) for _ in range(options.repeats)]
        rates = [spread([60.0 / run[what] for run in runs]) for what in ("decoded", "resampled")]
        table.add([name, *rates], runs)
        path.unlink()
    return table


def time_decoding(path: str) -> dict[str, Any]:
    """Seconds of decoding a file, without and with resampling."""
    from musicgen_train.audio.io import read_audio

    torch.set_num_threads(1)
    read_audio(path, sampling_rate=NEW_RATE, channels=1)  # warms up imports and filters
    return {
        "decoded": seconds(lambda: read_audio(path, channels=1)),
        "resampled": seconds(lambda: read_audio(path, sampling_rate=NEW_RATE, channels=1)),
    }


def write_music(path: Path, rate: int, length: float, subtype: str) -> None:
    """Write stereo tones in noise, in one of soundfile's encodings."""
    torch.manual_seed(len(path.name))
    sides_CS = torch.cat([synthetic_audio(rate, length)[0] for _ in range(2)])
    soundfile.write(path, sides_CS.T.numpy(), rate, subtype=subtype)


# Preprocessing


ENCODERS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "full": (CODEC_32KHZ, T5_BASE),
    "tiny": ({**CODEC_32KHZ, "num_filters": 4, "hidden_size": 16, "codebook_dim": 16, "num_lstm_layers": 1}, SMALL_T5),
}


def measure_preprocessing(options: argparse.Namespace, root: Path) -> Table:
    """Measure a whole run, and the codec alone."""
    progress("writing music and encoders")
    music = root / "music"
    tracks = write_corpus(music, options.minutes)
    write_encoders(root, *ENCODERS[options.encoders])
    runs = []
    for number in range(options.repeats):
        progress(f"preprocessing, {number + 1} of {options.repeats}")
        settings = {
            "input": str(music),
            "output": str(root / f"made-{number}"),
            "text_encoder": str(root / "text_encoder"),
            "audio_encoder": str(root / "codec"),
            "device": options.device,
            "progress_seconds": 0,
        }
        # The codec alone runs first: it brings the files that both read into the system's cache.
        alone = ask("encode", settings)
        runs.append({**alone, **time_preprocessing(settings, root / f"times-{number}.json")})
    table = Table(
        f"Preprocessing {options.minutes:g} minutes in {tracks} files on {options.device}, seconds",
        ["whole process", "codec alone", "ratio", "of the whole: start-up", "from the first batch to the last",
         "after it", "the codec's own time in it", "hours of audio in an hour, whole process",
         "from the first batch to the last"],
    )  # fmt: skip
    columns = (
        spread([run["wall"] for run in runs]),
        spread([run["alone"] for run in runs]),
        spread([run["wall"] / run["alone"] for run in runs]),
        spread([run["wall"] - run["encoding"] - run["after"] for run in runs]),
        spread([run["encoding"] for run in runs]),
        spread([run["after"] for run in runs]),
        spread([run["codec"] for run in runs]),
        spread([60 * options.minutes / run["wall"] for run in runs]),
        spread([60 * options.minutes / run["encoding"] for run in runs]),
    )
    table.add(list(columns), runs)
    return table


def write_corpus(folder: Path, minutes: float) -> int:
    """Write tracks of 30 s and some of 40 s, with captions, in three formats; returns the number of tracks."""
    folder.mkdir()
    endings = (("wav", "PCM_16"), ("flac", "PCM_16"), ("mp3", "MPEG_LAYER_III"))
    left, number = 60.0 * minutes, 0
    while left > 0:
        length = min(left, 40.0 if number % 4 == 3 else 30.0)
        ending, subtype = endings[number % len(endings)]
        write_music(folder / f"track {number}.{ending}", 44_100, length, subtype)
        caption = f"Track {number}: a gliding tone with harmonics in changing noise, slow, without drums, in no key"
        (folder / f"track {number}.txt").write_text(caption + "\n")
        left, number = left - length, number + 1
    return number


def write_encoders(folder: Path, codec_fields: Mapping[str, Any], text_fields: Mapping[str, Any]) -> None:
    """Write a codec and a text encoder with random weights, and the tokenizer that ships with the demo."""
    from musicgen_train import EncodecConfig, EncodecModel, T5Config, T5EncoderModel, T5Tokenizer
    from musicgen_train.demo.small_model import SHIPPED

    torch.manual_seed(0)
    codec = EncodecModel(EncodecConfig(**codec_fields)).eval()
    fit_codebooks(codec, synthetic_audio(codec.config.sampling_rate, 1.0))
    codec.save_pretrained(folder / "codec")
    tokenizer = T5Tokenizer.from_pretrained(SHIPPED)
    fields = {**text_fields, "vocab_size": max(text_fields["vocab_size"], tokenizer.vocab_size)}
    T5EncoderModel(T5Config(**fields)).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "text_encoder")


def time_preprocessing(settings: Mapping[str, Any], times: Path) -> dict[str, Any]:
    """Preprocess as the command does; `timed_preprocess.py` says what is timed within the process."""
    script = Path(__file__).with_name("timed_preprocess.py")
    command = [sys.executable, str(script), str(times), *(f"{name}={value}" for name, value in settings.items())]
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=sys.stderr, env=quiet())
    wall = time.perf_counter() - begin
    return {"wall": wall, **json.loads(times.read_text())}


def time_encoding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of the codec alone for the clips of a folder, in the batches that preprocessing makes."""
    from musicgen_train.preprocess.encoding.clips import TrackDecoder
    from musicgen_train.preprocess.encoding.encoders import clip_rows
    from musicgen_train.preprocess.run import resolve
    from musicgen_train.preprocess.settings import PreprocessSettings
    from musicgen_train.preprocess.work.ranks import Rank

    task = resolve(PreprocessSettings.from_dict(settings), Rank())
    audio, cutter = task.recipe.encoders.audio, task.recipe.cutter
    decoder = TrackDecoder(cutter)
    clips = [clip_CS for candidate in task.source for clip_CS in decoder[candidate.read()].clips]
    rows = clip_rows(cutter.length, cutter.length, task.recipe.batch_samples)
    full = [clip_CS for clip_CS in clips if clip_CS.shape[-1] == cutter.length]
    batches = [full[first : first + rows] for first in range(0, len(full), rows)]
    ends = [clip_CS for clip_CS in clips if clip_CS.shape[-1] != cutter.length]

    def encode() -> None:
        for batch in batches:
            audio.encode(batch, rows)
        for clip_CS in ends:
            audio.encode([clip_CS], 1)

    return {"alone": seconds(encode)}


# Shared by all measurements


def ask(action: str, *given: object) -> dict[str, Any]:
    """Run a measurement in a new process and return its result.

    Raises:
        subprocess.CalledProcessError: the process failed; its traceback is on stderr.
    """
    command = [sys.executable, __file__, "--worker", action, *map(json.dumps, given)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=quiet())
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


WORKERS: dict[str, Callable[..., dict[str, Any]]] = {
    "latents": time_latents,
    "nested": time_nested,
    "decode": time_decoding,
    "encode": time_encoding,
}


def seconds(action: Callable[[], object]) -> float:
    """Return the seconds that something takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def memory() -> tuple[int, int]:
    """Resident bytes of this process: its own, and with mapped files. Zeros except on Linux."""
    gc.collect()
    path = Path("/proc/self/status")
    status = path.read_text() if path.exists() else ""
    own, whole = (status_bytes(status, name) or 0 for name in ("RssAnon", "VmRSS"))
    return own, whole


def forget(folder: Path) -> None:
    """Ask the system to drop the pages of a folder's files from its cache, if it supports that."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.rglob("*.arrow"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass
class Table:
    """The results of a part, as a table and as numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]] = dataclasses.field(default_factory=list)
    runs: list[list[dict[str, Any]]] = dataclasses.field(default_factory=list)
    """For each row, all measurements, one per repeat."""

    def add(self, cells: list[str], runs: list[dict[str, Any]]) -> None:
        """Add a row."""
        self.rows.append(cells)
        self.runs.append(runs)

    def __str__(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join([f"{self.title}:", "", *map(table_line, lines)])


def spread(values: Sequence[float]) -> str:
    """Format median and range."""
    middle, low, high = (three_digits(value) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}-{high})"


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is given; allowed are numbers above 0")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Make music, latents, a fine-tuned small model and a report, from nothing (2 cores, some minutes).

    musicgen-train demo [output=FOLDER]              all of it, into outputs/demo or FOLDER, which has to be empty

Or make what it starts from:

    python -m musicgen_train.demo corpus OUTPUT      captioned music, as audio files with a .json beside each
    python -m musicgen_train.demo encoders OUTPUT    the small encoders and decoder that ship, in the hub's layout

    python -m musicgen_train.demo round-trip OUTPUT  held-out music through the codec: sound, pictures, numbers

And remake what ships (`make demo-model` does all of it):

    python -m musicgen_train.demo train-encoders OUTPUT
    python -m musicgen_train.demo ship RUN/composite ENCODERS/composite

Each command has a --help.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, or all of the demo where none is given. Returns the exit code: 0, or 1 after an error that was
    told in one line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if all(word.startswith("output=") for word in arguments):
            return _everything(arguments)
        options = _parse(arguments)
        options.run(options)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _everything(arguments: Sequence[str]) -> int:
    from musicgen_train.demo.pipeline import DEMO_FOLDER, run_pipeline

    return run_pipeline(Path(arguments[-1].removeprefix("output=")) if arguments else DEMO_FOLDER)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="musicgen-train demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, title="commands")
    command = commands.add_parser("corpus", help="captioned music")
    command.add_argument("output", help="the folder; tracks that are there already are kept")
    command.add_argument("--tracks", type=int, default=64, help="how many (default: 64)")
    command.add_argument("--seconds", type=float, default=20.0, help="length of each (default: 20)")
    command.add_argument("--seed", type=int, default=0, help="another seed is other music (default: 0)")
    command.add_argument("--stereo", action="store_true", help="two channels")
    command.add_argument("--format", choices=("flac", "wav"), default="flac", help="of the files (default: flac)")
    command.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    command.set_defaults(run=_corpus)
    command = commands.add_parser("encoders", help="text encoder, audio codec and a small trained decoder")
    command.add_argument("output", help="the folder; the same that is there already is kept")
    command.set_defaults(run=_encoders)
    command = commands.add_parser("round-trip", help="held-out music through the codec: sound, pictures, numbers")
    command.add_argument("output", help="the folder")
    command.add_argument("--encoders", help="a folder with the codec (default: the one that ships)")
    command.add_argument("--tracks", type=int, default=44, help="how many (default: 44)")
    command.add_argument(
        "--seed", type=int, default=202, help="of the music; 101 is what was trained on (default: 202)"
    )
    command.set_defaults(run=_round_trip)
    command = commands.add_parser("train-encoders", help="train text encoder and audio codec anew; killed, it goes on")
    command.add_argument("output", help="the folder; the result is `composite` in it")
    command.add_argument("--seed", type=int, default=0, help="of weights, texts and order (default: 0)")
    command.add_argument("--clips", type=int, default=360, help="of music for the codec (default: 360)")
    command.add_argument("--steps", type=int, default=3000, help="of the codec's decoder (default: 3000)")
    command.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    command.set_defaults(run=_train_encoders)
    command = commands.add_parser("ship", help="put a trained composite into the package")
    command.add_argument("composite", help="of a run trained on latents of these encoders")
    command.add_argument("encoders", help="the composite that train-encoders made")
    command.set_defaults(run=_ship)
    return parser.parse_args(arguments)


def _corpus(options: argparse.Namespace) -> None:
    from musicgen_train.demo.corpus import write_corpus

    start = time.monotonic()

    def report(done: int, total: int) -> None:
        if done == total or done % 10 == 0:
            print(f"{done} of {total} tracks, {time.monotonic() - start:.0f} s", flush=True)

    made = write_corpus(
        options.output,
        options.tracks,
        options.seconds,
        options.seed,
        stereo=options.stereo,
        audio_format=options.format,
        workers=options.workers,
        report=report,
    )
    minutes = options.tracks * options.seconds / 60
    print(f"{options.output}: {options.tracks} tracks, {minutes:.1f} minutes of captioned music ({made} made now)")


def _encoders(options: argparse.Namespace) -> None:
    from musicgen_train.demo.small_model import demo_encoders

    print(f"{demo_encoders(options.output)}: encoders and decoder in the hub's layout; README.md in it says how good")


def _round_trip(options: argparse.Namespace) -> None:
    import torch

    from musicgen_train.demo.round_trip import round_trip
    from musicgen_train.demo.small_model import SHIPPED
    from musicgen_train.models.codec.encodec import EncodecModel

    torch.set_num_threads(1)
    codec = EncodecModel.from_pretrained(options.encoders or SHIPPED)
    for name, value in round_trip(options.output, codec, tracks=options.tracks, seed=options.seed).items():
        values = value if isinstance(value, list) else [value]
        print(f"{name}: {', '.join(f'{number:.3g}' for number in values)}")


def _train_encoders(options: argparse.Namespace) -> None:
    import torch

    from musicgen_train.demo.codec_training import CodecTraining
    from musicgen_train.demo.text_training import TextTraining
    from musicgen_train.demo.training import EncoderTraining, train_encoders

    # The networks are too small to share: where something else uses a core, threads that wait for each other at every
    # frame of an LSTM take twenty times as long as one.
    torch.set_num_threads(options.threads)
    settings = EncoderTraining(
        clips=options.clips,
        codec=CodecTraining(seed=options.seed, steps=options.steps),
        text=TextTraining(seed=options.seed),
    )
    folder = train_encoders(options.output, settings, lambda line: print(line, flush=True))
    print(f"{folder}: encoders in the hub's layout, with an untrained decoder")


def _ship(options: argparse.Namespace) -> None:
    from musicgen_train.demo.small_model import SHIPPED
    from musicgen_train.demo.training import ship

    folder = ship(options.composite, options.encoders, SHIPPED)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    print(f"{folder}: {size:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())

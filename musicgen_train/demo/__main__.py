"""Makes music, latents, a fine-tuned small model and a report, from nothing (2 cores, some minutes).

    musicgen-train demo [output=FOLDER]              all of it, into outputs/demo or FOLDER, which has to be empty

Or it makes one of the things that the demo starts from:

    python -m musicgen_train.demo corpus OUTPUT      captioned music, as audio files with a .json beside each
    python -m musicgen_train.demo encoders OUTPUT    the small encoders and decoder that ship, in the hub's layout

Each command has a --help. What trains and measures the model that ships is in a clone's `scripts/demo_model/`:
`recipe.py` (`make demo-model`), `encoder_training.py`, `codec_quality.py`, `shipping.py`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, or all of the demo if none is given. Returns the exit code: 0, or 1 after an error, which is
    printed in one line."""
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
    from musicgen_train.demo.walkthrough import DEMO_FOLDER, run_walkthrough

    return run_walkthrough(Path(arguments[-1].removeprefix("output=")) if arguments else DEMO_FOLDER)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="musicgen-train demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, title="commands")
    command = commands.add_parser("corpus", help="captioned music")
    command.add_argument("output", help="the folder; tracks that are there already are kept")
    command.add_argument("--tracks", type=int, default=64, help="number of tracks (default: 64)")
    command.add_argument("--seconds", type=float, default=20.0, help="length of each (default: 20)")
    command.add_argument("--seed", type=int, default=0, help="another seed is other music (default: 0)")
    command.add_argument("--stereo", action="store_true", help="two channels")
    command.add_argument("--format", choices=("flac", "wav"), default="flac", help="file format (default: flac)")
    command.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    command.set_defaults(run=_corpus)
    command = commands.add_parser("encoders", help="text encoder, audio codec and a small trained decoder")
    command.add_argument("output", help="the folder; an equal copy that is there already is kept")
    command.set_defaults(run=_encoders)
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


if __name__ == "__main__":
    sys.exit(main())

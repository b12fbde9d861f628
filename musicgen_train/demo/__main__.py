"""Make what the demo starts from.

    python -m musicgen_train.demo corpus OUTPUT      captioned music, as audio files with a .json beside each
    python -m musicgen_train.demo encoders OUTPUT    small frozen encoders, a folder in the hub's layout

Each command has a --help.
"""

from __future__ import annotations

import argparse
import sys
import time


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, or 1 after an error that was told in one line."""
    options = _parse(arguments)
    try:
        if options.command == "corpus":
            _corpus(options)
        else:
            _encoders(options)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m musicgen_train.demo",
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
    command = commands.add_parser("encoders", help="text encoder, audio codec and an untrained decoder")
    command.add_argument("output", help="the folder; encoders of the same settings that are there are kept")
    command.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    command.add_argument(
        "--fitting-clips", type=int, default=88, help="clips of 10 s that the codec is fitted to (default: 88)"
    )
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
    import torch

    from musicgen_train.demo.encoders import demo_encoders, quality_of

    # The networks are too small to share: where something else uses a core, threads that wait for each other at every
    # frame of an LSTM take twenty times as long as one.
    torch.set_num_threads(1)
    folder = demo_encoders(
        options.output,
        options.seed,
        fitting_clips=options.fitting_clips,
        report=lambda line: print(line, flush=True),
    )
    quality = quality_of(folder)
    if quality is not None:
        used = ", ".join(f"{share:.0%}" for share in quality["used"])
        print(
            f"codec on held-out music: SI-SDR {quality['si_sdr']:.1f} dB, log mel distance "
            f"{quality['mel_distance']:.1f} dB, used entries per codebook {used} ({quality['frames']} frames)"
        )
    print(f"{folder}: encoders in the hub's layout")


if __name__ == "__main__":
    sys.exit(main())

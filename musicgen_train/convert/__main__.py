"""Convert MusicGen checkpoints between audiocraft and the Hugging Face hub, mono models to stereo, merge adapters.

    musicgen-train convert from-audiocraft SOURCE OUTPUT     audiocraft's two files -> a folder of the hub
    musicgen-train convert to-audiocraft FOLDER OUTPUT       a folder of the hub -> audiocraft's two files
    musicgen-train convert to-stereo FOLDER OUTPUT           a mono folder -> the start of a stereo model
    musicgen-train convert merge-adapter ADAPTER OUTPUT      an adapter and its base -> a folder of the hub

Each command has a --help. Without a command, from-audiocraft is meant:

    musicgen-train convert --checkpoint small --pytorch_dump_folder OUTPUT --safe_serialization
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from musicgen_train.convert.conversion import Conversion

_DTYPES = ("float32", "bfloat16", "float16")


def main(arguments: Sequence[str]) -> int:
    """Run one conversion. Returns the exit code: 0, or 1 after an error that was told in one line."""
    options = _parse(arguments)
    # Imported here so that --help does not wait for torch.
    from musicgen_train.convert.conversion import ConversionError
    from musicgen_train.hub.weights import CheckpointError

    try:
        conversion = _convert(options)
    except (ValueError, OSError, CheckpointError, ConversionError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(_described(conversion))
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exits with code 2 where it cannot be understood."""
    if arguments and arguments[0].startswith("--") and arguments[0] != "--help":
        arguments = ["from-audiocraft", *arguments]
    parser = argparse.ArgumentParser(
        prog="musicgen-train convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, title="commands")

    command = commands.add_parser("from-audiocraft", help="audiocraft's files to a folder of the hub")
    command.add_argument(
        "source",
        nargs="?",
        help="audiocraft's state_dict.bin, a folder or hub id that has it, or a published size to fetch: small, "
        "medium, large, stereo-small, stereo-medium, stereo-large",
    )
    command.add_argument("output", nargs="?", help="the folder to write")
    # The flags that published commands for transformers' conversion script have.
    command.add_argument("--checkpoint", metavar="SOURCE", help="another way to give the source")
    command.add_argument("--pytorch_dump_folder", metavar="OUTPUT", help="another way to give the output")
    command.add_argument(
        "--safe_serialization",
        action="store_true",
        help="what is done anyway: safetensors is the only format written",
    )
    command.add_argument(
        "--codec",
        help="audiocraft's compression_state_dict.bin, or a folder or hub id with an EnCodec (default: the one beside "
        "the source)",
    )
    command.add_argument(
        "--text-encoder",
        metavar="T5",
        help="folder or hub id with the T5 and its tokenizer; a composite will do (default: the one the source names)",
    )
    command.add_argument("--size", help="for a source without settings: small, medium, large, stereo-small, ...")
    command.add_argument("--dtype", choices=_DTYPES, default="float32", help="of the decoder (default: float32)")
    from_audiocraft = command

    command = commands.add_parser("to-audiocraft", help="a folder of the hub to audiocraft's files")
    command.add_argument("folder", help="a composite model in the hub's layout, or a hub id")
    command.add_argument("output", help="the folder to write state_dict.bin and compression_state_dict.bin into")
    command.add_argument(
        "--text-encoder-name",
        metavar="NAME",
        help="the name audiocraft is to build the text encoder by, e.g. t5-base (default: found out)",
    )

    command = commands.add_parser("to-stereo", help="a mono model to the start of a stereo one")
    command.add_argument("folder", help="a mono composite or decoder in the hub's layout, or a hub id")
    command.add_argument("output", help="the folder to write")

    command = commands.add_parser("merge-adapter", help="an adapter of a training run, and its base, to one model")
    command.add_argument("adapter", help="the folder of the adapter, such as RUN/adapter")
    command.add_argument("output", help="the folder to write")
    command.add_argument("--base", help="where the model that it was trained on is now (default: where it was)")

    for command in commands.choices.values():
        command.add_argument("--overwrite", action="store_true", help="replace files that the output folder has")

    options = parser.parse_args(arguments)
    if options.command == "from-audiocraft":
        if (options.source is None) == (options.checkpoint is None):
            from_audiocraft.error("give the source once, as SOURCE or with --checkpoint")
        if (options.output is None) == (options.pytorch_dump_folder is None):
            from_audiocraft.error("give the output once, as OUTPUT or with --pytorch_dump_folder")
        options.source = options.source or options.checkpoint
        options.output = options.output or options.pytorch_dump_folder
    return options


def _convert(options: argparse.Namespace) -> Conversion:
    """Do what the command line asks for."""
    import torch

    from musicgen_train.convert.conversion import (
        audiocraft_to_hub,
        expand_folder_to_stereo,
        find_audiocraft_files,
        hub_to_audiocraft,
    )

    if options.command == "to-audiocraft":
        return hub_to_audiocraft(
            options.folder, options.output, text_encoder=options.text_encoder_name, overwrite=options.overwrite
        )
    if options.command == "merge-adapter":
        return _merge(options)
    if options.command == "to-stereo":
        return expand_folder_to_stereo(options.folder, options.output, overwrite=options.overwrite)
    lm_file, codec_beside = find_audiocraft_files(options.source)
    codec = options.codec or codec_beside
    if codec is None:
        raise FileNotFoundError(f"there is no compression_state_dict.bin beside {lm_file}; give a codec with --codec")
    return audiocraft_to_hub(
        lm_file,
        codec,
        options.text_encoder,
        options.output,
        size=options.size,
        dtype=getattr(torch, options.dtype),
        overwrite=options.overwrite,
    )


def _merge(options: argparse.Namespace) -> Conversion:
    """Do what merge-adapter asks for."""
    from pathlib import Path

    from musicgen_train.convert.conversion import Conversion
    from musicgen_train.training.weights.merged import merge_adapter

    output = Path(options.output).expanduser()
    if not options.overwrite and output.is_dir() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty; choose another folder, or add --overwrite")
    model = merge_adapter(options.adapter, output, options.base)
    parts = [model.decoder, *([] if model.enc_to_dec_proj is None else [model.enc_to_dec_proj])]
    files = sorted(path for path in output.iterdir() if path.is_file())
    return Conversion(
        folder=output,
        files=tuple(path.name for path in files),
        decoder=model.config.decoder,
        parameters=sum(value.numel() for part in parts for value in part.parameters()),
        size=sum(path.stat().st_size for path in files),
        compared="all tensors",
    )


def _described(conversion: Conversion) -> str:
    """What was written and checked, in three lines."""
    decoder = conversion.decoder
    return "\n".join(
        (
            f"wrote {conversion.folder}: {', '.join(conversion.files)} ({conversion.size / 1e6:,.1f} MB)",
            f"decoder: {conversion.parameters:,} parameters, {decoder.num_hidden_layers} layers of width "
            f"{decoder.hidden_size}, {decoder.num_codebooks} codebooks of {decoder.vocab_size} codes, "
            f"{'stereo' if decoder.audio_channels == 2 else 'mono'}",
            f"read back and equal: {conversion.compared}",
        )
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The command `musicgen-train VERB ...`, which is also `python -m musicgen_train VERB ...`.

Preprocessing starts processes that import this module, so it does nothing when imported.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

VERBS = {
    "train": "train a MusicGen decoder on a latent dataset",
    "preprocess": "make a latent dataset of captioned audio",
    "evaluate": "sample a model, measure it, and write a report to look at and listen to",
    "convert": "convert checkpoints: audiocraft and the hub, mono to stereo, merge an adapter",
    "doctor": "say what works on this machine, in latents, a run or a model, and what to do about the rest",
    "demo": "make music, latents, a fine-tuned small model and a report, from nothing",
}
# These take settings: each has a file of its name in configs/.
_STAGES = {
    "train": "musicgen_train.training.run",
    "preprocess": "musicgen_train.preprocess.entry",
    "evaluate": "musicgen_train.evaluation.run",
}
_COMMANDS = {
    "convert": "musicgen_train.convert.__main__",
    "doctor": "musicgen_train.doctor.__main__",
    "demo": "musicgen_train.demo.__main__",
}
_NOT_UNDERSTOOD = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb. Returns the exit code: 0, 1 after an error that was told in one line, 2 for an unknown verb.

    Args:
        arguments: the verb and what follows it; None for those of the command line. A script gives both: its name
            stands for the verb.
    """
    # `python -m` puts the path of this file first; what is recorded of a run is the command that people type.
    name = "musicgen-train" if sys.argv[0] == __file__ else sys.argv[0]
    program = [name, *sys.argv[1:2]] if arguments is None else [name]
    verb, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if verb in ("-h", "--help"):
        print(_usage())
        return 0
    if verb == "--version":
        print(f"musicgen-train {_version()}")
        return 0
    if verb in _STAGES:
        # Imported here because Hydra takes half a second.
        from musicgen_train.launch import run_stage, stage

        run_stage(stage(_STAGES[verb]), verb, program, rest)
        return 0
    if verb in _COMMANDS:
        code: int = importlib.import_module(_COMMANDS[verb]).main(rest)
        return code
    near = difflib.get_close_matches(verb, VERBS, n=1)
    hint = f"; the nearest is {near[0]}" if near else ""
    print(f"error: there is no verb {verb}{hint}. There are: {', '.join(VERBS)}", file=sys.stderr)
    return _NOT_UNDERSTOOD


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {purpose}" for verb, purpose in VERBS.items()]
    return "\n".join(
        ("usage: musicgen-train VERB ...", "", *lines, "", "musicgen-train VERB --help says what a verb takes.")
    )


def _version() -> str:
    try:
        return importlib.metadata.version("musicgen-train")
    except importlib.metadata.PackageNotFoundError:
        return "of a checkout that is not installed"


if __name__ == "__main__":
    sys.exit(main())

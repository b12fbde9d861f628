"""What of the package others rely on, as text whose diff shows a change: names, shapes, settings, files, signatures.

Values that differ from machine to machine, and places of our modules, are left out.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from audio_corpus import write_track
from golden_inputs import COMPOSITE, LATENTS, STEREO_DECODER
from omegaconf import DictConfig, ListConfig, OmegaConf
from tiny_run import QUICK, compose

import musicgen_train
from musicgen_train import EncodecModel, MusicgenForCausalLM, MusicgenForConditionalGeneration, T5EncoderModel
from musicgen_train.launch import CONFIG_FOLDER
from musicgen_train.preprocess.entry import run as preprocess
from musicgen_train.training.run import run as train

GROUPS = sorted(path.name for path in CONFIG_FOLDER.iterdir() if path.is_dir())
OUR_MODULE = re.compile(r"\bmusicgen_train(\.\w+)+\.(?=\w)")
COMMON = [f"data.path={LATENTS}", f"init_from={COMPOSITE}", *QUICK, "trainer.max_steps=2"]
RUNS = {
    "all of the decoder, averaged": ["callbacks=ema_early_stopping", "samples.every=2", "samples.seconds=0.5"],
    "an adapter": ["adapter=lora", "adapter.rank=3", "checks.enabled=true"],
}


def state_dicts() -> str:
    """Keys, shapes and types of the models' tensors, as each class has them."""
    models = {
        "composite": MusicgenForConditionalGeneration.from_pretrained(COMPOSITE),
        "decoder": MusicgenForCausalLM.from_pretrained(COMPOSITE),
        "stereo decoder": MusicgenForCausalLM.from_pretrained(STEREO_DECODER),
        "T5": T5EncoderModel.from_pretrained(COMPOSITE),
        "EnCodec": EncodecModel.from_pretrained(COMPOSITE),
    }
    return _text(
        (name, [f"{key} {_shape(value)}" for key, value in model.state_dict().items()])
        for name, model in models.items()
    )


def settings(name: str) -> str:
    """Every setting with its default, and what each option of each group changes; `-` is what is not there then."""
    default = dict(_flat(compose(name)))
    parts = [(f"{name}.yaml", [f"{key} = {value}" for key, value in default.items()])]
    if "defaults" in OmegaConf.load(CONFIG_FOLDER / f"{name}.yaml"):
        options = [(group, path.stem) for group in GROUPS for path in sorted((CONFIG_FOLDER / group).glob("*.yaml"))]
        for group, option in options:
            found = dict(_flat(compose(name, f"{group}={option}")))
            changes = [f"{key} = {value}" for key, value in found.items() if default.get(key) != value]
            parts.append((f"{group}={option}", [*changes, *(f"- {key}" for key in default if key not in found)]))
    return _text(parts)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, DictConfig) and len(value):
        for name in value:
            # Interpolations as they stand, and what has to be given as `???`.
            yield from _flat(value._get_node(name), f"{key}.{name}" if key else str(name))
    elif isinstance(value, DictConfig | ListConfig):
        yield key, json.dumps(OmegaConf.to_container(value))
    else:
        yield key, OUR_MODULE.sub("", json.dumps(value._value()))


@functools.cache
def _run_folder(name: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="golden-run-")) / "run"
    train(compose("train", *COMMON, *RUNS[name], f"output={folder}"))
    return folder


def checkpoints() -> str:
    """Key paths of a run's last checkpoint with types, and with shapes where they are tensors."""
    last = {name: _run_folder(name) / "checkpoints/last.ckpt" for name in RUNS}
    return _text((name, _entries(torch.load(path, weights_only=True))) for name, path in last.items())


def _entries(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for name, entry in value.items():
            yield from _entries(entry, f"{key}/{_without_places(name)}")
    elif isinstance(value, torch.Tensor):
        yield f"{key}: {_shape(value)}"
    elif isinstance(value, list | tuple) and any(isinstance(entry, Mapping | list | tuple) for entry in value):
        for number, entry in enumerate(value):
            yield from _entries(entry, f"{key}[{number}]")
    elif isinstance(value, Mapping | list | tuple):
        kinds = sorted({type(entry).__name__ for entry in value})
        yield f"{key}: {type(value).__name__} of {len(value)} {' '.join(kinds)}".rstrip()
    else:
        yield f"{key}: {type(value).__name__}"


def _without_places(name: object) -> str:
    """Of a key, neither our modules nor where a run lies."""
    return OUR_MODULE.sub("", re.sub(r"/\S*golden-run-\w+/run", "RUN", str(name)))


def folders() -> str:
    """Names of files in what a run, preprocessing and a composite leave; columns and manifest of latents."""
    latents = _preprocessed()
    manifest = json.loads((latents / "manifest.json").read_text())
    parts = [(f"run: {name}", _files(_run_folder(name))) for name in RUNS]
    parts.append(("latents", _files(latents)))
    parts.append(("latents' manifest", _entries(manifest)))
    for split in ("train", "captions"):
        features = datasets.load_from_disk(str(latents / split)).features
        parts.append((f"latents' columns of {split}", [f"{column}: {kind}" for column, kind in features.items()]))
    with (_run_folder("all of the decoder, averaged") / "metrics.csv").open() as file:
        parts.append(("columns of metrics.csv", file.readline().strip().split(",")))
    for name in ("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json"):
        composite = _run_folder("all of the decoder, averaged") / "composite"
        parts.append((f"composite's {name}", _entries(json.loads((composite / name).read_text()))))
    provenance = json.loads((_run_folder("all of the decoder, averaged") / "provenance.json").read_text())
    entries = {re.sub(r"/versions/.*|/machine/.*|/git/.*|/processor/.*", "/...", line) for line in _entries(provenance)}
    parts.append(("provenance.json", entries))
    return _text(parts)


def _preprocessed() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="golden-latents-"))
    for number in range(4):
        caption = {"description": f"a tone, number {number}", "genre": "test"}
        write_track(folder / f"music/{number}.wav", 1.5 + 0.2 * number, pitch=20.0 + 9 * number, caption=caption)
    (folder / "music/broken.wav").write_bytes(b"no sound")
    given = [f"input={folder}/music", f"output={folder}/latents", f"encoders={COMPOSITE}", "device=cpu", "workers=0"]
    preprocess(compose("preprocess", *given, "clip_seconds=1.0", "split.validation=0.3"))
    return folder / "latents"


def _files(folder: Path) -> list[str]:
    # Patches of the code that ran are there or not.
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if not name.endswith(".patch"))


def public_names() -> str:
    """The package's public classes: how they are made, their methods, properties and fields."""
    return _text((name, _members(getattr(musicgen_train, name))) for name in sorted(musicgen_train.__all__))


def _members(kind: type) -> Iterator[str]:
    yield f"{kind.__name__}{inspect.signature(kind)}"
    if dataclasses.is_dataclass(kind):
        made = [field for field in dataclasses.fields(kind) if field.default_factory is not dataclasses.MISSING]
        yield from (f"{field.name} = {field.default_factory()!r}" for field in made)
    for name in dir(kind):
        # Of what is inherited, only what this package says.
        home = next(base for base in kind.__mro__ if name in vars(base))
        if (name.startswith("_") and name != "__call__") or not home.__module__.startswith("musicgen_train"):
            continue
        member = inspect.getattr_static(kind, name)
        if isinstance(member, classmethod | staticmethod):
            yield f"@{type(member).__name__} {name}{inspect.signature(member.__func__)}"
        elif callable(member):
            yield f"{name}{inspect.signature(member)}"
        elif isinstance(member, property):
            yield f"{name}: property"
        else:
            yield f"{name} = {member!r}"


def _shape(tensor: torch.Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _text(parts: Any) -> str:
    """Sections with a line for each name, in order of the names."""
    return "\n".join("\n".join([f"[{title}]", *sorted(lines), ""]) for title, lines in parts)


SNAPSHOTS: dict[str, Callable[[], str]] = {
    "state_dicts.txt": state_dicts,
    "settings_train.txt": functools.partial(settings, "train"),
    "settings_preprocess.txt": functools.partial(settings, "preprocess"),
    "settings_evaluate.txt": functools.partial(settings, "evaluate"),
    "checkpoints.txt": checkpoints,
    "folders.txt": folders,
    "public_names.txt": public_names,
}

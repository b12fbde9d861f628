"""Model cards: the base model and its license in the metadata, kept from the base's card and never made up."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from tiny_run import RunWith

from musicgen_train.training.cards import describe_base, model_card
from musicgen_train.training.logs.origin import is_hub_id

LICENSE = "cc-by-nc-4.0"


def write_card(folder: Path, metadata: str) -> None:
    (folder / "README.md").write_text(f"---\n{metadata}\n---\n\n# A model\n", encoding="utf-8")


def metadata_of(folder: Path) -> dict[str, Any]:
    """By PyYAML, which is not what wrote it."""
    beginning, front_matter, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert beginning == ""
    return yaml.safe_load(front_matter)


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2].partition("## Use")[0]


@pytest.fixture
def base(composite: Path, tmp_path: Path) -> Path:
    """A folder that a composite was downloaded into, without a card."""
    return Path(shutil.copytree(composite, tmp_path / "musicgen-tiny"))


def test_a_base_gives_its_license_and_its_own_base(run_with: RunWith, base: Path, tmp_path: Path) -> None:
    write_card(base, f"license: {LICENSE}\nbase_model: facebook/musicgen-small\ntags: [theirs]")
    made = run_with(tmp_path / "run", f"init_from={base}")
    found = metadata_of(made.composite)
    assert (found["license"], found["base_model"]) == (LICENSE, "facebook/musicgen-small")
    assert (found["library_name"], found["pipeline_tag"]) == ("musicgen_train", "text-to-audio")
    assert "theirs" not in found["tags"]
    assert f"Its license is that of its base, as the base's card gives it: {LICENSE}." in text_of(made.composite)

    # Both are handed down, by the composite of a run, and by a checkpoint where the composite is not there yet.
    assert describe_base(str(tmp_path / "run")) == {"base_model": "facebook/musicgen-small", "license": LICENSE}
    shutil.rmtree(made.composite)
    checkpoint = tmp_path / "run/checkpoints/last.ckpt"
    assert describe_base(str(checkpoint)) == {"base_model": "facebook/musicgen-small", "license": LICENSE}


def test_an_adapter_has_the_same_in_its_card(run_with: RunWith, base: Path, tmp_path: Path) -> None:
    write_card(base, f"license: {LICENSE}")
    made = run_with(tmp_path / "run", f"init_from={base}", "adapter=lora", "adapter.rank=2")
    for folder in (made.composite, tmp_path / "run/adapter"):
        found = metadata_of(folder)
        assert (found["license"], found["base_model"]) == (LICENSE, "musicgen-tiny")
    assert metadata_of(tmp_path / "run/adapter")["library_name"] == "peft"
    assert describe_base(str(tmp_path / "run/adapter")) == {"base_model": "musicgen-tiny", "license": LICENSE}


def test_without_a_card_no_license_is_made_up(run_with: RunWith, base: Path, tmp_path: Path) -> None:
    made = run_with(tmp_path / "run", f"init_from={base}", "adapter=lora", "adapter.rank=2")
    for folder in (made.composite, tmp_path / "run/adapter"):
        found = metadata_of(folder)
        assert "license" not in found
        assert found["base_model"] == "musicgen-tiny"
        assert "Its license is not known, because `musicgen-tiny` names none in its card." in text_of(folder)


def test_a_license_of_ones_own_keeps_its_name_and_link(base: Path) -> None:
    own = {"license": "other", "license_name": "mine", "license_link": "LICENSE"}
    write_card(base, yaml.safe_dump(own))
    assert describe_base(str(base)) == {"base_model": "musicgen-tiny", **own}


@pytest.mark.parametrize("metadata", ["license: [", "just a line"])
def test_a_card_that_cannot_be_read_is_none(base: Path, metadata: str) -> None:
    write_card(base, metadata)
    assert describe_base(str(base)) == {"base_model": "musicgen-tiny"}


def test_a_base_of_the_hub_is_linked_to(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_card(base, f"license: {LICENSE}\nbase_model: somebody/else")
    asked = []

    def download(repository: str, filename: str, **_: Any) -> str:
        asked.append((repository, filename))
        return str(base / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = describe_base("facebook/musicgen-small")
    assert found == {"base_model": "facebook/musicgen-small", "license": LICENSE}
    assert asked == [("facebook/musicgen-small", "README.md")]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert not is_hub_id("models/mine")


def test_random_weights_have_no_base(tmp_path: Path) -> None:
    assert describe_base("scratch") == {}
    data = {"path": "x", "share": 1.0, "splits": {}}
    origin = {"init_from": "scratch", "base": {}, "latents": [data], "encoders": "x"}
    (tmp_path / "README.md").write_text(model_card(origin, "", {}, 1), encoding="utf-8")
    assert metadata_of(tmp_path).keys() == {"library_name", "pipeline_tag", "tags"}
    assert "Started from random weights" in text_of(tmp_path)
    assert "license" not in text_of(tmp_path)

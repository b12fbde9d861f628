"""LoRA and DoRA: only the adapter is trained and stored, and it belongs to one base."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_latents import ClipSpec, write_composite, write_latents
from tiny_run import QUICK, RunWith, compose

from musicgen_train import MusicgenForConditionalGeneration, MusicgenProcessor
from musicgen_train.evaluation.model import load_model
from musicgen_train.hub.weights import CheckpointError
from musicgen_train.training.run import Run, run
from musicgen_train.training.weights.adapter_files import read_adapter
from musicgen_train.training.weights.adapters import AdapterSettings, modules_pattern
from musicgen_train.training.weights.merged import load_adapted, merge_adapter
from musicgen_train.training.weights.model_source import ModelSource, find_model

# A large step, so that a few of them change the output well beyond rounding.
LORA = ["adapter=lora", "adapter.rank=3", "adapter.alpha=6", "optimizer.lr=0.05"]
EVERYWHERE = "adapter.targets=[self_attention,cross_attention,feed_forward,embeddings,heads,text_projection]"


@pytest.fixture(scope="module")
def adapted(composite: Path, latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with LORA."""
    where = [f"data.path={latents}", f"init_from={composite}", f"output={tmp_path_factory.mktemp('adapted') / 'run'}"]
    return run(compose("train", *where, *QUICK, *LORA))


@pytest.fixture(scope="module")
def folder(adapted: Run) -> Path:
    """Of that run."""
    return adapted.composite.parent


def logits(model: Any) -> torch.Tensor:
    """Of some text and codes, from our composite or transformers'."""
    random = torch.Generator().manual_seed(1)
    text = torch.randint(3, 500, (2, 5), generator=random)
    codes = torch.randint(0, 64, (2 * model.config.decoder.num_codebooks, 7), generator=random)
    with torch.no_grad():
        found = model.eval()(input_ids=text, decoder_input_ids=codes).logits
    assert isinstance(found, torch.Tensor)
    return found


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(MusicgenForConditionalGeneration.from_pretrained(folder).state_dict())


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def with_peft(composite: Path, adapter: Path) -> Any:
    """The adapter on transformers' model, put there by peft alone."""
    model = transformers.MusicgenForConditionalGeneration.from_pretrained(composite)
    with warnings.catch_warnings():
        # peft uses a name that transformers deprecates.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return peft.PeftModel.from_pretrained(model, adapter).base_model.model


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_peft_and_the_merged_folder_agree(run_with: RunWith, composite: Path, tmp_path: Path, kind: str) -> None:
    made = run_with(tmp_path / "run", *LORA, f"adapter={kind}", EVERYWHERE, "adapter.dropout=0.1")
    expected = logits(with_peft(composite, tmp_path / "run/adapter"))
    merged = MusicgenForConditionalGeneration.from_pretrained(made.composite)
    assert_close(logits(merged), expected)
    assert_close(logits(transformers.MusicgenForConditionalGeneration.from_pretrained(made.composite)), expected)
    base = logits(MusicgenForConditionalGeneration.from_pretrained(composite))
    assert (expected - base).abs().max() > 0.05


def test_only_the_adapter_changes(adapted: Run, composite: Path) -> None:
    base = state_of(composite)
    for name, parameter in adapted.module.named_parameters():
        if ".lora_" not in name:
            assert not parameter.requires_grad
            assert torch.equal(parameter, base[name.replace(".base_layer", "")]), name
    merged = state_of(adapted.composite)
    changed = {name for name, value in merged.items() if not torch.equal(value, base[name])}
    layers = r"decoder\.model\.decoder\.layers\.[01]\.(self_attn\.\w_proj|self_attn\.out_proj|encoder_attn\.\w+|fc[12])"
    assert len(changed) == 2 * (4 + 4 + 2)
    assert all(re.fullmatch(rf"{layers}\.weight", name) for name in changed)


def test_files_hold_the_adapter_and_nothing_else(folder: Path, composite: Path) -> None:
    # Rank times inputs and outputs of ten layers of width 20, and of the feed-forward of 28, in two decoder layers.
    numbers = 2 * (8 * 3 * (20 + 20) + 2 * 3 * (20 + 28))
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert sum(value.numel() for value in checkpoint["state_dict"].values()) == numbers
    moments = checkpoint["optimizer_states"][0]["state"].values()
    assert sum(value["exp_avg"].numel() for value in moments) == numbers
    stored = load_file(folder / "adapter/adapter_model.safetensors")
    assert sum(value.numel() for value in stored.values()) == numbers
    config = json.loads((folder / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (3, 6, str(composite))
    card = (folder / "adapter/README.md").read_text()
    assert f"Of rank 3, for `{composite}`, whose" in card
    assert "| val/loss | " in card


def test_a_new_adapter_changes_nothing(run_with: RunWith, composite: Path, tmp_path: Path) -> None:
    made = run_with(tmp_path / "run", "adapter=lora", "optimizer.lr=0")
    base = state_of(composite)
    assert all(torch.equal(value, base[name]) for name, value in state_of(made.composite).items())


def test_resuming_equals_never_stopping(run_with: RunWith, tmp_path: Path) -> None:
    settings = [*LORA, "schedule=constant", "adapter.dropout=0.2", "data.cfg_dropout=0.5", "callbacks=ema"]
    straight = run_with(tmp_path / "straight", *settings, "trainer.max_steps=6")
    run_with(tmp_path / "run", *settings, "trainer.max_steps=3")
    longer = run_with(tmp_path / "run", *settings, "trainer.max_steps=6", "resume=auto")
    one, other = straight.module.state_dict(), longer.module.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_best_adapter_can_be_exported(run_with: RunWith, tmp_path: Path, kind: str) -> None:
    # So large a step that it only gets worse.
    made = run_with(
        tmp_path / "run", *LORA, f"adapter={kind}", "optimizer.lr=5", "export.weights=best", "validate_every=1"
    )
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] < 4
    _, stored = read_adapter(tmp_path / "run/adapter")
    assert stored.keys() == best["state_dict"].keys()
    assert all(torch.equal(stored[name], value) for name, value in best["state_dict"].items())
    assert_close(logits(load_adapted(tmp_path / "run/adapter")), logits(_loaded(made)))


def _loaded(made: Run) -> MusicgenForConditionalGeneration:
    return MusicgenForConditionalGeneration.from_pretrained(made.composite)


@pytest.mark.parametrize("what", ["", "adapter", "checkpoints/last.ckpt"])
def test_a_run_can_start_from_what_an_adapter_made(
    run_with: RunWith, adapted: Run, folder: Path, tmp_path: Path, what: str
) -> None:
    again = run_with(tmp_path / "again", f"init_from={folder / what}", "optimizer.lr=0")
    first, second = state_of(adapted.composite), state_of(again.composite)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-6, atol=1e-7)


def test_the_folder_in_python_and_merged(adapted: Run, folder: Path, composite: Path, tmp_path: Path) -> None:
    adapter = folder / "adapter"
    expected = logits(_loaded(adapted))
    assert_close(logits(load_adapted(adapter)), expected)
    assert_close(logits(load_adapted(adapter, base=str(composite))), expected)
    merge_adapter(adapter, tmp_path / "merged")
    assert_close(logits(MusicgenForConditionalGeneration.from_pretrained(tmp_path / "merged")), expected)
    text = MusicgenProcessor.from_pretrained(tmp_path / "merged")(text=["drums"], return_tensors="pt")["input_ids"]
    assert torch.equal(
        text, MusicgenProcessor.from_pretrained(composite)(text=["drums"], return_tensors="pt")["input_ids"]
    )


def test_it_is_found_by_whoever_reads_a_model(adapted: Run, folder: Path) -> None:
    source = find_model(str(folder / "adapter"), "model")
    assert source == ModelSource(adapter=folder / "adapter", run=folder)
    assert source.metrics == folder / "metrics.csv"
    found = load_model(source)
    assert found.text_encoder == adapted.data.manifest.text_encoder.fingerprint
    assert_close(logits(found.model), logits(MusicgenForConditionalGeneration.from_pretrained(adapted.composite)))


def test_a_merged_folder_that_is_read_back_otherwise_replaces_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_adapter(folder / "adapter", tmp_path / "merged")
    before = {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()}
    monkeypatch.setattr(torch, "equal", lambda *_: False)
    with pytest.raises(CheckpointError, match=r"merged would be read back with other tensors .*left as it was"):
        merge_adapter(folder / "adapter", tmp_path / "merged")
    assert {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()} == before


@pytest.fixture
def other_base(tmp_path: Path) -> Path:
    """A model of the same shapes, one of whose numbers differs."""
    folder = write_composite(tmp_path / "other")
    model = MusicgenForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        model.decoder.lm_heads[2].weight[3, 4] += 0.001
    model.save_pretrained(folder)
    return folder


def test_another_base_is_refused(
    run_with: RunWith, folder: Path, composite: Path, other_base: Path, tmp_path: Path
) -> None:
    message = rf"was trained on {composite} \(fingerprint \w{{12}}\), and .*other has other weights \(\w{{12}}\)"
    with pytest.raises(ValueError, match=message):
        load_adapted(folder / "adapter", base=str(other_base))
    again = f"resume={folder}/checkpoints/last.ckpt"
    with pytest.raises(ValueError, match=message):
        run_with(tmp_path / "run", *LORA, "trainer.max_steps=5", again, f"init_from={other_base}")


@pytest.mark.parametrize(
    ("now", "problem"),
    [([], "has an adapter and this run none"), ([*LORA, "adapter.rank=2"], "other settings: rank 3, this run's 2")],
)
def test_resuming_with_another_adapter_is_refused(
    run_with: RunWith, folder: Path, tmp_path: Path, now: list[str], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        run_with(tmp_path / "run", *now, "trainer.max_steps=5", f"resume={folder}/checkpoints/last.ckpt")


def test_resuming_the_whole_model_with_an_adapter_is_refused(run_with: RunWith, tmp_path: Path) -> None:
    run_with(tmp_path / "run")
    with pytest.raises(ValueError, match="has no adapter and this run an adapter"):
        run_with(tmp_path / "run", *LORA, "trainer.max_steps=5", "resume=auto")


def test_mono_to_stereo_trains_embeddings_and_heads(run_with: RunWith, composite: Path, tmp_path: Path) -> None:
    latents = write_latents(
        tmp_path / "latents", composite, [ClipSpec(30), ClipSpec(34)], num_codebooks=8, audio_channels=2
    )
    stereo = ["model=stereo", f"data.path={latents}", *LORA]
    with pytest.raises(ValueError, match="embeddings and heads would not be"):
        run_with(tmp_path / "run", *stereo)
    made = run_with(tmp_path / "run", *stereo, EVERYWHERE)
    expected = logits(_loaded(made))
    assert_close(logits(load_adapted(tmp_path / "run/adapter")), expected)
    left, right = expected.unflatten(0, (2, 8))[:, 0], expected.unflatten(0, (2, 8))[:, 1]
    assert not torch.allclose(left, right, atol=1e-3)


def test_freezing_leaves_modules_without_an_adapter(run_with: RunWith, composite: Path, tmp_path: Path) -> None:
    made = run_with(tmp_path / "run", *LORA, "freeze=[cross_attention,layers.0]")
    base = state_of(composite)
    changed = {name for name, value in state_of(made.composite).items() if not torch.equal(value, base[name])}
    layer = "decoder.model.decoder.layers.1."
    projections = [f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
    assert changed == {f"{layer}{name}.weight" for name in [*projections, "fc1", "fc2"]}


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["adapter.rank=0"], r"adapter\.rank is 0; it must be 1 or more"),
        (["adapter.alpha=0"], r"adapter\.alpha is 0; it must be above 0"),
        (["adapter.dropout=1"], r"adapter\.dropout is 1"),
        (["adapter.targets=[]"], r"adapter\.targets is empty"),
        (["adapter.targets=heads"], r"adapter\.targets is 'heads'; expected a list, as in \[heads\]"),
        (["adapter.targets=[norms]"], r"names norms, which have no matrix"),
        (["adapter.targets=[attention]"], r"the group 'attention', which there is not.*There are: embeddings, heads"),
        (["freeze=[self_attention,cross_attention,feed_forward]"], r"leaves nothing to train beside freeze"),
    ],
)
def test_settings_that_make_no_adapter(run_with: RunWith, tmp_path: Path, overrides: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        run_with(tmp_path / "run", "adapter=lora", *overrides)
    assert not (tmp_path / "run").exists()


def test_a_decoder_without_its_projection_is_refused(run_with: RunWith, composite: Path, tmp_path: Path) -> None:
    MusicgenForConditionalGeneration.from_pretrained(composite).decoder.save_pretrained(tmp_path / "decoder")
    with pytest.raises(ValueError, match=r"has no projection for these text states, so a new one has to be trained"):
        run_with(tmp_path / "run", "adapter=lora", f"init_from={tmp_path / 'decoder'}")


def test_random_weights_are_refused(run_with: RunWith, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"init_from=scratch is not trained; leave adapter= out"):
        run_with(tmp_path / "run", "adapter=lora", "init_from=scratch", "model=tiny")


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"adapters need peft, .* pip install -e '\.\[lora\]'"):
        AdapterSettings(rank=1, alpha=1, dropout=0, targets=["heads"], dora=False, rank_stabilized=False)


def test_files_of_another_make(folder: Path, tmp_path: Path) -> None:
    path = shutil.copytree(folder / "adapter", tmp_path / "adapter") / "adapter_model.safetensors"
    tensors = load_file(path)
    content = path.read_bytes()
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="does not say which model it was trained on"):
        load_adapted(path.parent)
    path.write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors cannot be read"):
        load_adapted(path.parent)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_model\.safetensors"):
        load_adapted(path.parent)


def test_a_pattern_matches_its_modules_and_no_others() -> None:
    names = ["decoder.layers.0.fc1", "decoder.layers.11.fc1", "decoder.layers.1.q", "decoder.heads.0", "projection"]
    pattern = modules_pattern(names)
    others = [
        "decoder.layers.2.fc1",
        "xdecoder.layers.0.fc1",
        "decoder.layers.0.fc1.x",
        "decoder.layers.0.q",
        "heads.0",
    ]
    assert [name for name in [*names, *others] if re.fullmatch(pattern, name)] == names

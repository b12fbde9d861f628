"""Training of the demo's text encoder: its parts by hand, and a short training that loads elsewhere and has learned."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from text_probes import Probes, mean_states, probe_targets
from text_prompts import PromptSource
from text_quality import HAND_WRITTEN, measure_text_encoder
from text_training import TextTraining, make_tokenizer, make_trained_text_encoder, train_text_encoder

from musicgen_train import T5EncoderModel
from musicgen_train.demo.caption_reading import MULTIPLE, SINGLE
from musicgen_train.demo.corpus import captions_of
from musicgen_train.models.config import T5Config
from musicgen_train.processing.t5_tokenizer import T5Tokenizer

Trained = tuple[T5EncoderModel, Probes, T5Tokenizer, list[str]]

SHORT = TextTraining(seed=3, steps=100, batch_size=24, pieces=30, held_out_pieces=15)
TEXTS = ["Calm piano melody", "a FAST jazz waltz, no drums", "C# minor, 120bpm", "caf\u00e9 \u266f \u65e5 <pad>", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "encoder"
    make_trained_text_encoder(folder, SHORT)
    return folder


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The same training once more, with what it reported."""
    lines: list[str] = []
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("vocabulary"))
    return *train_text_encoder(SHORT, tokenizer, lines.append), tokenizer, lines


# The parts


def test_targets_by_hand() -> None:
    classes, slots = probe_targets(
        [
            frozenset({("style", "jazz"), ("mode", "minor"), ("instrument", "piano"), ("figure", "walking")}),
            frozenset({("key", "C"), ("key", "D"), ("drums", "no")}),
        ]
    )
    kinds = list(SINGLE)
    expected = torch.zeros(2, len(kinds), dtype=torch.int64)
    expected[0, kinds.index("style")] = 1 + SINGLE["style"].index("jazz")
    expected[0, kinds.index("mode")] = 2
    expected[1, kinds.index("key")] = -100  # two at once
    expected[1, kinds.index("drums")] = 2
    assert torch.equal(classes, expected)
    said = [tuple(place) for place in slots.nonzero().tolist()]
    names = [*MULTIPLE["instrument"], *MULTIPLE["figure"]]
    assert said == [(0, names.index("piano")), (0, len(MULTIPLE["instrument"]) + MULTIPLE["figure"].index("walking"))]


def test_loss_of_probes_that_know_nothing() -> None:
    probes = Probes(6)
    torch.nn.init.zeros_(probes.linear.weight)
    torch.nn.init.zeros_(probes.linear.bias)
    classes, slots = probe_targets([frozenset({("key", "C")}), frozenset({("key", "C"), ("key", "D")})])
    choices = [1 + len(values) for values in SINGLE.values()]
    # Each slot is a coin; the second text's two keys are not scored.
    expected = len(slots[0]) * math.log(2) + sum(map(math.log, choices)) - math.log(1 + len(SINGLE["key"])) / 2
    assert probes.loss(torch.randn(2, 6), classes, slots).item() == pytest.approx(expected, rel=1e-5)


def test_probes_read_what_their_weights_say() -> None:
    probes = Probes(2)
    with torch.no_grad():
        probes.linear.weight.zero_()
        probes.linear.bias.fill_(-1.0)
        first = _prefer_open(probes)
        probes.linear.weight[1 + SINGLE["style"].index("funk"), 0] = 5.0
        probes.linear.weight[first + MULTIPLE["instrument"].index("harp"), 1] = 5.0
    means = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    funk, harp = ("style", "funk"), ("instrument", "harp")
    assert probes.read(means) == [frozenset({funk}), frozenset({harp}), frozenset({funk, harp})]


def _prefer_open(probes: Probes) -> int:
    """Raise the first class of each property. Returns the number of the first slot."""
    first = 0
    for values in SINGLE.values():
        probes.linear.bias[first] = 0.0
        first += 1 + len(values)
    return first


def test_means_leave_padding_out_and_random_ones_are_of_some_tokens() -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=30, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, dropout_rate=0.0)
    encoder = T5EncoderModel(config).eval()
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        states = encoder(ids, mask).last_hidden_state
        means = mean_states(encoder, ids, mask)
        torch.testing.assert_close(means, torch.stack([states[0].mean(0), states[1, :2].mean(0)]))
        subsets = [
            torch.stack([states[row, list(chosen)].mean(0) for chosen in combinations])
            for row, length in ((0, 4), (1, 2))
            for combinations in [
                [chosen for size in range(1, length + 1) for chosen in itertools.combinations(range(length), size)]
            ]
        ]
        generator = torch.Generator().manual_seed(1)
        seen: list[set[int]] = [set(), set()]
        for _ in range(300):
            for row, mean in enumerate(mean_states(encoder, ids, mask, generator)):
                distances = (subsets[row] - mean).abs().amax(-1)
                assert distances.min() < 1e-5
                seen[row].add(int(distances.argmin()))
    assert [len(places) for places in seen] == [15, 3]


def test_quality_of_probes_that_always_answer_the_same(again: Trained) -> None:
    encoder, _, tokenizer, _ = again
    probes = Probes(encoder.config.d_model)
    torch.nn.init.zeros_(probes.linear.weight)
    with torch.no_grad():
        probes.linear.bias.fill_(-1.0)
        _prefer_open(probes)
        probes.linear.bias[1 + SINGLE["style"].index("funk")] = 1.0
    # Styles take turns, so of 22 pieces two are funk; nothing else is ever found.
    quality = measure_text_encoder(encoder, probes, tokenizer, pieces=22)
    assert quality.captions == 132
    assert quality.accuracy["style"] == pytest.approx(1 / 11, abs=1e-4)
    assert {quality.accuracy[kind] for kind in SINGLE if kind != "style"} == {0.0}
    assert {**quality.open} == {kind: 1.0 for kind in SINGLE if kind != "style"}
    assert quality.recall == {"figure": 0.0, "instrument": 0.0}
    assert quality.precision == {}
    wanted = [fact for _, facts in HAND_WRITTEN for fact in facts.items()]
    right = wanted.count(("style", "funk"))
    assert len(quality.missed) == len(wanted) - right
    assert quality.hand_written == pytest.approx(right / len(wanted), abs=1e-4)


# The vocabulary


def test_case_does_not_matter_and_all_that_is_typed_is_known(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    assert tokenizer("CALM Piano In F# Minor")["input_ids"] == tokenizer("calm piano in f# minor")["input_ids"]
    texts = [caption for index in range(5000, 5020) for caption in captions_of(7, index)]
    texts += [
        bytes(range(0x20, 0x7F)).decode(),
        "Fa\u00e7ade \u2013 \u201cna\u00efve\u201d",
        *(text for text, _ in HAND_WRITTEN),
    ]
    for ids in tokenizer(texts)["input_ids"]:
        assert tokenizer.unk_token_id not in ids
    # Numbers are read digit by digit.
    assert [piece.strip("\u2581") for piece in tokenizer.tokenize("at 127 bpm")] == ["at", "", "1", "2", "7", "bpm"]


# A short training


@pytest.mark.filterwarnings("ignore:.*")  # transformers' own, on loading a tokenizer
def test_transformers_gives_the_same_ids_and_states(folder: Path) -> None:
    ours, theirs = T5Tokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    batch = ours(TEXTS, padding=True, return_tensors="pt")
    expected = theirs(TEXTS, padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    assert (ours.pad_token_id, ours.eos_token_id, ours.unk_token_id) == (0, 1, 2)
    reference = transformers.T5EncoderModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        states = T5EncoderModel.from_pretrained(folder)(**batch).last_hidden_state
        reference_states = reference(**expected).last_hidden_state
    valid = batch["attention_mask"].bool()
    torch.testing.assert_close(states[valid], reference_states[valid], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(states[valid].square().mean(-1), torch.ones(int(valid.sum())), atol=1e-3, rtol=0)


def test_the_folder_is_small_half_precision_and_says_what_it_is(folder: Path) -> None:
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {torch.float16}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2e6
    record = json.loads((folder / "text_training.json").read_text())
    assert record["training"] == dataclasses.asdict(SHORT)
    assert record["quality"]["captions"] == 6 * SHORT.held_out_pieces


def test_the_same_settings_give_the_same_weights_and_quality(folder: Path, again: Trained) -> None:
    encoder, probes, tokenizer, lines = again
    saved = T5EncoderModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in encoder.state_dict().items())
    tokenizer.save_pretrained(folder.with_name("again"))
    assert (folder.with_name("again") / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert "step 100 of 100: loss " in lines[-1]
    assert lines[-1].endswith("texts/s, 0 s left")
    quality = measure_text_encoder(encoder, probes, tokenizer, SHORT.seed, SHORT.held_out_pieces)
    assert quality.precision == json.loads((folder / "text_training.json").read_text())["quality"]["precision"]


def test_what_was_learned_depends_on_the_text(again: Trained) -> None:
    encoder, probes, tokenizer, _ = again
    source = PromptSource(99, 20)
    texts, facts = zip(*(source.draw() for _ in range(200)), strict=True)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    classes, slots = probe_targets(facts)
    with torch.no_grad():
        means = mean_states(encoder, batch["input_ids"], batch["attention_mask"])
        own, others = (probes.loss(chosen, classes, slots).item() for chosen in (means, means.roll(1, 0)))
    assert own < 0.85 * others


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="already holds something else; give a new or empty folder"):
        make_trained_text_encoder(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"config\.json is a file; give a folder for the text encoder"):
        make_trained_text_encoder(tmp_path / "config.json")
    with pytest.raises(ValueError, match="steps is 0; expected more than 0"):
        TextTraining(steps=0)

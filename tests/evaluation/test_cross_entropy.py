"""Cross-entropy, accuracy and the spread of codes against loops, and what the table says of them."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_world import CAPTIONS, FRAMES, World

from musicgen_train.data.batch import Batch
from musicgen_train.data.latent_dataset import LatentDataset
from musicgen_train.evaluation.cross_entropy import CodeUse, SplitScores, code_use, score_split
from musicgen_train.evaluation.split_clips import Condition, SplitClips, choose_split, spread_rows
from musicgen_train.evaluation.tables import cross_entropy_table

VOCAB = 64


def all_clips(world: World, max_frames: int = 1000) -> SplitClips:
    return SplitClips(LatentDataset(world.latents, "validation"), range(5), max_frames)


@torch.no_grad()
def by_loop(world: World, clips: SplitClips, condition: Condition) -> tuple[list[float], list[float], list[int]]:
    """Cross-entropy, accuracy and positions per codebook: one clip, codebook and step at a time, from the logits of
    the whole composite for a delayed sequence that is written out here."""
    nats, hits, counts = [0.0] * 4, [0] * 4, [0] * 4
    for number in range(len(clips)):
        codes, states = clips.codes(number), clips.states(number, condition)
        frames = codes.shape[1]
        inputs = torch.full((4, frames), VOCAB)  # column s holds what was known before step s
        for codebook in range(4):
            for step in range(1, frames):
                if step - 1 >= codebook:
                    inputs[codebook, step] = codes[codebook, step - 1 - codebook]
        logits = world.model(
            encoder_outputs=(torch.zeros(1, 1, 20) if states is None else states[None].float(),),
            attention_mask=torch.zeros(1, 1) if states is None else torch.ones(1, len(states)),
            decoder_input_ids=inputs,
        ).logits
        for codebook in range(4):
            for step in range(codebook, frames):
                target = int(codes[codebook, step - codebook])
                probabilities = logits[codebook, step].double().softmax(dim=-1)
                nats[codebook] -= math.log(probabilities[target])
                hits[codebook] += int(probabilities.argmax()) == target
                counts[codebook] += 1
    return (
        [n / c for n, c in zip(nats, counts, strict=True)],
        [h / c for h, c in zip(hits, counts, strict=True)],
        counts,
    )


@pytest.mark.parametrize("condition", ["own", "another clip's", "none"])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_it_is_the_definition(world: World, condition: Condition, batch_size: int) -> None:
    clips = all_clips(world)
    found = score_split(world.model, clips.batches(batch_size, condition))
    nats, accuracy, counts = by_loop(world, clips, condition)
    assert found.positions.tolist() == counts == [sum(FRAMES) - 5 * delay for delay in range(4)]
    assert found.cross_entropy.tolist() == pytest.approx(nats, rel=1e-5)
    assert found.accuracy.tolist() == pytest.approx(accuracy)
    assert found.perplexity.tolist() == pytest.approx([math.exp(value) for value in nats], rel=1e-4)
    assert found.loss == pytest.approx(sum(nats) / 4, rel=1e-5)


def test_conditions_differ(world: World) -> None:
    conditions: tuple[Condition, ...] = ("own", "another clip's", "none")
    losses = [score_split(world.model, all_clips(world).batches(3, condition)).loss for condition in conditions]
    assert len({round(loss, 4) for loss in losses}) == 3


def test_batches_are_counted_and_the_mode_stays(world: World) -> None:
    seen: list[Batch] = []
    world.model.decoder.train()
    score_split(world.model, all_clips(world).batches(2), seen.append)
    assert world.model.decoder.training
    world.model.decoder.eval()
    assert [len(batch) for batch in seen] == [2, 2, 1]


def test_nothing_to_score(world: World) -> None:
    with pytest.raises(ValueError, match="nothing to score"):
        score_split(world.model, [])


def test_code_use_by_hand() -> None:
    clips = [torch.tensor([[0, 0, 1], [2, 2, 2]]), torch.tensor([[3], [2]], dtype=torch.int16)]
    found = code_use(clips, 8)
    # Codebook 1: 1/2, 1/4, 1/4. Codebook 2: one code.
    assert found.unigram_entropy.tolist() == pytest.approx([1.5 * math.log(2), 0.0])
    assert found.used_share.tolist() == [3 / 8, 1 / 8]
    assert found.frames == 4
    with pytest.raises(ValueError, match="no codes to count"):
        code_use([], 8)


def test_clips_of_a_split(world: World) -> None:
    clips = all_clips(world, max_frames=25)
    assert [clips.codes(number).shape for number in range(5)] == [(4, 23), (4, 25), (4, 17), (4, 25), (4, 25)]
    assert torch.equal(clips.codes(3), world.clips[3][:, :25])
    assert [clips.caption(number) for number in range(5)] == [CAPTIONS[0], CAPTIONS[1], "", CAPTIONS[2], CAPTIONS[1]]
    own = [clips.states(number) for number in range(5)]
    assert own[2] is None
    other = [clips.states(number, "another clip's") for number in range(5)]
    for mine, theirs in zip(own, other, strict=True):
        assert theirs is not None
        assert mine is None or mine.shape != theirs.shape or not torch.equal(mine, theirs)
    assert clips.states(0, "none") is None
    assert clips.has_other_captions()
    assert not SplitClips(clips.dataset, [1, 2, 4], 100).has_other_captions()


def test_which_split(world: World) -> None:
    manifest = LatentDataset(world.latents, "validation").manifest
    assert choose_split(manifest, None) == "validation"
    with pytest.raises(ValueError, match=r"data\.split is 'train'; splits with clips are: validation"):
        choose_split(manifest, "train")
    manifest.splits = {"train": manifest.splits["validation"]}
    assert choose_split(manifest, None) == "train"
    manifest.splits["train"].clips = 0
    with pytest.raises(ValueError, match="no split of the dataset has clips"):
        choose_split(manifest, None)


def test_rows_are_spread() -> None:
    assert spread_rows(10, 4) == [0, 2, 5, 7]
    assert spread_rows(3, 5) == [0, 1, 2]
    assert spread_rows(5, 0) == []


def scores(*nats: float) -> SplitScores:
    return SplitScores(
        cross_entropy=torch.tensor(nats, dtype=torch.float64),
        accuracy=torch.full((len(nats),), 0.25, dtype=torch.float64),
        positions=torch.full((len(nats),), 10),
    )


def use(*entropy: float) -> CodeUse:
    values = torch.tensor(entropy, dtype=torch.float64)
    return CodeUse(unigram_entropy=values, used_share=values / 10, frames=10)


def test_the_table() -> None:
    table = cross_entropy_table(
        {"own": scores(1.0, 3.0), "another clip's": scores(1.5, 3.5), "none": scores(1.2, 3.2)},
        use(4.0, 5.0),
        64,
        "validation",
        7,
    )
    rows = {row.label: row.values for row in table.rows}
    assert rows["cross-entropy, captions: own"] == {"mean": 2.0, "codebook 1": 1.0, "codebook 2": 3.0}
    assert rows["ln(64)"]["codebook 2"] == pytest.approx(4.158883)
    # The perplexity of the mean, not the mean of the perplexities.
    assert rows["perplexity"]["mean"] == pytest.approx(math.exp(2.0))
    assert rows["unigram entropy"]["mean"] == 4.5
    assert table.findings == [
        "The model is 2.50 nats better than counting codes would be.",
        "With captions of other clips the model is 0.50 nats worse: it listens to its captions.",
    ]


def test_what_a_bad_model_is_told() -> None:
    table = cross_entropy_table({"own": scores(4.6), "another clip's": scores(4.601)}, use(4.5), 100, "train", 3)
    assert [finding.partition(":")[0].partition("(")[0].strip() for finding in table.findings] == [
        "These clips are from the split that is trained on, so the numbers say nothing about new music.",
        "The model predicts these codes no better",
        "Swapping captions changes the cross-entropy by 0.001 nats only",
    ]

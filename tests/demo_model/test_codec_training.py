"""Training of the demo's codec: what each stage does to it, and that it goes on after a kill."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import codec_training
import pytest
import torch
from codec_design import CODEBOOK_PARTS, demo_codec_config
from codec_training import CodecTraining, reconstruction_losses, train_codec, update_codebooks

from musicgen_train.demo import make_track
from musicgen_train.models.codec.encodec import EncodecModel

SETTINGS = CodecTraining(fitting_clips=12, passes=1, steps=4, batch_size=2, crop_frames=25, save_every=2)
CLIPS = 13


@functools.cache
def music() -> list[torch.Tensor]:
    return [torch.from_numpy(make_track(410, index, 6.4).audio[0]) for index in range(CLIPS)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EncodecModel]:
    folder = tmp_path_factory.mktemp("codec")
    return folder, train_codec(music(), folder, SETTINGS, report=lambda line: None)


def fitted(folder: Path) -> EncodecModel:
    codec = EncodecModel(demo_codec_config()).eval()
    codec.load_state_dict(torch.load(folder / "fitted.pt", weights_only=True))
    return codec


class KilledError(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_weights(
    trained: tuple[Path, EncodecModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, codec = trained
    shutil.copyfile(folder / "fitted.pt", tmp_path / "fitted.pt")
    calls = iter(range(10))

    def losses(wanted_BL: torch.Tensor, made_BL: torch.Tensor) -> torch.Tensor:
        if next(calls) == 3:
            raise KilledError
        return reconstruction_losses(wanted_BL, made_BL)

    # KilledError in the fourth step, two steps after a save at the second.
    monkeypatch.setattr(codec_training, "reconstruction_losses", losses)
    with pytest.raises(KilledError):
        train_codec(music(), tmp_path, SETTINGS, report=lambda line: None)
    monkeypatch.undo()
    assert torch.load(tmp_path / "decoder.pt", weights_only=True)["steps"] == 2
    resumed = train_codec(music(), tmp_path, SETTINGS, report=lambda line: None)
    for name, value in codec.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_decoder_learns_and_codes_stay(trained: tuple[Path, EncodecModel]) -> None:
    folder, codec = trained
    before = fitted(folder).state_dict()
    changed = {name for name, value in codec.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)


def test_codebooks_follow_the_music_within_their_parts(trained: tuple[Path, EncodecModel]) -> None:
    codec = fitted(trained[0])
    for layer, (first, last) in zip(codec.quantizer.layers, CODEBOOK_PARTS, strict=True):
        embed = layer.codebook.embed.clone()
        assert torch.all(embed[0] == 0)
        embed[:, first:last] = 0
        assert torch.all(embed == 0)


def test_dead_entries_move_to_where_music_is(trained: tuple[Path, EncodecModel]) -> None:
    codec = fitted(trained[0])
    first, last = CODEBOOK_PARTS[0]
    book = codec.quantizer.layers[0].codebook
    # Far from everything, and unused for long.
    book.embed[7, first:last] = 1e3
    book.embed_avg[7] = 0
    book.cluster_size[7] = 0
    revived = update_codebooks(codec, music(), SETTINGS)
    assert revived > 0
    assert book.embed[7].abs().max() < 100


def test_an_average_by_hand() -> None:
    codec = EncodecModel(demo_codec_config()).eval()
    book = codec.quantizer.layers[0].codebook
    first, last = CODEBOOK_PARTS[0]
    frames = 640
    with torch.no_grad():
        latents_TD = torch.zeros(frames, codec.config.hidden_size)
        latents_TD[:, first:last] = torch.randn(frames, last - first, generator=torch.Generator().manual_seed(0))
        book.embed.zero_()
        # Two entries that share everything; the others are far away.
        book.embed[:, first] = 1e4
        book.embed[1, first:last] = 0.5
        book.embed[2, first:last] = -0.5
        book.cluster_size.fill_(frames / len(book.embed))
        book.embed_avg.copy_(book.embed * book.cluster_size[:, None])
        near_one = (latents_TD[:, first:last] - 0.5).pow(2).sum(1) < (latents_TD[:, first:last] + 0.5).pow(2).sum(1)
        size = 0.9 * frames / len(book.embed) + 0.1 * float(near_one.sum())
        total = 0.9 * frames / len(book.embed) * 0.5 + 0.1 * latents_TD[near_one][:, first:last].sum(0)
        codec_training._update_codebook(
            codec.quantizer.layers[0], latents_TD, CODEBOOK_PARTS[0], 0.9, torch.Generator().manual_seed(0)
        )
    torch.testing.assert_close(book.embed[1, first:last], total / size)


def test_losses_of_the_same_are_none_and_of_silence_much() -> None:
    audio = torch.stack(music()[:2])[:, :32_000]
    assert reconstruction_losses(audio, audio).abs().max() < 1e-5
    nothing = reconstruction_losses(audio, torch.zeros_like(audio))
    assert nothing[0] > 0.8
    assert nothing[2] > 0.8


def test_phases_count_below_and_not_above() -> None:
    time = torch.arange(32_000) / 32_000
    for frequency, counts in ((440.0, True), (4000.0, False)):
        sine, cosine = (0.3 * f(2 * torch.pi * frequency * time)[None] for f in (torch.sin, torch.cos))
        spectra, _, low = reconstruction_losses(sine, cosine)
        assert spectra < 0.2
        assert (low > 1) == counts


def test_clips_of_unequal_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one length, a multiple of 640"):
        train_codec([torch.zeros(640), torch.zeros(1280)], tmp_path)

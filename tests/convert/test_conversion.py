"""Whole checkpoints: what is written loads in transformers, computes the same, and comes back bit by bit."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tiny_audiocraft import (
    build_reference,
    codec_state_by_hand,
    lm_state_by_hand,
    oracle,
    settings_by_hand,
    write_package,
)

from musicgen_train.convert import conversion
from musicgen_train.convert.conversion import (
    ConversionError,
    audiocraft_to_hub,
    expand_folder_to_stereo,
    find_audiocraft_files,
    hub_to_audiocraft,
)
from musicgen_train.hub.weights import CheckpointError
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration

Convert = Callable[..., Path]


@pytest.fixture
def convert(tmp_path: Path, audiocraft_folder: Path, text_encoder: Path) -> Convert:
    """Convert the tiny audiocraft folder into a new hub folder, and return that."""

    def run(**options: Any) -> Path:
        output = tmp_path / "hub"
        files = {"lm_file": audiocraft_folder / "state_dict.bin", "codec": audiocraft_folder / conversion.CODEC_FILE}
        audiocraft_to_hub(**{**files, "text_encoder": text_encoder, "output": output, **options})
        return output

    return run


def inputs(stereo: bool = False) -> dict[str, torch.Tensor]:
    """For a composite's forward: two texts, one padded, and 5 steps of codes."""
    generator = torch.Generator().manual_seed(11)
    return {
        "input_ids": torch.randint(2, 31, (2, 7), generator=generator),
        "attention_mask": torch.tensor([[1] * 7, [1, 1, 1, 0, 0, 0, 0]]),
        "decoder_input_ids": torch.randint(0, 17, (2 * (8 if stereo else 4), 5), generator=generator),
    }


def load_strictly(model_class: Any, folder: Path) -> Any:
    """A model of transformers, which by itself goes on with random weights where names do not fit."""
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def assert_same_model(folder: Path, reference: Any, stereo: bool = False) -> None:
    loaded = load_strictly(oracle.MusicgenForConditionalGeneration, folder)
    ours: Any = MusicgenForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        expected = reference(**inputs(stereo)).logits
        torch.testing.assert_close(loaded(**inputs(stereo)).logits, expected, rtol=0, atol=0)
        torch.testing.assert_close(ours(**inputs(stereo)).logits, expected, rtol=1e-5, atol=1e-5)
        wav = torch.randn(1, 1, 203)
        expected_codes = reference.audio_encoder.encode(wav).audio_codes
        assert torch.equal(loaded.audio_encoder.encode(wav).audio_codes, expected_codes)
        assert torch.equal(ours.audio_encoder.encode(wav).audio_codes, expected_codes)


def test_audiocraft_to_a_folder_that_transformers_and_we_load(convert: Convert, reference: Any) -> None:
    folder = convert()
    assert_same_model(folder, reference)
    assert (
        json.loads((folder / "generation_config.json").read_text()).items()
        >= {
            "do_sample": True,
            "guidance_scale": 3.0,
            "top_k": 250,
            # 30 s at 100 frames/s, and the delay of 4 codebooks.
            "max_length": 3004,
            "pad_token_id": 16,
            "bos_token_id": 16,
            "decoder_start_token_id": 16,
        }.items()
    )
    extractor = json.loads((folder / "preprocessor_config.json").read_text())
    assert (extractor["padding_side"], extractor["sampling_rate"], extractor["feature_size"]) == ("left", 800, 1)
    assert (folder / "spiece.model").read_bytes() == b"the pieces"


def test_stereo_from_audiocraft(tmp_path: Path) -> None:
    reference = build_reference(stereo=True)
    lm_settings, codec_settings = settings_by_hand(reference)
    write_package(tmp_path / "lm.bin", lm_state_by_hand(reference), lm_settings)
    write_package(tmp_path / "codec.bin", codec_state_by_hand(reference.audio_encoder), codec_settings)
    reference.text_encoder.save_pretrained(tmp_path / "t5")
    report = audiocraft_to_hub(tmp_path / "lm.bin", tmp_path / "codec.bin", tmp_path / "t5", tmp_path / "hub")
    assert report.decoder.audio_channels == 2
    assert_same_model(tmp_path / "hub", reference, stereo=True)
    assert json.loads((tmp_path / "hub" / "generation_config.json").read_text())["max_length"] == 3004
    assert json.loads((tmp_path / "hub" / "preprocessor_config.json").read_text())["feature_size"] == 2


def test_there_and_back(convert: Convert, audiocraft_folder: Path, tmp_path: Path) -> None:
    report = hub_to_audiocraft(convert(), tmp_path / "back", text_encoder="t5-base")
    assert report.files == ("compression_state_dict.bin", "state_dict.bin")
    for name in report.files:
        first = torch.load(audiocraft_folder / name, weights_only=True)
        second = torch.load(tmp_path / "back" / name, weights_only=True)
        assert second.keys() == {"best_state", "xp.cfg", "version", "exported"}
        assert second["exported"] is True
        assert first["best_state"].keys() == second["best_state"].keys()
        for key, value in first["best_state"].items():
            assert torch.equal(second["best_state"][key], value), key


def test_what_audiocraft_asks_its_settings_for(convert: Convert, tmp_path: Path) -> None:
    hub_to_audiocraft(convert(), tmp_path / "back", text_encoder="t5-base")
    package = torch.load(tmp_path / "back" / "state_dict.bin", weights_only=True)
    # The names its builders and loaders read (audiocraft/models/builders.py, loaders.py, musicgen.py).
    settings = OmegaConf.create(package["xp.cfg"])
    assert settings.lm_model == "transformer_lm"
    assert settings.transformer_lm.num_heads == 3
    assert settings.transformer_lm.hidden_scale == 3
    assert settings.codebooks_pattern.delay.delays == [0, 1, 2, 3]
    assert settings.fuser.cross == ["description"]
    assert settings.conditioners.description.t5.name == "t5-base"
    assert settings.classifier_free_guidance.inference_coef == 3.0
    assert settings.attribute_dropout == {}
    assert settings.dataset.segment_duration == 30
    assert settings.interleave_stereo_codebooks.use is False
    codec = OmegaConf.create(torch.load(tmp_path / "back" / "compression_state_dict.bin", weights_only=True)["xp.cfg"])
    assert (codec.compression_model, codec.encodec.sample_rate, codec.rvq.n_q, codec.rvq.bins) == (
        "encodec",
        800,
        4,
        16,
    )
    assert codec.seanet.ratios == [4, 2]


def test_dropout_is_no_obstacle_on_the_way_back(convert: Convert, tmp_path: Path) -> None:
    folder = convert()
    config = json.loads((folder / "config.json").read_text())
    config["decoder"]["dropout"] = 0.1
    (folder / "config.json").write_text(json.dumps(config))
    hub_to_audiocraft(folder, tmp_path / "back", text_encoder="t5-base")
    settings = OmegaConf.create(torch.load(tmp_path / "back" / "state_dict.bin", weights_only=True)["xp.cfg"])
    assert (settings.transformer_lm.dropout, settings.transformer_lm.attention_dropout) == (0.1, 0.0)


def test_half_precision_files_become_float32_without_loss(
    convert: Convert, audiocraft_folder: Path, reference: Any
) -> None:
    half = {name: value.half() for name, value in lm_state_by_hand(reference).items()}
    write_package(audiocraft_folder / "state_dict.bin", half, settings_by_hand(reference)[0])
    written = load_file(convert() / "model.safetensors")
    assert {value.dtype for name, value in written.items() if name.startswith("decoder.")} == {torch.float32}
    assert torch.equal(written["decoder.lm_heads.3.weight"], half["linears.3.weight"].float())


def test_the_dtype_is_the_decoders_alone(convert: Convert, reference: Any) -> None:
    written = load_file(convert(dtype=torch.bfloat16) / "model.safetensors")
    by_part = {name.split(".")[0]: value.dtype for name, value in written.items() if value.is_floating_point()}
    assert by_part == {
        "decoder": torch.bfloat16,
        "enc_to_dec_proj": torch.bfloat16,
        "audio_encoder": torch.float32,
        "text_encoder": torch.float32,
    }
    expected = reference.state_dict()["decoder.lm_heads.3.weight"].bfloat16()
    assert torch.equal(written["decoder.lm_heads.3.weight"], expected)


def test_a_composite_serves_as_text_encoder_and_codec(convert: Convert, tmp_path: Path) -> None:
    first = convert()
    second = convert(codec=str(first), text_encoder=first, output=tmp_path / "again")
    assert second == first
    for name in ("model.safetensors", "config.json", "spiece.model", "generation_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (first / name).read_bytes()


def test_a_codec_file_that_only_names_a_pretrained_one(convert: Convert, tmp_path: Path, reference: Any) -> None:
    reference.audio_encoder.save_pretrained(tmp_path / "encodec")
    torch.save({"pretrained": str(tmp_path / "encodec"), "exported": True}, tmp_path / "pointer.bin")
    assert_same_model(convert(codec=tmp_path / "pointer.bin"), reference)


def test_older_files_with_pickled_settings(convert: Convert, audiocraft_folder: Path, reference: Any) -> None:
    path = audiocraft_folder / "state_dict.bin"
    package = torch.load(path, weights_only=True)
    package["xp.cfg"] = OmegaConf.create(package["xp.cfg"])
    # As a training checkpoint has it, one level deeper.
    package["best_state"] = {"model": package["best_state"]}
    torch.save(package, path)
    assert_same_model(convert(), reference)


def test_equal_widths(tmp_path: Path, reference: Any, convert: Convert, audiocraft_folder: Path) -> None:
    config = oracle.T5Config(
        vocab_size=31, d_model=24, d_kv=5, d_ff=13, num_layers=1, num_heads=2, is_encoder_decoder=False
    )
    oracle.T5EncoderModel(config).save_pretrained(tmp_path / "wide")
    name = "condition_provider.conditioners.description.output_proj."
    state = lm_state_by_hand(reference)
    state |= {f"{name}weight": torch.eye(24), f"{name}bias": torch.zeros(24)}
    write_package(audiocraft_folder / "state_dict.bin", state, settings_by_hand(reference)[0])

    folder = convert(text_encoder=tmp_path / "wide")

    assert not any("enc_to_dec_proj" in key for key in load_file(folder / "model.safetensors"))
    hub_to_audiocraft(folder, tmp_path / "back", text_encoder="t5-base")
    back = torch.load(tmp_path / "back" / "state_dict.bin", weights_only=True)["best_state"]
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())

    state[f"{name}bias"] = torch.ones(24)
    write_package(audiocraft_folder / "state_dict.bin", state, settings_by_hand(reference)[0])
    with pytest.raises(ValueError, match="both 24 wide, and a model of the hub then has no projection"):
        convert(text_encoder=tmp_path / "wide", output=tmp_path / "other")


def test_a_text_encoder_of_another_width(tmp_path: Path, reference: Any, convert: Convert) -> None:
    config = oracle.T5Config(
        vocab_size=31, d_model=28, d_kv=5, d_ff=13, num_layers=1, num_heads=2, is_encoder_decoder=False
    )
    oracle.T5EncoderModel(config).save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"takes text states of width 20, the text encoder .*wide has 28"):
        convert(text_encoder=tmp_path / "wide")


def test_a_codec_that_does_not_fit_the_decoder(tmp_path: Path, convert: Convert, reference: Any) -> None:
    config = type(reference.audio_encoder.config).from_dict(
        {**reference.audio_encoder.config.to_dict(), "codebook_size": 32, "target_bandwidths": [1.5]}
    )
    oracle.EncodecModel(config).save_pretrained(tmp_path / "encodec")
    with pytest.raises(ValueError, match="32 codes a codebook, the decoder 16; the codec has 3 codebooks"):
        convert(codec=tmp_path / "encodec")


def test_problems_of_both_files_are_told_at_once(convert: Convert, audiocraft_folder: Path, reference: Any) -> None:
    lm_settings, codec_settings = settings_by_hand(reference)
    lm_settings["conditioners"]["self_wav"] = {"model": "chroma_stem"}
    codec_settings["seanet"]["activation"] = "Snake"
    write_package(audiocraft_folder / "state_dict.bin", lm_state_by_hand(reference), lm_settings)
    write_package(
        audiocraft_folder / conversion.CODEC_FILE, codec_state_by_hand(reference.audio_encoder), codec_settings
    )
    with pytest.raises(ValueError, match=r"\(language model\).*melody.*\(codec\) seanet\.activation"):
        convert()


def test_a_tensor_that_is_missing(convert: Convert, audiocraft_folder: Path, reference: Any) -> None:
    state = lm_state_by_hand(reference)
    del state["transformer.layers.1.norm2.bias"]
    write_package(audiocraft_folder / "state_dict.bin", state, settings_by_hand(reference)[0])
    with pytest.raises(CheckpointError, match=r"missing: model\.decoder\.layers\.1\.final_layer_norm\.bias"):
        convert()


def test_dac_is_no_encodec(tmp_path: Path, convert: Convert) -> None:
    torch.save({"pretrained": "dac_44khz", "exported": True}, tmp_path / "pointer.bin")
    with pytest.raises(ValueError, match="stands for the codec 'dac_44khz'; a MusicGen of the hub has an EnCodec"):
        convert(codec=tmp_path / "pointer.bin")


def test_files_of_something_else(tmp_path: Path, convert: Convert, audiocraft_folder: Path) -> None:
    torch.save([1, 2], tmp_path / "list.bin")
    with pytest.raises(ValueError, match="no language model of audiocraft: it holds list, expected 'best_state'"):
        convert(lm_file=tmp_path / "list.bin")
    torch.save({"model": {}}, tmp_path / "dict.bin")
    with pytest.raises(ValueError, match=r"it holds with \['model'\]|it holds \['model'\]"):
        convert(codec=tmp_path / "dict.bin")
    whole = (audiocraft_folder / "state_dict.bin").read_bytes()
    (tmp_path / "short.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged or cut short"):
        convert(lm_file=tmp_path / "short.bin")
    (tmp_path / "empty.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"damaged or cut short \(0 bytes\)"):
        convert(lm_file=tmp_path / "empty.bin")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        convert(lm_file=tmp_path / "none.bin")


class _Trap:
    """Touches a file when it is unpickled by a reader that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_pickle_is_not_run(tmp_path: Path, convert: Convert) -> None:
    sprung = tmp_path / "sprung"
    package = {"best_state": {}, "xp.cfg": _Trap(sprung)}
    torch.save(package, tmp_path / "trap.bin")
    with pytest.raises(ValueError, match=r"\(builtins\.getattr, pathlib.*could run code and are never loaded"):
        convert(lm_file=tmp_path / "trap.bin")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(package))
    with pytest.raises(ValueError, match=r"no file of torch\.save"):
        convert(lm_file=tmp_path / "plain.bin")
    assert not sprung.exists()
    assert not (tmp_path / "hub").exists()


def test_existing_files_are_refused_unless_allowed(tmp_path: Path, convert: Convert) -> None:
    folder = convert()
    (folder / "README.md").write_text("kept")
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"of an earlier save")
    before = (folder / "config.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"has config\.json, generation_config\.json, model\.safetensors"):
        convert()
    convert(dtype=torch.bfloat16, overwrite=True)
    assert (folder / "README.md").read_text() == "kept"
    assert (folder / "config.json").read_bytes() == before
    assert not (folder / "model-00001-of-00002.safetensors").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file; give a folder"):
        convert(output=tmp_path / "file", overwrite=True)


def test_a_write_that_goes_wrong_leaves_nothing(
    convert: Convert, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def damaged(state: dict[str, torch.Tensor], folder: Path) -> None:
        name = "decoder.lm_heads.2.weight"
        tensors = {**state, name: state[name] + 1}
        save_file({key: value.clone() for key, value in tensors.items()}, folder / "model.safetensors")

    monkeypatch.setattr(conversion, "save_weights", damaged)
    with pytest.raises(ConversionError, match=r"does not read back .*: 1 tensors differ \(linears\.2\.weight"):
        convert()
    assert not (tmp_path / "hub").exists()


def test_mono_to_stereo_of_a_composite(tmp_path: Path, convert: Convert) -> None:
    mono = convert()
    report = expand_folder_to_stereo(mono, tmp_path / "stereo")
    loaded, info = oracle.MusicgenForConditionalGeneration.from_pretrained(
        tmp_path / "stereo", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (loaded.config.decoder.num_codebooks, loaded.config.decoder.audio_channels) == (8, 2)
    before, after = load_file(mono / "model.safetensors"), load_file(tmp_path / "stereo" / "model.safetensors")
    assert len(after) == len(before) + 8
    for k in range(8):
        for stem in ("lm_heads", "model.decoder.embed_tokens"):
            assert torch.equal(after[f"decoder.{stem}.{k}.weight"], before[f"decoder.{stem}.{k // 2}.weight"])
    with torch.no_grad():
        logits = loaded(**inputs(stereo=True)).logits.reshape(2, 8, 5, 16)
    assert torch.equal(logits[:, 0::2], logits[:, 1::2])
    assert json.loads((tmp_path / "stereo" / "preprocessor_config.json").read_text())["feature_size"] == 2
    assert (tmp_path / "stereo" / "spiece.model").read_bytes() == b"the pieces"
    assert report.decoder.num_codebooks == 8
    # And on to audiocraft.
    hub_to_audiocraft(tmp_path / "stereo", tmp_path / "back", text_encoder="t5-base")
    settings = OmegaConf.create(torch.load(tmp_path / "back" / "state_dict.bin", weights_only=True)["xp.cfg"])
    assert settings.codebooks_pattern.delay.delays == [0, 0, 1, 1, 2, 2, 3, 3]


def test_mono_to_stereo_of_a_decoder_alone(tmp_path: Path, reference: Any) -> None:
    reference.decoder.save_pretrained(tmp_path / "mono")
    expand_folder_to_stereo(tmp_path / "mono", tmp_path / "stereo")
    loaded = load_strictly(oracle.MusicgenForCausalLM, tmp_path / "stereo")
    assert loaded.config.audio_channels == 2
    assert torch.equal(loaded.state_dict()["lm_heads.7.weight"], reference.decoder.state_dict()["lm_heads.3.weight"])


def test_mono_to_stereo_of_newer_processors(tmp_path: Path, convert: Convert) -> None:
    mono = convert()
    (mono / "preprocessor_config.json").unlink()
    (mono / "processor_config.json").write_text(json.dumps({"feature_extractor": {"feature_size": 1, "a": 2}}))
    expand_folder_to_stereo(mono, tmp_path / "stereo")
    written = json.loads((tmp_path / "stereo" / "processor_config.json").read_text())
    assert written == {"feature_extractor": {"feature_size": 2, "a": 2}}


def test_mono_to_stereo_refusals(tmp_path: Path, convert: Convert, reference: Any) -> None:
    mono = convert()
    with pytest.raises(ValueError, match="is the folder of the mono model; give another one"):
        expand_folder_to_stereo(mono, mono, overwrite=True)
    expand_folder_to_stereo(mono, tmp_path / "stereo")
    with pytest.raises(ValueError, match="audio_channels 2 already"):
        expand_folder_to_stereo(tmp_path / "stereo", tmp_path / "more")
    reference.audio_encoder.save_pretrained(tmp_path / "encodec")
    with pytest.raises(ValueError, match="holds a 'encodec' model; expected 'musicgen' or 'musicgen_decoder'"):
        expand_folder_to_stereo(tmp_path / "encodec", tmp_path / "more")


def test_older_hub_folders_to_audiocraft(tmp_path: Path, convert: Convert, audiocraft_folder: Path) -> None:
    folder = convert()
    state = {}
    for name, value in load_file(folder / "model.safetensors").items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        state[name.replace("parametrizations.weight.original1", "weight_v")] = value
    # The table of positions was once saved.
    state["decoder.model.decoder.embed_positions.weights"] = torch.zeros(2048, 24)
    shutil.copytree(folder, tmp_path / "older", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(state, tmp_path / "older" / "pytorch_model.bin")
    hub_to_audiocraft(tmp_path / "older", tmp_path / "back", text_encoder="t5-base")
    for name in ("state_dict.bin", "compression_state_dict.bin"):
        first = torch.load(audiocraft_folder / name, weights_only=True)["best_state"]
        second = torch.load(tmp_path / "back" / name, weights_only=True)["best_state"]
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_finding_the_files(audiocraft_folder: Path, tmp_path: Path) -> None:
    both = (audiocraft_folder / "state_dict.bin", audiocraft_folder / "compression_state_dict.bin")
    assert find_audiocraft_files(audiocraft_folder) == both
    assert find_audiocraft_files(audiocraft_folder / "state_dict.bin") == both
    shutil.copy(both[0], tmp_path / "alone.bin")
    assert find_audiocraft_files(tmp_path / "alone.bin") == (tmp_path / "alone.bin", None)
    with pytest.raises(FileNotFoundError, match=r"has no state_dict\.bin \(audiocraft's language model\)"):
        find_audiocraft_files(tmp_path)


def test_a_size_means_the_published_model(monkeypatch: pytest.MonkeyPatch, audiocraft_folder: Path) -> None:
    asked = []

    def fetch(repository: str, filename: str, **options: Any) -> str:
        asked.append((repository, filename))
        return str(audiocraft_folder / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    found = find_audiocraft_files("stereo-medium")
    assert found == (audiocraft_folder / "state_dict.bin", audiocraft_folder / "compression_state_dict.bin")
    repository = "facebook/musicgen-stereo-medium"
    assert asked == [(repository, "state_dict.bin"), (repository, "compression_state_dict.bin")]


def test_the_text_encoder_that_the_settings_name(convert: Convert) -> None:
    # Nothing is fetched in tests, so what is asked for shows in the error.
    with pytest.raises(FileNotFoundError, match="google-t5/t5-base"):
        convert(text_encoder=None)

"""One composite of musicgen-small's shape with random weights: loading, memory, and equality. Run: make test-heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch.testing import assert_close

from musicgen_train import MusicgenForConditionalGeneration

pytestmark = pytest.mark.heavy

MEASURE_LOADING = """
import json, re, sys, time
from musicgen_train import MusicgenForConditionalGeneration
def peak():  # of this program; getrusage would count the process that started it too
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
start = time.perf_counter()
model = MusicgenForConditionalGeneration.from_pretrained(sys.argv[1])
seconds = time.perf_counter() - start
loaded = peak()
total = sum(float(p.sum()) for p in model.parameters())
print(json.dumps({"seconds": seconds, "load_kib": loaded - before, "touch_kib": peak() - before, "total": total}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.MusicgenConfig(
        text_encoder=transformers.T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12).to_dict(),
        audio_encoder=transformers.EncodecConfig(
            sampling_rate=32_000,
            target_bandwidths=[2.2],
            codebook_size=2048,
            num_filters=64,
            upsampling_ratios=[8, 5, 4, 4],
            use_causal_conv=False,
            use_conv_shortcut=False,
        ).to_dict(),
        decoder=transformers.MusicgenDecoderConfig(dropout=0.0).to_dict(),
    )
    path = tmp_path_factory.mktemp("small")
    transformers.MusicgenForConditionalGeneration(config).eval().save_pretrained(path)
    return path


def test_loading_takes_little_more_memory_than_the_model(folder: Path) -> None:
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    output = subprocess.run(
        [sys.executable, "-c", MEASURE_LOADING, str(folder)], capture_output=True, text=True, check=True
    ).stdout
    measured = json.loads(output)
    print(f"\n{size / 2**20:.0f} MiB of weights: {json.dumps(measured)}")
    # Mapped files: loading itself touches next to nothing, using every weight the size of the file.
    assert measured["load_kib"] * 1024 < 0.2 * size
    assert 0.9 * size < measured["touch_kib"] * 1024 < 1.15 * size


def test_forward_and_codes_equal_the_reference(folder: Path) -> None:
    reference = transformers.MusicgenForConditionalGeneration.from_pretrained(folder)
    ours = MusicgenForConditionalGeneration.from_pretrained(folder)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 32_000, (2, 9), generator=generator)
    codes = torch.randint(0, 2048, (2 * 4, 50), generator=generator)
    audio = 0.1 * torch.randn(1, 1, 64_000, generator=generator)
    with torch.no_grad():
        expected = reference(input_ids=ids, decoder_input_ids=codes, use_cache=False).logits
        assert_close(ours(ids, decoder_input_ids=codes).logits, expected, rtol=1e-4, atol=1e-4)
        encoded, _ = ours.encode_audio(audio)
        assert torch.equal(encoded, reference.audio_encoder.encode(audio).audio_codes[0])
        decoded = reference.audio_encoder.decode(encoded[None], [None]).audio_values
        assert_close(ours.decode_audio(encoded), decoded, rtol=1e-4, atol=1e-5)

"""The script of the first run on a GPU goes with the code: its dry run passes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_check.py"


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


# The sections but `gpu_tests`, which runs this suite's own files.
@pytest.mark.parametrize(
    "sections",
    [["environment", "attention_backends", "generation", "train_step"], ["whole_run"], ["codec", "large_fits"]],
)
def test_a_dry_run_passes(sections: list[str], tmp_path: Path) -> None:
    done = check("--dry", "--out", str(tmp_path), "--only", *sections)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n0 failed" in done.stdout
    for name in sections:
        assert f"== {name} " in done.stdout
    assert json.loads((tmp_path / "gpu_check.json").read_text())["lines"]


def test_a_section_that_fails_is_said_and_decides_the_exit_code(tmp_path: Path) -> None:
    code = (
        "import sys, runpy; import torch; torch.nn.functional.scaled_dot_product_attention = None; "
        f"sys.argv = ['gpu_check.py', '--dry', '--out', {str(tmp_path)!r}, '--only', 'attention_backends']; "
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "FAIL attention_backends: TypeError" in done.stdout


def test_without_a_gpu_it_says_so() -> None:
    done = check("--only", "environment")
    if "CUDA device" not in done.stderr:
        pytest.skip("there is a GPU here")
    assert done.returncode == 2
    assert "--dry" in done.stderr

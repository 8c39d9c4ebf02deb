"""The wheel, in an empty environment without torch: it lists, diagnoses, runs a model, and says what is missing."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import make_llama

import greenllm
from greenllm import recipe

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "-o", out, ROOT], check=True, capture_output=True)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def device(wheel, tmp_path_factory):
    """bin/ of an environment with the wheel's runtime extra alone."""
    home = tmp_path_factory.mktemp("device")
    venv.create(home, with_pip=True)
    pip = [home / "bin" / "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[runtime]"]
    subprocess.run(pip, check=True, capture_output=True)
    return home / "bin"


def call(device, *arguments):
    return subprocess.run([device / "greenllm", *map(str, arguments)], capture_output=True, text=True, check=False)


def test_nothing_named_export_or_bench_lands_at_the_top(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names} == {"greenllm", f"greenllm-{greenllm.__version__}.dist-info"}
    for needed in (
        "greenllm/export/targets/cpu.yaml",
        "greenllm/recipes/int4.yaml",
        "greenllm/bench/report/report.html.jinja",
    ):
        assert needed in names


def test_a_device_without_torch(device, tmp_path):
    assert not (device / "torchrun").exists()
    assert call(device, "--version").stdout.strip() == f"greenllm {greenllm.__version__}"
    doctor = call(device, "doctor")
    assert doctor.returncode == 0, doctor.stderr
    assert "greenllm[compress]" in doctor.stdout.replace("\n", "")
    refused = call(device, "compress", tmp_path)
    assert refused.returncode == 1
    assert "greenllm[compress]" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_device_runs_what_was_compressed_elsewhere(device, tmp_path):
    made = {"calibration": {"samples": 4, "length": 32}, "steps": [{"quantize": {"head_bits": 8}}]}
    small = recipe.parse(yaml.safe_dump(made), "small")
    found = greenllm.compress(make_llama(tmp_path / "m", vocab=300), tmp_path / "out", small, bench=False)
    answer = call(device, "run", found.path, "hello", "--max-tokens", "4", "--raw")
    assert answer.returncode == 0, answer.stderr

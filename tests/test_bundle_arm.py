"""Bundles for Arm test themselves and answer there, under qemu-user: the runtimes' real aarch64 kernels."""

from __future__ import annotations

import pytest
from arm import Arm

from greenllm import pipeline, recipe
from greenllm.export import export
from greenllm.export.bundle import bundle


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    return Arm(tmp_path_factory.mktemp("arm"))


def bundled(checkpoint, path, **options):
    """For aarch64, of weights rounded to nearest."""
    steps = [recipe.make_step("quantize", {"method": "rtn", **options}, "r")]
    packed = pipeline.run_steps(checkpoint, path / "q", recipe.Recipe(name="r", steps=steps))
    return bundle(export(packed, path / "e", target="aarch64"), path / "b", target="aarch64")


def test_a_decoder(arm, llama, tmp_path):
    made = bundled(llama, tmp_path, bits=4, group=32)
    arm.install((made / "requirements.txt").read_text().splitlines())
    said = arm.python(made / "run.py", "hello", "--max-tokens", "4", "--raw")
    assert said.returncode == 0, said.stderr
    assert "self-test: 3 of 3" in said.stderr


def test_a_real_encoder(arm, minilm, tmp_path):
    made = bundled(minilm, tmp_path, bits=8, group=-1)
    arm.install((made / "requirements.txt").read_text().splitlines())
    said = arm.python(made / "run.py", "hello")
    assert said.returncode == 0, said.stderr
    assert "self-test: 3 of 3" in said.stderr
    assert said.stdout.count(",") == 383


def test_a_real_transcriber(arm, moonshine, data, tmp_path):
    made = bundled(moonshine, tmp_path, bits=8, group=32)
    arm.install((made / "requirements.txt").read_text().splitlines())
    said = arm.python(made / "run.py", "--audio", data / "audio" / "beckett.wav")
    assert said.returncode == 0, said.stderr
    assert "self-test: 3 of 3" in said.stderr
    assert "fail better" in said.stdout.lower()

"""A recipe that prunes, distils, quantizes and tunes: one command, killed in each of its steps and after them."""

from __future__ import annotations

import signal

import pytest
import yaml
from conftest import make_llama, start_killed

import greenllm
from greenllm import artifact, recipe
from greenllm.checkpoint import open_checkpoint
from greenllm.progress import Silent

CHAIN = {
    "calibration": {"source": "self", "samples": 8, "length": 32},
    "steps": [
        {"prune": {"ratio": 0.1, "multiple": 32}},
        {"distill": {"samples": 24, "length": 32, "steps": 4, "rows": 4, "accumulate": 2, "compute": "float32"}},
        {"quantize": {"bits": 4, "group": 32, "head_bits": 4, "head_group": 32}},
        {"tune": {"steps": 3, "rows": 2, "compute": "float32"}},
    ],
}
ARGUMENTS = ["compress", "m", "-o", "out", "--recipe", "chain.yaml", "--no-bench"]


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def prepare(folder):
    make_llama(folder / "m", vocab=300)
    (folder / "chain.yaml").write_text(yaml.safe_dump(CHAIN))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run that nobody kills makes."""
    base = prepare(tmp_path_factory.mktemp("whole"))
    return greenllm.compress(base / "m", base / "out", base / "chain.yaml", bench=False)


def test_each_step_is_in_the_result(whole):
    done = {s.step: s.result for s in whole.manifest.steps}
    assert list(done) == ["prune", "distill", "quantize", "tune"]
    source = open_checkpoint(whole.path.parent / "m")
    result = open_checkpoint(whole.path / "checkpoint")
    assert done["prune"]["parameters"] == {"before": source.parameters, "after": result.parameters}
    assert result.parameters <= 0.9 * source.parameters
    assert done["distill"]["teachers"] == [str(source.path)]  # the uncut model
    assert done["tune"]["divergence_after"] != done["tune"]["divergence_before"]  # its own teacher was the cut one
    assert whole.deployable.kind == "genai"


@pytest.mark.parametrize(
    "when", [".step-0.partial/greenllm.json", ".step-1.partial/model.safetensors", "checkpoint", "deploy"]
)
def test_killed_anywhere_it_comes_to_the_same_weights(tmp_path, whole, when):
    prepare(tmp_path)
    killed = start_killed("SIGKILL", f".out.partial/{when}", ARGUMENTS, tmp_path)
    output = killed.communicate()[0].decode()
    assert killed.returncode == -signal.SIGKILL, output
    assert not (tmp_path / "out").exists()
    told = Notes()
    greenllm.compress(tmp_path / "m", tmp_path / "out", tmp_path / "chain.yaml", bench=False, progress=told)
    assert "Going on where the last run stopped." in told.notes
    found = artifact.open_verified(tmp_path / "out").manifest
    assert found.files["checkpoint/model.safetensors"] == whole.manifest.files["checkpoint/model.safetensors"]
    assert [s.step for s in found.steps] == [s.step for s in whole.manifest.steps]


def test_the_built_in_one_is_of_these_steps():
    assert [s.name for s in recipe.load("small").steps] == ["prune", "distill", "quantize"]

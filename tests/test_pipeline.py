"""One command from a checkpoint to a deployable model, on models small enough to do it often."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
import yaml
from conftest import FUSED, make_bert, make_llama, start_killed

import greenllm
from greenllm import artifact, pipeline, quality, recipe
from greenllm.bench import Effort
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.plan import plan
from greenllm.progress import Silent

SMALL = {
    "calibration": {"source": "self", "samples": 4, "length": 32},
    "steps": [{"quantize": {"bits": 4, "group": 32, "head_bits": 8, "head_group": 32}}],
}

# The least bench that still measures quality.
BENCH = {
    "prompt_tokens": 8, "answer_tokens": 4, "window": 64, "energy": False,
    "effort": Effort(windows=2, sittings=2, width=0.9, seconds=0.1, turn=0.01),
}  # fmt: skip


@pytest.fixture
def small_recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """A tiny Llama, compressed for the CPU, without the bench."""
    base = tmp_path_factory.mktemp("compressed")
    make_llama(base / "m", vocab=300)
    found = greenllm.compress(base / "m", base / "out", recipe.parse(yaml.safe_dump(SMALL), "small"), bench=False)
    return base, found


def test_result_is_whole_and_knows_where_it_came_from(compressed):
    base, found = compressed
    assert sorted(p.name for p in base.iterdir()) == ["m", "out"]
    again = artifact.open_verified(base / "out")
    assert again.kind == "model"
    assert again.manifest.steps[0].parameters["bits"] == 4
    assert again.manifest.calibration["samples"] == 4
    assert again.manifest.parents[-1].id == "m"
    assert again.manifest.energy.kwh >= 0
    assert again.deployable.manifest.energy == again.manifest.energy  # what payback goes by
    assert again.deployable.kind == "genai"
    assert found.path == again.path


def test_checkpoint_and_export_hold_the_same_integers(compressed):
    base, _ = compressed
    details = artifact.read(base / "out" / "deploy").manifest.details
    assert details["operators"]["MatMulNBits"] == 2 * FUSED + 1
    assert details["verified"]["top1_agreement"] > 0.5


def test_run_streams_from_the_artifact(compressed):
    from greenllm.answer import stream

    pieces = list(stream(compressed[1].path, "hello", max_tokens=8, raw=True))
    assert 1 <= len(pieces) <= 8
    assert "".join(stream(compressed[1].path, "hello", max_tokens=8, raw=True)) == "".join(pieces)


def test_a_prompt_beyond_the_context_is_told(compressed):
    from greenllm.answer import stream

    with pytest.raises(GreenError, match="context is 256"):
        list(stream(compressed[1].path, "hello " * 200, raw=True))


def test_a_changed_file_is_not_run(compressed, tmp_path):
    import shutil

    copy = shutil.copytree(compressed[1].path, tmp_path / "copy")
    data = copy / "deploy" / "genai_config.json"
    data.write_text(data.read_text().replace("256", "255"))
    from greenllm.answer import stream

    with pytest.raises(GreenError, match="not what greenllm.json says"):
        list(stream(copy, "hello"))


def test_an_encoder_goes_the_same_way(tmp_path):
    make_bert(tmp_path / "m")
    found = greenllm.compress(tmp_path / "m", tmp_path / "out", recipe.parse(yaml.safe_dump(SMALL), "s"), bench=False)
    deploy = found.deployable
    assert deploy.kind == "onnx"
    operators = deploy.manifest.details["operators"]
    assert operators["MatMulInteger"] == 2 * 6
    assert operators["GatherBlockQuantized"] == 1  # the embedding
    from greenllm.answer import stream

    with pytest.raises(GreenError, match="does not generate text"):
        list(stream(tmp_path / "out", "hello"))


def test_recipe_none_exports_what_came(tmp_path):
    make_llama(tmp_path / "m", vocab=300)
    found = greenllm.compress(tmp_path / "m", tmp_path / "out", "none", bench=False)
    details = found.deployable.manifest.details
    assert details["bits_per_weight"] > 32
    assert details["verified"]["max_relative_error"] < 1e-3


def test_an_untied_model(tmp_path):
    make_llama(tmp_path / "m", vocab=300, tied=False)
    found = greenllm.compress(tmp_path / "m", tmp_path / "out", recipe.parse(yaml.safe_dump(SMALL), "s"), bench=False)
    assert found.deployable.manifest.details["verified"]["top1_agreement"] > 0.5


def test_output_that_exists_is_refused_before_any_work(tmp_path, small_recipe):
    (tmp_path / "out").mkdir()
    with pytest.raises(GreenError, match="exists"):
        greenllm.compress(make_llama(tmp_path / "m"), tmp_path / "out", small_recipe, bench=False)


def test_groups_that_do_not_divide_name_the_layer(tmp_path):
    path = make_llama(tmp_path / "m", hidden_size=40, num_attention_heads=4, num_key_value_heads=2)
    with pytest.raises(GreenError, match=r"model\.layers\.0\.self_attn\.q_proj: Groups of 32 do not divide"):
        plan(path, "int4")


def test_quantizing_twice_is_refused(compressed):
    with pytest.raises(GreenError, match="quantized already"):
        plan(compressed[1].path, "int4")


def test_the_estimate_is_there_before_anything_is_written(tmp_path, small_recipe):
    todo = plan(make_llama(tmp_path / "m"), small_recipe)
    assert todo.estimate.seconds > 0
    assert todo.estimate.peak_bytes > 1e8
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "small.yaml"]


def test_a_disk_that_is_too_full(tmp_path, small_recipe, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(GreenError, match="GB free"):
        greenllm.compress(make_llama(tmp_path / "m"), tmp_path / "out", small_recipe, bench=False)


def test_a_disk_that_fills_in_the_middle(tmp_path, small_recipe, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("greenllm.walk.save_file", full)
    with pytest.raises(GreenError, match="No space left") as e:
        greenllm.compress(make_llama(tmp_path / "m"), tmp_path / "out", small_recipe, bench=False)
    assert "same command again" in e.value.fix
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "when",
    [
        ".out.partial/calibration.safetensors",
        ".out.partial/.work-checkpoint/block-1.safetensors",
        ".out.partial/.checkpoint.partial/greenllm.json",
        ".export-*/dense",
        ".out.partial/deploy",
    ],
)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_at_any_stage_the_same_command_goes_on(tmp_path, small_recipe, compressed, when, how):
    make_llama(tmp_path / "m", vocab=300)
    arguments = ["compress", "m", "-o", "out", "--recipe", "small.yaml", "--no-bench"]
    killed = start_killed(how.name, when, arguments, tmp_path)
    output = killed.communicate()[0].decode()
    assert killed.returncode == (-how if how == signal.SIGKILL else 130), output
    assert "Traceback" not in output
    assert not (tmp_path / "out").exists()
    again = subprocess.run(
        [sys.executable, "-m", "greenllm.cli", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "Going on where the last run stopped" in again.stderr
    assert "greenllm run" in again.stdout
    found = artifact.open_verified(tmp_path / "out").manifest.files
    want = artifact.read(compressed[1].path).manifest.files
    weights = "checkpoint/model.safetensors"
    assert found[weights] == want[weights]
    assert [p.name for p in (*tmp_path.iterdir(), *(tmp_path / "out").iterdir()) if p.name.startswith(".")] == []


def test_another_request_does_not_go_on_with_foreign_work(tmp_path, small_recipe):
    make_llama(tmp_path / "m", vocab=300)
    part = artifact.partial_of(tmp_path / "out")
    part.mkdir()
    (part / "request.json").write_text(json.dumps({"other": 1}))
    (part / "checkpoint").mkdir()
    (part / "checkpoint" / "poison").write_text("x")
    greenllm.compress(tmp_path / "m", tmp_path / "out", small_recipe, bench=False)
    assert not (tmp_path / "out" / "checkpoint" / "poison").exists()


def test_steps_alone_make_a_checkpoint(tmp_path):
    made = recipe.Recipe(name="q", steps=[recipe.make_step("quantize", {"method": "rtn", "head_group": 32}, "q")])
    source = make_llama(tmp_path / "m")
    first = recipe.Recipe(name="p", steps=[recipe.make_step("prune", {"method": "depth", "layers": "1"}, "p")])
    pruned = pipeline.run_steps(source, tmp_path / "p", first)
    found = pipeline.run_steps(pruned.path, tmp_path / "q", made)
    assert found.kind == "checkpoint"
    assert [s.step for s in found.manifest.steps] == ["prune", "quantize"]
    assert found.manifest.energy.seconds > pruned.manifest.energy.seconds  # what it took since the source
    artifact.open_verified(tmp_path / "q")
    assert greenllm.export(tmp_path / "q", tmp_path / "x").kind == "genai"


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_past_the_allowed_loss_it_says_so_or_fails(tmp_path, small_recipe):
    make_llama(tmp_path / "m", vocab=300)
    noting = Notes()
    options = {"bench_options": BENCH, "max_loss": 0.5, "progress": noting}
    found = greenllm.compress(tmp_path / "m", tmp_path / "warn", small_recipe, **options)
    assert any("WARNING. It lost too much" in n for n in noting.notes)
    assert 0.5 < quality.loss_of(found) < 5
    with pytest.raises(quality.TooLossy, match="lost too much"):
        quality.check_loss(found, 0.5, "fail", noting)
    noting.notes.clear()
    quality.check_loss(found, 5.0, "fail", noting)
    assert not noting.notes


def test_a_budget_goes_to_the_mixed_step(tmp_path):
    make_llama(tmp_path / "m", vocab=300)
    todo = plan(tmp_path / "m", bits=6)
    assert todo.recipe.name == "mixed"
    assert todo.recipe.steps[0].bits == 6
    assert plan(tmp_path / "m", size=0.2).recipe.steps[0].size == 0.2
    with pytest.raises(GreenError, match="no mixed step"):
        plan(tmp_path / "m", "int4", bits=6)


def test_a_tied_head_left_alone_stays_tied_for_every_reader(tmp_path):
    made = recipe.parse(yaml.safe_dump({"steps": [{"quantize": {"method": "rtn", "head_bits": 0}}]}), "s")
    done = pipeline.run_steps(make_llama(tmp_path / "m"), tmp_path / "out", made)
    assert Checkpoint(done.path, []).tied
    (done.path / "greenllm.json").unlink()
    assert Checkpoint(done.path, []).tied

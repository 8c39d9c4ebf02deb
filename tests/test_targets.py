"""Targets: what each has, what runs there and fits, told before the work starts."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from conftest import make_llama
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cli import run

import greenllm
from greenllm import plan, recipe
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.export.fits import RUNTIME, Shape, fit, refuse_kind, refuse_misfit, shape_of, wanted
from greenllm.export.targets import Target, embodied_of, load_target, target_names, target_text
from greenllm.outcome import outcome, stored

# Llama 3.2 of 3 billion weights, by its configuration
SHAPE = Shape(parameters=3_212_749_824, layers=28, cached=2 * 8 * 128, vocabulary=128256, hidden=3072, longest=131072)


def device(**fields):
    return Target(name="mine", description="x", formats={}, **fields)


@pytest.mark.parametrize("name", target_names())
def test_every_target_is_whole(name):
    target = load_target(name)
    assert set(target.formats) == {"text-generation", "feature-extraction", "text-classification"}
    assert set(target.formats.values()) <= set(target.runtimes)
    assert target.memory is None or target.reserved < target.memory
    assert (target.compute_capability is None) or target.bandwidth
    assert target.compute_capability is None or "tensorrt" in target.runtimes
    if target.sm in (100, 110, 120):
        assert {"fp8", "nvfp4"} <= set(target.precisions)
    if target.sm in (80, 86, 87):
        assert not {"fp8", "nvfp4"} & set(target.precisions)
    if "jetson" in name:
        assert target.jetpack
        assert target.tensorrt
        assert target.shared
        assert len({m.id for m in target.power_modes}) == len(target.power_modes) >= 3
    if target.embodied is None:  # said so, with a reason
        assert any(line.startswith("embodied: null") for line in target_text(name).splitlines())


def test_the_table_fits_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("greenllm.cli.screen.width", 80, raising=False)
    code, out, _ = run(capsys, "targets")
    assert code == 0
    assert all(any(line.startswith(name) for line in out.splitlines()) for name in target_names())
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "…" not in out


def test_a_printed_target_is_one_to_start_from(capsys, tmp_path):
    code, out, _ = run(capsys, "targets", "jetson-orin-nano")
    assert code == 0
    file = tmp_path / "mine.yaml"
    file.write_text(out)
    assert load_target(file) == load_target("jetson-orin-nano").model_copy(update={"name": "mine"})
    code, _, err = run(capsys, "targets", "jetson-orin-nan")
    assert code == 1
    assert "Did you mean jetson-orin-nano" in err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"memory": 0}, "memory"),
        ({"memory": "a lot"}, "memory"),
        ({"compute_capability": "89"}, "compute_capability"),
        ({"precisions": ["fp5"]}, "precisions.0"),
        ({"runtimes": ["vllm"]}, "runtimes.0"),
        ({"power_modes": [{"id": 0, "name": "15W", "watts": -1}]}, "power_modes.0.watts"),
        ({"embodied": {"kilograms": 100, "covers": "all", "source": ""}}, "embodied.source"),
        ({"embodied": {"kilograms": 100, "covers": "all"}}, "embodied.source"),
        ({"formats": {"text-generation": "coreml"}}, "formats.text-generation"),
        ({"pwer": 3}, "pwer"),
    ],
)
def test_a_file_with_a_mistake_names_its_key(tmp_path, change, says):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(target_text("rtx-40")) | change))
    with pytest.raises(GreenError, match=f"target mine: {says}"):
        load_target(file)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GreenError, match="no text"):
        load_target(tmp_path / "mine.yaml")


def test_the_arithmetic_is_what_a_hand_does():
    found = fit(SHAPE, load_target("jetson-orin-nano"), "tensorrt", bits=4.5, context=4096)
    assert found.parts["weights"] == 3_212_749_824 * 4.5 / 8
    assert found.parts["cache of 4096 tokens"] == 4096 * 28 * 2 * 8 * 128 * 2  # fp16
    assert found.parts["runtime"] == RUNTIME["tensorrt"]
    assert found.there == 6 * 2**30  # 8 GB less 2 for the system
    assert found.ok
    assert "= " in found.words


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(bits=st.floats(1, 32), context=st.integers(1, 100_000), more=st.integers(0, 100_000), memory=st.floats(0.5, 200))
def test_more_tokens_and_more_bits_never_fit_better(bits, context, more, memory):
    target = device(memory=memory)
    small = fit(SHAPE, target, "genai", bits=bits, context=context)
    assert fit(SHAPE, target, "genai", bits=bits, context=context + more).needed >= small.needed
    assert fit(SHAPE, target, "genai", bits=bits + 1, context=context).needed > small.needed
    built = fit(SHAPE, target, "tensorrt", bits=bits, context=context, build=True)
    assert built.needed >= fit(SHAPE, target, "tensorrt", bits=bits, context=context).needed


def test_the_way_out_that_is_named_is_one():
    nano, args = load_target("jetson-orin-nano"), {"context": 8192, "build": True}
    with pytest.raises(GreenError, match=r"weights .* = .* GB") as e:
        refuse_misfit(SHAPE, nano, "tensorrt", bits=16, **args)
    assert e.value.fix == "It fits with --bits 4."
    refuse_misfit(SHAPE, nano, "tensorrt", bits=4.5, **args)
    with pytest.raises(GreenError):
        refuse_misfit(SHAPE, nano, "tensorrt", bits=8, **args)
    long = {"bits": 4.5, "context": 131072}
    with pytest.raises(GreenError) as e:
        refuse_misfit(SHAPE, nano, "tensorrt", **long)
    shorter = int(e.value.fix.rpartition(" ")[2].rstrip("."))
    refuse_misfit(SHAPE, nano, "tensorrt", bits=4.5, context=shorter)
    with pytest.raises(GreenError):
        refuse_misfit(SHAPE, nano, "tensorrt", bits=4.5, context=2 * shorter)


def test_what_can_never_fit_says_so():
    huge = dataclasses.replace(SHAPE, parameters=70 * 10**9)
    with pytest.raises(GreenError) as e:
        refuse_misfit(huge, load_target("raspberry-pi-5"), "genai", bits=4.5, context=128)
    assert "larger target" in e.value.fix


def test_memory_that_nobody_knows_refuses_nothing():
    assert refuse_misfit(SHAPE, load_target("aarch64"), "genai", bits=32, context=4096).there is None


def test_what_a_target_has_no_kernels_for_is_refused():
    refuse_kind(load_target("rtx-50"), "tensorrt", {"nvfp4", "fp8"})
    with pytest.raises(GreenError, match="jetson-orin-nano has no kernels for fp8, nvfp4") as e:
        refuse_kind(load_target("jetson-orin-nano"), "tensorrt", {"nvfp4", "fp8", "int4"})
    assert "int4" in e.value.fix
    with pytest.raises(GreenError, match="raspberry-pi-5 does not run tensorrt"):
        refuse_kind(load_target("raspberry-pi-5"), "tensorrt", set())


def test_a_context_beyond_the_models_own_is_refused():
    assert wanted(SHAPE, None) == 2048
    assert wanted(dataclasses.replace(SHAPE, longest=512), None) == 512
    with pytest.raises(GreenError, match="131072 tokens, not 131073"):
        wanted(SHAPE, 131073)


def test_shapes_come_from_configurations(llama, bert):
    config = open_checkpoint(llama).config
    assert shape_of(config, 7, generates=True) == Shape(7, 2, 2 * 2 * 16, 128, 64, 256)
    assert shape_of(open_checkpoint(bert).config, 7, generates=False).layers == 0


def test_what_a_recipe_will_leave_is_near_what_it_leaves(untied_llama, tmp_path):
    steps = [{"prune": {"method": "depth", "ratio": 0.2}}, {"quantize": {"method": "rtn", "group": 32}}]
    made = recipe.parse(yaml.safe_dump({"calibration": {"samples": 4, "length": 32}, "steps": steps}), "small")
    checkpoint = open_checkpoint(untied_llama)
    told = outcome(checkpoint, made, "tensorrt")
    assert told.parameters == round(0.8 * checkpoint.parameters)
    assert told.types == {"int4"}
    found = greenllm.compress(
        untied_llama, tmp_path / "out", recipe.parse(yaml.safe_dump({"steps": steps[1:]}), "q"), bench=False
    )
    packed = open_checkpoint(found.path / "checkpoint")
    alone = outcome(checkpoint, recipe.parse(yaml.safe_dump({"steps": steps[1:]}), "q"), "genai").bits
    assert stored(packed, "genai").types == {"int4"}
    assert 0.8 * alone < found.manifest.details["bits_per_weight"] < 3 * alone  # of so small a model much is graph
    assert found.manifest.details["memory"]["context"] == 256


def test_a_model_that_does_not_fit_is_refused_before_the_work(tmp_path, capsys):
    model = make_llama(tmp_path / "m", vocab=300)
    (tmp_path / "tiny.yaml").write_text(
        "description: tiny\nmemory: 0.1\nformats: {text-generation: genai}\nruntimes: [genai]\n"
    )
    for command in (["compress", model, "--no-bench"], ["export", model]):
        code, _, err = run(capsys, *command, "-o", tmp_path / "out", "--target", tmp_path / "tiny.yaml")
        assert code == 1
        said = " ".join(err.split())
        assert "tiny has 0.10 GB for a model" in said
        assert "runtime 0.10" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "tiny.yaml"]
    assert plan.plan(model, "none", None).fit is None  # steps alone are for no target


def test_a_target_that_does_not_run_the_format(llama, tmp_path, capsys):
    code, _, err = run(capsys, "export", llama, "-o", tmp_path / "o", "--to", "tensorrt", "--target", "raspberry-pi-5")
    assert code == 1
    assert "does not run tensorrt" in err
    code, _, err = run(
        capsys, "export", llama, "-o", tmp_path / "o", "--target", "jetson-agx-orin", "--precision", "bf16"
    )
    assert code == 1
    assert "no kernels for bf16" in err
    assert not list(tmp_path.iterdir())


def test_embodied_carbon_is_a_number_or_a_target_that_is_named():
    assert embodied_of(None) is None
    assert embodied_of("150") == 150
    assert embodied_of("h100") == 164
    with pytest.raises(GreenError, match="Nobody published"):
        embodied_of("raspberry-pi-5")
    with pytest.raises(GreenError, match="no such target"):
        embodied_of("h1000")

"""Recipes are validated, and their errors name the key and what is allowed."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from greenllm import recipe
from greenllm.commands import STEPS
from greenllm.errors import GreenError


def with_step(**options):
    return yaml.safe_dump({"steps": [{"quantize": options}]})


@pytest.mark.parametrize("name", ["int4", "int8", "none"])
def test_builtin_recipes_load_and_come_back(name):
    found = recipe.load(name)
    assert found.name == name
    assert found.description
    assert recipe.parse(yaml.safe_dump(found.dump()), name).dump() == found.dump()


def test_every_step_is_a_command():
    assert set(STEPS) == set(recipe.step_types())


def test_every_option_is_documented():
    for kind in recipe.step_types().values():
        assert all(f.default.description for f in dataclasses.fields(kind))


@pytest.mark.parametrize(
    ("text", "says", "fix"),
    [
        (with_step(bitz=4), r"steps\[0\]\.quantize\.bitz: no such key", "Did you mean bits"),
        (with_step(bits=5), r"bits = 5: Input should be 2, 3, 4 or 8", ""),
        (with_step(bits="four"), r"bits = 'four'", ""),
        (with_step(method="magic"), r"method = 'magic': Input should be 'gptq', 'rtn' or 'hqq'", ""),
        (with_step(damp=-1), r"damp = -1", ""),
        (with_step(group=-7), r"group = -7", ""),
        ("steps: [{squeeze: {}}]", "no step is called 'squeeze'", "Allowed: quantize"),
        ("steps: [quantize]", r"steps\[0\] must be one step", ""),
        ("steps: [{quantize: 4}]", "must be a mapping", "Allowed: method"),
        ("steps: 3", "steps must be a list", "greenllm recipes int4"),
        ("stepz: []", "steps must be a list", ""),
        ("steps: []\nstepz: []", "stepz: no such key", "Did you mean steps"),
        ("steps: []\ncalibration: {sampels: 3}", "calibration.sampels: no such key", "samples"),
        ("steps: []\ncalibration: {samples: 0}", "calibration.samples = 0", ""),
        ("steps: []\nseed: -1", "seed = -1", ""),
        ("[1, 2]", "a recipe is a mapping", ""),
        ("a: [", "not YAML", ""),
        ("!!python/object/apply:os.system ['touch /tmp/owned']", "not YAML", ""),
    ],
)
def test_mistakes_are_named(text, says, fix):
    with pytest.raises(GreenError, match=says) as e:
        recipe.parse(text, "mine.yaml")
    assert fix in str(e.value)
    assert str(e.value).startswith("mine.yaml")


def test_a_misspelt_recipe_gets_a_hint():
    with pytest.raises(GreenError, match="Did you mean int4"):
        recipe.load("int44")


def test_a_recipe_file(tmp_path):
    (tmp_path / "mine.yaml").write_text(with_step(bits=3, group=-1))
    (step,) = recipe.load(tmp_path / "mine.yaml").steps
    assert (step.bits, step.group) == (3, -1)

"""Mixed precision: sensitivities against the divergence they predict, the knapsack against all choices."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from greenllm import artifact, pipeline
from greenllm.checkpoint import Checkpoint, open_checkpoint
from greenllm.errors import GreenError
from greenllm.progress import Silent
from greenllm.quantize.allocate import Option, allocate
from greenllm.quantize.fisher import fisher
from greenllm.quantize.grid import Grid
from greenllm.quantize.linear import linears, set_weight, weight_of
from greenllm.quantize.rtn import round_to_nearest
from greenllm.quantize.sensitivity import conditional_variances, predicted_kl
from greenllm.recipe import Calibration, Recipe, make_step

options = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 100)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(units=st.lists(options, min_size=1, max_size=5), budget=st.integers(1, 100))
def test_assignment_is_the_best_of_all(units, budget):
    made = [[Option(i, float(size), float(loss)) for i, (size, loss) in enumerate(unit)] for unit in units]
    fitting = [c for c in itertools.product(*made) if sum(o.size for o in c) <= budget]
    if not fitting:
        with pytest.raises(GreenError, match="smallest choice"):
            allocate(made, budget)
        return
    found = allocate(made, budget)
    assert len(found) == len(made)
    assert sum(o.size for o in found) <= budget
    assert sum(o.loss for o in found) == pytest.approx(min(sum(o.loss for o in c) for c in fitting))


def test_conditional_variances_are_those_of_regression():
    """The input rounded first is left with its variance given all others, the last one with its own."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(500, 6, generator=g) @ torch.randn(6, 6, generator=g)
    A = X.T @ X / 500
    found = conditional_variances(A, 1e-9)
    first, last = A.diagonal().argmax(), A.diagonal().argmin()
    torch.testing.assert_close(found[first], 1 / torch.linalg.inv(A)[first, first], rtol=1e-3, atol=0)
    torch.testing.assert_close(found[last], A[last, last], rtol=1e-3, atol=0)
    dead = A.clone()
    dead[2], dead[:, 2] = 0, 0
    assert conditional_variances(dead, 1e-9)[2] == 0


def trained(path):
    """A checkpoint whose predictions are far from uniform, as random ones are not."""
    model = open_checkpoint(path).load_model()
    model.lm_head.weight.data *= 20
    return model


def test_half_the_fisher_form_is_the_divergence(untied_llama):
    """Small random changes of each linear: the KL divergence measured, against the one predicted."""
    model = trained(untied_llama)
    layers = linears(model)
    ids = torch.randint(3, 128, (16, 64), generator=torch.Generator().manual_seed(1))
    found = fisher(model, layers, [ids] * 8, 0, Silent())
    with torch.no_grad():
        before = torch.log_softmax(model(ids).logits.double(), -1)
    ratios = []
    for name, layer in layers.items():
        W = weight_of(layer).clone()
        D = torch.randn(W.shape, generator=torch.Generator().manual_seed(2)) * W.std() * 0.03
        A = found.A[found.leader[name]]
        predicted = 0.5 * float(found.g[name] @ ((D @ A) * D).sum(1))
        set_weight(layer, W + D)
        with torch.no_grad():
            after = torch.log_softmax(model(ids).logits.double(), -1)
        set_weight(layer, W)
        ratios.append(float((before.exp() * (before - after)).sum(-1).mean()) / predicted)
    assert len(ratios) == 15
    assert all(0.5 < r < 4 for r in ratios)  # v is read by attention, which adds up tokens that are alike
    assert 0.8 < sorted(ratios)[7] < 1.25


def test_more_bits_and_smaller_groups_cost_less():
    W = torch.randn(32, 128, generator=torch.Generator().manual_seed(0))
    loss = {g: predicted_kl(W, torch.ones(128), torch.ones(32), g) for g in (
        Grid(2, 32, True), Grid(3, 32, True), Grid(4, 64, True), Grid(4, 32, True), Grid(8, 32, True),
    )}  # fmt: skip
    assert list(loss.values()) == sorted(loss.values(), reverse=True)
    exact = 0.5 * (round_to_nearest(W, Grid(4, 32, True)).dequantize() - W).square().sum()
    assert loss[Grid(4, 32, True)] == pytest.approx(float(exact), rel=0.1)


def recipe(**fields):
    step = make_step("mixed", {"grids": "2g32 4g32 8g32", **fields}, "mixed")
    return Recipe(name="m", calibration=Calibration(source="self", samples=8, length=32), steps=[step])


@pytest.mark.parametrize("model", ["llama", "untied_llama"])
def test_a_budget_is_kept_and_loads_again(request, tmp_path, model):
    source = request.getfixturevalue(model)
    done = pipeline.run_steps(source, tmp_path / "out", recipe(bits=6.0))
    result = done.manifest.steps[0].result
    assert 5.0 < result["bits_per_weight"] <= 6.0
    choice = result["choice"]
    assert len(set(choice.values())) > 1
    checkpoint = Checkpoint(done.path, [])
    stored = dict(checkpoint.packed())
    for name, label in choice.items():
        bits, group = map(int, re.fullmatch(r"(\d)g(\d+)", label).groups())
        assert (stored[name].bits, stored[name].group) == (bits, group)
    block = "model.layers.0."
    assert len({choice[f"{block}self_attn.{p}_proj"] for p in "qkv"}) == 1  # one input, one fused matrix
    assert torch.isfinite(checkpoint.load_model()(torch.tensor([[1, 5, 9]])).logits).all()
    assert artifact.read(tmp_path / "out").manifest.steps[0].parameters["bits"] == 6.0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"bits": 2.0}, "is below"),
        ({"size": 0.001}, "is below"),
        ({"grids": "four"}, "no grid is written"),
        ({"grids": "5g32"}, "bits=5"),
        ({"grids": "4g48"}, "divides"),
        ({"bits": -1}, "bits"),
    ],
)
def test_impossible_budgets_are_refused_before_work(llama, tmp_path, fields, says):
    with pytest.raises(GreenError, match=says):
        pipeline.run_steps(llama, tmp_path / "out", recipe(**fields))
    assert not (tmp_path / "out").exists()


def test_encoders_are_sent_elsewhere(bert, tmp_path):
    with pytest.raises(GreenError, match="text generators"):
        pipeline.run_steps(bert, tmp_path / "out", recipe())

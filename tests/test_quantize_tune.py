"""Quantized weights that learn: gradients against autograd, resumed runs, and what is written."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import make_bert, make_llama
from torch import nn

import greenllm
from greenllm import artifact, pipeline
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.quantize import tune
from greenllm.quantize.fakequant import FakeQuant
from greenllm.quantize.grid import Grid
from greenllm.quantize.rtn import round_to_nearest
from greenllm.recipe import Calibration, Recipe, make_step


def recipe(*steps, samples=32):
    made = [make_step(name, options, name) for name, options in steps]
    return Recipe(name="t", calibration=Calibration(samples=samples, length=32), steps=made)


def quantized(model, out, *steps, samples=32):
    first = ("quantize", {"bits": 3, "head_bits": 4})
    return pipeline.run_steps(model, out, recipe(first, *steps, samples=samples)).path


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_it_begins_as_what_was_packed(bits, symmetric):
    W = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    packed = round_to_nearest(W, Grid(bits, 16, symmetric))
    packed.codes[0, :5] = 0  # far from where W would have them
    fake = FakeQuant.of(W, packed)
    assert torch.equal(fake.weight(), packed.dequantize())
    learned = fake.learned()
    assert torch.equal(learned.codes, packed.codes)
    assert torch.equal(learned.scales, packed.scales)


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_are_those_of_autograd(symmetric):
    """Of the same formula, written with a rounding that autograd does not see."""
    g = torch.Generator().manual_seed(1)
    W, G = torch.randn(6, 64, generator=g), torch.randn(6, 64, generator=g)
    fake = FakeQuant.of(W, round_to_nearest(W, Grid(3, 16, symmetric)))
    fake.change += 0.01 * torch.randn(fake.change.shape, generator=g)
    u, change = fake.u.clone().requires_grad_(), fake.change.clone().requires_grad_()
    steps = (u + (u.round().clamp(0, 7) - u).detach()).view(6, 4, 16) - fake.packed.zeros.float()[..., None]
    s = fake.packed.scales.float() * (1 + change)
    dense = (steps * (s + (s.half().float() - s).detach())[..., None]).view(6, 64)
    torch.testing.assert_close(dense, fake.weight())
    (dense * G).sum().backward()
    of_u, of_change = fake.gradients(G)
    torch.testing.assert_close(of_u, u.grad)
    torch.testing.assert_close(of_change, change.grad)


def test_what_is_learned_is_what_is_computed_with():
    W = torch.randn(4, 32, generator=torch.Generator().manual_seed(2))
    fake = FakeQuant.of(W, round_to_nearest(W, Grid(4, 32, symmetric=True)))
    fake.u += torch.randn(4, 32) * 20  # beyond both ends of the grid
    fake.change += 0.1
    assert torch.equal(fake.learned().dequantize(), fake.weight())


def test_divergence():
    want, got = torch.randn(2, 5, 11), torch.randn(2, 5, 11)
    p, q = torch.softmax(want, -1), torch.softmax(got, -1)
    oracle = (p * (p.log() - q.log())).sum(-1).mean()
    torch.testing.assert_close(tune.divergence(want, got, states=False), oracle)
    assert tune.divergence(want, want, states=True) == 0
    torch.testing.assert_close(tune.divergence(want, 0 * want, states=True), torch.tensor(1.0))


def sharp_llama(path, **options):
    """Its predictions are far from uniform, as a trained one's are."""
    return make_llama(path, initializer_range=0.15, **options)


MODELS = {"tied": sharp_llama, "untied": lambda path: sharp_llama(path, tied=False), "bert": make_bert}


@pytest.mark.parametrize("model", MODELS)
def test_it_comes_nearer_to_its_source(model, tmp_path):
    path = MODELS[model](tmp_path / "model")
    step = ("tune", {"steps": 60, "rate": 0.003, "compute": "float32"})
    out = quantized(path, tmp_path / "q", step, samples=256)
    result = artifact.read(out).manifest.steps[-1].result
    assert result["kept"] == "after"
    assert result["divergence_after"] < result["divergence_before"]
    loaded, source = open_checkpoint(out), open_checkpoint(path)
    ids = torch.randint(3, 128, (4, 32), generator=torch.Generator().manual_seed(5))
    plain = quantized(path, tmp_path / "plain", samples=256)
    with torch.no_grad():
        want, got, before = (c.load_model()(ids)[0] for c in (source, loaded, open_checkpoint(plain)))
    assert (got - want).norm() < (before - want).norm()
    kinds = [(n, p.bits, p.group) for n, p in loaded.packed()]
    assert kinds == [(n, p.bits, p.group) for n, p in open_checkpoint(plain).packed()]
    assert greenllm.export(out, tmp_path / "onnx", to="onnx").manifest.details["verified"]


def test_a_killed_run_ends_as_one_that_was_not(llama, tmp_path, monkeypatch):
    """Bit for bit, whichever step it was killed at."""
    monkeypatch.setattr(tune, "_COMMIT", 4)
    steps = ("tune", {"steps": 10, "rows": 4, "rate": 0.02, "compute": "float32"})
    whole = quantized(llama, tmp_path / "whole", steps)
    real, count = tune.Tuner._step, [0]

    def failing(self, batch, pace):
        count[0] += 1
        if count[0] in {6, 9}:
            raise KeyboardInterrupt
        return real(self, batch, pace)

    monkeypatch.setattr(tune.Tuner, "_step", failing)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            quantized(llama, tmp_path / "cut", steps)
        assert not (tmp_path / "cut").exists()
    cut = quantized(llama, tmp_path / "cut", steps)
    assert count[0] == 6 + 3 + 6  # each time on from the fourth step
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_rate_of_nothing_holds(llama, tmp_path):
    """With scales alone (EfficientQAT's E2E-QP) every code stays what it was, and so do the norms."""
    plain = dict(open_checkpoint(quantized(llama, tmp_path / "plain", samples=256)).packed())
    step = ("tune", {"steps": 10, "rate": 0, "norm_rate": 0, "scale_rate": 0.005, "compute": "float32"})
    done = open_checkpoint(quantized(llama, tmp_path / "q", step, samples=256))
    moved = 0
    for name, packed in done.packed():
        assert torch.equal(packed.codes, plain[name].codes)
        moved += int((packed.scales != plain[name].scales).sum())
    assert moved > 0
    assert torch.equal(done.tensor("model.norm.weight"), open_checkpoint(llama).tensor("model.norm.weight"))


def test_worse_is_not_kept(llama, tmp_path):
    """A rate that ruins it: told, and the packed checkpoint stays as it was."""
    plain = quantized(llama, tmp_path / "plain")
    out = quantized(llama, tmp_path / "q", ("tune", {"steps": 5, "rate": 1.0, "norm_rate": 1.0, "compute": "float32"}))
    assert artifact.read(out).manifest.steps[-1].result["kept"] == "before"
    assert (out / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


def test_a_loss_that_is_no_number_stops_it(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "divergence", lambda _, got, **__: got.sum() * float("nan"))
    with pytest.raises(GreenError, match="Step 1: the loss is nan"):
        quantized(llama, tmp_path / "q", ("tune", {"steps": 2}))
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize(
    ("steps", "match"),
    [
        ([("tune", {})], "is not quantized"),
        ([("quantize", {"method": "rtn", "awq": True}), ("tune", {})], "AWQ moved"),
    ],
)
def test_what_cannot_be_tuned_is_refused(llama, tmp_path, steps, match):
    with pytest.raises(GreenError, match=match):
        pipeline.run_steps(llama, tmp_path / "q", recipe(*steps))


def test_alone_it_needs_its_teacher(llama, untied_llama, tmp_path):
    plain = quantized(llama, tmp_path / "plain")
    with pytest.raises(GreenError, match="learns from the dense model"):
        pipeline.run_steps(plain, tmp_path / "a", recipe(("tune", {})))
    with pytest.raises(GreenError, match="other weights"):
        pipeline.run_steps(plain, tmp_path / "b", recipe(("tune", {"teacher": str(untied_llama)})))
    done = pipeline.run_steps(plain, tmp_path / "c", recipe(("tune", {"teacher": str(llama), "steps": 3})))
    assert [s.step for s in done.manifest.steps] == ["quantize", "tune"]


def test_stock_transformers_sees_the_same_layout(llama, tmp_path):
    """The keys and the configuration of a tuned checkpoint are those of a quantized one."""
    from safetensors import safe_open

    tuned = quantized(llama, tmp_path / "q", ("tune", {"steps": 2}))
    plain = quantized(llama, tmp_path / "plain")
    names = []
    for path in (tuned, plain):
        with safe_open(path / "model.safetensors", "pt") as f:
            names.append({k: f.get_slice(k).get_shape() for k in f.keys()})  # noqa: SIM118 - a reader
    assert names[0] == names[1]
    configs = [json.loads((p / "config.json").read_text()) for p in (tuned, plain)]
    assert configs[0] == configs[1]


def test_conv1d_learns_too():
    """GPT-2 keeps its weights sideways."""
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(8, 32)
    from greenllm.quantize.linear import gradient_of, set_weight, weight_of

    W = weight_of(layer).clone()
    layer(torch.ones(1, 32)).sum().backward()
    torch.testing.assert_close(gradient_of(layer), torch.ones(8, 32))
    set_weight(layer, W)
    torch.testing.assert_close(weight_of(layer), W)
    assert isinstance(layer.weight, nn.Parameter)

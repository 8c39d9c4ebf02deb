"""Quantization error propagation: the least squares it claims, and the walk that brings both kinds of inputs."""

from __future__ import annotations

import pytest
import torch
from conftest import make_llama
from torch import nn

from greenllm import pipeline
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.quantize.linear import Moments, linears
from greenllm.quantize.qep import Drift, corrected
from greenllm.recipe import Calibration, Recipe, make_step
from greenllm.walk import Walk


def inputs(n=64, k=8, noise=0.3, seed=0):
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, k, generator=g) @ torch.randn(k, k, generator=g)
    return X, X + noise * torch.randn(n, k, generator=g), torch.randn(5, k, generator=g)


def test_all_of_the_way_is_least_squares():
    X, changed, W = inputs()
    got = corrected(W, changed.T @ changed, (X - changed).T @ changed, 1.0, 1e-7)
    want = torch.linalg.lstsq(changed.double(), (X @ W.T).double()).solution.T
    torch.testing.assert_close(got, want.float(), rtol=1e-3, atol=1e-3)
    assert (changed @ got.T - X @ W.T).norm() < (changed @ W.T - X @ W.T).norm()


def test_a_part_of_the_way_and_no_drift():
    X, changed, W = inputs()
    H, D = changed.T @ changed, (X - changed).T @ changed
    whole, half = (corrected(W, H, D, a, 0.01) for a in (1.0, 0.5))
    torch.testing.assert_close(half, (W + whole) / 2)
    assert corrected(W, H, D, 0.0, 0.01) is W
    assert corrected(W, H, 0 * D, 1.0, 0.01) is W


def test_dead_channels_are_no_error():
    X, changed, W = inputs()
    X[:, 2] = changed[:, 2] = 0
    got = corrected(W, changed.T @ changed, (X - changed).T @ changed, 1.0, 0.0)
    assert torch.isfinite(got).all()


def test_drift_is_of_both_inputs_batch_by_batch():
    layers = {"a": nn.Linear(8, 3), "b": nn.Linear(8, 4)}  # both read the same
    found, plain = Drift(layers), Moments(layers)
    pairs = [inputs(seed=s)[:2] for s in (1, 2)]
    with found.watching():
        for was, now in pairs:
            for source, x in ((True, was), (False, now)):
                found.turn(source)
                for layer in layers.values():
                    layer(x)
    with plain.watching():
        for _, now in pairs:
            for layer in layers.values():
                layer(now)
    want = sum((was - now).T @ now for was, now in pairs)
    for name in layers:
        torch.testing.assert_close(found.drift(name), want)
        torch.testing.assert_close(found.of(name), plain.of(name))
    assert found.leader["b"] == "a"


@torch.no_grad()
@pytest.mark.parametrize("killed", [False, True])
def test_the_walk_takes_the_states_of_the_model_as_it_was_along(llama, tmp_path, killed):
    checkpoint = open_checkpoint(llama)
    ids = torch.randint(3, 128, (4, 16), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": b} for b in ids.split(2)]

    def visit(name, block, forward):
        if killed and name.endswith(".1") and not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            raise KeyboardInterrupt
        drift = Drift(linears(block))
        with drift.watching(), walk.beside(drift.turn):
            forward()
        assert bool(drift.drift("self_attn.q_proj").any()) == (not name.endswith(".0"))
        for layer in linears(block).values():
            layer.weight.mul_(0.9)
        return {}

    walk = Walk(checkpoint, batches, tmp_path / "state", source=True)
    if killed:
        with pytest.raises(KeyboardInterrupt):
            walk.run(visit)
        walk = Walk(checkpoint, batches, tmp_path / "state", source=True)
    walk.run(visit)
    model = checkpoint.load_model().model
    for batch, was, now in zip(batches, walk.source, walk.hidden, strict=True):
        want = model.norm(was)
        torch.testing.assert_close(want, model(**batch).last_hidden_state)
        assert not torch.allclose(was, now)


def quantized(path, out, **options):
    step = make_step("quantize", {"method": "gptq", "group": 32, "head_bits": 0, **options}, "quantize")
    sample = Calibration(source="self", samples=64, length=64)
    return pipeline.run_steps(path, out, Recipe(name="q", calibration=sample, steps=[step]))


@torch.no_grad()
def test_the_model_says_more_of_what_it_said(tmp_path):
    path = make_llama(tmp_path / "m", layers=4, initializer_range=0.15)
    source = open_checkpoint(path).load_model()
    ids = torch.randint(3, 128, (32, 32), generator=torch.Generator().manual_seed(5))
    want = source(ids).logits.log_softmax(-1)

    def loss(**options):
        name = "-".join(map(str, options.values()))
        model = open_checkpoint(quantized(path, tmp_path / name, bits=2, **options).path).load_model()
        got = model(ids).logits.log_softmax(-1)
        return float((want.exp() * (want - got)).sum(-1).mean())

    assert loss(propagate=0.5) < 0.98 * loss(propagate=0.0)


def test_it_is_refused_where_it_says_nothing(llama, tmp_path):
    for options in ({"method": "rtn"}, {"method": "gptq", "smooth": 0.5}, {"method": "gptq", "activations": "static"}):
        with pytest.raises(GreenError, match="propagate"):
            quantized(llama, tmp_path / "out", propagate=0.5, **options)

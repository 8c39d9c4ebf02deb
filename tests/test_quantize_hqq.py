"""Half-quadratic quantization against oracles on small matrices."""

from __future__ import annotations

import pytest
import torch
from conftest import make_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from greenllm import pipeline, recipe
from greenllm.checkpoint import open_checkpoint
from greenllm.quantize import hqq as module
from greenllm.quantize.grid import Grid
from greenllm.quantize.hqq import hqq, shrink, signed_codes
from greenllm.quantize.rtn import round_to_nearest


def weights(n=8, k=64, seed=0):
    """Gaussian with some large ones, as in real layers."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=g) * (1 + 5 * (torch.rand(n, k, generator=g) > 0.97))


def error(W, packed, p):
    """Of each group."""
    return (packed.dequantize() - W).abs().pow(p).view(len(W), -1, packed.group).sum(-1)


@settings(max_examples=25, deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4, 8]), group=st.sampled_from([16, 32, -1]), symmetric=st.booleans(),
    p=st.sampled_from([0.5, 0.7, 1.0, 2.0]), magnitude=st.sampled_from([1e-3, 1.0, 1e3]), seed=st.integers(0, 99),
)  # fmt: skip
def test_no_group_is_worse_than_by_rounding(bits, group, symmetric, p, magnitude, seed):
    W, grid = weights(seed=seed) * magnitude, Grid(bits, group, symmetric)
    found, nearest = hqq(W, grid, p=p), round_to_nearest(W, grid)
    assert (error(W, found, p) <= error(W, nearest, p) * 1.0001).all()
    assert (found.codes <= grid.top).all()
    assert not symmetric or (found.zeros == 2 ** (bits - 1)).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_most_groups_get_better(symmetric):
    W, grid = weights(64, 256), Grid(4, 32, symmetric)
    better = error(W, hqq(W, grid), 0.7) < error(W, round_to_nearest(W, grid), 0.7) * 0.999
    assert better.float().mean() > 0.5


def test_a_real_zero_point_is_found_where_there_is_one():
    """Weights on a grid whose zero point is 5, and one outlier that least squares would follow."""
    codes = torch.randint(0, 16, (1, 64), generator=torch.Generator().manual_seed(0)).float()
    codes[0, :2] = torch.tensor([0.0, 15.0])
    x = (codes - 5)[None]
    x[0, 0, 3] += 0.45
    z = torch.tensor([[5.3]])
    for beta in [10.0 * 1.01**i for i in range(20)]:
        code = signed_codes(x, z, 15)
        z = z + (code - (x - shrink(x - code, beta, 0.7))).mean(-1)
    assert z.round().item() == 5


def test_shrinking_with_p_1_is_soft_thresholding():
    x = torch.linspace(-2, 2, 41)
    torch.testing.assert_close(shrink(x, 4.0, 1.0), torch.nn.functional.softshrink(x, 0.25))


def test_shrinking_solves_its_problem_far_from_zero():
    """Against a search over e of |e|^p / p + beta / 2 (e - x)^2 on a fine lattice."""
    e = torch.linspace(-3, 3, 60001)
    for x in (-2.0, 1.0, 2.5):
        want = e[(e.abs() ** 0.7 / 0.7 + 5.0 * (e - x) ** 2).argmin()]
        assert abs(shrink(torch.tensor(x), 10.0, 0.7) - want) < 0.01


def test_without_shrinkage_the_scale_is_that_of_least_squares():
    """A tiny beta shrinks E to nothing: the refitted scale must be the projection of W on its codes."""
    W = weights(1, 32, seed=2)
    found = hqq(W, Grid(4, -1, symmetric=True), p=2.0, beta=1e-12, steps=60)
    C = found.codes.float() - 8
    want = (W * C).sum() / C.square().sum()
    torch.testing.assert_close(found.scales[0, 0].float(), want, rtol=1e-3, atol=0)


def test_zero_rows_and_extremes():
    W = torch.cat([torch.zeros(1, 32), torch.full((1, 32), 1e9), torch.full((1, 32), 1e-12), torch.eye(32)[:1]])
    for symmetric in (True, False):
        found = hqq(W, Grid(4, 32, symmetric))
        assert torch.isfinite(found.dequantize()).all()
        assert found.dequantize()[0].abs().max() == 0
        assert (found.scales != 0).all()


def test_chunks_do_not_show(monkeypatch):
    W, grid = weights(50, 64), Grid(4, 32, symmetric=False)
    whole = hqq(W, grid)
    monkeypatch.setattr(module, "_CHUNK", 64 * 7)
    parts = hqq(W, grid)
    assert torch.equal(whole.codes, parts.codes)
    assert torch.equal(whole.scales, parts.scales)


def test_the_step_needs_no_data(tmp_path):
    step = recipe.make_step("quantize", {"method": "hqq", "symmetric": False, "head_bits": 8}, "test")
    assert not step.calibrated
    path = make_llama(tmp_path / "m")
    found = pipeline.run_steps(path, tmp_path / "q", recipe.Recipe(name="q", steps=[step]))
    W = open_checkpoint(path).tensor("model.layers.1.mlp.up_proj.weight")
    packed = dict(open_checkpoint(found.path).packed())["model.layers.1.mlp.up_proj"]
    assert torch.equal(packed.dequantize(), hqq(W, Grid(4, 32, symmetric=False)).dequantize())

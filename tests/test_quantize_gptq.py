"""GPTQ and the grids against oracles on small matrices."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from greenllm.errors import GreenError
from greenllm.quantize.gptq import error_in, factored, gptq, refit_scales
from greenllm.quantize.grid import Grid, fit
from greenllm.quantize.quantease import descend
from greenllm.quantize.rtn import round_onto, round_to_nearest


def problem(n=8, k=64, seed=0, rank=None):
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(256, rank or k, generator=g) @ torch.randn(rank or k, k, generator=g)
    return torch.randn(n, k, generator=g), X.T @ X


@settings(max_examples=25, deadline=None)
@given(
    bits=st.sampled_from([3, 4, 8]), group=st.sampled_from([16, 32, -1]), symmetric=st.booleans(),
    act_order=st.booleans(), rank=st.sampled_from([3, 64]), seed=st.integers(0, 99),
)  # fmt: skip
def test_never_worse_than_rounding_in_the_norm_of_the_hessian(bits, group, symmetric, act_order, rank, seed):
    W, H = problem(seed=seed, rank=rank)
    H, _ = factored(H, torch.arange(64), 0.01)
    grid = Grid(bits, group, symmetric)
    nearest = round_onto(W, *fit(W, grid, H.diagonal()), grid)
    found = gptq(W, H, grid, act_order=act_order)
    assert (error_in(H, W, found) <= error_in(H, W, nearest) * 1.0001 + 1e-6).all()


def test_much_better_than_rounding_when_inputs_are_correlated():
    W, H = problem(n=64, rank=16)
    grid = Grid(4, 32, symmetric=True)
    nearest = error_in(H, W, round_to_nearest(W, grid)).sum()
    assert error_in(H, W, gptq(W, H, grid)).sum() < nearest / 2


def test_sweep_equals_the_papers_plain_loop():
    """Algorithm 1 without blocks, straight from the paper: one column, then update all the rest."""
    W, H = problem(n=4, k=128, seed=3)
    grid = Grid(4, 32, symmetric=False)
    scales, zeros = fit(W, grid, H.diagonal())
    S, Z = scales.float().repeat_interleave(32, 1), zeros.float().repeat_interleave(32, 1)
    (_, U), w = factored(H, torch.arange(128), 0.01), W.clone()
    Q = torch.zeros_like(W)
    for j in range(128):
        Q[:, j] = (w[:, j] / S[:, j]).round().add(Z[:, j]).clamp(0, 15)
        err = (w[:, j] - (Q[:, j] - Z[:, j]) * S[:, j]) / U[j, j]
        w[:, j:] -= err[:, None] * U[j, j:][None]
    found = gptq(W, H, grid, act_order=False, polish=0)
    agree = (found.codes.float() == Q).float().mean()
    assert agree > 0.99  # the last bits of blocked sums may turn a tie


def test_upper_factor_is_that_of_the_inverse():
    _, H = problem(k=16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    raised, U = factored(H.double(), order, 0.01)
    damped = H.double() + 0.01 * H.double().diagonal().mean() * torch.eye(16)
    torch.testing.assert_close(raised, damped)
    damped = damped[order][:, order]
    torch.testing.assert_close(U.T @ U, torch.linalg.inv(damped), rtol=1e-6, atol=1e-9)
    assert torch.equal(U, U.triu())


def test_refit_finds_the_least_squares_scales():
    """Against a general solver on one row with two groups."""
    W, H = problem(n=1, k=32, seed=5)
    packed = round_to_nearest(W, Grid(4, 16, symmetric=True))
    C = torch.zeros(2, 32)
    signed = packed.codes.float() - packed.zeros.float().repeat_interleave(16, 1)
    C[0, :16], C[1, 16:] = signed[0, :16], signed[0, 16:]
    want = torch.linalg.solve(C @ H @ C.T, C @ H @ W[0])
    torch.testing.assert_close(refit_scales(W, H, packed).scales[0].float(), want, rtol=2e-3, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(bits=st.sampled_from([2, 4]), symmetric=st.booleans(), seed=st.integers(0, 99))
def test_coordinate_descent_is_the_plain_loop_and_never_makes_it_worse(bits, symmetric, seed):
    W, H = problem(n=3, k=128, seed=seed)
    start = round_to_nearest(W, Grid(bits, 32, symmetric))
    S, Z = start.scales.float().repeat_interleave(32, 1), start.zeros.float().repeat_interleave(32, 1)
    Q = start.dequantize().double()
    for j in range(128):
        best = Q[:, j] + (W - Q) @ H[:, j].double() / H[j, j]
        Q[:, j] = ((best / S[:, j]).round() + Z[:, j]).clamp(0, 2**bits - 1).sub(Z[:, j]).mul(S[:, j])
    found = descend(W, H, start)
    assert (found.dequantize() - Q).abs().gt(1e-4).float().mean() < 0.02  # a tie may turn
    assert (error_in(H, W, found) <= error_in(H, W, start) * 1.0001).all()
    assert error_in(H, W, found).sum() < error_in(H, W, start).sum()


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_grid_beats_any_coarser_search(symmetric):
    """No scale on a fine lattice does much better than the one that fit() found."""
    W = torch.randn(1, 16, generator=torch.Generator().manual_seed(1))
    grid = Grid(4, -1, symmetric)
    scales, zeros = fit(W, grid)
    found = (round_onto(W, scales, zeros, grid).dequantize() - W).square().sum()
    best = min(
        (((W / s).round() + z).clamp(0, 15) - z).mul(s).sub(W).square().sum().item()
        for s, z in itertools.product(torch.linspace(-0.5, 0.5, 401).tolist(), [8] if symmetric else range(16))
        if abs(s) > 0.01
    )
    assert found <= best * 1.35


def test_dead_inputs_and_zero_rows_are_handled():
    W, H = problem(n=4, k=64)
    H[:, 5] = H[5, :] = 0
    W[2] = 0
    found = gptq(W, H, Grid(4, 32, symmetric=True))
    assert torch.isfinite(found.dequantize()).all()
    assert found.dequantize()[2].abs().max() == 0


def test_singular_hessian_of_one_sample():
    x = torch.randn(1, 64)
    found = gptq(torch.randn(8, 64), x.T @ x, Grid(4, 32, symmetric=True))
    assert torch.isfinite(found.dequantize()).all()


def test_calibration_with_nan_is_refused():
    W, H = problem()
    H[0, 0] = torch.nan
    with pytest.raises(GreenError, match="NaN"):
        gptq(W, H, Grid(4, 32, symmetric=True))


def test_huge_and_tiny_weights_keep_finite_scales():
    W = torch.cat([torch.full((1, 32), 1e9), torch.full((1, 32), 1e-12)])
    packed = round_to_nearest(W, Grid(4, 32, symmetric=True))
    assert torch.isfinite(packed.scales).all()
    assert (packed.scales != 0).all()


@pytest.mark.parametrize(("bits", "group"), [(5, 32), (16, 32), (4, 0), (4, -2)])
def test_grids_that_nobody_runs_are_refused(bits, group):
    with pytest.raises(GreenError):
        Grid(bits, group, symmetric=True)


def test_group_that_does_not_divide_names_those_that_do():
    with pytest.raises(GreenError, match="64") as e:
        Grid(4, 128, symmetric=True).size(576)
    assert "--group 16 or 32 or 64 or -1" in e.value.fix

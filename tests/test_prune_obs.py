"""Structured OBS: the cheapest unit is the one that least squares says, and twins do not both go."""

from __future__ import annotations

import itertools

import pytest
import torch

from greenllm.prune.reconstruct import error, refit
from greenllm.prune.structured_obs import Reader, removal_costs

DAMP = 1e-6


def _reader(outputs, inputs, seed=0, rows=64):
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=g)
    X = torch.randn(rows, inputs, generator=g) @ mix
    return torch.randn(outputs, inputs, generator=g), X.T @ X


def _left(W, H, units, gone):
    """Squared error with the units in ``gone`` taken out and the rest fitted, by another way."""
    stay = torch.ones(units, dtype=torch.bool)
    stay[list(gone)] = False
    stay = stay.repeat_interleave(W.shape[1] // units)
    return float(error(W.double(), refit(W.double(), H.double(), stay, 0.0), H.double()).sum())


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_unit_costs_what_least_squares_cannot_make_up_for(width):
    units = 6
    W, H = _reader(5, units * width)
    got = Reader(W, H, units, DAMP).costs()
    want = torch.tensor([_left(W, H, units, [u]) for u in range(units)])
    torch.testing.assert_close(got, want, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("width", [1, 2])
def test_costs_add_up_to_the_error_of_all_that_went(width):
    units, order = 6, [4, 1, 3]
    W, H = _reader(4, units * width, seed=3)
    reader, total = Reader(W, H, units, DAMP), 0.0
    for u in order:
        total += float(reader.costs()[u])
        reader.remove(torch.tensor([u]))
    assert total == pytest.approx(_left(W, H, units, order), rel=5e-3)
    assert not reader.W.view(4, units, width)[:, order].any()
    torch.testing.assert_close(reader.W, refit(W, H, reader.W.any(0), DAMP), rtol=2e-2, atol=2e-2)


def test_what_stays_is_nearly_the_best_choice_of_all():
    W, H = _reader(6, 8, seed=1)
    kept = set(removal_costs([(W, H)], 8, 5, DAMP).topk(5).indices.tolist())
    every = {c: _left(W, H, 8, c) for c in itertools.combinations(range(8), 3)}
    mine = _left(W, H, 8, set(range(8)) - kept)
    assert mine <= sorted(every.values())[2]  # of 56
    loud = set((W.square().sum(0) * H.diagonal()).topk(5).indices.tolist())
    assert mine <= _left(W, H, 8, set(range(8)) - loud)


def test_of_twins_one_stays():
    g = torch.Generator().manual_seed(0)
    X = torch.randn(100, 6, generator=g)
    X[:, 1] = X[:, 0]
    X[:, :2] *= 10  # both are louder than all others
    W = torch.randn(4, 6, generator=g)
    kept = removal_costs([(W, X.T @ X)], 6, 5, DAMP).topk(5).indices.tolist()
    assert len({0, 1} & set(kept)) == 1


def test_every_reader_of_a_unit_counts():
    (A, HA), (B, HB) = _reader(3, 6, seed=4), _reader(2, 6, seed=5)
    both = removal_costs([(A, HA), (B, HB)], 6, 6, DAMP)
    torch.testing.assert_close(both, Reader(A, HA, 6, DAMP).costs() + Reader(B, HB, 6, DAMP).costs())


def test_dead_channels_go_first_and_a_singular_hessian_is_no_error():
    W, H = _reader(4, 8, rows=3)  # rank 3
    H[2], H[:, 2] = 0, 0
    costs = removal_costs([(W, H)], 8, 4, DAMP)
    assert torch.isfinite(costs).all()
    assert costs[2] == costs.min()
    assert float(costs.topk(4).values[-1]) > float(costs.topk(5).values[-1])  # those that stay are set apart

"""Divergences against torch's own and sums by hand; hidden states; the likeliest tokens alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from greenllm.distill.divergence import KINDS, divergence, divergence_of_top, keep_top, log_probabilities
from greenllm.distill.hidden import Projections, attention_loss, layer_map, state_loss
from greenllm.errors import GreenError
from greenllm.quantize.tune import divergence as tuned


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return 3 * torch.randn(2, 5, 17), 3 * torch.randn(2, 5, 17)


def gradient(function, x):
    x = x.clone().requires_grad_()
    function(x).sum().backward()
    return x.grad


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_forward_and_reverse_are_torchs_kl_div_with_its_gradients(logits, temperature):
    want, got = logits
    p = log_probabilities(want, temperature)
    ours = {k: lambda x, k=k: divergence(p, x, k, temperature) for k in ("forward", "reverse")}
    theirs = {
        "forward": lambda x: F.kl_div(
            F.log_softmax(x / temperature, -1), p, log_target=True, reduction="none"
        ).sum(-1) * temperature**2,
        "reverse": lambda x: F.kl_div(
            p, F.log_softmax(x / temperature, -1), log_target=True, reduction="none"
        ).sum(-1) * temperature**2,
    }  # fmt: skip
    for kind, function in ours.items():
        torch.testing.assert_close(function(got), theirs[kind](got))
        torch.testing.assert_close(gradient(function, got), gradient(theirs[kind], got))


def test_by_hand():
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    m = [0.375, 0.625]
    forward = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    js = 0.5 * sum(x * math.log(x / y) for x, y in zip([0.5, 0.5], m, strict=True))
    js += 0.5 * sum(x * math.log(x / y) for x, y in zip([0.25, 0.75], m, strict=True))
    assert float(KINDS["forward"](p, q)) == pytest.approx(forward, rel=1e-5)
    assert float(KINDS["reverse"](q, p)) == pytest.approx(forward, rel=1e-5)
    assert float(KINDS["js"](p, q)) == pytest.approx(js, rel=1e-5)
    assert float(KINDS["js"](torch.tensor([0.0, -1e4]), torch.tensor([-1e4, 0.0]))) == pytest.approx(math.log(2))


@pytest.mark.parametrize("kind", KINDS)
def test_no_divergence_from_oneself_and_it_is_never_negative(logits, kind):
    want, got = logits
    assert float(divergence(log_probabilities(want), want, kind).abs().max()) < 1e-5
    assert float(divergence(log_probabilities(want), got, kind).min()) > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_likeliest_of_all_are_exact_and_fewer_are_never_more(logits, kind, temperature):
    want, got = logits
    p = log_probabilities(want, temperature)
    exact = divergence(p, got, kind, temperature)
    whole = divergence_of_top(*keep_top(p, 17), got, kind, temperature)
    torch.testing.assert_close(whole, exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        gradient(lambda x: divergence_of_top(*keep_top(p, 17), x, kind, temperature), got),
        gradient(lambda x: divergence(p, x, kind, temperature), got), rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    last = torch.zeros_like(exact)
    for k in (1, 4, 9, 16):
        part = divergence_of_top(*keep_top(p, k), got, kind, temperature)
        assert bool((part <= exact + 1e-5).all())
        assert bool((part >= last - 1e-5).all())
        last = part


def test_top_by_hand():
    p = torch.tensor([0.5, 0.2, 0.2, 0.1]).log()
    q = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    want, tokens = keep_top(p, 1)
    assert tokens.tolist() == [0]
    torch.testing.assert_close(want.exp(), torch.tensor([0.5, 0.5]))
    found = divergence_of_top(want, tokens, q, "forward")
    assert float(found) == pytest.approx(0.5 * math.log(0.5 / 0.4) + 0.5 * math.log(0.5 / 0.6), rel=1e-5)


def test_the_tuner_measures_the_same(logits):
    want, got = logits
    assert float(tuned(want, got, states=False)) == pytest.approx(
        float(divergence(log_probabilities(want), got, "forward").mean()), rel=1e-5
    )


def test_layer_maps():
    assert layer_map("even", 3, 6) == [(1, 2), (2, 4), (3, 6)]
    assert layer_map("even", 2, 5) == [(1, 2), (2, 5)]
    assert layer_map("last", 3, 6) == [(3, 6)]
    assert layer_map("0,2,6", 3, 6) == [(2, 2), (3, 6)]
    for wrong in ("evenly", "1,2", "1,2,7", "0,0,0", "-1,2,3"):
        with pytest.raises(GreenError, match="layers = "):
            layer_map(wrong, 3, 6)


def test_states_count_by_direction_and_padding_not_at_all():
    torch.manual_seed(0)
    states, mask = torch.randn(2, 4, 8), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    assert float(state_loss(5 * states, states, mask)) < 1e-6
    other = states.clone()
    other[0, 3] = 100
    assert float(state_loss(other, states, mask)) < 1e-6
    assert float(state_loss(-states, states, mask)) == pytest.approx(4, rel=1e-3)


def test_projections_are_learned_between_widths_and_absent_within_one():
    torch.manual_seed(0)
    got, want = (torch.randn(2, 3, 8),) * 3, (torch.randn(2, 3, 12),) * 5
    wide = Projections(layer_map("even", 2, 4), 8, 12)
    loss = wide(got, want, torch.ones(2, 3))
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in wide.parameters())
    assert len(list(wide.parameters())) == 2
    same = Projections(layer_map("even", 2, 4), 8, 8)
    assert not list(same.parameters())
    assert float(same(got, got + got, torch.ones(2, 3))) < 1e-6


def test_attention_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).view(1, 1, 2, 2)
    q = torch.tensor([[0.8, 0.2], [0.5, 0.5]]).view(1, 1, 2, 2)
    row = 0.9 * math.log(0.9 / 0.8) + 0.1 * math.log(0.1 / 0.2)
    assert float(attention_loss(q, p, torch.tensor([[1, 1]]))) == pytest.approx(row / 2, rel=1e-4)
    assert float(attention_loss(q, p, torch.tensor([[0, 1]]))) == pytest.approx(0, abs=1e-6)
    heads = torch.cat([p, 2 * q - p], 1)  # their mean is q
    assert float(attention_loss(q, heads, torch.tensor([[1, 1]]))) == pytest.approx(0, abs=1e-6)

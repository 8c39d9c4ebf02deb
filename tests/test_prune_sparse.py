"""Zeros: the right ones, the best values around them, and a walk that goes on after a kill."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from conftest import make_bert, make_llama

from greenllm import calibration, pipeline
from greenllm.blocks import blocks_of
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.prune import sparse
from greenllm.prune.magnitude import magnitude
from greenllm.prune.mask import best
from greenllm.prune.reconstruct import error, reconstruct
from greenllm.prune.sparsegpt import sparsegpt
from greenllm.prune.wanda import wanda
from greenllm.quantize.linear import linears, weight_of
from greenllm.recipe import Calibration, Recipe, make_step

PATTERNS = ("unstructured", "2:4")


def layer(n=48, k=160, tokens=400, seed=0):
    """A weight and inputs whose channels are correlated and differ in size, as a model's are."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(tokens, k, generator=g) @ (torch.eye(k) + 0.3 * torch.randn(k, k, generator=g) / k**0.5)
    X = X * torch.exp(torch.randn(k, generator=g))
    return torch.randn(n, k, generator=g), X, X.T @ X


def recipe(**options):
    options = {"method": "sparsegpt", "ratio": 0 if "pattern" in options else 0.5, **options}
    steps = [make_step("prune", options, "prune")]
    return Recipe(name="t", calibration=Calibration(samples=8, length=32), steps=steps)


def sparse_weights(path):
    model = open_checkpoint(path).load_model()
    return {n: weight_of(m) for n, m in linears(blocks_of(model)[1]).items()}


def test_masks_by_hand():
    W = torch.tensor([[1.0, -4, 2, 3, 0.5, -6, 7, 0.1], [10, 20, 30, 40, 50, 60, 70, 80]])
    assert best(W.abs(), 0.5, "2:4").int().tolist() == [[0, 1, 0, 1, 0, 1, 1, 0], [0, 0, 1, 1, 0, 0, 1, 1]]
    assert best(W.abs(), 0.75, "unstructured").int().tolist() == [[0, 0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0, 1, 1]]
    assert magnitude(W, 0.5, "unstructured").int().tolist() == [[0] * 8, [1] * 8]  # over the whole matrix
    H = torch.diag(torch.tensor([1e4, 0, 0, 0, 0, 0, 0, 1e8]))
    assert wanda(W, H, 0.75, "unstructured").int().tolist() == [[1, 0, 0, 0, 0, 0, 0, 1]] * 2


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_the_papers(sparsity, seed):
    """In the norm of H: SparseGPT no worse than Wanda, Wanda than magnitude; and so many zeros as asked."""
    W, _, H = layer(seed=seed)
    results = [
        sparsegpt(W, H, sparsity, "unstructured"),
        W * wanda(W, H, sparsity, "unstructured"),
        W * magnitude(W, sparsity, "unstructured"),
    ]
    for Q in results:
        assert float((Q == 0).float().mean()) == pytest.approx(sparsity, abs=0.01)
    errors = [float(error(W, Q, H).sum()) for Q in results]
    assert errors == sorted(errors)
    assert errors[0] < 0.7 * errors[2]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_two_of_every_four(method):
    W, _, H = layer()
    Q = sparse.Sparsity(method, 0, "2:4", 0.01, 5)(W, H)
    assert ((Q.view(len(Q), -1, 4) != 0).sum(-1) == 2).all()


def test_sparsegpt_of_one_row_is_optimal_brain_surgery():
    """One weight of a row goes: the rest is what least squares gives (Hassibi & Stork, 1993)."""
    W, _, H = layer(n=1, k=12)
    Q = sparsegpt(W, H, 1 / 12, "unstructured", damp=1e-6)
    gone = int((Q == 0).nonzero()[0, 1])
    # columns before the one that goes are not touched again; those after it are solved for
    after = list(range(gone + 1, 12))
    h = H.double()
    want = W[0, after].double() + torch.linalg.solve(h[after][:, after], h[after, gone]) * W[0, gone].double()
    torch.testing.assert_close(Q[0, after].double(), want, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(Q[0, :gone], W[0, :gone])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_reconstruction_ends_at_least_squares_and_never_gets_worse(pattern):
    W, _, H = layer(n=8, k=40)
    H = H / H.diagonal().mean() + torch.eye(40)
    Q = W * magnitude(W, 0.5, pattern)
    errors = [float(error(W, reconstruct(W, Q, H, turns), H).sum()) for turns in range(12)]
    assert all(b <= a * (1 + 1e-5) for a, b in itertools.pairwise(errors))
    exact = torch.zeros(8, 40, dtype=torch.float64)
    for i, mask in enumerate(Q != 0):
        h = H.double()
        exact[i, mask] = torch.linalg.solve(h[mask][:, mask], h[mask] @ W[i].double())
    got = reconstruct(W, Q, H, 60)
    torch.testing.assert_close(got.double(), exact, rtol=1e-3, atol=1e-3)
    assert ((got != 0) <= (Q != 0)).all()


def test_inputs_that_never_were():
    """A dead input's weights may go, and nothing becomes NaN."""
    W, X, _ = layer()
    X[:, :8] = 0
    Q = sparsegpt(W, X.T @ X, 0.5, "unstructured")
    assert torch.isfinite(reconstruct(W, Q, X.T @ X, 20)).all()
    with pytest.raises(GreenError, match="NaN"):
        sparsegpt(W, X.T @ X * float("nan"), 0.5, "unstructured")


@torch.no_grad()
@pytest.mark.parametrize("make", [make_llama, make_bert])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_sparse_checkpoint(make, pattern, tmp_path):
    """Zeros in the linears of the blocks, everything else as it was, and stock transformers loads it."""
    from transformers import AutoModel

    path = make(tmp_path / "m")
    done = pipeline.run_steps(path, tmp_path / "out", recipe(**({"pattern": "2:4"} if pattern == "2:4" else {})))
    weights, inside = sparse_weights(done.path), set()
    for name, W in weights.items():
        assert float((W == 0).float().mean()) == pytest.approx(0.5, abs=0.01), name
        inside.add(name)
        if pattern == "2:4":
            assert ((W.view(len(W), -1, 4) != 0).sum(-1) <= 2).all()
    before, after = open_checkpoint(path), open_checkpoint(done.path)
    for name in before.names():
        if not any(name.endswith(f"{n}.weight") for n in inside):
            assert torch.equal(before.tensor(name), after.tensor(name)), name
    AutoModel.from_pretrained(done.path)
    config, old = (json.loads((p / "config.json").read_text()) for p in (done.path, path))
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
    assert [config[k] for k in sizes] == [old[k] for k in sizes]


def test_a_killed_run_ends_as_one_that_was_not(tmp_path, monkeypatch):
    """Bit for bit, and the blocks that were done are not done again."""
    path = make_llama(tmp_path / "m", layers=3)
    whole = pipeline.run_steps(path, tmp_path / "whole", recipe()).path
    real, count = sparse.Sparsity.__call__, [0]

    def failing(self, W, H):
        count[0] += 1
        if count[0] == 7 * 2 + 3:
            raise KeyboardInterrupt
        return real(self, W, H)

    monkeypatch.setattr(sparse.Sparsity, "__call__", failing)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run_steps(path, tmp_path / "cut", recipe())
    assert not (tmp_path / "cut").exists()
    cut = pipeline.run_steps(path, tmp_path / "cut", recipe()).path
    assert count[0] == 7 * 2 + 3 + 7
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_block_sees_what_the_blocks_before_it_became(tmp_path, monkeypatch):
    """The second moments of the last block are those of a forward pass through the sparse model."""
    path = make_llama(tmp_path / "m", layers=2, initializer_range=0.2)
    seen = []
    real = sparse.Sparsity.__call__
    monkeypatch.setattr(sparse.Sparsity, "__call__", lambda self, W, H: (seen.append(H), real(self, W, H))[1])
    done = pipeline.run_steps(path, tmp_path / "out", recipe())
    monkeypatch.undo()
    ids = calibration.samples(open_checkpoint(path), "self", 8, 32, 0)  # the same words again
    caught = {}
    model = open_checkpoint(done.path).load_model()
    model.model.layers[1].self_attn.q_proj.register_forward_pre_hook(lambda _, args: caught.update(x=args[0]))
    with torch.no_grad():
        model(ids)
    x = caught["x"].flatten(0, 1)
    torch.testing.assert_close(seen[7], x.T @ x, rtol=1e-3, atol=1e-2)


def test_a_pattern_that_does_not_divide_is_refused(tmp_path):
    path = make_llama(tmp_path / "m", intermediate_size=90)
    with pytest.raises(GreenError, match=r"down_proj: 90 inputs are no multiple of 4"):
        pipeline.run_steps(path, tmp_path / "out", recipe(pattern="2:4"))

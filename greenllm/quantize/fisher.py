"""How much a change of each linear costs: the Fisher information as a Kronecker product (K-FAC).

Martens & Grosse, 2015, arXiv:1503.05671, section 3. For a linear with inputs x and gradients g of the
log-likelihood at its outputs, F is about E[x x^T] times E[g g^T]. With labels drawn from the model's own
predictions, half of F's quadratic form is the KL divergence (nats a token) that a small change of the
weights causes. Rounding errors of different outputs are independent: of E[g g^T] the diagonal suffices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from greenllm.progress import Progress
from greenllm.quantize.linear import Moments


@dataclass
class Fisher:
    """The two factors of some modules, and how often an embedding's rows were read.

    Attributes:
        A: E[x x^T] of a module's inputs, float32 [K, K]; modules that read the same tensor share one.
        g: E[g^2] of its outputs, float32 [N].
        leader: the module under whose name a module's A is.
        reads: share of the tokens for which an embedding's row was read, float32 [V].
        embedding: E[g^2] of the embedding's outputs, float32 [d].
    """

    A: dict[str, Tensor]
    g: dict[str, Tensor]
    leader: dict[str, str]
    reads: Tensor
    embedding: Tensor


@torch.enable_grad()
def fisher(model: Any, layers: dict[str, nn.Module], batches: list[Tensor], seed: int, progress: Progress) -> Fisher:
    """One forward and backward pass over the samples; the weights stay as they are.

    Args:
        model: a causal language model of transformers, whole in memory, parameters without gradients.
        layers: linears by name.
        batches: token ids, int64 [B, T] each.
        seed: for the labels that are drawn from the model.
        progress: advanced by 1 a batch.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(b.numel() for b in batches)
    source = model.get_input_embeddings()
    moments = Moments(layers)
    gradients = _Gradients({**layers, "": source})
    reads = torch.zeros(source.weight.shape[0])
    with moments.watching(), gradients.watching():
        for ids in batches:
            logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1).float()
            with torch.no_grad():
                drawn = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)[:, 0]
            nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
            reads += torch.bincount(ids.flatten(), minlength=len(reads))
            progress.advance()
    mean = {n: s / tokens for n, s in gradients.squares.items()}
    A = {n: h / tokens for n, h in moments.H.items()}
    return Fisher(A, mean, moments.leader, reads / tokens, mean.pop(""))


class _Gradients:
    """Sums of squared gradients at modules' outputs."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.modules = modules
        self.squares: dict[str, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        handles = [m.register_forward_hook(self._hook(n)) for n, m in self.modules.items()]
        try:
            yield
        finally:
            for h in handles:
                h.remove()

    def _hook(self, name: str) -> Any:
        def watch(_: nn.Module, __: Any, out: Tensor) -> None:
            if not out.requires_grad:
                out.requires_grad_(True)  # the embedding's output: from here on there is a graph
            out.register_hook(lambda grad: self._add(name, grad))

        return watch

    def _add(self, name: str, grad: Tensor) -> None:
        found = grad.flatten(0, -2).square().sum(0)
        self.squares[name] = self.squares[name] + found if name in self.squares else found

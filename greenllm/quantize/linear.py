"""What is quantized in a block: its linear layers, and the second moments of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def linears(block: nn.Module) -> dict[str, nn.Module]:
    """Linear layers (nn.Linear, GPT-2's Conv1D) of a block by name."""
    return {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"}


def weight_of(layer: nn.Module) -> Tensor:
    """Its weight as float32 [outputs, inputs], whichever way it is kept."""
    weight: Tensor = layer.get_parameter("weight").data
    return weight.T if type(layer).__name__ == "Conv1D" else weight


def gradient_of(layer: nn.Module) -> Tensor:
    """The gradient of its weight, [outputs, inputs].

    Raises:
        ValueError: there is none.
    """
    grad = layer.get_parameter("weight").grad
    if grad is None:
        raise ValueError("this layer took no part in the loss")
    return grad.T if type(layer).__name__ == "Conv1D" else grad


def set_weight(layer: nn.Module, value: Tensor) -> None:
    """Put a weight [outputs, inputs] back in place."""
    layer.get_parameter("weight").data = value.T.contiguous() if type(layer).__name__ == "Conv1D" else value


class Moments:
    """H = X^T X of each layer's inputs; layers that read the same tensor share one H."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        self.layers = layers
        self.leader: dict[str, str] = {}
        self.H: dict[str, Tensor] = {}
        self._seen: list[tuple[str, Tensor]] = []

    def of(self, name: str) -> Tensor:
        """H of a layer, float32 [K, K]."""
        return self.H[self.leader[name]]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Accumulate during forward passes inside the block."""
        handles = [m.register_forward_pre_hook(self._hook(n)) for n, m in self.layers.items()]
        try:
            yield
        finally:
            for h in handles:
                h.remove()
            self._seen.clear()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            if name in self.leader and self.leader[name] != name:
                return
            if name not in self.leader:
                same = next((n for n, seen in self._seen if seen is x), None)
                self.leader[name] = same or name
                if same:
                    return
                self._seen.append((name, x))
                self.H[name] = torch.zeros(x.shape[-1], x.shape[-1])
            rows = x.detach().reshape(-1, x.shape[-1]).float()
            self.H[name].addmm_(rows.T, rows)

        return add

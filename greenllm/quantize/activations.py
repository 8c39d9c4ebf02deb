"""Inputs of linear layers as 8-bit integers: on a grid found while the model runs, or on one from calibration.

A grid is a scale and a zero point for the whole tensor, the only kind that integer kernels multiply. In a
checkpoint it lies in ``quantization_config.meta``, which readers of the GPTQ layout pass over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from greenllm.errors import GreenError
from greenllm.quantize.fp8 import Float8Grid

Kind = Literal["float", "dynamic", "static", "symmetric"]
_TOP = 255
_TINY = 1e-12


@dataclass(frozen=True)
class InputGrid:
    """``x = (code - zero) * scale`` with codes 0 to 255; zero 128 stands for symmetric int8."""

    scale: float
    zero: int

    def round(self, x: Tensor) -> Tensor:
        """The nearest values that the grid has, of the same shape."""
        return ((x / self.scale).round() + self.zero).clamp(0, _TOP).sub(self.zero) * self.scale


AnyGrid = InputGrid | Float8Grid
Inputs = Mapping[str, AnyGrid | None]  # by module; None for a grid that is found while the model runs


def grid_of(low: float, high: float, *, symmetric: bool = False) -> InputGrid:
    """The grid that spans ``low`` to ``high``, and 0 as ONNX's DynamicQuantizeLinear has it."""
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        return InputGrid(max(-low, high, _TINY) / (_TOP // 2), 128)
    scale = max(high - low, _TINY) / _TOP
    return InputGrid(scale, round(-low / scale))


def dynamic_round(x: Tensor) -> Tensor:
    """Round a tensor onto the grid of its own range."""
    return grid_of(float(x.min()), float(x.max())).round(x)


class Ranges:
    """Least and largest value of each input channel of the layers, float32 [K], over all that was seen."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        self.layers = layers
        self.low: dict[str, Tensor] = {}
        self.high: dict[str, Tensor] = {}

    def largest(self, name: str) -> Tensor:
        """max|x| of each channel, float32 [K]."""
        return torch.maximum(self.low[name].abs(), self.high[name].abs())

    def grid(self, name: str, *, symmetric: bool) -> InputGrid:
        """The grid that a layer's inputs fit on.

        Raises:
            GreenError: nothing was seen, or NaN or infinity was.
        """
        self._check(name)
        return grid_of(float(self.low[name].min()), float(self.high[name].max()), symmetric=symmetric)

    def reach(self, name: str) -> Tensor:
        """max|x| over all channels.

        Raises:
            GreenError: nothing was seen, or NaN or infinity was.
        """
        self._check(name)
        return self.largest(name).max()

    def _check(self, name: str) -> None:
        if name not in self.low:
            raise GreenError("The calibration never ran this layer; its inputs have no static scale.")
        if not torch.isfinite(self.largest(name)).all():
            raise GreenError("The calibration inputs of a layer hold NaN or infinity; they have no static scale.")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take in what forward passes inside the block show."""
        handles = [m.register_forward_pre_hook(self._hook(n)) for n, m in self.layers.items()]
        try:
            yield
        finally:
            for h in handles:
                h.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            low, high = args[0].detach().reshape(-1, args[0].shape[-1]).float().aminmax(dim=0)
            self.low[name] = torch.minimum(self.low.get(name, low), low)
            self.high[name] = torch.maximum(self.high.get(name, high), high)

        return see


def words(inputs: Mapping[str, InputGrid | None]) -> dict[str, Any]:
    """As it lies in the configuration; :func:`read` undoes it."""
    return {name: g and {"scale": g.scale, "zero": g.zero} for name, g in inputs.items()}


def read(quantization: dict[str, Any] | None) -> dict[str, InputGrid | None]:
    """The inputs that a checkpoint's ``quantization_config`` wants as integers; nothing where it has none.

    Raises:
        GreenError: a grid that is none.
    """
    found: dict[str, InputGrid | None] = {}
    for name, entry in ((quantization or {}).get("meta") or {}).get("inputs", {}).items():
        try:
            found[name] = entry and InputGrid(float(entry["scale"]), int(entry["zero"]))
        except (KeyError, TypeError, ValueError) as e:
            raise GreenError(f"quantization_config: {entry} is no grid for the inputs of {name}.") from e
        grid = found[name]
        if grid and not (0 < grid.scale < float("inf") and 0 <= grid.zero <= _TOP):
            raise GreenError(f"quantization_config: {entry} is no grid for the inputs of {name}.")
    return found

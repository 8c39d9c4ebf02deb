"""8-bit floats for weights and inputs, in the format of compressed-tensors.

E4M3, a sign, four bits of exponent and three of mantissa: "FP8 Formats for Deep Learning", Micikevicius et al., 2022,
arXiv:2209.05433, section 3. A linear of K inputs and N outputs is stored as ``weight``, float8_e4m3fn [N, K];
``weight_scale``, [N, 1] or one for all; and, where its inputs are rounded too, ``input_scale``, one for all of them.
llm-compressor calls it ``float-quantized``; transformers reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from greenllm.errors import GreenError
from greenllm.quantize.packed import Rowwise

PARTS = ("weight", "weight_scale", "input_scale")
METHOD, FORMAT = "compressed-tensors", "float-quantized"
_LARGEST = 448.0
_LEAST = 2.0**-14  # of a scale: float16's smallest normal number


@dataclass
class Float8(Rowwise):
    """A weight of N outputs and K inputs: ``w = value * scale``.

    Attributes:
        octets: uint8 [N, K], the bytes of float8_e4m3fn.
        scales: fp32 [N].
    """

    octets: Tensor
    scales: Tensor

    bits: ClassVar[int] = 8

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.octets.shape[0], self.octets.shape[1]

    def dequantize(self) -> Tensor:
        """The weight it stands for: float32 [N, K]."""
        return self.octets.view(torch.float8_e4m3fn).float() * self.scales[:, None]


@dataclass(frozen=True)
class Float8Grid:
    """Inputs as ``value * scale``; None for a scale that each token finds as the model runs."""

    scale: float | None

    def round(self, x: Tensor) -> Tensor:
        """The nearest values that it has, of the same shape."""
        scale = scale_of(x.abs().amax(-1, keepdim=True)) if self.scale is None else self.scale
        return _cast(x / scale).to(x.dtype) * scale


def scale_of(largest: Tensor) -> Tensor:
    """The scale under which the largest value is E4M3's: of bfloat16's digits, exact in float16 too.

    Args:
        largest: max|w| of what shares it, any shape; zero and what is tiny get float16's smallest normal number.
    """
    wanted = (largest.float() / _LARGEST).clamp_min(_LEAST)
    rounded = wanted.bfloat16().float()
    return torch.where(rounded < wanted, rounded * (1 + 2.0**-7), rounded).bfloat16().float()


def round_to_float8(W: Tensor) -> Float8:
    """Round a weight, float32 [N, K], with a scale for each output."""
    scales = scale_of(W.abs().amax(1))
    return Float8(_cast(W / scales[:, None]).view(torch.uint8), scales)


def to_stored(weight: Float8, inputs: Float8Grid) -> dict[str, Tensor]:
    """The :data:`PARTS` of a linear whose inputs have one scale."""
    return {
        "weight": weight.octets.view(torch.float8_e4m3fn),
        "weight_scale": weight.scales[:, None],
        "input_scale": torch.tensor([inputs.scale]),
    }


def unpack(parts: dict[str, Tensor]) -> Float8:
    """The weight of one linear from its :data:`PARTS`.

    Raises:
        GreenError: parts that are missing, damaged or do not belong together.
    """
    if missing := [p for p in PARTS[:2] if p not in parts]:
        raise GreenError(f"Its part {missing[0]} is missing.")
    weight, scales = parts["weight"], parts["weight_scale"].float()
    if weight.dtype != torch.float8_e4m3fn or weight.ndim != 2:  # noqa: PLR2004 - [N, K]
        raise GreenError(f"Its weight is {weight.dtype} {tuple(weight.shape)}, not E4M3 in two dimensions.")
    if scales.numel() != 1 and scales.shape not in ((len(weight),), (len(weight), 1)):
        raise GreenError(
            f"Scales {tuple(scales.shape)} of a weight {tuple(weight.shape)}: here is one an output, or one for all."
        )
    octets = weight.contiguous().view(torch.uint8)
    if not torch.isfinite(scales).all() or (octets & 0x7F == 0x7F).any():  # noqa: PLR2004 - E4M3's NaN
        raise GreenError("It holds NaN or infinity.")
    return Float8(octets, scales.flatten().expand(len(weight)).contiguous())


def grid(parts: dict[str, Tensor]) -> Float8Grid:
    """How the inputs of one linear are rounded.

    Raises:
        GreenError: a scale that is none.
    """
    if "input_scale" not in parts:
        return Float8Grid(None)
    stored = parts["input_scale"].float()
    if stored.numel() != 1 or not 0 < float(stored) < float("inf"):
        raise GreenError(f"Its input_scale {stored.flatten()[:3].tolist()} is no scale.")
    return Float8Grid(float(stored))


def words(ignored: list[str]) -> dict[str, Any]:
    """The ``quantization_config`` of a checkpoint in which all linears but the ignored are packed."""
    number = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
    group = {
        "targets": ["Linear"], "weights": number | {"strategy": "channel"},
        "input_activations": number | {"strategy": "tensor"}, "output_activations": None,
    }  # fmt: skip
    return {
        "quant_method": METHOD, "format": FORMAT, "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ignored, "kv_cache_scheme": None,
    }  # fmt: skip


def rounds_inputs(quantization: dict[str, Any]) -> bool:
    """Whether inputs are rounded as well as weights.

    Raises:
        GreenError: a format of compressed-tensors other than this one.
    """
    groups = quantization.get("config_groups")
    if quantization.get("format") != FORMAT or not isinstance(groups, dict) or len(groups) != 1:
        raise GreenError(
            f"Of {METHOD} only {FORMAT} with one group is read here, not {quantization.get('format')!r}.",
            "Start from the dense checkpoint.",
        )
    (group,) = groups.values()
    return bool(group.get("input_activations"))


def _cast(x: Tensor) -> Tensor:
    return x.float().clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)

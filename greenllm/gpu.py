"""Where torch computes: on the first GPU that CUDA shows, if there is one; ``CUDA_VISIBLE_DEVICES`` chooses another."""

from __future__ import annotations

import time
from typing import Any

import torch

from greenllm.step import flops_per_second

_SHARE = 0.1  # of a matrix product's speed that training small models reaches there (65 of 770 TFLOP/s, bench/gpu.md)
_SIDE = 4096


def kind() -> str:
    """``cuda`` or ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def place(what: Any) -> Any:
    """A model, a tensor or a batch of tensors, there."""
    return {k: v.to(kind()) for k, v in what.items()} if isinstance(what, dict) else what.to(kind())


def wait() -> None:
    """Until all that was asked of it is done: a clock that is read earlier is wrong."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compute_type(name: str, where: str = "cpu") -> torch.dtype:
    """``float32`` or ``bfloat16``; ``auto`` is bfloat16 where what computes (see :func:`kind`) multiplies it itself."""
    if name != "auto":
        found: torch.dtype = getattr(torch, name)
        return found
    if where == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    able: dict[str, Any] = dict(torch.cpu.get_capabilities())
    return torch.bfloat16 if any(able.get(k) for k in ("avx512_bf16", "amx_bf16", "bf16")) else torch.float32


def training_speed(dtype: torch.dtype) -> float:
    """Floating-point operations a second that training may reach there, for an estimate."""
    if kind() == "cpu":
        return flops_per_second() * (2 if dtype == torch.bfloat16 else 1)
    a = torch.randn(_SIDE, _SIDE, device="cuda", dtype=dtype)
    _product(a)
    begin = time.perf_counter()
    _product(a)
    return _SHARE * 2 * _SIDE**3 / (time.perf_counter() - begin)


def _product(a: torch.Tensor) -> None:
    a @ a
    wait()

"""What lies in a checkpoint's directory: its configuration, and its tensors by key, one at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from torch import Tensor

from greenllm import source
from greenllm.errors import GreenError
from greenllm.quantize import bnb, fp8
from greenllm.quantize.packed import BITS, Packed, from_gptq

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_PARTS = {"gptq": ("qweight", "qzeros", "scales", "g_idx"), "bitsandbytes": bnb.PARTS, fp8.METHOD: fp8.PARTS}
MARKS = (".qweight", ".weight.absmax", ".SCB", ".weight_scale")  # what a packed module has and no other

AnyPacked = Packed | bnb.Blockwise | fp8.Float8


class Shards:
    """Safetensors files of a directory as one mapping from keys to tensors, which stay on disk until asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mapped: dict[Path, Any] = {}
        self._where: dict[str, Path] = {}
        for file in source.shard_files(path):
            with safe_open(file, framework="pt") as f:
                self._where |= dict.fromkeys(f.keys(), file)

    def __contains__(self, key: str) -> bool:
        """Whether there is such a key."""
        return key in self._where

    def __iter__(self) -> Iterator[str]:
        """All keys."""
        return iter(self._where)

    def __getitem__(self, key: str) -> Tensor:
        """A tensor as it is stored."""
        file = self._where[key]
        if file in self._mapped:
            found: Tensor = self._mapped[file].get_tensor(key)
            return found
        with safe_open(file, framework="pt") as f:
            return f.get_tensor(key)

    @contextmanager
    def mapped(self) -> Iterator[None]:
        """Keep files open inside: each opening maps a whole one, and pages around each weight would count twice."""
        self._mapped = {file: safe_open(file, framework="pt") for file in set(self._where.values())}
        try:
            yield
        finally:
            self._mapped = {}

    def parts(self, quantization: dict[str, Any], module: str) -> dict[str, Tensor]:
        """The stored tensors of a packed module, by what they are called in its format."""
        return {p: self[f"{module}.{p}"] for p in _PARTS[quantization["quant_method"]] if f"{module}.{p}" in self}

    def packed(self, quantization: dict[str, Any], module: str) -> AnyPacked:
        """The packed weight of a module by a ``quantization_config``.

        Raises:
            GreenError: its tensors or its entry there do not fit together.
        """
        method, parts = quantization["quant_method"], self.parts(quantization, module)
        try:
            if method == "bitsandbytes":
                return bnb.unpack(parts)
            if method == fp8.METHOD:
                return fp8.unpack(parts)
            bits, group, symmetric = spec_of(quantization, module)
            return from_gptq(parts, bits, group, symmetric=symmetric)
        except (GreenError, KeyError, RuntimeError) as e:
            raise GreenError(f"{self.path}: the packed weight {module} is not valid: {line(e)}") from e


def spec_of(quantization: dict[str, Any], module: str) -> tuple[int, int, bool]:
    """(bits, group, symmetric) of a module by a GPTQ ``quantization_config`` and its overrides.

    Raises:
        GreenError: values that no one packs.
    """
    spec = dict(quantization)
    for rule, override in (quantization.get("dynamic") or {}).items():
        if re.match(rule.removeprefix("+:"), module):
            spec |= override
    bits, group = spec.get("bits"), spec.get("group_size")
    if bits not in BITS or not isinstance(group, int) or (group < 1 and group != -1):
        raise GreenError(f"quantization_config: {bits} bits in groups of {group} for {module} is nothing known.")
    return bits, group, bool(spec.get("sym", True))


def read_config(path: Path) -> tuple[PretrainedConfig, dict[str, Any] | None]:
    """Transformers' configuration of a directory without ``quantization_config``, and this.

    Raises:
        GreenError: transformers knows no such model, or the weights are packed in a way that is not read here.
    """
    from transformers import AutoConfig

    file = path / "config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, OSError, TypeError, AttributeError) as e:
        raise GreenError(
            f"{file}: transformers knows no such model: {line(e)}",
            "Only architectures of the installed transformers are run; a checkpoint's own code never is.",
        ) from e
    quantization = raw.get("quantization_config")
    if quantization is not None and quantization.get("quant_method") not in _PARTS:
        raise GreenError(
            f"{file}: weights quantized by {quantization.get('quant_method')!r} are not read here.",
            "Start from the dense checkpoint, or one of GPTQ, bitsandbytes or compressed-tensors' FP8.",
        )
    if quantization is not None and quantization["quant_method"] == fp8.METHOD:
        fp8.rounds_inputs(quantization)  # or refuse
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config, quantization


def line(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

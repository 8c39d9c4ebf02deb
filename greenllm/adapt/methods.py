"""Kinds of adapters, all by peft, and how one is put on a frozen model.

LoRA: Hu et al., 2021, arXiv:2106.09685. AdaLoRA (ranks go to where they matter): Zhang et al., 2023, arXiv:2303.10512.
(IA)³: Liu et al., 2022, arXiv:2205.05638, here on the outputs of all linear layers. Prefixes (keys and values before
the text): Li and Liang, 2021, arXiv:2101.00190, begun as zeros, which learned faster here than those of real text. Peft
has no bottleneck adapters (Houlsby et al., 2019): its "adaption prompts" are another method.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from greenllm.blocks import stacks_of
from greenllm.errors import GreenError
from greenllm.quantize.linear import linears

Method = Literal["lora", "adalora", "prefix", "ia3"]
_SCALE = 2  # alpha over rank


@dataclass(frozen=True)
class Kind:
    """Its usual rate of learning, and size; whether weights can hold it."""

    rate: float
    rank: int
    merges: bool = True


KINDS: dict[Method, Kind] = {
    "lora": Kind(2e-3, 4), "adalora": Kind(1e-2, 4), "prefix": Kind(5e-3, 16, merges=False), "ia3": Kind(1e-2, 1),
}  # fmt: skip


class Adapter(BaseModel):
    """What a manifest says of an adapter: how it is built, and on what (SHA-256 of the base's files, its place)."""

    model_config = ConfigDict(extra="forbid")

    method: Method
    first: int = Field(ge=0, description="lowest block that has adapters")
    rank: int = Field(ge=1, le=1024, description="of LoRA's matrices; tokens of a prefix")
    base: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def lowest(method: Method, blocks: int | None, count: int) -> int:
    """The lowest of ``count`` blocks that has adapters, where the ``blocks`` uppermost have: by default a quarter.

    Raises:
        GreenError: a prefix, which all blocks see, is asked for some.
    """
    if method != "prefix":
        return count - (max(1, count // 4) if blocks is None else min(blocks, count))
    if blocks is not None:
        raise GreenError("All blocks see a prefix.", "Leave out --blocks.")
    return 0


def check_merges(method: Method) -> None:
    """Raise GreenError where no weights can hold such an adapter."""
    if not KINDS[method].merges:
        able = ", ".join(m for m, kind in KINDS.items() if kind.merges)
        raise GreenError(
            "A prefix is keys and values before the text, no part of any weight: it cannot be merged or exported.",
            f"Leave out --merge, or take a --method that merges: {able}.",
        )


def put_on(model: Any, adapter: Adapter, seed: int = 0, steps: int = 30) -> Any:
    """Put a fresh adapter on a model, in place; but for a prefix it changes nothing yet.

    Args:
        model: transformers' model.
        adapter: which.
        seed: of what is random in it.
        steps: over which AdaLoRA moves its ranks.

    Returns:
        Peft's wrapper of the model, whose adapter's parameters alone want gradients.

    Raises:
        GreenError: peft is not installed, the model has no such block, or the method does not fit it.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it, and it tells of kernels not used here
    try:
        import peft
    except ModuleNotFoundError as e:
        raise GreenError("Adapters need the package peft.", "pip install 'greenllm[distill]'") from e
    config = _config(model, adapter, steps)
    model.name_or_path = adapter.base
    torch.manual_seed(seed)
    try:
        wrapped = peft.get_peft_model(model, config)
        if adapter.method == "prefix":
            model.register_forward_pre_hook(_after_prefix(wrapped), with_kwargs=True)
            model(input_ids=torch.tensor([[0]]))  # blocks that take keys and values of other shapes say so
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, RuntimeError) as e:
        raise GreenError(
            f"{adapter.method} does not fit {type(model).__name__}: {str(e)[:200]}", "Take another --method."
        ) from e
    return wrapped


def _config(model: Any, adapter: Adapter, steps: int) -> Any:
    import peft

    from greenllm.distill import recover

    hears = model.config.is_encoder_decoder  # peft has no kind of task for these, and needs none
    common: dict[str, Any] = {"base_model_name_or_path": adapter.base} | ({} if hears else {"task_type": "CAUSAL_LM"})
    if adapter.method == "prefix":
        return peft.PrefixTuningConfig(num_virtual_tokens=adapter.rank, init_weights="zero", **common)
    name, blocks = stacks_of(model)[-1]
    if adapter.first >= len(blocks):
        raise GreenError(f"An adapter begins at block {adapter.first}; the model has {len(blocks)} (0 is the first).")
    inner = {f"{name}.{i}.{n}": m for i in range(adapter.first, len(blocks)) for n, m in linears(blocks[i]).items()}
    common["target_modules"] = sorted(inner)
    common["fan_in_fan_out"] = any(type(m).__name__ == "Conv1D" for m in inner.values())
    if adapter.method == "ia3":
        return peft.IA3Config(feedforward_modules=[], **common)
    common["lora_alpha"] = _SCALE * adapter.rank
    if adapter.method == "adalora":
        return recover.adalora(adapter.rank, steps, **common)
    return peft.LoraConfig(r=adapter.rank, **common)


def _after_prefix(wrapped: Any) -> Any:
    """A hook that lets whoever calls the model itself begin after the prefix, as its wrapper does."""

    def begin(_model: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if given.get("past_key_values") is None:
            given["past_key_values"] = wrapped.get_prompt(len(given["input_ids"]))
        return args, given

    return begin


def before(adapter: Adapter) -> int:
    """Tokens that come before a text."""
    return adapter.rank if adapter.method == "prefix" else 0

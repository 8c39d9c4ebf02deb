"""Adapters by peft, on the upper blocks of a frozen model, and their files.

LoRA: Hu et al., 2021, arXiv:2106.09685. (IA)³: Liu et al., 2022, arXiv:2205.05638, here on the outputs of all linear
layers. ``adapter_config.json`` is for peft alone: what is loaded here is made from the manifest, which is checked, so
that nothing a stranger wrote into it is imported or run.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from greenllm import artifact, source
from greenllm.artifact import Artifact
from greenllm.checkpoint import Checkpoint, blocks_of
from greenllm.errors import GreenError
from greenllm.quantize.linear import linears

Method = Literal["lora", "ia3"]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_SCALE = 2  # alpha over rank


class Adapter(BaseModel):
    """What a manifest says of an adapter: how it is built, and on what (SHA-256 of the base's files, its place)."""

    model_config = ConfigDict(extra="forbid")

    method: Method
    first: int = Field(ge=0, description="lowest block that has adapters")
    rank: int = Field(ge=1, le=1024)
    base: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def is_adapter(path: Path | str) -> bool:
    """Whether a directory is an artifact of this kind."""
    return artifact.is_artifact(path) and artifact.read(path).kind == "adapter"


def fingerprint(directory: Path) -> str:
    """SHA-256 over all that decides what a checkpoint says: configuration, tokenizer, weights."""
    files = [directory / "config.json", directory / "tokenizer.json", *source.shard_files(directory)]
    told = [f"{f.name} {artifact.sha256(f)}" for f in files if f.is_file()]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def read(path: Path | str) -> tuple[Adapter, Artifact]:
    """An adapter's manifest, its files verified.

    Raises:
        GreenError: it is none, or damaged.
    """
    found = artifact.open_verified(path)
    if found.kind != "adapter" or WEIGHTS not in found.manifest.files:
        raise GreenError(f"{path} is no adapter that greenllm made.", "Make one: greenllm adapt.")
    try:
        return Adapter.model_validate(found.manifest.details), found
    except ValidationError as e:
        raise GreenError(f"{path}: its manifest describes no adapter: {e.errors()[0]['msg']}.") from e


def base_of(adapter: Adapter, path: Path | str) -> Path:
    """Where the base is.

    Raises:
        GreenError: it is not there, or is another model than the one that was adapted.
    """
    base = Path(adapter.base)
    if not (base / "config.json").is_file():
        raise GreenError(f"{path} is an adapter of {base}, which is not there.", "Put its base back there.")
    if fingerprint(base) != adapter.sha256:
        raise GreenError(
            f"{path} is an adapter of another model: {base} is not the one that it was trained on (its hash differs).",
            "Put its base back, or adapt this model: greenllm adapt.",
        )
    return base


def put_on(model: Any, adapter: Adapter, seed: int = 0) -> Any:
    """Put a fresh adapter, which changes nothing yet, on a model; return peft's wrapper of it.

    Raises:
        GreenError: peft is not installed, or the model has no such block.
    """
    try:
        import peft
    except ModuleNotFoundError as e:
        raise GreenError("Adapters need the package peft.", "pip install 'greenllm[distill]'") from e
    name, blocks = blocks_of(model)
    if adapter.first >= len(blocks):
        raise GreenError(f"An adapter begins at block {adapter.first}; the model has {len(blocks)} (0 is the first).")
    inner = {f"{name}.{i}.{n}": m for i in range(adapter.first, len(blocks)) for n, m in linears(blocks[i]).items()}
    common: dict[str, Any] = {
        "target_modules": sorted(inner), "task_type": "CAUSAL_LM", "base_model_name_or_path": adapter.base,
        "fan_in_fan_out": any(type(m).__name__ == "Conv1D" for m in inner.values()),
    }  # fmt: skip
    config = (
        peft.LoraConfig(r=adapter.rank, lora_alpha=_SCALE * adapter.rank, **common)
        if adapter.method == "lora"
        else peft.IA3Config(feedforward_modules=[], **common)
    )
    model.name_or_path = adapter.base
    torch.manual_seed(seed)
    return peft.get_peft_model(model, config)


def save(wrapped: Any, out: Path) -> int:
    """Write both files of peft's format; the bytes of the weights."""
    import peft
    from safetensors.torch import save_file

    state = {k: v.detach().contiguous() for k, v in peft.get_peft_model_state_dict(wrapped).items()}
    save_file(state, out / WEIGHTS, {"format": "pt"})
    wrapped.peft_config["default"].inference_mode = True
    wrapped.peft_config["default"].save_pretrained(out)
    told = json.loads((out / CONFIG).read_text(encoding="utf-8"))
    told["target_modules"] = sorted(told["target_modules"])  # a set has another order each time
    artifact.write_atomic(out / CONFIG, json.dumps(told, indent=2, sort_keys=True) + "\n")
    return (out / WEIGHTS).stat().st_size


def load(model: Any, path: Path | str) -> Any:
    """Put a saved adapter on its base, in place; return peft's wrapper.

    Raises:
        GreenError: see :func:`read`; or its weights are none of such an adapter, or not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    adapter, found = read(path)
    wrapped = put_on(model, adapter)
    import peft

    try:
        state = load_file(found.path / WEIGHTS)
    except SafetensorError as e:
        raise GreenError(f"{found.path / WEIGHTS} is damaged: {e}.") from e
    want = {k: v.shape for k, v in peft.get_peft_model_state_dict(wrapped).items()}
    if {k: v.shape for k, v in state.items()} != want:
        raise GreenError(f"{found.path / WEIGHTS} holds other weights than its manifest describes.")
    if not all(v.is_floating_point() and torch.isfinite(v).all() for v in state.values()):
        raise GreenError(f"{found.path / WEIGHTS} holds NaN, infinity or no numbers.")
    peft.set_peft_model_state_dict(wrapped, state)
    return wrapped.requires_grad_(requires_grad=False).eval()


def open_base(path: Path | str) -> Checkpoint:
    """The checkpoint that an adapter belongs to.

    Raises:
        GreenError: see :func:`base_of`.
    """
    from greenllm.checkpoint import open_checkpoint

    return open_checkpoint(base_of(read(path)[0], path))

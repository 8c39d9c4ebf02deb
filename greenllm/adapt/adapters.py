"""An adapter's files.

``adapter_config.json`` is for peft alone: what is loaded here is made from the manifest, which is checked, so that
nothing a stranger wrote into it is imported or run.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from greenllm import artifact, source
from greenllm.adapt.methods import Adapter, put_on
from greenllm.artifact import Artifact
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


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
    """Where the base is: where it was, or beside the adapter under its name; its hash says whether it is that.

    Raises:
        GreenError: it is not there, or is another model than the one that was adapted.
    """
    places = [Path(adapter.base), Path(path).absolute().parent / Path(adapter.base).name]
    base = next((p for p in places if (p / "config.json").is_file()), None)
    if base is None:
        raise GreenError(
            f"{path} is an adapter of {places[0]}, which is not there.", f"Put its base there, or at {places[1]}."
        )
    if fingerprint(base) != adapter.sha256:
        raise GreenError(
            f"{path} is an adapter of another model: {base} is not the one that it was trained on (its hash differs).",
            "Put its base back, or adapt this model: greenllm adapt.",
        )
    return base


def save(wrapped: Any, out: Path) -> int:
    """Write both files of peft's format; the bytes of the weights. Embeddings are none of it: peft would ask a hub."""
    import peft
    from safetensors.torch import save_file

    if hasattr(wrapped.peft_config["default"], "rank_pattern"):
        wrapped.peft_config["default"].rank_pattern = {}  # singular values that AdaLoRA gave up are zeros in the file
    state = {
        k: v.detach().contiguous()
        for k, v in peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False).items()
    }
    save_file(state, out / WEIGHTS, {"format": "pt"})
    wrapped.peft_config["default"].inference_mode = True
    wrapped.peft_config["default"].save_pretrained(out)
    told = json.loads((out / CONFIG).read_text(encoding="utf-8"))
    if "target_modules" in told:
        told["target_modules"] = sorted(told["target_modules"])  # a set has another order each time
    artifact.write_atomic(out / CONFIG, json.dumps(told, indent=2, sort_keys=True) + "\n")
    return (out / WEIGHTS).stat().st_size


def load(model: Any, path: Path | str) -> Any:
    """Put a saved adapter on its base, in place; return peft's wrapper.

    Raises:
        GreenError: see :func:`fill`.
    """
    wrapped = put_on(model, read(path)[0])
    fill(wrapped, path)
    return wrapped.requires_grad_(requires_grad=False).eval()


def fill(wrapped: Any, path: Path | str) -> None:
    """Put the weights of a saved adapter into a fresh one of its kind.

    Raises:
        GreenError: see :func:`read`; or its weights are none of such an adapter, or not finite.
    """
    import peft
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found = read(path)[1]
    try:
        state = load_file(found.path / WEIGHTS)
    except SafetensorError as e:
        raise GreenError(f"{found.path / WEIGHTS} is damaged: {e}.") from e
    want = {k: v.shape for k, v in peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False).items()}
    if {k: v.shape for k, v in state.items()} != want:
        raise GreenError(f"{found.path / WEIGHTS} holds other weights than its manifest describes.")
    if not all(v.is_floating_point() and torch.isfinite(v).all() for v in state.values()):
        raise GreenError(f"{found.path / WEIGHTS} holds NaN, infinity or no numbers.")
    peft.set_peft_model_state_dict(wrapped, state)


def open_base(path: Path | str) -> Checkpoint:
    """The checkpoint that an adapter belongs to.

    Raises:
        GreenError: see :func:`base_of`.
    """
    from greenllm.checkpoint import open_checkpoint

    return open_checkpoint(base_of(read(path)[0], path))

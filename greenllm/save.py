"""Write a checkpoint in Hugging Face's format: shards, configuration, and what lies beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from greenllm import artifact

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SIDE_FILES = ("*.json", "*.jinja", "*.model", "vocab*", "merges*", "1_Pooling/*")
_SHARD = 256 << 20  # bytes of weights held at a time


def write_shards(out: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Write tensors into ``model*.safetensors`` of about 256 MB, with an index when there are several."""
    from safetensors.torch import save_file

    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}

    def flush() -> None:
        save_file(held, out / f"shard-{len(shards)}.safetensors", {"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, value in tensors:
        held[name] = value.contiguous()
        if sum(t.nbytes for t in held.values()) >= _SHARD:
            flush()
    if held:
        flush()
    if len(shards) == 1:
        (out / "shard-0.safetensors").rename(out / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for i, keys in enumerate(shards):
        final = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (out / f"shard-{i}.safetensors").rename(out / final)
        weight_map |= dict.fromkeys(keys, final)
    artifact.write_atomic(out / "model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_config(out: Path, config: PretrainedConfig, quantization: dict[str, Any] | None) -> None:
    """Write ``config.json``, with a ``quantization_config`` when there is one."""
    data = config.to_diff_dict()
    data.pop("quantization_config", None)
    data["dtype"] = "float32"
    if quantization:
        data["quantization_config"] = quantization
        if quantization.get("lm_head"):  # a packed head is a tensor of its own for every reader
            owner = data["decoder"] if isinstance(data.get("decoder"), dict) else data
            owner["tie_word_embeddings"] = False
            if "text_config" in data:  # of which transformers takes it else
                data["text_config"]["tie_word_embeddings"] = False
    artifact.write_atomic(out / "config.json", json.dumps(data, indent=2, default=str) + "\n")


def copy_side_files(source_dir: Path, out: Path) -> None:
    """Copy tokenizer, templates and pooling; not weights, their index, the config or the manifest."""
    for pattern in _SIDE_FILES:
        for file in source_dir.glob(pattern):
            made_anew = file.name in (artifact.MANIFEST, "config.json") or file.name.endswith(".index.json")
            if made_anew and file.parent == source_dir:
                continue
            target = out / file.relative_to(source_dir)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)

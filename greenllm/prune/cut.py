"""What stays of a checkpoint, written as an ordinary one in other sizes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from greenllm import artifact
from greenllm.blocks import blocks_of
from greenllm.errors import GreenError
from greenllm.prune.axes import HIDDEN, Anatomy, Kept, edited
from greenllm.save import copy_side_files, write_config, write_shards

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_POOLING = "1_Pooling/config.json"


def write_cut(
    anatomy: Anatomy,
    out: Path,
    kept: Kept,
    layers: list[int] | None = None,
    changes: dict[str, Any] | None = None,
    fitted: dict[str, Tensor] | None = None,
) -> dict[str, int]:
    """Write what stays, an ordinary Hugging Face directory in float32.

    Args:
        anatomy: of the checkpoint.
        out: directory to fill.
        kept: units that stay; kinds (and blocks) not in it stay whole.
        layers: blocks that stay; None for all.
        changes: other values for the configuration.
        fitted: weights by name that are cut in place of the checkpoint's.

    Returns:
        Numbers of weights, "before" and "after".

    Raises:
        GreenError: transformers builds another model from the new sizes than what is left.
    """
    config = cut_config(anatomy, kept, layers, changes)
    sources = _sources(anatomy, config, layers)
    checkpoint = anatomy.checkpoint

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, (source, shape) in sources.items():
            whole = fitted[source] if fitted and source in fitted else checkpoint.tensor(source)
            tensor = anatomy.cut(source, whole, kept)
            if tensor.shape != shape:
                raise GreenError(f"{name}: {list(tensor.shape)} is left, but transformers wants {list(shape)}.")
            yield name, tensor

    copy_side_files(checkpoint.path, out)
    write_shards(out, tensors())
    write_config(out, config, None)
    if HIDDEN in kept and (out / _POOLING).is_file():
        pooling = json.loads((out / _POOLING).read_text(encoding="utf-8"))
        artifact.write_atomic(out / _POOLING, json.dumps(pooling | {"word_embedding_dimension": len(kept[HIDDEN])}))
    return {"before": checkpoint.parameters, "after": sum(shape.numel() for _, shape in sources.values())}


def cut_config(
    anatomy: Anatomy, kept: Kept, layers: list[int] | None = None, changes: dict[str, Any] | None = None
) -> PretrainedConfig:
    """The configuration of what stays; arguments as those of :func:`write_cut`."""
    sizes = {key.rpartition(".")[2]: len(units) for key, units in kept.items()}
    config = anatomy.configure(sizes, layers)
    return edited(config, changes) if changes else config


def _sources(anatomy: Anatomy, config: PretrainedConfig, layers: list[int] | None) -> dict[str, tuple[str, Any]]:
    """For each weight of the new model, the old one that it comes from, and its new shape."""
    model = anatomy.checkpoint.skeleton(config)
    prefix, blocks = blocks_of(model)
    stay = list(range(anatomy.blocks)) if layers is None else layers
    found = {}
    for name, parameter in model.named_parameters():
        block = anatomy.block(name)
        source = name
        if block is not None and block < len(stay):
            source = f"{prefix}.{stay[block]}." + name.removeprefix(f"{prefix}.{block}.")
        found[name] = (source, parameter.shape)
    if len(blocks) != len(stay) or prefix != anatomy.prefix or not {s for s, _ in found.values()} <= set(anatomy.axes):
        raise GreenError(
            f"{anatomy.checkpoint.path}: {type(config).__name__} makes another model with {len(stay)} blocks.",
            "Blocks of this architecture differ by their place; cut others, or its width.",
        )
    return found

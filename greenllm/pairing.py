"""Calibration of models with a tower for images and one for texts: pairs of a file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from greenllm import images
from greenllm.bench.tasks import read
from greenllm.bench.tasks.items import Captioned, Picture
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.pairs import TEMPLATE, Reader

Batch = dict[str, Tensor]  # "pixel_values" [B, C, H, W], "input_ids" and "attention_mask" [B, T]
_ROWS = 16
_BLANK = 8  # tokens


def pairs(source: str, count: int) -> list[tuple[Path, str]]:
    """At most ``count`` images of a task's ``.jsonl``, evenly spread, each with what is said of it.

    Raises:
        GreenError: see :func:`greenllm.bench.tasks.read`; or it holds no images with captions or labels.
    """
    items = read(source, count).items if source != "self" else []
    found = [(i.file, i.captions[0]) for i in items if isinstance(i, Captioned)]
    found += [(i.file, TEMPLATE.format(i.label)) for i in items if isinstance(i, Picture)]
    if not found:
        raise GreenError(
            f"Calibration {source!r} has no images, and this model makes none of its own.",
            'Give --calibration pairs.jsonl, rows {"image": "a.jpg", "caption": "…"}; the recipe int8 needs no data.',
        )
    return found


def samples(checkpoint: Checkpoint, source: str, count: int) -> list[Batch]:
    """Images and their texts, in batches.

    Raises:
        GreenError: see :func:`pairs`; a text that is too long, or pixels of another size than the model takes.
    """
    from greenllm.export import dual

    given = pairs(source, count)
    reader = Reader(checkpoint.path, dual.facts(checkpoint, checkpoint.load_model()))
    processor = images.Processor(checkpoint.path)
    found = []
    for at in range(0, len(given), _ROWS):
        files, texts = zip(*given[at : at + _ROWS], strict=True)
        pixels = images.fitting(images.read(files, processor), checkpoint.image_shape, checkpoint.path)
        feed = {"pixel_values": pixels} | reader.feed(reader.tokens(texts))
        found.append({name: torch.from_numpy(values) for name, values in feed.items()})
    return found


def blank(checkpoint: Checkpoint) -> list[Batch]:
    """Nothing to see and nothing to read, for a walk that looks at weights alone."""
    ids = torch.zeros(1, _BLANK, dtype=torch.int64)
    pixels = torch.zeros(1, *checkpoint.image_shape)
    return [{"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}]

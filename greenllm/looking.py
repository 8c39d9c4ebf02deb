"""Calibration of models that answer about images: rows of a file, each an image, a question, and its answer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from greenllm import images, vlm
from greenllm.bench.tasks import read
from greenllm.bench.tasks.items import Captioned, Looked
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.template import template
from greenllm.tokens import Tokenizer

Batch = dict[str, Tensor]  # "pixel_values" [P, C, H, W] of an image's parts, "input_ids" [1, T]
_BLANK = 8  # tokens


def asked(source: str, count: int) -> list[tuple[Path, str, str]]:
    """At most ``count`` images of a task's ``.jsonl``, evenly spread, each with a question ("" for none) and an answer.

    Raises:
        GreenError: see :func:`greenllm.bench.tasks.read`; or it holds no images with answers or captions.
    """
    items = read(source, count).items if source != "self" else []
    found = [(i.file, i.context, i.answers[0]) for i in items if isinstance(i, Looked)]
    found += [(i.file, "", i.captions[0]) for i in items if isinstance(i, Captioned)]
    if not found:
        raise GreenError(
            f"Calibration {source!r} has no images with answers, and this model makes none of its own.",
            'Give --calibration asked.jsonl, rows {"image": "a.jpg", "question": "…", "answer": "…"}; the recipe int8 '
            "needs no data.",
        )
    return found


def samples(checkpoint: Checkpoint, source: str, count: int) -> list[Batch]:
    """One batch a row, in the model's chat template where it has one.

    Raises:
        GreenError: see :func:`asked`; a prompt that is too long, or pixels of another size than the model takes.
    """
    from greenllm.export.vision import their_eye
    from greenllm.export.vlm import each

    rows, tokenizer = asked(source, count), Tokenizer(checkpoint.path)
    number, eye = each(checkpoint), their_eye(checkpoint.path)
    raw = template(checkpoint.path) is None
    found = []
    for file, text, answer in rows:
        said = vlm.question(tokenizer, text, seen=True, raw=raw) + (" " if raw else "") + answer
        seen = eye(images.opened(file))
        pixels = images.fitting(seen.pixels, checkpoint.image_shape, checkpoint.path)
        ids = vlm.read(tokenizer, said, seen, number)
        found.append({"pixel_values": torch.from_numpy(pixels), "input_ids": torch.tensor([ids])})
    return found


def blank(checkpoint: Checkpoint) -> list[Batch]:
    """Nothing to see and nothing to read, for a walk that looks at weights alone."""
    ids = torch.zeros(1, _BLANK, dtype=torch.int64)
    return [{"pixel_values": torch.zeros(1, *checkpoint.image_shape), "input_ids": ids}]

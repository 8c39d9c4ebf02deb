"""Compare a model that is exported as two graphs with its source in torch: see :mod:`greenllm.export.verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from greenllm import merge, pages
from greenllm.audio import ENCODER
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.export import dual, speech, vlm
from greenllm.export.alike import (
    ALIKE,
    LIMITS,
    RELATIVE,
    Arithmetic,
    asked,
    decode,
    departure,
    head_width,
    likeness,
    open_graph,
    round_inputs,
)
from greenllm.export.tokenizer import departing_texts
from greenllm.images import pictures
from greenllm.kinds import PAIRS, VLM, WRITING
from greenllm.quantize.activations import Inputs
from greenllm.tokens import Tokenizer
from greenllm.vlm import SIGHT

TASKS = (*WRITING, PAIRS, VLM)
_SAVE_TOKENIZER = "Save transformers' own: AutoTokenizer.from_pretrained(CHECKPOINT).save_pretrained(CHECKPOINT)."


def verify(checkpoint: Checkpoint, path: Path, arithmetic: Arithmetic, inputs: Inputs) -> dict[str, Any]:
    """See the top of this file.

    Raises:
        GreenError: a graph does not load, gives no numbers, or departs from its source.
    """
    if checkpoint.task in WRITING:
        return _hear(checkpoint, path, arithmetic)
    if checkpoint.task == PAIRS:
        return _match(checkpoint, path, arithmetic, inputs)
    return _look(checkpoint, path, arithmetic)


def _hear(checkpoint: Checkpoint, path: Path, arithmetic: Arithmetic) -> dict[str, Any]:
    """Of encoder and decoder both graphs: keys and values of a clip or an image, and with them the logits of tokens."""
    heard = speech.sample(checkpoint)
    want = speech.in_torch(checkpoint, heard)
    pages.give_back()
    got = speech.in_graphs(open_graph(path, ENCODER), open_graph(path), heard)
    if any(g.shape != w.shape or not np.isfinite(g).all() for g, w in zip(got, want, strict=True)):
        raise GreenError("The exported graphs give other shapes than torch, or NaN.")
    relative = float(np.abs(got[0] - want[0]).max() / np.abs(want[0]).max())
    # of millions of keys and values one is off by much where inputs are rounded: Whisper base in 4 bits by 0.25, all
    # together by 0.03
    error = float(np.linalg.norm(got[0] - want[0]) / np.linalg.norm(want[0]))
    near = likeness(want[1], got[1])
    found = {
        "against": "torch fp32", "input": "noise that falls as 1/f, as in speech and photographs; random tokens",
        "tokens": len(heard),
        "max_relative_error": relative, "error": error,
    } | near  # fmt: skip
    if error > RELATIVE[arithmetic] or near["kl_divergence"] > LIMITS[arithmetic]:
        raise departure("onnx", found)
    return found


def _match(checkpoint: Checkpoint, path: Path, arithmetic: Arithmetic, inputs: Inputs) -> dict[str, Any]:
    """Of a model for images and texts both graphs: the vectors of pictures and of texts."""
    found: dict[str, Any] = {"against": "torch fp32", "input": dual.ASKED, "max_relative_error": 0.0}
    try:
        found["tokenizer_departs"] = departing_texts(checkpoint, Tokenizer(path), _SAVE_TOKENIZER)
    except ImportError as e:  # SigLIP's own takes sentencepiece
        found["tokenizer_unchecked"] = str(e).strip().splitlines()[0]
    model = checkpoint.load_model()
    asked = dual.seen(checkpoint, model)
    want = dual.in_torch(model, asked)
    alike = want
    if inputs:
        round_inputs(checkpoint, model, inputs, None)
        alike = dual.in_torch(model, asked)
    del model
    pages.give_back()
    for name, graph, feed, true, rounded in zip(("images", "texts"), dual.GRAPHS, asked, want, alike, strict=True):
        (got,) = open_graph(path, graph).run(None, feed)
        if got.shape != true.shape or not np.isfinite(got).all():
            raise GreenError(f"The exported graph for {name} gives {got.shape} values, torch {true.shape}, or NaN.")
        relative = float(np.abs(got - true).max() / np.abs(true).max())
        one = {"max_relative_error": relative}
        bad = relative > RELATIVE[arithmetic]
        if inputs:
            size = np.linalg.norm(true)
            one["error"] = float(np.linalg.norm(got - true) / size)
            one["error_of_rounding"] = float(np.linalg.norm(rounded - true) / size)
            bad = one["error"] > ALIKE * one["error_of_rounding"] + RELATIVE["fp32"]
        if bad:
            raise departure(f"onnx {name}", one)
        found[name] = one
        found["max_relative_error"] = max(found["max_relative_error"], relative)
    return found


def _look(checkpoint: Checkpoint, path: Path, arithmetic: Arithmetic) -> dict[str, Any]:
    """Of a model that answers about images both graphs: an image's vectors, and the logits of a text about it."""
    departs = departing_texts(checkpoint, Tokenizer(path), _SAVE_TOKENIZER)
    model = checkpoint.load_model()
    parts = 2 if merge.tiled(model) else 1
    pixels, count = pictures(parts, checkpoint.image_shape, seed=1), parts * vlm.each(checkpoint)
    ids = np.concatenate([np.full(count, checkpoint.config.image_token_id), asked(checkpoint)[0]])
    want, logits = vlm.in_torch(model, pixels, ids)
    del model
    pages.give_back()
    (seen,) = open_graph(path, SIGHT).run(None, {"pixel_values": pixels})
    said = decode(open_graph(path), ids, head_width(checkpoint), {vlm.SEEN: seen.reshape(1, count, -1)})
    if (
        seen.shape != want.shape
        or said.shape != logits.shape
        or not (np.isfinite(seen).all() and np.isfinite(said).all())
    ):
        raise GreenError(f"The exported graphs give {seen.shape} and {said.shape} values, torch others, or NaN.")
    found: dict[str, Any] = {
        "against": "torch fp32", "input": vlm.ASKED, "tokens": len(ids), "tokens_of_an_image": count,
        "max_relative_error": float(np.abs(seen - want).max() / np.abs(want).max()), "tokenizer_departs": departs,
    } | likeness(logits, said)  # fmt: skip
    if found["max_relative_error"] > RELATIVE[arithmetic] or found["kl_divergence"] > LIMITS[arithmetic]:
        raise departure("onnx", found)
    return found

"""Reload what was exported in its runtime and compare it with the source checkpoint in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from greenllm import pages
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.export import verify_pair
from greenllm.export.alike import (
    ALIKE,
    LIMITS,
    RELATIVE,
    STEPS,
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
from greenllm.images import answer_of
from greenllm.kinds import GENERATION, IMAGES
from greenllm.quantize.activations import Inputs

_SLACK = {"fp32": 1e-3, "fp16": 0.05, "int8": 0.5, "int4": 0.5}  # in logits, between two runs of one graph


def verify(
    checkpoint: Checkpoint, path: Path, kind: str, *, arithmetic: Arithmetic, inputs: Inputs | None = None
) -> dict[str, Any]:
    """Prefill, then decode with the cache, on fixed tokens, see pictures, or hear; compare with torch in fp32.

    Args:
        checkpoint: the source; its packed weights are dequantized.
        path: the exported directory.
        kind: "genai", "onnx" or "tensorrt".
        arithmetic: of the runtime; less than float32 makes a little noise.
        inputs: linears whose inputs the graph itself rounds to integers; its error is then held to the error of
            torch with inputs and weights that are rounded alike.

    Returns:
        Figures for the manifest: largest relative error, and for a language model mean KL divergence and top-1
        agreement, over all compared positions.

    Raises:
        GreenError: it does not load, gives no numbers, or departs from its source.
    """
    if checkpoint.task in verify_pair.TASKS:
        return verify_pair.verify(checkpoint, path, arithmetic, inputs or {})
    ids, text = asked(checkpoint)
    want = _torch(checkpoint, ids)
    pages.give_back()
    got = _graph(checkpoint, path, ids)
    if got.shape != want.shape or not np.isfinite(got).all():
        raise GreenError(f"The exported {kind} model gives {got.shape} values where torch gives {want.shape}, or NaN.")
    departs: list[str] = []
    if kind == "genai":
        departs = _generate(checkpoint, path, ids, got, slack=_SLACK[arithmetic])
    relative = float(np.abs(got - want).max() / np.abs(want).max())
    found: dict[str, Any] = {
        "against": "torch fp32",
        "input": text,
        "pictures" if checkpoint.task in IMAGES else "tokens": len(want),
        "max_relative_error": relative,
    }
    if departs:
        found["tokenizer_departs"] = departs
    if inputs:
        found["error"] = float(np.linalg.norm(got - want) / np.linalg.norm(want))
        found["error_of_rounding"] = float(
            np.linalg.norm(_torch(checkpoint, ids, inputs) - want) / np.linalg.norm(want)
        )
    if checkpoint.task == GENERATION:
        found |= likeness(want, got)
        bad = found["kl_divergence"] > LIMITS[arithmetic]
    else:
        bad = relative > RELATIVE[arithmetic]
    if inputs:
        bad = found["error"] > ALIKE * found["error_of_rounding"] + RELATIVE["fp16" if arithmetic == "fp16" else "fp32"]
    if bad:
        raise departure(kind, found)
    return found


@torch.no_grad()
def verify_adapted(
    checkpoint: Checkpoint, path: Path, model: Any, adapter: Path, arithmetic: Arithmetic
) -> dict[str, Any]:
    """Compare a graph that has an adapter on with the adapted model in torch, and let ORT-GenAI go on from it.

    Args:
        checkpoint: the base.
        path: the exported directory of ORT-GenAI.
        model: transformers' model with the adapter.
        adapter: ONNX Runtime's file of it.
        arithmetic: of the runtime.

    Raises:
        GreenError: see :func:`verify`.
    """
    import onnxruntime

    ids, text = asked(checkpoint)
    want = model(input_ids=torch.from_numpy(ids)[None]).logits[0].float().numpy()
    values = onnxruntime.AdapterFormat.read_adapter(str(adapter)).get_parameters()
    more = {name: value.numpy() for name, value in values.items()}
    graph, width = open_graph(path), head_width(checkpoint)
    bare, got = decode(graph, ids, width), decode(graph, ids, width, more)
    near = likeness(want, got)
    found: dict[str, Any] = {
        "against": "torch fp32", "input": text, "tokens": len(want), **near,
        "kl_divergence_without": likeness(want, bare)["kl_divergence"],
    }  # fmt: skip
    # a small change of the base lies within the limit whether or not it is there
    if np.array_equal(got, bare) and any(value.any() for name, value in more.items() if name.endswith("_B")):
        raise GreenError(f"The adapter {adapter.stem} changes nothing in the exported graph.")
    if not np.isfinite(got).all() or near["kl_divergence"] > LIMITS[arithmetic]:
        raise departure(f"adapter {adapter.stem} of the", found)
    _generate(checkpoint, path, ids, got, slack=_SLACK[arithmetic], adapter=adapter)
    return found


@torch.no_grad()
def _torch(checkpoint: Checkpoint, ids: NDArray[Any], inputs: Inputs | None = None) -> NDArray[np.float32]:
    """What the source gives in float32; where there are ``inputs``, with them and their weights as integers."""
    model = checkpoint.load_model()
    # the graph of a decoder is run in steps, and finds its grids in each of them
    cuts = [len(ids) - STEPS, *[1] * STEPS] if checkpoint.task == GENERATION else None
    round_inputs(checkpoint, model, inputs or {}, cuts)
    if checkpoint.task in IMAGES:
        seen: NDArray[np.float32] = answer_of(model(pixel_values=torch.from_numpy(ids)))[1].numpy()
        return seen
    found: NDArray[np.float32] = model(input_ids=torch.from_numpy(ids)[None])[0][0].float().numpy()
    return found


def _graph(checkpoint: Checkpoint, path: Path, ids: NDArray[Any]) -> NDArray[np.float32]:
    """What the exported graph itself gives, in ONNX Runtime."""
    session = open_graph(path)
    if checkpoint.task in IMAGES:
        seen: NDArray[np.float32] = session.run(None, {checkpoint.input: ids})[0]
        return seen
    return decode(session, ids, head_width(checkpoint)) if checkpoint.task == GENERATION else _encode(session, ids)


def _generate(
    checkpoint: Checkpoint, path: Path, ids: NDArray[np.int64], logits: NDArray[np.float32], *, slack: float,
    adapter: Path | None = None,
) -> list[str]:  # fmt: skip
    """Load the directory in ORT-GenAI and let it say the next token, which must be the graph's likeliest.

    Args:
        checkpoint: the source.
        path: the directory.
        ids: int64 [T], the prompt.
        logits: float32 [T, V], what the graph gave for it.
        slack: how far below the likeliest its logit may be: two sums in another order.
        adapter: what it has on.

    Returns:
        Texts that its tokenizer splits otherwise: :func:`greenllm.export.tokenizer.departing_texts`.

    Raises:
        GreenError: the runtime refuses the directory, or says another token.
    """
    import onnxruntime_genai as og

    try:
        model = og.Model(str(path))
        tokenizer = og.Tokenizer(model)
        search = og.GeneratorParams(model)
        search.set_search_options(max_length=len(ids) + 2, do_sample=False, batch_size=1)
        generator = og.Generator(model, search)
        if adapter is not None:
            worn = og.Adapters(model)
            worn.load(str(adapter), adapter.stem)
            generator.set_active_adapter(worn, adapter.stem)
        generator.append_tokens(ids.astype(np.int32))
        generator.generate_next_token()
        token = int(generator.get_next_tokens()[0])
    except RuntimeError as e:
        raise GreenError(f"ORT-GenAI cannot run what was exported: {str(e).splitlines()[0][:300]}") from e
    if logits[-1, token] < logits[-1].max() - slack:
        raise GreenError(f"ORT-GenAI goes on with token {token} where its own graph has {int(logits[-1].argmax())}.")
    return departing_texts(checkpoint, tokenizer)


def _encode(session: Any, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    feed = {
        "input_ids": ids[None],
        "attention_mask": np.ones_like(ids)[None],
        "token_type_ids": np.zeros_like(ids)[None],
    }
    found: NDArray[np.float32] = session.run(None, {i.name: feed[i.name] for i in session.get_inputs()})[0][0]
    return found.astype(np.float32)

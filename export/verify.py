"""Reload what was exported in its runtime and compare it with the source checkpoint in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from greenllm.checkpoint import GENERATION, Checkpoint
from greenllm.errors import GreenError

_TOKENS, _STEPS = 48, 4
# Largest mean KL divergence (nats a token) or relative error that the arithmetic explains: fp32 sums in another
# order, or activations rounded to int8.
_LIMITS = {"fp32": 1e-6, "int8": 0.05}
_RELATIVE = {"fp32": 1e-3, "int8": 0.15}


def verify(checkpoint: Checkpoint, path: Path, kind: str, *, int8: bool) -> dict[str, Any]:
    """Prefill, then decode with the cache, on a fixed token sequence; compare with torch in fp32.

    Args:
        checkpoint: the source; its packed weights are dequantized.
        path: the exported directory.
        kind: "genai" or "onnx".
        int8: whether the runtime multiplies in int8, which makes a little noise.

    Returns:
        Figures for the manifest: largest relative error, and for a language model mean KL divergence and top-1
        agreement, over all compared positions.

    Raises:
        GreenError: it does not load, gives no numbers, or departs from its source.
    """
    arithmetic = "int8" if int8 else "fp32"
    ids = _tokens(checkpoint)
    want = _torch(checkpoint, ids)
    session = _session(path)
    got = _decode(session, ids) if checkpoint.task == GENERATION else _encode(session, ids)
    if got.shape != want.shape or not np.isfinite(got).all():
        raise GreenError(f"The exported {kind} model gives {got.shape} values where torch gives {want.shape}, or NaN.")
    relative = float(np.abs(got - want).max() / np.abs(want).max())
    found: dict[str, Any] = {"against": "torch fp32", "tokens": len(want), "max_relative_error": relative}
    if checkpoint.task == GENERATION:
        found["kl_divergence"] = _kl(want, got)
        found["top1_agreement"] = float((got.argmax(-1) == want.argmax(-1)).mean())
        bad = found["kl_divergence"] > _LIMITS[arithmetic]
    else:
        bad = relative > _RELATIVE[arithmetic]
    if bad:
        shown = ", ".join(f"{k} {v:.3g}" for k, v in found.items() if isinstance(v, float))
        raise GreenError(f"The exported {kind} model departs from its source more than its arithmetic explains: {shown}.")
    return found


def _tokens(checkpoint: Checkpoint) -> NDArray[np.int64]:
    """Real text where there is a tokenizer; any tokens else."""
    from transformers import AutoTokenizer

    text = "The water cycle describes how water evaporates from the sea, rises, cools into clouds, and falls as rain. " * 4
    try:
        ids = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True)(text)["input_ids"]
    except (OSError, ValueError):
        ids = torch.randint(int(checkpoint.config.vocab_size), (_TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    return np.array(ids[:_TOKENS], dtype=np.int64)


@torch.no_grad()
def _torch(checkpoint: Checkpoint, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = checkpoint.load_model()(input_ids=torch.from_numpy(ids)[None])[0][0].float().numpy()
    return found


def _session(path: Path) -> Any:
    """The graph itself, in ONNX Runtime: ORT-GenAI runs the same one, and gives the last logits only."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # its exceptions share no base
        raise GreenError(f"ONNX Runtime cannot load what was exported: {str(e).splitlines()[0][:300]}") from e


def _decode(session: Any, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits [T, V]: a prefill of all but the last tokens, then those one by one through the cache."""
    cache = {i.name: i for i in session.get_inputs() if i.name.startswith("past_key_values")}
    past = {n: np.zeros([d if isinstance(d, int) and k != 2 else (1, 0)[k == 2] for k, d in enumerate(i.shape)], np.float32) for n, i in cache.items()}  # noqa: E501, PLR2004
    names = [o.name for o in session.get_outputs()]
    wanted = {i.name for i in session.get_inputs()}
    cut = len(ids) - _STEPS
    logits = []
    for start, stop in [(0, cut), *((t, t + 1) for t in range(cut, len(ids)))]:
        feed = {
            "input_ids": ids[None, start:stop],
            "attention_mask": np.ones((1, stop), dtype=np.int64),
            "position_ids": np.arange(start, stop, dtype=np.int64)[None],
        }
        values = dict(zip(names, session.run(None, {k: v for k, v in feed.items() if k in wanted} | past), strict=True))
        logits.append(values["logits"][0])
        past = {n: values[n.replace("past_key_values", "present")] for n in cache}
    return np.concatenate(logits).astype(np.float32)


def _encode(session: Any, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    feed = {"input_ids": ids[None], "attention_mask": np.ones_like(ids)[None], "token_type_ids": np.zeros_like(ids)[None]}
    found: NDArray[np.float32] = session.run(None, {i.name: feed[i.name] for i in session.get_inputs()})[0][0]
    return found


def _kl(want: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """Mean KL divergence of the source's next-token distribution from the export's, in nats."""
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (want, got))
    return float((p.exp() * (p - q)).sum(-1).mean().clamp_min(0))

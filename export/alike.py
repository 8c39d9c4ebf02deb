"""What two forms of a model are asked, what a graph gives, and how unlike that of torch it may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.export.int8 import int8_rows
from greenllm.export.last_position import FIRST
from greenllm.export.tokenizer import ENGLISH
from greenllm.export.vlm import SEEN
from greenllm.images import pictures
from greenllm.kinds import IMAGES
from greenllm.quantize.activations import AnyGrid, Inputs, dynamic_round
from greenllm.quantize.linear import set_weight
from greenllm.quantize.packed import Packed

_TOKENS = 48
STEPS = 4  # of a decoder, after its prefill
_PICTURES = 3
Arithmetic = Literal["fp32", "fp16", "int8", "int4"]
# Largest mean KL divergence (nats a token) or relative error that the arithmetic explains: fp32 sums in another
# order, half precision, activations rounded to int8, or a cache of int4.
LIMITS = {"fp32": 1e-6, "fp16": 1e-3, "int8": 0.05, "int4": 0.5}
RELATIVE = {"fp32": 1e-3, "fp16": 0.03, "int8": 0.15, "int4": 0.5}
# How much larger than that of torch with inputs rounded alike the error of a W8A8 graph may be. Sums in another order
# put a code here and there one higher, so that after some layers the two errors are unlike but equally large.
ALIKE = 1.25
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
}


def likeness(want: NDArray[np.float32], got: NDArray[np.float32]) -> dict[str, float]:
    """Of logits [T, V]."""
    return {"kl_divergence": _kl(want, got), "top1_agreement": float((got.argmax(-1) == want.argmax(-1)).mean())}


def departure(kind: str, found: dict[str, Any]) -> GreenError:
    """The error of a graph that is more unlike its source than it may be; ``found`` has the figures."""
    shown = ", ".join(f"{k} {v:.3g}" for k, v in found.items() if isinstance(v, float))
    return GreenError(f"The exported {kind} model departs from its source more than its arithmetic explains: {shown}.")


def asked(checkpoint: Checkpoint) -> tuple[NDArray[Any], str]:
    """Token ids [T] of real text where there is a tokenizer, any tokens else, or pixels; and which it is."""
    if checkpoint.task in IMAGES:
        return pictures(_PICTURES, checkpoint.image_shape, seed=1), "noise that falls as 1/f, as in photographs"
    from transformers import AutoTokenizer

    try:
        ids = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True)(ENGLISH * 4)["input_ids"]
        kind = "English text"
    except (OSError, ValueError):
        drawn = torch.Generator().manual_seed(0)
        ids = torch.randint(int(checkpoint.words.vocab_size), (_TOKENS,), generator=drawn).tolist()
        kind = "random tokens: it has no tokenizer"
    return np.array(ids[:_TOKENS], dtype=np.int64), kind


def round_inputs(checkpoint: Checkpoint, model: Any, inputs: Inputs, cuts: list[int] | None) -> None:
    """Have linears round inputs and weights as graphs do that compute in integers; ``cuts`` are a decoder's steps."""

    def rounding(grid: AnyGrid | None) -> Any:
        one = dynamic_round if grid is None else grid.round
        if cuts is None:
            return lambda _, args: (one(args[0]),)
        return lambda _, args: (torch.cat([one(x) for x in args[0].split(cuts, dim=-2)], dim=-2),)

    for name, grid in inputs.items():
        model.get_submodule(name).register_forward_pre_hook(rounding(grid))
    for name, packed in checkpoint.packed() if inputs else ():
        if name in inputs and isinstance(packed, Packed):
            codes, scales = int8_rows(packed)  # groups of a row share a scale in the graph
            set_weight(model.get_submodule(name), torch.from_numpy(codes * scales[:, None]))


def head_width(checkpoint: Checkpoint) -> int:
    """Numbers in a key of one head."""
    c = checkpoint.words
    return int(getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)


def open_graph(path: Path, graph: str = "model.onnx") -> Any:
    """A session of ONNX Runtime on the CPU.

    Raises:
        GreenError: the graph cannot be loaded.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path / graph), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # its exceptions share no base
        raise GreenError(f"ONNX Runtime cannot load what was exported: {str(e).splitlines()[0][:300]}") from e


def decode(
    session: Any, ids: NDArray[np.int64], width: int, fed: dict[str, NDArray[Any]] | None = None
) -> NDArray[np.float32]:
    """Logits [T, V]: a prefill of all but the last tokens, then those one by one through the cache; ``fed`` is fed."""
    cache = [i for i in session.get_inputs() if i.name.startswith("past_key_values")]
    widths = [i.shape[3] if isinstance(i.shape[3], int) else width for i in cache]  # two codes of 4 bits to a byte
    past = {i.name: np.zeros((1, i.shape[1], 0, w), _TYPES[i.type]) for i, w in zip(cache, widths, strict=True)}
    names = [o.name for o in session.get_outputs()]
    wanted = {i.name for i in session.get_inputs()}
    cut = len(ids) - STEPS
    every = {FIRST: np.zeros(1, np.int64)} if FIRST in {i.name for i in session.get_overridable_initializers()} else {}
    every |= fed or {}
    logits = []
    for start, stop in [(0, cut), *((t, t + 1) for t in range(cut, len(ids)))]:
        feed = {
            "input_ids": ids[None, start:stop],
            "attention_mask": np.ones((1, stop), dtype=np.int64),
            "position_ids": np.arange(start, stop, dtype=np.int64)[None],
        }
        more = {k: v[:, :0] if start and k == SEEN else v for k, v in every.items()}  # an image is seen once
        given = {k: v for k, v in feed.items() if k in wanted} | more | past
        values = dict(zip(names, session.run(None, given), strict=True))
        logits.append(values["logits"][0])
        past = {n: values[n.replace("past_key_values", "present")] for n in past}
    return np.concatenate(logits).astype(np.float32)


def _kl(want: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """Mean KL divergence of the source's next-token distribution from the export's, in nats."""
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (want, got))
    return float((p.exp() * (p - q)).sum(-1).mean().clamp_min(0))

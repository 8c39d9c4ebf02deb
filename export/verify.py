"""Reload what was exported in its runtime and compare it with the source checkpoint in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from greenllm import pages
from greenllm.audio import ENCODER
from greenllm.checkpoint import GENERATION, IMAGES, PAIRS, VLM, WRITING, Checkpoint
from greenllm.errors import GreenError
from greenllm.export import dual, speech, vlm
from greenllm.export.int8 import int8_rows
from greenllm.export.last_position import FIRST
from greenllm.export.tokenizer import ENGLISH, departing_texts
from greenllm.images import answer_of, pictures
from greenllm.quantize.activations import InputGrid, Inputs, dynamic_round
from greenllm.quantize.linear import set_weight
from greenllm.quantize.packed import Packed
from greenllm.tokens import Tokenizer
from greenllm.vlm import SIGHT

_TOKENS, _STEPS = 48, 4
_PICTURES = 3
Arithmetic = Literal["fp32", "fp16", "int8"]
# Largest mean KL divergence (nats a token) or relative error that the arithmetic explains: fp32 sums in another
# order, half precision, or activations rounded to int8.
_LIMITS = {"fp32": 1e-6, "fp16": 1e-3, "int8": 0.05}
_RELATIVE = {"fp32": 1e-3, "fp16": 0.03, "int8": 0.15}
# How much larger than that of torch with inputs rounded alike the error of a W8A8 graph may be. Sums in another order
# put a code here and there one higher, so that after some layers the two errors are unlike but equally large.
_ALIKE = 1.25
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_SAVE_TOKENIZER = "Save transformers' own: AutoTokenizer.from_pretrained(CHECKPOINT).save_pretrained(CHECKPOINT)."
_SLACK = {"fp32": 1e-3, "fp16": 0.05, "int8": 0.5}  # in logits, between two runs of one graph


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
    if checkpoint.task in WRITING:
        return _hear(checkpoint, path, arithmetic)
    if checkpoint.task in (PAIRS, VLM):
        pairs = checkpoint.task == PAIRS
        return _match(checkpoint, path, arithmetic, inputs or {}) if pairs else _look(checkpoint, path, arithmetic)
    ids, text = _seen(checkpoint)
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
        found |= _likeness(want, got)
        bad = found["kl_divergence"] > _LIMITS[arithmetic]
    else:
        bad = relative > _RELATIVE[arithmetic]
    if inputs:
        bad = (
            found["error"] > _ALIKE * found["error_of_rounding"] + _RELATIVE["fp16" if arithmetic == "fp16" else "fp32"]
        )
    if bad:
        raise _departs(kind, found)
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

    ids, text = _seen(checkpoint)
    want = model(input_ids=torch.from_numpy(ids)[None]).logits[0].float().numpy()
    values = onnxruntime.AdapterFormat.read_adapter(str(adapter)).get_parameters()
    more = {name: value.numpy() for name, value in values.items()}
    got = _decode(_session(path), ids, _head_width(checkpoint), more)
    likeness = _likeness(want, got)
    found = {"against": "torch fp32", "input": text, "tokens": len(want), **likeness}
    if not np.isfinite(got).all() or likeness["kl_divergence"] > _LIMITS[arithmetic]:
        raise _departs(f"adapter {adapter.stem} of the", found)
    _generate(checkpoint, path, ids, got, slack=_SLACK[arithmetic], adapter=adapter)
    return found


def _hear(checkpoint: Checkpoint, path: Path, arithmetic: Arithmetic) -> dict[str, Any]:
    """Of encoder and decoder both graphs: keys and values of a clip or an image, and with them the logits of tokens."""
    heard = speech.sample(checkpoint)
    want = speech.in_torch(checkpoint, heard)
    pages.give_back()
    got = speech.in_graphs(_session(path, ENCODER), _session(path), heard)
    if any(g.shape != w.shape or not np.isfinite(g).all() for g, w in zip(got, want, strict=True)):
        raise GreenError("The exported graphs give other shapes than torch, or NaN.")
    relative = float(np.abs(got[0] - want[0]).max() / np.abs(want[0]).max())
    # of millions of keys and values one is off by much where inputs are rounded: Whisper base in 4 bits by 0.25, all
    # together by 0.03
    error = float(np.linalg.norm(got[0] - want[0]) / np.linalg.norm(want[0]))
    likeness = _likeness(want[1], got[1])
    found = {
        "against": "torch fp32", "input": "noise that falls as 1/f, as in speech and photographs; random tokens",
        "tokens": len(heard),
        "max_relative_error": relative, "error": error,
    } | likeness  # fmt: skip
    if error > _RELATIVE[arithmetic] or likeness["kl_divergence"] > _LIMITS[arithmetic]:
        raise _departs("onnx", found)
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
        _round(checkpoint, model, inputs, None)
        alike = dual.in_torch(model, asked)
    del model
    pages.give_back()
    for name, graph, feed, true, rounded in zip(("images", "texts"), dual.GRAPHS, asked, want, alike, strict=True):
        (got,) = _session(path, graph).run(None, feed)
        if got.shape != true.shape or not np.isfinite(got).all():
            raise GreenError(f"The exported graph for {name} gives {got.shape} values, torch {true.shape}, or NaN.")
        relative = float(np.abs(got - true).max() / np.abs(true).max())
        one = {"max_relative_error": relative}
        bad = relative > _RELATIVE[arithmetic]
        if inputs:
            size = np.linalg.norm(true)
            one["error"] = float(np.linalg.norm(got - true) / size)
            one["error_of_rounding"] = float(np.linalg.norm(rounded - true) / size)
            bad = one["error"] > _ALIKE * one["error_of_rounding"] + _RELATIVE["fp32"]
        if bad:
            raise _departs(f"onnx {name}", one)
        found[name] = one
        found["max_relative_error"] = max(found["max_relative_error"], relative)
    return found


def _look(checkpoint: Checkpoint, path: Path, arithmetic: Arithmetic) -> dict[str, Any]:
    """Of a model that answers about images both graphs: an image's vectors, and the logits of a text about it."""
    departs = departing_texts(checkpoint, Tokenizer(path), _SAVE_TOKENIZER)
    model = checkpoint.load_model()
    pixels, count = pictures(1, checkpoint.image_shape, seed=1), vlm.each(checkpoint)
    ids = np.concatenate([np.full(count, checkpoint.config.image_token_id), _seen(checkpoint)[0]])
    want, logits = vlm.in_torch(model, pixels, ids)
    del model
    pages.give_back()
    (seen,) = _session(path, SIGHT).run(None, {"pixel_values": pixels})
    said = _decode(_session(path), ids, _head_width(checkpoint), {vlm.SEEN: seen})
    if (
        seen.shape != want.shape
        or said.shape != logits.shape
        or not (np.isfinite(seen).all() and np.isfinite(said).all())
    ):
        raise GreenError(f"The exported graphs give {seen.shape} and {said.shape} values, torch others, or NaN.")
    found: dict[str, Any] = {
        "against": "torch fp32", "input": vlm.ASKED, "tokens": len(ids), "tokens_of_an_image": count,
        "max_relative_error": float(np.abs(seen - want).max() / np.abs(want).max()), "tokenizer_departs": departs,
    } | _likeness(logits, said)  # fmt: skip
    if found["max_relative_error"] > _RELATIVE[arithmetic] or found["kl_divergence"] > _LIMITS[arithmetic]:
        raise _departs("onnx", found)
    return found


def _likeness(want: NDArray[np.float32], got: NDArray[np.float32]) -> dict[str, float]:
    """Of logits [T, V]."""
    return {"kl_divergence": _kl(want, got), "top1_agreement": float((got.argmax(-1) == want.argmax(-1)).mean())}


def _departs(kind: str, found: dict[str, Any]) -> GreenError:
    shown = ", ".join(f"{k} {v:.3g}" for k, v in found.items() if isinstance(v, float))
    return GreenError(f"The exported {kind} model departs from its source more than its arithmetic explains: {shown}.")


def _seen(checkpoint: Checkpoint) -> tuple[NDArray[Any], str]:
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


@torch.no_grad()
def _torch(checkpoint: Checkpoint, ids: NDArray[Any], inputs: Inputs | None = None) -> NDArray[np.float32]:
    """What the source gives in float32; where there are ``inputs``, with them and their weights as integers."""
    model = checkpoint.load_model()
    # the graph of a decoder is run in steps, and finds its grids in each of them
    cuts = [len(ids) - _STEPS, *[1] * _STEPS] if checkpoint.task == GENERATION else None
    _round(checkpoint, model, inputs or {}, cuts)
    if checkpoint.task in IMAGES:
        seen: NDArray[np.float32] = answer_of(model(pixel_values=torch.from_numpy(ids)))[1].numpy()
        return seen
    found: NDArray[np.float32] = model(input_ids=torch.from_numpy(ids)[None])[0][0].float().numpy()
    return found


def _round(checkpoint: Checkpoint, model: Any, inputs: Inputs, cuts: list[int] | None) -> None:
    """Have linears round inputs and weights as graphs do that compute in integers; ``cuts`` are a decoder's steps."""

    def rounding(grid: InputGrid | None) -> Any:
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


def _graph(checkpoint: Checkpoint, path: Path, ids: NDArray[Any]) -> NDArray[np.float32]:
    """What the exported graph itself gives, in ONNX Runtime."""
    session = _session(path)
    if checkpoint.task in IMAGES:
        seen: NDArray[np.float32] = session.run(None, {checkpoint.input: ids})[0]
        return seen
    return _decode(session, ids, _head_width(checkpoint)) if checkpoint.task == GENERATION else _encode(session, ids)


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


def _head_width(checkpoint: Checkpoint) -> int:
    """Numbers in a key of one head."""
    c = checkpoint.words
    return int(getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)


def _session(path: Path, graph: str = speech.DECODER) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path / graph), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # its exceptions share no base
        raise GreenError(f"ONNX Runtime cannot load what was exported: {str(e).splitlines()[0][:300]}") from e


def _decode(
    session: Any, ids: NDArray[np.int64], width: int, fed: dict[str, NDArray[Any]] | None = None
) -> NDArray[np.float32]:
    """Logits [T, V]: a prefill of all but the last tokens, then those one by one through the cache; ``fed`` is fed."""
    cache = [i for i in session.get_inputs() if i.name.startswith("past_key_values")]
    past = {i.name: np.zeros((1, i.shape[1], 0, width), _TYPES[i.type]) for i in cache}
    names = [o.name for o in session.get_outputs()]
    wanted = {i.name for i in session.get_inputs()}
    cut = len(ids) - _STEPS
    every = {FIRST: np.zeros(1, np.int64)} if FIRST in {i.name for i in session.get_overridable_initializers()} else {}
    every |= fed or {}
    logits = []
    for start, stop in [(0, cut), *((t, t + 1) for t in range(cut, len(ids)))]:
        feed = {
            "input_ids": ids[None, start:stop],
            "attention_mask": np.ones((1, stop), dtype=np.int64),
            "position_ids": np.arange(start, stop, dtype=np.int64)[None],
        }
        more = {k: v[:, :0] if start and k == vlm.SEEN else v for k, v in every.items()}  # an image is seen once
        given = {k: v for k, v in feed.items() if k in wanted} | more | past
        values = dict(zip(names, session.run(None, given), strict=True))
        logits.append(values["logits"][0])
        past = {n: values[n.replace("past_key_values", "present")] for n in past}
    return np.concatenate(logits).astype(np.float32)


def _encode(session: Any, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    feed = {
        "input_ids": ids[None],
        "attention_mask": np.ones_like(ids)[None],
        "token_type_ids": np.zeros_like(ids)[None],
    }
    found: NDArray[np.float32] = session.run(None, {i.name: feed[i.name] for i in session.get_inputs()})[0][0]
    return found.astype(np.float32)


def _kl(want: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """Mean KL divergence of the source's next-token distribution from the export's, in nats."""
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (want, got))
    return float((p.exp() * (p - q)).sum(-1).mean().clamp_min(0))

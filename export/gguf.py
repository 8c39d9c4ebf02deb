"""GGUF: the models that llama.cpp's ``llama``, ``qwen2`` and ``qwen3`` run, written through the ``gguf`` package.

Rows of q and k of a Llama are stored in llama.cpp's rotary order: a head's two halves become interleaved pairs (the
layout of Su et al. 2021, RoFormer; Hugging Face keeps halves apart).
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import gguf
import numpy as np
from numpy.typing import NDArray

from greenllm import artifact, card
from greenllm.artifact import Artifact, Manifest
from greenllm.checkpoint import Checkpoint, open_checkpoint
from greenllm.errors import GreenError
from greenllm.export import gguf_blocks as blocks
from greenllm.export.gguf_tokenizer import write_tokenizer
from greenllm.progress import Progress, Silent

Kind = Literal["f32", "f16", "q8_0", "q4_0"]
FILE = "model.gguf"
ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2",
                 "Qwen3ForCausalLM": "qwen3"}  # fmt: skip
_FILES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
_SIDE = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def export_gguf(
    checkpoint: str | Path | Artifact,
    out: str | Path,
    *,
    kind: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Write a checkpoint as GGUF, read it again, and compare every weight with its source.

    Args:
        checkpoint: hub id, directory, ``.gguf`` file or artifact; dense or pruned, or packed symmetrically in 4 or 8
            bits by groups of a multiple of 32, which llama.cpp's blocks hold as they are.
        out: directory to make.
        kind: "f32", "f16", "q8_0" or "q4_0" of a dense checkpoint; None is f16, and what a packed one has.
        force: replace ``out``.
        progress: told of two stages.

    Returns:
        An artifact of kind "gguf".

    Raises:
        GreenError: an architecture, a tokenizer or weights that are not written; nothing lies under ``out`` then.
    """
    progress = progress or Silent()
    artifact.check_free(Path(out).absolute(), force=force)
    source = open_checkpoint(checkpoint.path if isinstance(checkpoint, Artifact) else checkpoint)
    with artifact.writing(out, force=force) as part:
        tensors = write(source, part / FILE, kind, progress)
        checked = verify(source, part / FILE, tensors, progress)
        for name in _SIDE:
            if (source.path / name).is_file():
                shutil.copyfile(source.path / name, part / name)
        details = {
            "task": source.task, "entry": FILE, "parameters": source.parameters, "tied": source.tied,
            "types": sorted({t.type.name for t in tensors}), "verified": checked,
            "bits_per_weight": round(sum(t.bytes for t in tensors) * 8 / source.parameters, 3),
        }  # fmt: skip
        made = artifact.read(source.path).manifest if artifact.is_artifact(source.path) else Manifest(kind="gguf")
        known = {k: getattr(made, k) for k in ("steps", "calibration", "seed", "energy")}
        card.seal(part, Manifest(kind="gguf", parents=source.parents, details=details, **known))
    return artifact.read(out)


@dataclass(frozen=True)
class Stored:
    """A tensor of the file: llama.cpp's name, the checkpoint's, its shape, and how it is stored.

    ``heads``: of q and k of a Llama, whose rows are reordered; 0 of all others. ``packed``: the checkpoint's module
    whose codes it has; "" where it is made of floats.
    """

    name: str
    of: str
    shape: tuple[int, ...]
    type: gguf.GGMLQuantizationType
    heads: int = 0
    packed: str = ""

    @property
    def bytes(self) -> int:
        """Of its data."""
        if self.type in blocks.FLOATS:
            return math.prod(self.shape) * np.dtype(blocks.FLOATS[self.type]).itemsize
        return math.prod(gguf.quant_shape_to_byte_shape(self.shape, self.type))


def write(
    source: Checkpoint, file: Path, kind: str | None = None, progress: Progress | None = None
) -> list[Stored]:  # fmt: skip
    """Write a checkpoint as one file, a tensor at a time.

    Args:
        source: see :func:`export_gguf`.
        file: ``.gguf`` file to make.
        kind: see :func:`export_gguf`.
        progress: told of one stage.

    Returns:
        What lies in it.

    Raises:
        GreenError: see :func:`export_gguf`.
    """
    progress = progress or Silent()
    chosen = _kind(source, kind)
    architecture = architecture_of(source)
    tensors = plan(source, architecture, chosen)
    writer = gguf.GGUFWriter(file, architecture)
    _describe(writer, source.config, architecture)
    writer.add_file_type(gguf.LlamaFileType[_FILES[chosen]])
    write_tokenizer(writer, source.path, source.config.vocab_size)
    for t in tensors:
        writer.add_tensor_info(t.name, t.shape, np.dtype(np.float32), t.bytes, t.type)
    factors = _rope_factors(source.config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    progress.stage("writing GGUF", len(tensors))
    for t in tensors:
        writer.write_tensor_data(_data(source, t))
        progress.advance()
    if factors is not None:
        writer.write_tensor_data(factors)
    writer.close()
    return tensors


def plan(source: Checkpoint, architecture: str, kind: str) -> list[Stored]:
    """How each weight is stored: vectors in float32, matrices in ``kind``.

    Embedding and head of a q4_0 have eight bits: llama.cpp's own quantizer gives them more too. A row that is no
    multiple of 32 stays float16.

    Raises:
        GreenError: a weight that llama.cpp has no name for, or packed in a way that its blocks do not hold.
    """
    c = source.config
    arch = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == architecture)
    names = gguf.get_tensor_name_map(arch, c.num_hidden_layers)
    packed = blocks.packed_types(source) if source.quantized else {}
    ends = {source.embedding, source.head}
    heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads} if architecture == "llama" else {}
    found = []
    for name, parameter in source.skeleton().named_parameters():
        to = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if to is None:
            raise GreenError(f"llama.cpp's {architecture} has no place for the weight {name}.")
        module, _, leaf = name.rpartition(".")
        shape = tuple(parameter.shape)
        wide = len(shape) > 1
        stored = blocks.TYPES["f32" if not wide else "q8_0" if kind == "q4_0" and module in ends else kind]
        if wide and stored not in blocks.FLOATS and shape[-1] % blocks.SIZE:
            stored = blocks.TYPES["f16"]
        holder = ""
        if leaf == "weight" and module in packed:
            stored, holder = packed[module]
        found.append(Stored(to, name, shape, stored, heads.get(module.rpartition(".")[2], 0), holder))
    return found


def verify(source: Checkpoint, file: Path, tensors: list[Stored], progress: Progress) -> dict[str, Any]:
    """Read a file again and compare it with its source.

    Returns:
        The largest error by type, relative to the largest weight of its row of 32.

    Raises:
        GreenError: a tensor is missing, or departs by more than its type explains.
    """
    progress.stage("comparing with the source", len(tensors))
    there = {t.name: t for t in gguf.GGUFReader(file).tensors}
    worst: dict[str, float] = {}
    for t in tensors:
        want = _ordered(source.tensor(t.of).numpy(), t.heads)
        got = gguf.quants.dequantize(there[t.name].data, t.type).reshape(want.shape)
        error = blocks.error(got, want)
        if not error <= (0 if t.packed else blocks.BOUNDS[t.type]):
            raise GreenError(f"{t.of} in the GGUF file departs from its source by {error:.3g}; its type explains less.")
        worst[t.type.name] = max(error, worst.get(t.type.name, 0.0))
        progress.advance()
    return {"against": "the source's weights", "tensors": len(tensors), "max_relative_error": worst}


def _data(source: Checkpoint, t: Stored) -> NDArray[Any]:
    if t.packed:
        order = _ordered(np.arange(t.shape[0], dtype=np.int64)[:, None], t.heads)[:, 0]
        return blocks.pack(source.read_packed(t.packed), order)
    value = _ordered(source.tensor(t.of).numpy(), t.heads)
    if t.type in blocks.FLOATS:
        return value.astype(blocks.FLOATS[t.type])
    return gguf.quants.quantize(value, t.type)


def _ordered(W: NDArray[Any], heads: int) -> NDArray[Any]:
    """[heads * d, …], each head's rows from (0 … d/2, d/2 … d) to pairs (0, d/2, 1, d/2 + 1, …)."""
    if not heads:
        return W
    return W.reshape(heads, 2, -1, *W.shape[1:]).swapaxes(1, 2).reshape(W.shape)


def _kind(source: Checkpoint, kind: str | None) -> str:
    if kind is not None and kind not in get_args(Kind):
        raise GreenError(f"No GGUF type is called {kind!r} here.", f"Choose {', '.join(get_args(Kind))}.")
    if not source.quantized:
        return kind or "f16"
    if kind is not None:
        raise GreenError(
            f"{source.path} is quantized already, and stays as it is.",
            "Leave out --precision, or give the dense checkpoint.",
        )
    return blocks.main_type(source)


def architecture_of(source: Checkpoint) -> str:
    """llama.cpp's name of the architecture.

    Raises:
        GreenError: one that is not written here, or a part of it that llama.cpp computes otherwise.
    """
    c = source.config
    name = (c.architectures or [c.model_type])[0]
    if name not in ARCHITECTURES:
        raise GreenError(f"{name} is not written as GGUF here.", f"There are {', '.join(ARCHITECTURES)}.")
    if source.quantized and source.inputs:
        raise GreenError(f"{source.path} has integer inputs, which llama.cpp does not have.", "Export it --to onnx.")
    kind = _rope(c).get("rope_type", "default")
    wrong = {
        f"{kind} rotary embeddings": kind not in ("default", "llama3", "linear"),
        "rotary embeddings on a part of each head": float(_rope(c).get("partial_rotary_factor", 1.0)) != 1,
        f"the activation {c.hidden_act}": c.hidden_act != "silu",
        "biases in its MLP": bool(getattr(c, "mlp_bias", False)),
    }
    if found := [what for what, there in wrong.items() if there]:
        raise GreenError(f"{source.path} has {found[0]}, which is not written as GGUF here.")
    return ARCHITECTURES[name]


def _rope(config: Any) -> dict[str, Any]:
    found = getattr(config, "rope_parameters", None) or {}
    return {"rope_theta": getattr(config, "rope_theta", 10000.0), **found}


def _describe(writer: gguf.GGUFWriter, c: Any, architecture: str) -> None:
    heads = c.num_attention_heads
    width = getattr(c, "head_dim", None) or c.hidden_size // heads
    window = getattr(c, "sliding_window", None)
    # llama.cpp's llama, qwen2 and qwen3 look at everything: a model is made for no more than it sees
    context = min(c.max_position_embeddings, window or c.max_position_embeddings)
    writer.add_context_length(context)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    if architecture == "llama":
        writer.add_rope_dimension_count(width)
    rope = _rope(c)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_vocab_size(c.vocab_size)


def _rope_factors(c: Any) -> NDArray[np.float32] | None:
    """What llama.cpp divides each pair's frequency by: Llama 3's long context, as transformers computes it."""
    rope = _rope(c)
    if rope.get("rope_type") != "llama3":
        return None
    width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    low, high, factor = (float(rope[k]) for k in ("low_freq_factor", "high_freq_factor", "factor"))
    turns = rope["original_max_position_embeddings"] / (
        2 * math.pi * float(rope["rope_theta"]) ** (np.arange(0, width, 2) / width)
    )
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)

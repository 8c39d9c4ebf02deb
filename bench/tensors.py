"""Where the bytes of a model are: in its embedding, attention, MLP, head, or elsewhere, by the names of its tensors.

Of a model that answers about images all that sees is one kind, and what lies between that and the decoder another.
And in which part, of a model of several: by the graph, or the names in a checkpoint.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

from greenllm import audio, captions, pairs, script, vlm
from greenllm.bench.runners.clock import DECODER, ENCODER, PROJECTOR, SIGHT, TEXT, VISION

KINDS = ("embedding", "attention", "MLP", "head", "other", "projector", "vision")
_PATTERNS = {  # the first that fits; a norm beside an attention is no attention
    "vision": r"vision_tower|\bmodel\.vision_model",
    "projector": r"multi_modal_projector|\bmodel\.connector",
    "other": r"norm|ln_\d|ln_f|rotary|_cache\b",
    "head": r"lm_head|^output\.|score\.|classifier",
    "embedding": r"embe?d|wte|wpe|token_types",
    "attention": r"attn|attention|self_att|q_proj|k_proj|v_proj|o_proj|qkv",
    "MLP": r"mlp|ffn|feed_forward|intermediate|\bfc\d|experts|output\.dense",
}
_WRITER = {ENCODER: rf"^{audio.ENCODER}:|safetensors:(model\.)?(encoder|vision_model)\.", DECODER: ""}
_PARTS = {  # of each task, by file and tensor: the first that fits
    script.TASK: _WRITER,
    captions.TASK: _WRITER,
    vlm.TASK: {SIGHT: f"^{vlm.SIGHT}:", VISION: rf"safetensors:.*(?:{_PATTERNS['vision']})",
               PROJECTOR: rf"safetensors:.*(?:{_PATTERNS['projector']})", DECODER: ""},
    pairs.TASK: {VISION: r"^model\.onnx:|safetensors:vis(ion|ual)_", TEXT: f"^{pairs.TEXT}:|safetensors:text_"},
}  # fmt: skip
_HEADER = 100 << 20  # bytes of a safetensors header at most: the format's own limit


def kind(name: str) -> str:
    """Which of :data:`KINDS` a tensor is, by the names that transformers, the exporters and llama.cpp use."""
    return next((k for k, pattern in _PATTERNS.items() if re.search(pattern, name)), "other")


def bytes_by_kind(directory: Path, runner: str, file: Path) -> dict[str, int]:
    """Bytes of the weights of each kind there is; empty where a format cannot be looked into with what is installed.

    Args:
        directory: of the model.
        runner: which engine it is for.
        file: the model itself, where it is a file (GGUF).
    """
    found = dict.fromkeys(KINDS, 0)
    for name, size in _tensors(directory, runner, file):
        found[kind(name.partition(":")[2])] += size
    return {kind: size for kind, size in found.items() if size}


def bytes_by_part(directory: Path, runner: str, file: Path, task: str) -> dict[str, int]:
    """Bytes of the weights of each part of a model that does ``task`` with several; empty for others, and as above."""
    parts = _PARTS.get(task, {})
    found = dict.fromkeys(parts, 0)
    for name, size in _tensors(directory, runner, file) if parts else ():
        if part := next((p for p, pattern in parts.items() if re.search(pattern, name)), None):
            found[part] += size
    return {part: size for part, size in found.items() if size}


def _tensors(directory: Path, runner: str, file: Path) -> list[tuple[str, int]]:
    """Names, each after that of its file and a colon, and bytes; none where a file cannot be looked into."""
    readers = {"torch": _safetensors, "genai": _onnx, "onnxruntime": _onnx}
    try:
        return list(_gguf(file) if runner == "llamacpp" else readers[runner](directory))
    except Exception:  # noqa: BLE001 - a picture is no reason to stop, whatever a foreign file holds
        return []


def _safetensors(directory: Path) -> Iterator[tuple[str, int]]:
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if length > _HEADER:
                raise ValueError("no header of a safetensors file")
            header = json.loads(f.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                yield f"{file.name}:{name}", int(end) - int(begin)


def _onnx(directory: Path) -> Iterator[tuple[str, int]]:
    import onnx

    for file in sorted(directory.glob("*.onnx")):
        seen = set()
        for tensor in onnx.load(str(file), load_external_data=False).graph.initializer:
            where = tuple(e.value for e in tensor.external_data)
            if where and where in seen:  # another name for the same data
                continue
            seen.add(where)
            small = {onnx.TensorProto.INT4: 4, onnx.TensorProto.UINT4: 4}
            bits = small.get(tensor.data_type) or 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            yield f"{file.name}:{tensor.name.removeprefix('model.')}", math.ceil(math.prod(tensor.dims) * bits / 8)


def _gguf(file: Path) -> Iterator[tuple[str, int]]:
    from gguf import GGUFReader

    for tensor in GGUFReader(str(file)).tensors:
        yield f"{file.name}:{tensor.name}", int(tensor.n_bytes)

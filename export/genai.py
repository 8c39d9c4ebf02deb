"""ONNX Runtime GenAI: its model builder makes the graph, our pass puts the integers back in.

The builder knows some thirty decoder families and emits the runtime's own fused operators. It is given the
dequantized weights and asked for fp32; its own quantizer, which only rounds to nearest, is not used. Gate and up
become one matrix, as q, k and v are: fewer operators to start for each token.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import onnx
from onnx import TensorProto

from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.export.device.run import EXACT
from greenllm.export.kv_cache import Cache
from greenllm.export.last_position import cut_to_last_position
from greenllm.export.quantized import Quantized, quantize_graph
from greenllm.export.targets import Target
from greenllm.older import LAST_POSITION, older
from greenllm.progress import Progress

GRAPH, CONFIG = "model.onnx", "genai_config.json"
_CACHE = {8: TensorProto.INT8, 4: TensorProto.UINT8}


def write_genai(
    checkpoint: Checkpoint, out: Path, work: Path, target: Target, progress: Progress, cache: Cache | None = None
) -> Quantized | None:
    """Make an ORT-GenAI directory of a decoder.

    Args:
        checkpoint: dense or packed.
        out: directory to fill.
        work: directory for the dense copy and the dense graph; deleted by the caller.
        target: what runs it.
        progress: told of three stages.
        cache: of keys and values; None keeps them in float32.

    Returns:
        What was quantized; None for a dense checkpoint.

    Raises:
        GreenError: the builder does not know the architecture, a packed weight is not in its graph, or the
            checkpoint wants integer inputs.
    """
    if checkpoint.inputs:
        raise GreenError(
            f"{checkpoint.path} has integer inputs, which ORT-GenAI's operators do not take.", "Export it --to onnx."
        )
    progress.stage("building the graph", 2)
    dense = checkpoint.path
    if checkpoint.quantized:
        dense = work / "dense"
        checkpoint.write_dense(dense)
    progress.advance()
    built = work / "built" if checkpoint.quantized else out
    _build(checkpoint, dense, built, work, cache)
    _finish(built, target.genai or version("onnxruntime-genai"), cache.bits if cache else 0)
    progress.advance()
    if not checkpoint.quantized:
        return None
    progress.stage("packing the weights", 1)
    shutil.rmtree(dense)
    found = quantize_graph(
        built / GRAPH, out / GRAPH, checkpoint, form="nbits", accuracy_level=target.accuracy_level, progress=progress
    )
    for file in built.iterdir():
        if file.is_file() and not file.name.startswith(GRAPH):
            shutil.copyfile(file, out / file.name)
    return found


def _finish(built: Path, runtime: str, bits: int) -> None:
    """Have the graph compute one position's logits and say how wide its cache is, and its session sum exactly.

    Raises:
        GreenError: its cache is not of the bits that were asked for.
    """
    model = onnx.load(str(built / GRAPH), load_external_data=False)
    if not older(runtime, *LAST_POSITION):
        cut_to_last_position(model)
    config = json.loads((built / CONFIG).read_text(encoding="utf-8"))
    width = config["model"]["decoder"]["head_size"]
    width = (width + 1) // 2 if bits == 4 else width  # noqa: PLR2004 - two codes to a byte
    kinds = {v.type.tensor_type.elem_type for v in model.graph.input if v.name.startswith("past_key_values.")}
    if bits and kinds != {_CACHE[bits]}:
        raise GreenError(
            f"This onnxruntime-genai ({version('onnxruntime-genai')}) does not make caches of {bits} bits.",
            "Install 0.18 or newer, or leave out --kv-bits.",
        )
    config["model"]["decoder"]["session_options"] |= dict([EXACT])
    (built / CONFIG).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.shape.dim[3].dim_value = width
    onnx.save(model, str(built / GRAPH))


def _build(checkpoint: Checkpoint, dense: Path, out: Path, work: Path, cache: Cache | None) -> None:
    """Run the builder as a process of its own: its memory and its prints stay there."""
    out.mkdir(parents=True, exist_ok=True)
    c = checkpoint.config
    # any matrix as tall as the vocabulary is taken for the head; an old builder would run a checkpoint's code
    fuse = 2 * getattr(c, "intermediate_size", 0) != c.vocab_size
    command = [
        sys.executable, "-m", "greenllm.export.builder",
        "-m", str(dense), "-i", str(dense), "-o", str(out), "-p", "fp32", "-e", "cpu", "-c", str(work / "cache"),
        "--extra_options", f"fuse_mlp_gate_up={str(fuse).lower()}", "hf_remote=false",
    ]  # fmt: skip
    if cache:
        scales = work / "kv_cache.json"
        scales.write_text(json.dumps({"scales": cache.scales}), encoding="utf-8")
        command += [f"kv_cache_quant_scheme=int{cache.bits}_per_channel", f"kv_cache_scale_file={scales}"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode or not (out / GRAPH).is_file() or not (out / CONFIG).is_file():
        name = (checkpoint.config.architectures or [checkpoint.config.model_type])[0]
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise GreenError(
            f"The ORT-GenAI builder cannot export {name}: {reason}",
            "Export it as plain ONNX: greenllm export CHECKPOINT -o OUT --to onnx.",
        )

"""TensorRT Edge-LLM, NVIDIA's runtime for language models on a Jetson: its quantizer and exporter, driven.

Both are run on the CPU, in an environment of their own (see :mod:`greenllm.export.environment`). A dense model is
quantized first: the exporter's own ``--quantization`` does nothing to it, and says nothing.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

from greenllm import artifact, card
from greenllm.artifact import Artifact, Manifest
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.export.edgellm_checks import Shape, refuse_dense, refuse_misfit, refuse_unknown, weight_files
from greenllm.export.edgellm_device import VERSION, board, memory, refuse_too_large, write_steps
from greenllm.export.edgellm_fidelity import fidelity
from greenllm.export.edgellm_tools import drop_dead_bytes, export_arguments, quantize_arguments, run_module, strip_code
from greenllm.export.environment import own_environment
from greenllm.export.fits import shape_of, wanted
from greenllm.export.targets import Target
from greenllm.kinds import GENERATION
from greenllm.progress import Progress
from greenllm.save import copy_side_files, write_config

KIND: Literal["edge-llm"] = "edge-llm"
REQUIREMENTS = Path(__file__).with_name("edgellm.txt")
GROUP = 128  # inputs that share a scale in its int4 kernels
_BITS = {"int4": 4 + 16 / GROUP, "int8": 8.0, "fp16": 16.0}
_SHAPING = ("tensorrt-edgellm", "nvidia-modelopt", "torch", "transformers", "onnx", "onnxscript")
_GIGABYTES = 8.0  # of the environment: 2 with a CPU torch, 8 with a CUDA one
_SAMPLES, _LENGTH = 32, 128  # of calibration: its search runs about a dozen times over them, on a CPU


def export_edgellm(
    checkpoint: Checkpoint,
    out: str | Path,
    target: Target,
    *,
    precision: str = "int4",
    calibration: str = "self",
    context: int | None = None,
    force: bool = False,
    progress: Progress,
) -> Artifact:
    """Export a decoder for TensorRT Edge-LLM; its engine is built on the device, by the script beside it.

    Args:
        checkpoint: dense, or packed by GPTQ's layout in 4 bits and symmetric groups of 128 with a dense head.
        out: directory to make.
        target: a Jetson.
        precision: of the blocks' linears; a packed checkpoint is int4 already.
        calibration: "self", a ``.txt`` or ``.jsonl`` file, or a hub data set id.
        context: tokens to hold, prompt and answer; half of them may be a prompt.
        force: replace ``out``.
        progress: told of each stage.

    Returns:
        An artifact of kind "edge-llm".

    Raises:
        GreenError: a model that Edge-LLM does not take (said before any work), or an export that is not quantized;
            nothing lies under ``out`` then.
    """
    from greenllm.calibration import check_source

    if precision not in _BITS:
        raise GreenError(f"Edge-LLM has no precision {precision!r} here.", f"One of {', '.join(_BITS)}.")
    shape = refuse(checkpoint, target, precision)
    check_source(calibration)
    longest = wanted(shape_of(checkpoint.config, checkpoint.parameters, generates=True), context)
    parts = memory(shape, checkpoint.config, _BITS[precision], longest)
    refuse_too_large(parts, target, longest)
    python = own_environment(f"edgellm-{VERSION}", REQUIREMENTS, "tensorrt_edgellm", _GIGABYTES, progress)
    with artifact.writing(out, force=force) as part:
        made = _write(checkpoint, part, python, shape, precision, calibration, progress)
        details: dict[str, Any] = {
            "task": checkpoint.task, "target": target.name, "entry": "llm/model.onnx", "precision": precision,
            "parameters": checkpoint.parameters, "tied": checkpoint.tied,
            "bits_per_weight": round(made["bytes"]["stored"] * 8 / checkpoint.parameters, 3), **made,
            "memory": parts, "device": write_steps(part, target, parts, longest),
            "tools": _tools(),
        }  # fmt: skip
        old = artifact.read(checkpoint.path).manifest if artifact.is_artifact(checkpoint.path) else Manifest(kind=KIND)
        known = {k: getattr(old, k) for k in ("steps", "calibration", "seed", "energy")}
        if made["calibration"] and not known["calibration"]:
            known |= {"calibration": made["calibration"], "seed": made["calibration"]["seed"]}
        card.seal(part, Manifest(kind=KIND, parents=checkpoint.parents, details=details, **known))
    return artifact.read(out)


def _tools() -> dict[str, str]:
    """Versions of what shapes the result in the environment, as they are pinned."""
    pins = (line.partition("==") for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines())
    return {name: version.partition(";")[0] for name, _, version in pins if name in _SHAPING}


def _write(
    checkpoint: Checkpoint, out: Path, python: Path, shape: Shape, precision: str, calibration: str, progress: Progress
) -> dict[str, Any]:
    """Quantize and export into ``out/llm``, look at what came out, and say for the manifest what was found."""
    graph = out / "llm" / "model.onnx"
    given, measured = None, {}
    with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as scratch:
        work = Path(scratch)
        if precision == "fp16" or checkpoint.quantized:
            ready = _plain(checkpoint, work / "dense")
        else:
            ready, given = _quantize(checkpoint, python, work, precision, calibration, progress)
            measured = {"quantized": fidelity(checkpoint, ready)}
        progress.stage("exporting for Edge-LLM", 1)
        run_module(python, export_arguments(ready, work / "onnx", precision), work)
        shutil.move(str(work / "onnx" / "llm"), graph.parent)
    dropped = drop_dead_bytes(graph)
    progress.advance()
    c = checkpoint.config
    looked = refuse_dense(graph, shape, int(c.num_hidden_layers), 2 * int(c.vocab_size) * shape.hidden, precision)
    stored = sum(f.stat().st_size for f in [*weight_files(graph.parent), graph.with_name("embedding.safetensors")])
    return {
        "calibration": given,
        "verified": measured | looked,
        "bytes": {"stored": stored, "source_fp16": 2 * checkpoint.parameters, "dropped": dropped},
    }


def refuse(checkpoint: Checkpoint, target: Target, precision: str) -> Shape:
    """Refuse, before any work, what Edge-LLM cannot take.

    Returns:
        The model's sizes.

    Raises:
        GreenError: no decoder, no Jetson, an architecture, a size or packed weights that do not fit.
    """
    board(target)
    if checkpoint.task != GENERATION:
        raise GreenError(f"Edge-LLM runs decoders; this model does {checkpoint.task}.", "Export it with --to onnx.")
    refuse_unknown(checkpoint.config)
    if not (checkpoint.path / "tokenizer.json").is_file():
        raise GreenError(f"{checkpoint.path} has no tokenizer.json, which Edge-LLM reads.", "Add the tokenizer.")
    if checkpoint.quantized:
        _refuse_packed(checkpoint, precision)
    shape = Shape.of(checkpoint.config)
    if precision == "int4":
        refuse_misfit(str(checkpoint.path), shape)
    return shape


def _refuse_packed(checkpoint: Checkpoint, precision: str) -> None:
    config = checkpoint.quantization or {}
    want = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True}
    fits = all(config.get(k) == v for k, v in want.items()) and not config.get("dynamic") and not config.get("lm_head")
    if precision != "int4" or not fits or checkpoint.inputs:
        raise GreenError(
            f"{checkpoint.path} is packed in a way that Edge-LLM does not read.",
            "Start from its dense checkpoint, or pack that for it: "
            f"greenllm quantize CHECKPOINT -o OUT --bits 4 --group {GROUP} --head-bits 0.",
        )


def _quantize(
    checkpoint: Checkpoint, python: Path, work: Path, precision: str, source: str, progress: Progress
) -> tuple[Path, dict[str, Any]]:
    """A checkpoint that its quantizer made, and what calibrated it."""
    from tokenizers import Tokenizer

    from greenllm.calibration import describe, samples

    ids = samples(checkpoint, source, _SAMPLES, _LENGTH, 0, progress)
    tokenizer = Tokenizer.from_file(str(checkpoint.path / "tokenizer.json"))
    texts = work / "calibration.jsonl"
    rows = (json.dumps({"text": tokenizer.decode(row) or " "}) for row in ids.tolist())
    texts.write_text("\n".join(rows) + "\n", encoding="utf-8")
    progress.stage(f"quantizing to {precision} by Edge-LLM's quantizer", 1)
    dense = _plain(checkpoint, work / "dense")
    run_module(
        python, quantize_arguments(dense, work / "quantized", precision, len(ids)), work,
        EDGELLM_QUANT_DATASET_WIKITEXT=str(texts),
    )  # fmt: skip
    shutil.rmtree(dense)
    progress.advance()
    return work / "quantized", describe(source, ids, 0)


def _plain(checkpoint: Checkpoint, out: Path) -> Path:
    """The checkpoint in a directory without code: dense in float32, or its packed weights as they are."""
    if checkpoint.quantized:
        out.mkdir(parents=True)
        copy_side_files(checkpoint.path, out)
        write_config(out, checkpoint.config, checkpoint.quantization)
        for file in checkpoint.path.glob("*.safetensors*"):
            (out / file.name).symlink_to(file.resolve())
    else:
        checkpoint.write_dense(out)
    strip_code(out)
    return out

"""Export: a checkpoint becomes what a target runs; quantized weights stay quantized."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from greenllm import artifact, card, pages
from greenllm.artifact import Artifact, Manifest
from greenllm.callable import make_callable
from greenllm.errors import GreenError
from greenllm.export.targets import Format
from greenllm.progress import Progress, Silent

if TYPE_CHECKING:
    from greenllm.checkpoint import Checkpoint
    from greenllm.export.quantized import Quantized
    from greenllm.export.targets import Target
    from greenllm.export.tensorrt import Compute
    from greenllm.quantize.activations import Inputs

__all__ = ["export"]

GRAPH = "model.onnx"


def export(
    checkpoint: str | Path | Artifact,
    out: str | Path,
    *,
    to: str | None = None,
    target: str = "cpu",
    precision: str | None = None,
    context: int | None = None,
    calibration: str | None = None,
    kv_bits: int | None = None,
    adapters: Sequence[str | Path] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Export a checkpoint, reload what was written, and compare it with its source.

    Args:
        checkpoint: hub id, directory, ``.gguf`` file or artifact; dense or packed.
        out: directory to make.
        to: "genai" (ONNX Runtime GenAI), "onnx" (plain ONNX), "tensorrt", "edge-llm" (TensorRT Edge-LLM on a Jetson) or
            "gguf"; None takes what the target runs best.
        target: name of a target or a YAML file.
        precision: of TensorRT's activations and dense weights ("fp16", "bf16", "fp32"); of GGUF's weights, see
            :func:`greenllm.export.gguf.export_gguf`; what Edge-LLM's quantizer makes of a dense model ("int4").
        context: tokens that the target must hold, prompt and answer; by default 2048, or what the model was made for.
        calibration: edge-llm: text for its quantizer; with ``kv_bits``: for keys and values; None is "self".
        kv_bits: genai: of keys and values in the cache, 8 or 4; None keeps them in float32.
        adapters: genai: directories of LoRA of this checkpoint, which the model puts on while it runs.
        force: replace ``out``.
        progress: told of each stage.

    Returns:
        An artifact of kind "genai", "onnx", "tensorrt", "edge-llm" or "gguf".

    Raises:
        GreenError: an architecture or weights that the format cannot hold, or an export that departs from
            its source; nothing lies under ``out`` then.
    """
    from greenllm.export.kv_cache import check_cache, make_cache

    if to == "gguf":
        from greenllm.export.gguf import export_gguf

        check_cache("gguf", kv_bits)
        return export_gguf(checkpoint, out, kind=precision, force=force, progress=progress)
    from greenllm.checkpoint import open_checkpoint
    from greenllm.export import dual, lora
    from greenllm.export.genai import write_genai
    from greenllm.export.onnx import write_onnx
    from greenllm.export.stamp import ENGINE
    from greenllm.export.targets import load_target
    from greenllm.export.tensorrt import make_engine, write_typed
    from greenllm.kinds import PAIRS
    from greenllm.outcome import check_runs, stored

    device = load_target(target)
    progress = progress or Silent()
    artifact.check_free(Path(out).absolute(), force=force)
    source = open_checkpoint(checkpoint.path if isinstance(checkpoint, Artifact) else checkpoint)
    kind = check_format(source, to or usual_format(device, source))
    check_cache(kind, kv_bits, adapted=bool(adapters))
    if kind == "edge-llm":
        from greenllm.export.edgellm import export_edgellm

        return export_edgellm(
            source, out, device, precision=precision or "int4", calibration=calibration or "self", context=context,
            force=force, progress=progress,
        )  # fmt: skip
    _check_more(kind, calibration, kv_bits, adapters)
    compute = _compute(kind, precision)
    given = lora.named(adapters, source)
    fit = check_runs(source, stored(source, kind, compute), device, kind, context, kv_bits or 0)
    cache = make_cache(source, kv_bits, calibration or "self", fit.context, progress) if kv_bits else None
    with artifact.writing(out, force=force) as part:
        with tempfile.TemporaryDirectory(dir=part, prefix=".export-") as work:
            if kind == "tensorrt":
                quantized = write_typed(source, part, Path(work), compute, progress)
            elif kind == "genai":
                quantized = write_genai(source, part, Path(work), device, progress, cache)
            else:
                quantized = write_onnx(source, part, Path(work), device, progress)
        pages.give_back()  # the graphs on the way
        checked = _compare(source, part, kind, device, quantized, compute, progress, kv_bits or 0)
        details: dict[str, Any] = {
            "task": source.task, "target": device.name, "entry": GRAPH, **_names(part / GRAPH),
            "parameters": source.parameters, "tied": source.tied,
            "bits_per_weight": round(_weight_bytes(part) * 8 / source.parameters, 3),
            "operators": quantized.ops if quantized else {},
            "stored_bits": quantized.bits if quantized else [32 if kind != "tensorrt" or compute == "fp32" else 16],
            "memory": {"context": fit.context, "bytes": {k: round(v) for k, v in fit.parts.items()}},
            "verified": checked, **(cache.words if cache else {}),
        }  # fmt: skip
        if given:
            details["adapters"] = lora.add(part, GRAPH, source, given, _arithmetic(kind, device, quantized))
        if source.task == PAIRS:
            details["pairs"] = dual.facts(source, source.load_model()).model_dump()
        if kind == "tensorrt":
            built = make_engine(part, device, fit.context, progress)
            details |= {"entry": ENGINE if built.library else GRAPH, "compute": compute, "engine": asdict(built)}
        made = artifact.read(source.path).manifest if artifact.is_artifact(source.path) else Manifest(kind=kind)
        known = {k: getattr(made, k) for k in ("steps", "calibration", "seed", "energy")}
        card.seal(part, Manifest(kind=kind, parents=source.parents, details=details, **known))
    return artifact.read(out)


def usual_format(target: Target, checkpoint: Checkpoint) -> Format:
    """The format that suits a target best; for integer inputs there is none but ONNX, or TensorRT where that runs."""
    found = target.formats.get(checkpoint.task, "onnx")
    return "onnx" if checkpoint.inputs and found == "genai" else found


def _compare(
    source: Checkpoint, part: Path, kind: Format, target: Target, quantized: Quantized | None, compute: str,
    progress: Progress, kv_bits: int,
) -> dict[str, Any]:  # fmt: skip
    """What :func:`greenllm.export.verify.verify` finds; told where there is something to tell."""
    from greenllm.export.alike import Arithmetic
    from greenllm.export.onnx import integer_inputs
    from greenllm.export.verify import verify

    if kind == "tensorrt" and compute == "bf16":
        why = "nothing: no runtime here computes in bf16"
        progress.note(f"The graph was compared with {why}.")
        return {"against": why}
    progress.stage("comparing with the source", 1)
    inputs: Inputs = {}
    if source.quantized and kind != "genai":
        inputs = integer_inputs(source, target) if kind == "onnx" else source.inputs
    arithmetic: Arithmetic = _arithmetic(kind, target, quantized)
    if arithmetic == "fp32" and kind == "tensorrt" and compute == "fp16":
        arithmetic = "fp16"
    if kv_bits:
        arithmetic = "int8" if kv_bits == 8 else "int4"  # noqa: PLR2004
    found = verify(source, part, kind, arithmetic=arithmetic, inputs=inputs)
    progress.advance()
    if unchecked := found.get("tokenizer_unchecked"):
        progress.note(f"WARNING. How texts are split was not compared with Hugging Face's tokenizer: {unchecked}")
    for text in found.get("tokenizer_departs", []):
        progress.note(f"WARNING. The exported tokenizer splits this otherwise than Hugging Face's: {text[:60]!r}")
    return found


def _arithmetic(kind: Format, target: Target, quantized: Quantized | None) -> Literal["int8", "fp32"]:
    """What weights of integers are multiplied with: ONNX Runtime takes int8 unless it is told otherwise."""
    integers = quantized is not None and bool({"MatMulNBits", "DequantizeLinear"} & set(quantized.ops))
    int8 = integers and (kind == "tensorrt" or target.accuracy_level == 4)  # noqa: PLR2004 - ORT's name for int8
    return "int8" if int8 else "fp32"


def _check_more(
    kind: Format, calibration: str | None, kv_bits: int | None, adapters: Sequence[str | Path]
) -> None:  # fmt: skip
    """Refuse options that say nothing to the format."""
    if calibration and not kv_bits:
        raise GreenError(f"--calibration says nothing to {kind}.", "It is for --to edge-llm, and with --kv-bits.")
    if adapters and kind != "genai":
        raise GreenError(f"{kind} has no place for adapters.", "Export them --to genai, or greenllm adapt --merge.")


def _compute(kind: Format, precision: str | None) -> Compute:
    """The float type of what is not quantized."""
    if kind != "tensorrt" and precision:
        raise GreenError(f"--precision says nothing to {kind}.", "It is for --to tensorrt, edge-llm and gguf.")
    if precision not in (None, "fp16", "bf16", "fp32"):
        raise GreenError(f"TensorRT does not compute in {precision!r} here.", "Choose fp16, bf16, fp32.")
    return precision or ("fp16" if kind == "tensorrt" else "fp32")  # type: ignore[return-value]


def check_format(source: Checkpoint, to: str) -> Format:
    """The format, if it can hold the model.

    Raises:
        GreenError: there is no such format, or it has no place for this model.
    """
    from greenllm.kinds import WRITING

    if to not in get_args(Format):
        raise GreenError(f"No export format is called {to!r}.", f"Choose {', '.join(get_args(Format))}.")
    if source.task in WRITING and to != "onnx":
        raise GreenError(
            f"{to} has no place for the two graphs of a transcriber or captioner.", "Export it with --to onnx."
        )
    if to == "genai" and source.task != "text-generation":
        raise GreenError(f"ORT-GenAI runs decoders; this model does {source.task}.", "Export it with --to onnx.")
    if to == "tensorrt" and source.input == "pixel_values":
        raise GreenError(f"TensorRT engines are made of models of text; this one does {source.task}.", "Use --to onnx.")
    if to == "gguf":
        from greenllm.export.gguf import architecture_of
        from greenllm.export.gguf_tokenizer import read_tokenizer

        architecture_of(source)
        read_tokenizer(source.path)
    return to  # type: ignore[return-value]


def _names(graph: Path) -> dict[str, list[str]]:
    """Names of inputs and outputs, in their order."""
    import onnx

    loaded = onnx.load(str(graph), load_external_data=False).graph
    weights = {t.name for t in loaded.initializer}
    return {
        "inputs": [i.name for i in loaded.input if i.name not in weights],
        "outputs": [o.name for o in loaded.output],
    }


def _weight_bytes(path: Path) -> int:
    """All that the graphs store: codes, scales, zero points, norms, tables, and the graph's own nodes."""
    return sum(f.stat().st_size for f in path.glob("*.onnx*"))


make_callable(__name__, export)

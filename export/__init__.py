"""Export: a checkpoint becomes what a target runs; quantized weights stay quantized."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal, get_args

from greenllm import artifact, pages
from greenllm.artifact import Artifact, Manifest
from greenllm.callable import make_callable
from greenllm.errors import GreenError
from greenllm.progress import Progress, Silent

__all__ = ["export"]

Format = Literal["genai", "onnx"]
GRAPH = "model.onnx"


def export(
    checkpoint: str | Path | Artifact,
    out: str | Path,
    *,
    to: str | None = None,
    target: str = "cpu",
    force: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Export a checkpoint, reload what was written, and compare it with its source.

    Args:
        checkpoint: hub id, directory, ``.gguf`` file or artifact; dense or packed.
        out: directory to make.
        to: "genai" (ONNX Runtime GenAI) or "onnx" (plain ONNX); None takes what the target runs best.
        target: name of a target or a YAML file.
        force: replace ``out``.
        progress: told of each stage.

    Returns:
        An artifact of kind "genai" or "onnx".

    Raises:
        GreenError: an architecture or weights that the format cannot hold, or an export that departs from
            its source; nothing lies under ``out`` then.
    """
    from greenllm.checkpoint import open_checkpoint
    from greenllm.export.genai import write_genai
    from greenllm.export.onnx import integer_inputs, write_onnx
    from greenllm.export.targets import load_target
    from greenllm.export.verify import verify

    found = load_target(target)
    progress = progress or Silent()
    artifact.check_free(Path(out).absolute(), force=force)
    source = open_checkpoint(checkpoint.path if isinstance(checkpoint, Artifact) else checkpoint)
    check_task(source.task)
    usual = "onnx" if source.inputs else found.formats.get(source.task, "onnx")  # for integer inputs the only one
    kind = _format(to or usual, source.task)
    write = write_genai if kind == "genai" else write_onnx
    with artifact.writing(out, force=force) as part:
        with tempfile.TemporaryDirectory(dir=part.parent, prefix=".export-") as work:
            quantized = write(source, part, Path(work), found, progress)
        integers = quantized is not None and bool({"MatMulNBits", "DequantizeLinear"} & set(quantized.ops))
        int8 = integers and found.accuracy_level == 4  # noqa: PLR2004 - ORT's name for int8
        progress.stage("comparing with the source", 1)
        inputs = integer_inputs(source, found) if kind == "onnx" and source.quantized else {}
        pages.give_back()  # the graphs on the way
        checked = verify(source, part, kind, int8=int8, inputs=inputs)
        progress.advance()
        for text in checked.get("tokenizer_departs", []):
            progress.note(f"WARNING. ORT-GenAI's tokenizer splits this otherwise than Hugging Face's: {text[:60]!r}")
        details: dict[str, Any] = {
            "task": source.task, "target": found.name, "entry": GRAPH, **_names(part / GRAPH),
            "parameters": source.parameters, "tied": source.tied,
            "bits_per_weight": round(_weight_bytes(part) * 8 / source.parameters, 3),
            "operators": quantized.ops if quantized else {}, "stored_bits": quantized.bits if quantized else [32],
            "verified": checked,
        }  # fmt: skip
        made = artifact.read(source.path).manifest if artifact.is_artifact(source.path) else Manifest(kind=kind)
        known = {k: getattr(made, k) for k in ("steps", "calibration", "seed", "energy")}
        artifact.seal(part, Manifest(kind=kind, parents=source.parents, details=details, **known))
    return artifact.read(out)


def check_task(task: str) -> None:
    """Nothing, where models of this task are exported.

    Raises:
        GreenError: they are not.
    """
    if task == "automatic-speech-recognition":
        raise GreenError(
            "Transcribers are not exported yet.", "greenllm quantize makes them smaller; greenllm bench measures them."
        )


def _format(to: str, task: str) -> Format:
    if to not in get_args(Format):
        raise GreenError(f"No export format is called {to!r}.", f"Choose {' or '.join(get_args(Format))}.")
    if to == "genai" and task != "text-generation":
        raise GreenError(f"ORT-GenAI runs decoders; this model does {task}.", "Export it with --to onnx.")
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
    """All that the graph stores: codes, scales, zero points, norms, tables, and the graph's own nodes."""
    return sum(f.stat().st_size for f in path.glob("model.onnx*"))


make_callable(__name__, export)

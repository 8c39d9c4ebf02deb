"""TensorRT: a graph of half precision with quantized weights, and the engine of it for one kind of GPU.

``tensorrt_rtx`` builds here, without a GPU, for the compute capabilities that it names; ``tensorrt`` for the GPU that
is here. For any other device the artifact has the graph and ``build.sh``, which builds there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
import torch
from onnx import external_data_helper

from greenllm import artifact
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.export import engine, profiles
from greenllm.export.graph import DATA
from greenllm.export.onnx import GRAPH, export_graph
from greenllm.export.quantized import Quantized, quantize_graph
from greenllm.export.stamp import ENGINE
from greenllm.export.targets import Target
from greenllm.export.trtexec import write_script
from greenllm.progress import Progress, Silent
from greenllm.save import copy_side_files, write_config
from greenllm.source import cache_dir

Compute = Literal["fp16", "bf16", "fp32"]
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_RTX = (75, 80, 86, 89, 120, 121)  # what tensorrt_rtx 1.7 names


@dataclasses.dataclass
class Built:
    """An engine, or what builds it on the device.

    Attributes:
        compute_capability: the only one it runs on.
        library: that built it and alone runs it; "" where the device builds it.
        version: of the library.
        profiles: shapes, see :mod:`greenllm.export.profiles`.
        graph: SHA-256 of the graph and its data.
        checked: the library whose parser took the graph, with its version; "" for none.
        seconds: that building took, 0 where the engine came from the cache.
        peak_bytes: of memory while it was built.
        cached: whether the engine came from the cache.
    """

    compute_capability: str
    library: str
    version: str
    profiles: list[dict[str, Any]]
    graph: str
    checked: str = ""
    seconds: float = 0
    peak_bytes: int = 0
    cached: bool = False


def write_typed(
    checkpoint: Checkpoint, out: Path, work: Path, compute: Compute, progress: Progress
) -> Quantized | None:
    """Make a directory with a graph of one float type, its data, configuration and tokenizer.

    Args:
        checkpoint: dense, or packed by GPTQ's layout without zero points.
        out: directory to fill.
        work: directory for the dense graph; deleted by the caller.
        compute: the type of weights that are not quantized, and of activations.
        progress: told of the stages.

    Raises:
        GreenError: no such type, torch cannot export the model, or weights that TensorRT does not read.
    """
    if compute not in get_args(Compute):
        raise GreenError(f"TensorRT does not compute in {compute!r} here.", f"Choose {', '.join(get_args(Compute))}.")
    copy_side_files(checkpoint.path, out)
    write_config(out, checkpoint.config, None)
    progress.stage("exporting the graph", 1)
    path = (work if checkpoint.quantized else out) / GRAPH
    export_graph(checkpoint, path, dtype=DTYPES[compute])
    progress.advance()
    if not checkpoint.quantized:
        return None
    progress.stage("packing the weights", 1)
    return quantize_graph(
        path, out / GRAPH, checkpoint, form="typed", accuracy_level=0, inputs=checkpoint.inputs,
        dtype=DTYPES[compute], progress=progress,
    )  # fmt: skip


def make_engine(directory: Path, target: Target, context: int, progress: Progress | None = None) -> Built:
    """Build ``model.engine`` in place of ``model.onnx``, or add ``build.sh`` where only the device can build.

    Args:
        directory: holds the graph.
        target: with a GPU.
        context: tokens to hold, prompt and answer; of an encoder the longest text.
        progress: told of one stage.

    Raises:
        GreenError: a graph that is damaged or that TensorRT does not take (by node), no library that builds for the
            target, or a build that failed.
    """
    progress = progress or Silent()
    inputs = check_graph(directory / GRAPH)
    library = _library(target)
    rtx = library == "tensorrt_rtx" and not built_there(target)
    shapes = profiles.profiles(inputs, context, apart=not rtx)
    progress.stage("building the engine" if not built_there(target) else "checking the graph for TensorRT", 1)
    made = Built(
        compute_capability=target.compute_capability or "", library="", version="",
        profiles=[dataclasses.asdict(s) for s in shapes], graph=_hash(directory),
    )  # fmt: skip
    if built_there(target):
        if library:
            _run(library, {"graph": str(directory / GRAPH), "engine": None})
            made.checked = f"{library} {_version(library)}"
        else:
            progress.note("No TensorRT is installed here, so nothing checked that it takes this graph.")
        write_script(directory, target, shapes)
    else:
        if library is None:
            raise GreenError(
                f"No TensorRT is installed that builds for {target.name}.", 'pip install "greenllm[tensorrt]"'
            )
        made.library, made.version = library, _version(library)
        made.checked = f"{library} {made.version}"
        _build(directory, target, made)
        for name in (GRAPH, DATA):
            (directory / name).unlink(missing_ok=True)
    progress.advance()
    return made


def built_there(target: Target) -> bool:
    """Whether only the device itself can build its engines: tensorrt_rtx names no such GPU, and none is here."""
    return target.sm not in _RTX and target.sm not in _here()


def check_graph(path: Path) -> dict[str, list[int | None]]:
    """Shapes of a graph's inputs, None for a dimension that changes; its operators and data are looked at first.

    Raises:
        GreenError: no ONNX, weights that are missing, cut off or elsewhere, or operators of ONNX Runtime alone.
    """
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as e:  # protobuf's errors share no base
        raise GreenError(f"{path} cannot be read as ONNX: {str(e).splitlines()[0][:200]}.") from e
    for tensor in graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            _check_data(path.parent, tensor)
    foreign = [n for n in graph.node if n.domain not in ("", "ai.onnx")]
    if foreign:
        raise GreenError(
            f"TensorRT has no {foreign[0].domain} {foreign[0].op_type}: the node {foreign[0].name or '(unnamed)'}"
            f"{f' and {len(foreign) - 1} more' if len(foreign) > 1 else ''} of {path}.",
            "Export the checkpoint itself: greenllm export CHECKPOINT -o OUT --to tensorrt.",
        )
    weights = {t.name for t in graph.initializer}
    return {
        i.name: [d.dim_value if d.HasField("dim_value") else None for d in i.type.tensor_type.shape.dim]
        for i in graph.input
        if i.name not in weights
    }


def _check_data(directory: Path, tensor: onnx.TensorProto) -> None:
    info = external_data_helper.ExternalDataInfo(tensor)
    file = directory / artifact.inside(str(info.location))
    if file.is_symlink() or not file.is_file():
        raise GreenError(f"{file}: the graph's weights are {'a link' if file.is_symlink() else 'missing'}.")
    if (info.offset or 0) + (info.length or 0) > file.stat().st_size:
        raise GreenError(f"{file}: too short for the weight {tensor.name}.", "It was cut off: copy or make it again.")


def _build(directory: Path, target: Target, made: Built) -> None:
    """Take the engine from the cache, or build it and put it there."""
    key = hashlib.sha256(
        json.dumps([made.graph, made.compute_capability, made.library, made.version, made.profiles]).encode()
    ).hexdigest()
    home = cache_dir() / "engines"
    home.mkdir(parents=True, exist_ok=True)
    kept, note = home / f"{key}.engine", home / f"{key}.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) == artifact.sha256(kept):
        shutil.copyfile(kept, directory / ENGINE)
        made.cached = True
        return
    part = home / f".{key}.{os.getpid()}.part"
    request = {
        "graph": str(directory / GRAPH), "engine": str(part), "sm": target.sm,
        "profiles": [p["shapes"] for p in made.profiles],
        "timing": str(home / f"{made.library}-{made.version}-{target.sm}.timing"),
    }  # fmt: skip
    try:
        found = _run(made.library, request)
        part.replace(kept)
    finally:
        part.unlink(missing_ok=True)
    artifact.write_atomic(note, json.dumps(artifact.sha256(kept)))
    shutil.copyfile(kept, directory / ENGINE)
    made.seconds, made.peak_bytes = found["seconds"], found["peak_bytes"]


def _run(library: str, request: dict[str, Any]) -> dict[str, Any]:
    """:func:`greenllm.export.engine.build` in a process of its own."""
    command = [sys.executable, "-m", engine.__name__, library, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise GreenError(f"{library} failed: {lines[-1][:300]}", "If memory ran out, build on a larger machine.")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if found.get("refused"):
        name, operator, why = found["refused"][0]
        more = len(found["refused"]) - 1
        raise GreenError(
            f"TensorRT does not take the node {name} ({operator}): {why}{f'; {more} more' if more else ''}"
        )
    if "error" in found or "refused" in found:
        raise GreenError(
            f"{library} did not build the engine: {found.get('error', 'it does not read the graph')[:400]}"
        )
    return found


def _library(target: Target) -> str | None:
    """What builds or at least checks for the target: tensorrt if its GPU is here, else tensorrt_rtx if installed."""
    here = [name for name in engine.LIBRARIES if importlib.util.find_spec(name)]
    fits = [n for n in here if (target.sm in _here() if n == "tensorrt" else target.sm in _RTX)]
    return next(iter([*fits, *(here if built_there(target) else [])]), None)


def _version(library: str) -> str:
    return version(library.replace("_", "-"))


def _here() -> list[int]:
    """Compute capabilities of the GPUs of this machine, where NVIDIA's management library tells them."""
    if not importlib.util.find_spec("pynvml") or not importlib.util.find_spec("tensorrt"):
        return []
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        pairs = [pynvml.nvmlDeviceGetCudaComputeCapability(h) for h in handles]
    except pynvml.NVMLError:
        return []
    return [10 * major + minor for major, minor in pairs]


def _hash(directory: Path) -> str:
    files = [artifact.sha256(directory / n) for n in (GRAPH, DATA) if (directory / n).is_file()]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()

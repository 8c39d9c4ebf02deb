"""A bundle: an exported model with all that a device needs to run and to test it, in one directory or one archive.

It is the artifact as it was, with ``run.py``, pinned requirements and golden answers beside it; so all that reads
artifacts reads bundles. What a device must have is in the manifest's ``details["bundle"]``.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from greenllm import artifact, script
from greenllm.artifact import Artifact, Manifest
from greenllm.errors import GreenError
from greenllm.export import archive as archives
from greenllm.export.device import run
from greenllm.export.targets import Target, load_target
from greenllm.older import LAST_POSITION, older
from greenllm.progress import Progress, Silent

RUN, REQUIREMENTS, GOLDEN = "run.py", "requirements.txt", run.GOLDEN
_TEXTS = (
    "The water cycle describes how water evaporates from the sea,",
    "Three ways to save energy at home are",
    "def area(width, height):",
)
_VOICES = ("110 Hz, 0.7 s", "160 Hz, 1.5 s", "220 Hz, 3 s")  # what a transcriber is asked
_ANSWER = 16  # tokens of each golden answer
_OLD = {"numpy": "2.2.6", "onnxruntime": "1.23.2", "onnxruntime-genai": "0.11.4"}  # the last ones for Python 3.10
_PIN = re.compile(
    r"(numpy|onnxruntime|onnxruntime-genai|tokenizers)==[0-9][0-9a-z.]*(; python_version (<|>=) \"3\.11\")?"
)
# How far an answer may lie from the golden one: ``logit``, of an expected token below the likeliest; ``nats``, of the
# expected tokens' log-probabilities, on average; ``relative``, of a vector, as a share of its length.
_FP32 = {"logit": 1e-3, "nats": 1e-3, "relative": 1e-3}
_INT8 = {"logit": 0.5, "nats": 0.1, "relative": 0.2}
_UNLIKE = 1.5  # two roundings that have nothing in common lie √2 of their error apart
_WHY = {
    "fp32": "the same sums in another order, in float32.",
    "int8": "inputs are rounded to int8 on the way, and each processor's kernels sum in an order of their own; allowed "
    "is a little more than not rounding at all changes (SmolLM2 in int4: 0.12 logits, 0.07 nats).",
    "encoder": "inputs are rounded to int8 on the way, and a sum in another order changes what is rounded next; two "
    "processors' vectors lie about as far apart as each lies from float32's, which was measured at the export; "
    "allowed is 1.5 times that.",
}


class Needs(BaseModel):
    """What a bundle asks of a device; the manifest's ``details["bundle"]``.

    Attributes:
        target: what it was made for.
        isa: machine as ``uname -m`` says it.
        python: the oldest Python for which its requirements exist.
        weight_bytes: of the graph and its weights.
        cache_bytes: of the KV cache, for each token.
        context: tokens at most.
    """

    model_config = ConfigDict(extra="forbid")

    target: str
    isa: str
    python: str = Field(pattern=r"^3\.\d+$")
    weight_bytes: int = Field(ge=0)
    cache_bytes: int = Field(ge=0)
    context: int = Field(ge=1)


def bundle(
    model: str | Path | Artifact,
    out: str | Path | None = None,
    *,
    target: str | None = None,
    archive: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Make a bundle of what was exported, and test it as the device will.

    Args:
        model: what ``compress`` or ``export`` made, or another bundle.
        out: directory to make, or archive where it ends in ``.tar``, ``.tar.gz`` or ``.tgz``; default: the model's
            name with "-bundle".
        target: device that it is for; default: the one that it was exported for.
        archive: make one file instead of a directory.
        force: replace ``out``.
        progress: told of the stages.

    Returns:
        The directory or archive.

    Raises:
        GreenError: nothing exported there, damaged files, a target that does not run it, or a self-test that fails.
    """
    progress = progress or Silent()
    given = model if isinstance(model, Artifact) else artifact.read(model)
    source = given.deployable
    if source.kind == "edge-llm":
        raise GreenError(
            f"{given.path} holds 'edge-llm', which is its own bundle.",
            "Copy it to the device as it is; there: ./build.sh, then ./run.sh.",
        )
    if source.kind not in ("genai", "onnx"):
        raise GreenError(
            f"{given.path} holds {source.kind!r}: nothing that a device runs.",
            "Export it first: greenllm export CHECKPOINT -o OUT.",
        )
    if (does := str(source.manifest.details.get("task", ""))).startswith(("image-", "zero-shot-")):
        raise GreenError(
            f"{given.path} does {does}; bundles are made of models of text or speech.", "Copy the export itself."
        )
    found = load_target(target or str(source.manifest.details.get("target", "cpu")))
    final = archives.named(Path(out or f"{given.path.name}-bundle").absolute(), archive=archive)
    artifact.check_free(final, force=force) if not archives.is_archive(final) else archives.check_free(
        final, force=force
    )
    source.verify()
    if not archives.is_archive(final):
        with artifact.writing(final, force=force) as part:
            _fill(part, source, found, progress)
        return final
    with artifact.working(final) as work:
        part = work / archives.stem(final)
        part.mkdir()
        _fill(part, source, found, progress)
        progress.stage("archiving", 1)
        archives.pack(part, final)
        progress.advance()
    return final


def _fill(part: Path, source: Artifact, target: Target, progress: Progress) -> None:
    """Copy the model, add what a device needs, and let the bundle test itself in a process that knows no greenllm."""
    progress.stage("copying", len(source.manifest.files))
    for name in source.manifest.files:
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.path / name, part / name)
        progress.advance()
    shutil.copyfile(run.__file__, part / RUN)
    manifest = source.manifest.model_copy(deep=True)
    hears = manifest.details.get("task") == script.TASK
    if hears:
        (part / run.SCRIPT).write_text(json.dumps(asdict(script.of(part))) + "\n", encoding="utf-8")
    decoder = hears or manifest.details.get("task") == "text-generation"
    last = _gives_last_position(part / run.GRAPH)
    old = target.genai is not None and older(target.genai, *LAST_POSITION)
    if old and last:
        raise GreenError(
            f"{source.path} was exported for onnxruntime-genai {'.'.join(map(str, LAST_POSITION))} or newer; "
            f"{target.name} has {target.genai}.",
            f"Export it for that: greenllm export CHECKPOINT -o OUT --target {target.name}.",
        )
    isa = target.isa or platform.machine()
    # onnxruntime-genai has wheels for Arm from 0.14 on, which is for Python 3.11 and newer
    old_python = not last and (manifest.kind, isa) != ("genai", "aarch64")
    pins = _requirements(manifest.kind, old_python=old_python)
    (part / REQUIREMENTS).write_text("\n".join(pins) + "\n", encoding="utf-8")
    weights = sum(f.stat().st_size for f in part.glob("*.onnx*"))
    cache, context = _cache(part) if decoder else (0, 1)
    manifest.details["bundle"] = Needs(
        target=target.name, isa=isa, python="3.10" if old_python else "3.11",
        weight_bytes=weights, cache_bytes=cache, context=context,
    ).model_dump()  # fmt: skip
    progress.stage("golden answers", 1)
    golden = _golden(part, manifest)
    (part / GOLDEN).write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    artifact.relist(part, manifest)
    progress.advance()
    progress.stage("self-test", 1)
    done = subprocess.run(
        [sys.executable, "-I", part / RUN, "--self-test"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise GreenError(f"The bundle fails its own self-test here: {done.stderr.strip()}")
    progress.advance()


def check(path: Path) -> tuple[Artifact, Needs]:
    """Open a bundle that may come from anyone: every file is what it says, and its code is this greenllm's.

    Raises:
        GreenError: it is no bundle, was tampered with, or brings code or packages of its own.
    """
    found = artifact.read(path)
    try:
        run.check(path)
        needs = Needs.model_validate(found.manifest.details.get("bundle"))
    except run.Refused as e:
        raise GreenError(str(e), "The bundle was changed or damaged: make it again with greenllm bundle.") from e
    except ValidationError as e:
        raise GreenError(f"{path} is no bundle.", f"Make one: greenllm bundle {path} -o NEW.") from e
    again = f"Make it again with this greenllm: greenllm bundle {path} -o NEW."
    if (path / RUN).read_bytes() != Path(run.__file__).read_bytes():
        raise GreenError(f"{path / RUN} is not the one of this greenllm; code of others is not run.", again)
    lines = (path / REQUIREMENTS).read_text(encoding="utf-8").splitlines()
    for line in lines:
        if not _PIN.fullmatch(line):
            raise GreenError(f"{path / REQUIREMENTS} asks for {line!r}, which no bundle needs.", again)
    return found, needs


def _requirements(kind: str, *, old_python: bool) -> list[str]:
    """What is installed here, which made the golden answers; and for Python 3.10 the last that it has."""
    names = ["numpy", "onnxruntime", "onnxruntime-genai" if kind == "genai" else "tokenizers"]
    pins = []
    for name in names:
        here = version(name)
        last = _OLD.get(name, here)
        if here == last:
            pins.append(f"{name}=={here}")
            continue
        pins.append(f'{name}=={here}; python_version >= "3.11"' if old_python else f"{name}=={here}")
        if old_python:
            pins.append(f'{name}=={last}; python_version < "3.11"')
    return pins


def _golden(part: Path, manifest: Manifest) -> dict[str, Any]:
    kind = manifest.kind
    try:
        model = run.load(part, kind)
        asked = _VOICES if isinstance(model, run.Listener) else _TEXTS
        cases = [model.record(text, _ANSWER) for text in asked]
    except run.Refused as e:
        raise GreenError(f"No golden answers can be made here: {e}") from e
    tolerance, why = _tolerance(isinstance(model, run.Encoder), manifest.details)
    runtime = "onnxruntime-genai" if kind == "genai" else "onnxruntime"
    return {
        "format": 1,
        "made": {"machine": platform.machine(), runtime: version(runtime)},
        "arithmetic": "int8" if _integers(manifest.details) else "fp32",
        "tolerance": tolerance,
        "reason": why,
        "cases": cases,
    }


def _tolerance(encoder: bool, details: dict[str, Any]) -> tuple[dict[str, float], str]:  # noqa: FBT001
    """What may differ on another processor, and why."""
    if not encoder:
        kind, limits = ("int8", _INT8) if _integers(details) else ("fp32", _FP32)
        return {k: limits[k] for k in ("logit", "nats")}, _WHY[kind]
    if not _integers(details):
        return {"relative": _FP32["relative"]}, _WHY["fp32"]
    error = details.get("verified", {}).get("error")
    relative = max(_FP32["relative"], round(_UNLIKE * error, 4)) if error else _INT8["relative"]
    return {"relative": relative}, _WHY["encoder"]


def _integers(details: dict[str, Any]) -> bool:
    """Whether the graph multiplies integers, which rounds on the way."""
    return bool({"MatMulNBits", "DequantizeLinear", "MatMulInteger"} & set(details.get("operators", {})))


def _gives_last_position(graph: Path) -> bool:
    import onnx

    from greenllm.export.last_position import FIRST

    return any(t.name == FIRST for t in onnx.load(str(graph), load_external_data=False).graph.initializer)


def _cache(part: Path) -> tuple[int, int]:
    """Bytes of the KV cache for each token, and tokens at most."""
    import onnx

    graph = onnx.load(str(part / run.GRAPH), load_external_data=False).graph
    sizes = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2}
    total = 0
    for value in graph.input:
        if value.name.startswith("past"):
            kind = value.type.tensor_type
            total += kind.shape.dim[1].dim_value * kind.shape.dim[3].dim_value * sizes.get(kind.elem_type, 4)
    file, *keys = ("genai_config.json", "model") if (part / "genai_config.json").is_file() else ("config.json",)
    told = json.loads((part / file).read_text(encoding="utf-8"))
    for key in keys:
        told = told[key]
    told = told.get("context_length") or told.get("max_position_embeddings")
    return total, int(told or 2048)

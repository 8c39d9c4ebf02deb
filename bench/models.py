"""What was meant by a model's name, and which engine runs it as it is deployed."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from greenllm import artifact, switch
from greenllm.artifact import Artifact, Manifest
from greenllm.bench.results import Provenance
from greenllm.bench.runners import CPU, GPU_RUNNERS, RUNNERS, Where
from greenllm.errors import GreenError

_HUB_ID = re.compile(r"^[\w-][\w.-]*/[\w.-]+$")
_WEIGHTS = (".safetensors", ".onnx", ".data", ".bin", ".engine")
_ENGINES = {"onnx": "onnxruntime", "genai": "genai", "gguf": "llamacpp", "tensorrt": "tensorrt",
            "checkpoint": "torch", "model": "torch", "adapter": "torch"}  # fmt: skip
_PEERS = {"llamacpp": "llama_cpp", "openvino": "openvino"}  # engines of the extra "peers", and what they import


@dataclass(frozen=True)
class Target:
    """A model to bench: its name in the report, where it is, and the runner for it."""

    name: str
    path: str
    runner: str
    manifest: Manifest | None = None
    where: Where = CPU

    def provenance(self) -> Provenance:
        """How it was made, as its manifest says."""
        m = self.manifest
        if m is None:
            return Provenance()
        return Provenance(parents=m.parents, steps=m.steps, calibration=m.calibration, energy=m.energy)


def find(model: str | Path | Artifact) -> Target:
    """Find a model: an artifact (its deployable part), a directory, a ``.gguf`` file or a hub id.

    A ``.gguf`` file is run by llama.cpp; ``torch:file.gguf`` runs its weights in torch. The name of any engine
    may stand before a path in this way; or ``gpu`` with what follows in :class:`greenllm.bench.runners.Where`, for
    the same engine on an NVIDIA GPU.

    Raises:
        GreenError: nothing there, no model in it, an artifact that is damaged, or an engine that is not installed.
    """
    engine, colon, rest = str(model).partition(":")
    if colon and engine.partition("-")[0] == "gpu":
        found = _on_gpu(find(rest), engine)
    else:
        found = dataclasses.replace(_find(rest), runner=engine) if colon and engine in RUNNERS else _find(model)
    check_engine(found.runner, str(model))
    return found


def _on_gpu(found: Target, words: str) -> Target:
    where = Where.parse(words)
    if found.runner not in GPU_RUNNERS:
        raise GreenError(
            f"{words}:{found.path} is run by {found.runner}, for which this bench does not choose a GPU.",
            f"It does for {' and '.join(GPU_RUNNERS)}; an engine of TensorRT runs on one by itself.",
        )
    if found.runner != "torch" and where != Where(gpu=True):
        raise GreenError(f"{words}:{found.path}: a graph has types of its own and is not compiled.", "Write gpu:PATH.")
    return dataclasses.replace(found, name=f"{found.name} ({words})", where=where)


def check_engine(runner: str, model: str) -> None:
    """Refuse what an engine would run that is not here.

    Raises:
        GreenError: it is not installed.
    """
    if (needed := _PEERS.get(runner)) and not importlib.util.find_spec(needed):
        raise GreenError(f"{model} is run by {runner}, which is not installed here.", 'pip install "greenllm[peers]"')


def _find(model: str | Path | Artifact) -> Target:
    path = model.path if isinstance(model, Artifact) else Path(model).expanduser()
    base, adapter = switch.split(path)
    if adapter:
        worn, found = switch.file_of(base, adapter), _find(base)
        return dataclasses.replace(found, name=f"{found.name} {adapter}", path=str(worn.absolute()))
    if artifact.is_artifact(path):
        whole = artifact.read(path)
        part = whole.deployable
        part.verify()
        if part.kind not in _ENGINES:
            raise GreenError(
                f"{path} holds {part.kind!r}, which runs on its device only.",
                "Bench the checkpoint that it was exported from; bench/gpu.md says what to run there.",
            )
        manifest = part.manifest if part.manifest.steps else whole.manifest
        file = part.path / artifact.inside(str(part.manifest.details["entry"])) if part.kind == "gguf" else part.path
        return Target(path.absolute().name, str(file), _ENGINES[part.kind], manifest)
    if path.is_dir():
        files = list(path.glob("*.gguf"))
        if len(files) == 1 and not (path / "config.json").is_file():
            return Target(path.absolute().name, str(files[0].absolute()), "llamacpp")
        return Target(path.absolute().name, str(path.absolute()), _engine(path))
    if path.is_file() and path.suffix == ".gguf":
        return Target(path.name, str(path.absolute()), "llamacpp")
    if not path.exists() and _HUB_ID.match(str(model)):
        return Target(str(model), str(model), "torch")
    raise GreenError(
        f"{model}: {'a file that is no model' if path.exists() else 'there is no such model'}.",
        "Give an artifact, a checkpoint or ORT-GenAI directory, a .gguf file, or a hub id (owner/name).",
    )


def find_all(
    models: Sequence[str | Path | Artifact],
    baseline: str | Path | Artifact | None,
    names: Sequence[str] | None = None,
) -> list[Target]:
    """All models under names that differ, the baseline first.

    Args:
        models: see :func:`find`.
        baseline: one of ``models`` or another one; the first of them by default.
        names: for ``models``, in their order; by default those of their directories.

    Raises:
        GreenError: no model at all, or see :func:`find`.
    """
    if not models:
        raise GreenError("There is no model to bench.", "Give one or more.")
    found = [find(m) for m in models]
    if names is not None:
        if len(names) != len(found):
            raise GreenError(f"There are {len(names)} names for {len(found)} models.")
        found = [dataclasses.replace(t, name=n) for t, n in zip(found, names, strict=True)]
    if baseline is not None:
        base = find(baseline)
        rest = [t for t in found if (t.path, t.where) != (base.path, base.where)]
        same = [t for t in found if (t.path, t.where) == (base.path, base.where)]
        found = [*(same or [base]), *rest]
    return _unique(found)


def _unique(found: list[Target]) -> list[Target]:
    """Those that share a name with one elsewhere get their directory's before it; the same one again is numbered."""
    where: dict[str, set[str]] = {}
    for t in found:
        where.setdefault(t.name, set()).add(t.path)
    seen: dict[str, int] = {}
    unique = []
    for t in found:
        path = Path(t.path)
        name = f"{path.parent.name}/{t.name}" if len(where[t.name]) > 1 and path.name == t.name else t.name
        seen[name] = n = seen.get(name, 0) + 1
        unique.append(dataclasses.replace(t, name=name if n == 1 else f"{name} ({n})"))
    return unique


def sizes(directory: Path, target: Target) -> tuple[int, int]:
    """Bytes of all files of a model, and of its weights alone.

    A checkpoint's folders are not counted: hub snapshots keep other formats of the same model there. A GGUF file
    holds its tokenizer too, so its tensors are counted one by one.
    """
    every = files(directory, target)
    total = sum(p.stat().st_size for p in every)
    if target.runner == "llamacpp":
        from gguf import GGUFReader

        return total, sum(int(t.n_bytes) for t in GGUFReader(target.path).tensors)
    return total, sum(p.stat().st_size for p in every if p.suffix in _WEIGHTS)


def files(directory: Path, target: Target) -> list[Path]:
    """All files that a model needs to run."""
    runner = target.runner
    if runner == "llamacpp":
        return [Path(target.path)]
    found = [p for p in (directory.glob("*") if runner == "torch" else directory.rglob("*")) if p.is_file()]
    if runner == "torch":
        found = [p for p in found if p.suffix in (".safetensors", ".json", ".jinja", ".txt", ".model")]
        if target.manifest and target.manifest.kind == "adapter":  # its own, beside its base's
            found += [Path(target.path) / name for name in target.manifest.files]
    return found


def _engine(path: Path) -> str:
    if (path / "genai_config.json").is_file():
        return "genai"
    if (path / "openvino_model.xml").is_file():
        return "openvino"
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return "torch"
    if any(path.glob("*.onnx")):
        return "onnxruntime"
    raise GreenError(
        f"{path} holds no model: no genai_config.json, no openvino_model.xml, no safetensors with a config.json, "
        "no .onnx file, not one .gguf file.",
        "Give the directory that has one of them.",
    )

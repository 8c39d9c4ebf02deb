"""Adapters that an exported model puts on while it runs: files of ONNX Runtime's beside its graph. No torch."""

from __future__ import annotations

from pathlib import Path

from greenllm.errors import GreenError

FOLDER, SUFFIX = "adapters", ".onnx_adapter"


def adapters_of(directory: Path) -> dict[str, Path]:
    """Files by the adapters' names; nothing where a model has none."""
    return {f.stem: f for f in sorted((directory / FOLDER).glob(f"*{SUFFIX}"))}


def split(model: str | Path) -> tuple[Path, str]:
    """A model and the name of its adapter, "" for none: ``OUT/adapters/NAME.onnx_adapter`` is OUT with NAME on."""
    path = Path(model).expanduser()
    if path.suffix != SUFFIX or path.parent.name != FOLDER:
        return path, ""
    return path.parent.parent, path.stem


def file_of(directory: Path, name: str) -> Path:
    """An adapter's file.

    Raises:
        GreenError: the model has no such adapter.
    """
    there = adapters_of(directory)
    if name not in there:
        known = f"There are: {', '.join(there)}." if there else "Export some: greenllm export MODEL --adapter ADAPTER."
        raise GreenError(f"{directory} has no adapter {name!r}.", known)
    return there[name]

"""An artifact is a directory with a manifest, ``greenllm.json``; it is all that passes between rooms.

The manifest is untrusted input when it is read: it is validated against a schema, its paths may not
leave the directory, and sizes and SHA-256 of every file are checked before anything else is opened.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from greenllm.errors import GreenError

MANIFEST = "greenllm.json"
Kind = Literal["checkpoint", "onnx", "genai", "tensorrt", "edge-llm", "gguf", "model", "adapter"]
TRACKED = (
    "greenllm", "torch", "transformers", "safetensors", "onnx", "onnxscript", "onnxruntime",
    "onnxruntime-genai", "codecarbon", "numpy", "tensorrt", "tensorrt-rtx",
)  # fmt: skip


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class File(_Strict):
    """SHA-256 (hex) and size (bytes) of one file."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Source(_Strict):
    """What something was made from: a hub id, a directory, a GGUF file or another artifact; its licence, as stated."""

    id: str
    kind: Literal["hub", "directory", "gguf", "artifact"]
    revision: str | None = None
    files: dict[str, File] = Field(default_factory=dict)
    licence: str | None = None


class Energy(_Strict):
    """Energy of a run: kWh at the meter, gCO2e at the grid's factor, and how both were had."""

    kwh: float
    seconds: float
    method: str
    gco2e: float | None = None
    country: str | None = None


class StepRecord(_Strict):
    """One step of a recipe as it was run; what it found out is in ``result``."""

    step: str
    parameters: dict[str, Any]
    seconds: float
    result: dict[str, Any] = Field(default_factory=dict)


class Manifest(_Strict):
    """The contents of ``greenllm.json``. ``parents`` goes from the nearest to the source."""

    format: Literal[1] = 1
    kind: Kind
    created: str = ""
    parents: list[Source] = Field(default_factory=list)
    steps: list[StepRecord] = Field(default_factory=list)
    calibration: dict[str, Any] | None = None
    seed: int | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    energy: Energy | None = None
    details: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, File] = Field(default_factory=dict)


class Artifact:
    """A directory whose manifest was read; ``path`` is absolute.

    Use :func:`read` or :func:`open_verified` to get one and :func:`writing` to make one.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path.absolute()
        self.manifest = manifest

    @property
    def kind(self) -> Kind:
        """What the directory holds: a checkpoint, a format of export, or model (checkpoint, export and report)."""
        return self.manifest.kind

    @property
    def deployable(self) -> Artifact:
        """The part of a ``model`` that runs on the target; the artifact itself otherwise."""
        part = self.manifest.details.get("deploy")
        return read(self.path / inside(str(part))) if self.kind == "model" and part else self

    @property
    def bytes_on_disk(self) -> int:
        """Sum of the sizes of all files but the manifest."""
        return sum(f.size for f in self.manifest.files.values())

    def verify(self) -> None:
        """Compare every listed file with its size and hash.

        Raises:
            GreenError: a file is missing, changed, a link, or outside the directory.
        """
        for name, want in self.manifest.files.items():
            path = self.path / inside(name)
            if path.is_symlink() or not path.is_file():
                raise GreenError(f"{path}: listed in {MANIFEST} but {'a link' if path.is_symlink() else 'missing'}.")
            if path.stat().st_size != want.size or sha256(path) != want.sha256:
                raise GreenError(
                    f"{path}: its contents are not what {MANIFEST} says ({path.stat().st_size} bytes here, "
                    f"{want.size} there).",
                    "It was changed or damaged after it was written: make it again.",
                )

    def __repr__(self) -> str:
        return f"Artifact({self.kind!r}, {str(self.path)!r})"


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's contents."""
    with path.open("rb") as f:
        h = hashlib.sha256()
        while chunk := f.read(1 << 20):
            h.update(chunk)
    return h.hexdigest()


def file_of(path: Path) -> File:
    """Hash and size of a file."""
    return File(sha256=sha256(path), size=path.stat().st_size)


def hash_files(root: Path) -> dict[str, File]:
    """Hash every regular file below ``root`` (but the manifest); keys are POSIX relative paths."""
    return {
        p.relative_to(root).as_posix(): file_of(p)
        for p in sorted(root.rglob("*"))
        if p.is_file() and p != root / MANIFEST
    }


def versions() -> dict[str, str]:
    """Versions of Python, the machine and the packages that shape results."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    for name in TRACKED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def is_artifact(path: Path | str) -> bool:
    """Whether ``path`` is a directory with a manifest."""
    return (Path(path) / MANIFEST).is_file()


def read(path: Path | str) -> Artifact:
    """Read and validate the manifest; file contents are not checked (see :func:`open_verified`).

    Raises:
        GreenError: no manifest, not JSON, another schema, or a path that leaves the directory.
    """
    path = Path(path)
    file = path / MANIFEST
    if not file.is_file():
        raise GreenError(f"{path} is not a greenllm artifact: it has no {MANIFEST}.")
    try:
        manifest = Manifest.model_validate_json(file.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as e:
        raise GreenError(f"{file} is not a valid manifest: {_first_error(e)}.") from e
    for name in manifest.files:
        inside(name)
    return Artifact(path, manifest)


def open_verified(path: Path | str) -> Artifact:
    """:func:`read`, then :meth:`Artifact.verify`."""
    artifact = read(path)
    artifact.verify()
    return artifact


def seal(path: Path, manifest: Manifest) -> Artifact:
    """Hash all files below ``path``, fill in date and versions, and write the manifest."""
    manifest.created = dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")
    manifest.versions = versions()
    return relist(path, manifest)


def relist(path: Path, manifest: Manifest) -> Artifact:
    """Write the manifest with the files that lie below ``path`` now; date and versions stay those of the making."""
    manifest.files = hash_files(path)
    write_atomic(path / MANIFEST, json.dumps(manifest.model_dump(), indent=1, ensure_ascii=False) + "\n")
    return Artifact(path, manifest)


def as_source(artifact: Artifact) -> Source:
    """This artifact as the parent of the next one."""
    return Source(id=artifact.path.name, kind="artifact", files=artifact.manifest.files)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a kill leaves the old contents or the new, never half."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    part.replace(path)


def partial_of(out: Path) -> Path:
    """Where the work towards ``out`` lies until it is whole."""
    return out.with_name(f".{out.name}.partial")


@contextmanager
def writing(out: Path | str, *, force: bool = False, resume: bool = False) -> Iterator[Path]:
    """Give a directory beside ``out`` to fill; rename it to ``out`` if the block ends well.

    Args:
        out: final name. It exists only when it is whole.
        force: replace an existing ``out`` (which stays until the new one is whole).
        resume: keep the partial directory on failure and hand it out again next time.

    Raises:
        GreenError: ``out`` exists and ``force`` is off, its parent cannot be written, or another
            process is writing it.
    """
    out = Path(out).absolute()
    check_free(out, force=force)
    with working(out, keep=resume) as part:
        yield part
        _swap(part, out)


@contextmanager
def working(out: Path, *, keep: bool = False) -> Iterator[Path]:
    """Give a directory beside ``out``, gone after the block; what a kill leaves, the next try clears.

    Args:
        out: what is made of it.
        keep: leave it there on failure, and hand it out again as it is next time.

    Raises:
        GreenError: the parent of ``out`` cannot be written, or another process is writing ``out``.
    """
    part = partial_of(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out.with_name(f".{out.name}.lock"))
        lock.acquire(timeout=0)
    except Timeout as e:
        raise GreenError(f"Another greenllm process is writing {out}.", "Wait for it, or choose another -o.") from e
    except OSError as e:
        raise GreenError(f"Cannot write beside {out}: {e.strerror}.", "Choose another -o.") from e
    kept = keep
    try:
        if part.exists() and not keep:
            shutil.rmtree(part)
        part.mkdir(exist_ok=True)
        yield part
        kept = False
    finally:
        if not kept:
            shutil.rmtree(part, ignore_errors=True)
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def check_free(out: Path, *, force: bool) -> None:
    """Refuse an output that exists.

    Raises:
        GreenError: ``out`` exists and ``force`` is off, or is something greenllm did not write.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise GreenError(f"{out} exists.", "Choose another -o, or --force to replace it.")
    if out.is_symlink() or not out.is_dir() or (any(out.iterdir()) and not is_artifact(out)):
        raise GreenError(f"{out} was not written by greenllm; --force will not delete it.", "Choose another -o.")


def _swap(part: Path, out: Path) -> None:
    """Rename ``part`` to ``out``; an old ``out`` is deleted only after that."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    part.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def inside(name: str) -> str:
    """``name`` if it is a relative path that stays below where it is joined.

    Raises:
        GreenError: it is absolute, empty, or climbs out.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise GreenError(f"A manifest names {name!r}, which is outside its directory; it is not read.")
    return name


def placed(folder: Path, name: object, where: str, kind: str = "image") -> Path:
    """The file ``name`` below ``folder``.

    Args:
        folder: of the file that names it.
        name: a relative path, as it was read.
        where: file and line, for the error.
        kind: what it is, for the error.

    Raises:
        GreenError: it is no text, leaves the folder, or is not there.
    """
    try:
        file = folder / inside(name if isinstance(name, str) else "")
        below = file.resolve().is_relative_to(folder.resolve())
    except (GreenError, ValueError, OSError, RuntimeError):  # a NUL, a name too long, a ring of links
        below = False
    if not below:
        raise GreenError(f"{where}: the {kind} {name!r} is no path below {folder}.", "Paths begin there.")
    if not file.is_file():
        raise GreenError(f"{where}: there is no {kind} {file}.", f"Paths begin at {folder}.")
    return file


def _first_error(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(x) for x in first["loc"])
        return f"{where}: {first['msg']}" if where else str(first["msg"])
    return str(error)

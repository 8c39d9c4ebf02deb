"""A teacher's likeliest tokens on disk, made once: it may then be bigger than what fits beside the student.

A directory of ``shard-00000.safetensors`` … with ``cache.json``, which says of which teachers and which text they
are and has every shard's hash. A shard counts once ``cache.json`` lists it: a killed run goes on at the next one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from greenllm import artifact
from greenllm.distill.divergence import keep_top
from greenllm.errors import GreenError
from greenllm.progress import Progress

INDEX = "cache.json"
_SHARD = 16 << 20  # bytes of one shard, about
_TOKENS = 512  # asked of the teacher at a time: its logits are wide
_ENTRY = 4 + 4  # bytes of one kept token: float32 log-probability, int32 number

# rows of the samples -> the teacher's log-probabilities there, [rows, ..., V]
Ask = Callable[[range], Tensor]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Identity(_Strict):
    """Of what a cache is: teachers by the hashes of their weights, samples by theirs, and how it was cut."""

    teachers: list[str]
    samples: str
    rows: int
    outputs: int  # tokens or classes predicted over
    places: list[int]  # axes of one row that predictions are made at: [T] of a language model, [] of a classifier
    top: int
    temperature: float

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        places = int(torch.Size(self.places).numel())
        return places * (_ENTRY * self.top + 4)

    @property
    def rows_a_shard(self) -> int:
        """Rows in all shards but the last."""
        return max(1, _SHARD // self.row_bytes)

    @property
    def shards(self) -> list[range]:
        """Rows of each shard."""
        step = self.rows_a_shard
        return [range(i, min(i + step, self.rows)) for i in range(0, self.rows, step)]


class _Index(_Strict):
    identity: Identity
    shards: list[artifact.File] = Field(default_factory=list)


class Cache:
    """A whole cache, to read from; see :func:`fill`."""

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path, self.identity = path, identity

    def rows(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Log-probabilities [rows, ..., k + 1] and tokens [rows, ..., k] as :func:`keep_top` gives them."""
        found = [self._row(i) for i in rows]
        return torch.stack([v for v, _ in found]), torch.stack([i for _, i in found]).long()

    def _row(self, row: int) -> tuple[Tensor, Tensor]:
        shard, at = divmod(row, self.identity.rows_a_shard)
        with safe_open(_shard(self.path, shard), framework="pt") as f:
            return f.get_slice("values")[at], f.get_slice("tokens")[at]


def fill(path: Path, identity: Identity, ask: Ask, progress: Progress) -> Cache:
    """Make what is missing of a cache; shards that are there and whole are kept.

    Args:
        path: its directory.
        identity: of what it must be.
        ask: the teacher.
        progress: told the size before it begins.

    Raises:
        GreenError: the directory has another cache or other things in it, or the disk is or becomes full; whole
            shards stay, and the same command goes on there.
    """
    index = _open(path, identity)
    todo = _missing(path, index, progress)
    size, left = identity.rows * identity.row_bytes, sum(len(identity.shards[i]) for i in todo) * identity.row_bytes
    progress.note(f"The teacher's {identity.top} likeliest tokens: {_size(size)} in {path}, {_size(left)} to make.")
    path.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(path).free) < left:
        raise GreenError(f"{path} has {_size(free)} free; {_size(left)} are needed.", "Lower --top or move --cache.")
    progress.stage("asking the teacher once", sum(len(identity.shards[i]) for i in todo))
    for i in todo:
        _make(path, index, i, ask)
        progress.advance(len(identity.shards[i]))
    return Cache(path, identity)


def digest(ids: Tensor) -> str:
    """Hash of samples."""
    return hashlib.sha256(repr(tuple(ids.shape)).encode() + ids.contiguous().numpy().tobytes()).hexdigest()


def _open(path: Path, identity: Identity) -> _Index:
    file = path / INDEX
    if not file.exists():
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise GreenError(f"{path} has other things in it than a cache.", "Give an empty directory with --cache.")
        return _Index(identity=identity)
    try:
        found = _Index.model_validate_json(file.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as e:
        raise GreenError(f"{file} is not the index of a cache.", "Give another directory with --cache.") from e
    for key, value in identity.model_dump().items():
        if getattr(found.identity, key) != value:
            raise GreenError(
                f"{path} is the cache of another request: its {key} differ.", "Give another directory with --cache."
            )
    return found


def _missing(path: Path, index: _Index, progress: Progress) -> list[int]:
    """Numbers of the shards to make; a damaged one and all after it are made again, which is said."""
    for i, want in enumerate(index.shards):
        file = _shard(path, i)
        if not file.is_file() or file.stat().st_size != want.size or artifact.sha256(file) != want.sha256:
            progress.note(f"WARNING. {file} is missing or damaged; it and what follows are made again.")
            index.shards = index.shards[:i]
            break
    return list(range(len(index.shards), len(index.identity.shards)))


def _make(path: Path, index: _Index, i: int, ask: Ask) -> None:
    """One shard, then the index that lists it."""
    rows, step = index.identity.shards[i], max(1, _TOKENS // int(torch.Size(index.identity.places).numel()))
    kept = [keep_top(ask(rows[j : j + step]), index.identity.top) for j in range(0, len(rows), step)]
    values, tokens = torch.cat([v for v, _ in kept]), torch.cat([t for _, t in kept])
    file, part = _shard(path, i), path / "shard.part"
    try:
        save_file({"values": values.contiguous(), "tokens": tokens.int()}, part)
        part.replace(file)
        index.shards.append(artifact.File(sha256=artifact.sha256(file), size=file.stat().st_size))
        artifact.write_atomic(path / INDEX, json.dumps(index.model_dump(), indent=1) + "\n")
    except (OSError, SafetensorError) as e:
        part.unlink(missing_ok=True)
        raise GreenError(
            f"Writing {file} failed: {getattr(e, 'strerror', None) or e}. {i} of {len(index.identity.shards)} shards "
            "are whole and kept.",
            "Make room and run the same command again: it goes on there.",
        ) from e


def _shard(path: Path, i: int) -> Path:
    return path / f"shard-{i:05d}.safetensors"


def _size(count: float) -> str:
    unit, name = next((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if count >= u or n == "kB")
    return f"{count / unit:.1f} {name}"

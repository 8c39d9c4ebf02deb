"""A bundle as one file: a tar of plain files, the same bytes each time; opened without trust."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from greenllm.artifact import inside
from greenllm.errors import GreenError

_ENDINGS = (".tar", ".tar.gz", ".tgz")
_LARGEST = 1 << 40


def is_archive(path: Path) -> bool:
    """Whether a name is one of an archive."""
    return path.name.endswith(_ENDINGS)


def named(out: Path, *, archive: bool) -> Path:
    """``out``, with the ending of an archive where one is wanted."""
    return out.with_name(f"{out.name}.tar.gz") if archive and not is_archive(out) else out


def stem(path: Path) -> str:
    """The name without the ending; the one directory inside."""
    return next((path.name.removesuffix(e) for e in _ENDINGS if path.name.endswith(e)), path.name)


def check_free(out: Path, *, force: bool) -> None:
    """Refuse an archive that exists.

    Raises:
        GreenError: it is there and ``force`` is off, or is no file.
    """
    if out.is_dir() or (out.exists() and not force):
        raise GreenError(f"{out} exists.", "Choose another -o, or --force to replace it.")


def pack(directory: Path, out: Path) -> None:
    """Write all files below ``directory`` to ``out``, which is there only when it is whole."""
    part = out.with_name(f".{out.name}.part")
    try:
        with part.open("wb") as raw:
            if out.name.endswith(".tar"):
                _write(directory, raw)
            else:
                with gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed:  # weights hardly shrink: the fastest level
                    _write(directory, packed)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def _write(directory: Path, file: object) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                entry = tarfile.TarInfo(f"{directory.name}/{path.relative_to(directory).as_posix()}")
                entry.size = path.stat().st_size
                with path.open("rb") as f:
                    tar.addfile(entry, f)


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The directory of a bundle, unpacked to a temporary one where it is an archive.

    Raises:
        GreenError: nothing there, no tar, or an entry that is a link, is named twice, or lies outside.
    """
    if not is_archive(path):
        yield path
        return
    if not path.is_file():
        raise GreenError(f"{path}: there is no such archive.")
    with tempfile.TemporaryDirectory(prefix="greenllm-bundle-") as work:
        _unpack(path, Path(work))
        yield Path(work) / stem(path)


def _unpack(path: Path, work: Path) -> None:
    """Write the entries below ``work`` under the archive's own name."""
    seen: set[str] = set()
    free = shutil.disk_usage(work).free
    try:
        with tarfile.open(path) as tar:
            for entry in tar:
                if entry.isdir():
                    continue
                name = "/".join(inside(entry.name).split("/")[1:])
                if not entry.isfile() or not name or name in seen:
                    what = "listed twice" if name in seen else "no plain file below one directory"
                    raise GreenError(f"{path}: {entry.name!r} is {what}; it is not unpacked.")
                free -= entry.size
                if free < 0:
                    raise GreenError(f"{path} unpacks to more than is free under {work.parent}.", "Set TMPDIR.")
                seen.add(name)
                target = work / stem(path) / inside(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(entry)
                assert content is not None  # noqa: S101 - it is a plain file
                with content, target.open("wb") as f:
                    shutil.copyfileobj(content, f, 1 << 20)
    except (tarfile.TarError, EOFError, OSError, gzip.BadGzipFile) as e:
        raise GreenError(f"{path} is no archive that can be read: {e}.") from e

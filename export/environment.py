"""A Python environment of its own for a tool whose pins do not go beside ours: made on demand, whole or not at all."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from greenllm import artifact
from greenllm.errors import GreenError
from greenllm.progress import Progress
from greenllm.source import cache_dir

_UNWANTED = "torchvision"  # from the package index it breaks whatever imports torch on a CPU


def own_environment(name: str, requirements: Path, module: str, gigabytes: float, progress: Progress) -> Path:
    """The interpreter of an environment, which is made if it is not there.

    It lies in the cache under a name with a hash of what it must hold, and has that name only when it is whole: a
    creation that was killed is begun anew. Its console scripts name the place where it was made: run modules.

    Args:
        name: what it is for, with a version.
        requirements: a file for ``pip install -r``, pinned; pip's own settings say from where.
        module: what must be importable in it.
        gigabytes: disk that it may take, 10**9 bytes.
        progress: told of the stage.

    Raises:
        GreenError: too little space, or pip cannot make it.
    """
    home = place(name, requirements)
    python = home / "bin" / "python"
    if python.is_file():
        return python
    if home.is_dir():  # its base interpreter is gone
        shutil.rmtree(home)
    home.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home.parent).free
    if free < gigabytes * 1e9:
        raise GreenError(
            f"The environment for {name} takes up to {gigabytes:g} GB; {home.parent} has {free / 1e9:.1f}.",
            "Make room, or set GREENLLM_CACHE to another disk.",
        )
    progress.stage(f"making the environment for {name}: minutes, once", 3)
    with artifact.writing(home) as part:
        inner = part / "bin" / "python"
        _run([sys.executable, "-m", "venv", str(part)], name)
        progress.advance()
        pip = [str(inner), "-m", "pip", "--disable-pip-version-check", "--no-input"]
        _run([*pip, "install", "-r", str(requirements)], name)
        _run([*pip, "uninstall", "-y", _UNWANTED], name)
        progress.advance()
        _run([str(inner), "-c", f"import {module}"], name)
    progress.advance()
    return python


def place(name: str, requirements: Path) -> Path:
    """Where the environment of that name and contents lies, or will."""
    key = f"{requirements.read_text(encoding='utf-8')}{platform.python_version()}{platform.machine()}"
    return cache_dir() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def _run(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        first = next((line for line in said if line.startswith("ERROR")), said[-1] if said else "it says nothing")
        raise GreenError(
            f"The environment for {name} cannot be made: {first[:300]}",
            "It needs pip, the venv module (Debian: python3-venv) and the package index. Nothing of it was kept.",
        )

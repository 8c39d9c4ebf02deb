"""Find a model: a hub id, a directory, a GGUF file or an artifact becomes a local directory.

Safetensors only: a pickle runs whatever its author wrote. No remote code is ever run.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from greenllm import artifact
from greenllm.artifact import Artifact, Source
from greenllm.errors import GreenError
from greenllm.licence import stated

_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "vocab*", "merges*", "1_Pooling/*",
              "README.md", "LICEN[CS]E*"]  # fmt: skip


def resolve(model: str | Path) -> tuple[Path, list[Source]]:
    """Make ``model`` a local directory in Hugging Face's format.

    Args:
        model: a directory, a ``.gguf`` file, an artifact (verified), or a hub id.

    Returns:
        The directory, and its provenance from the nearest parent to the source.

    Raises:
        GreenError: nothing of that name, no checkpoint there, or files that are damaged.
    """
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix == ".gguf":
            return _from_gguf(path)
        raise GreenError(f"{path} is a file, but no .gguf.", "Give a .gguf file, a checkpoint directory or a hub id.")
    if path.is_dir():
        return _from_directory(path)
    return _from_hub(str(model))


def _from_directory(path: Path) -> tuple[Path, list[Source]]:
    if not artifact.is_artifact(path):
        check_files(path)
        about = Source(id=path.name, kind="directory", files=artifact.hash_files(path), licence=stated(path))
        return path, [about]
    found = artifact.open_verified(path)
    inner = found.manifest.details.get("checkpoint") if found.kind == "model" else None
    if inner:
        found = artifact.read(path / artifact.inside(str(inner)))
    if found.kind != "checkpoint":
        raise GreenError(
            f"{path} is a greenllm artifact of kind {found.kind!r}; a checkpoint is needed.",
            "Give the checkpoint that it was exported from."
            if found.kind != "adapter"
            else "Only a merged adapter is a checkpoint: greenllm adapt … --merge; a prefix never is.",
        )
    check_files(found.path)
    return found.path, [artifact.as_source(found), *found.manifest.parents]


def check_files(path: Path) -> None:
    """Refuse a directory that is no safetensors checkpoint, or one with damaged files.

    Raises:
        GreenError: no config.json, no weights, pickled weights only, a missing or truncated shard.
    """
    from safetensors import SafetensorError, safe_open

    if not (path / "config.json").is_file():
        raise GreenError(f"{path} is no checkpoint: it has no config.json.", "Give the directory that holds it.")
    files = shard_files(path)
    for file in files:
        if not file.is_file():
            raise GreenError(f"{file} is missing, though the checkpoint's index names it.", "Download it again.")
        try:
            with safe_open(file, framework="pt") as f:
                f.keys()
        except (SafetensorError, OSError) as e:
            raise GreenError(f"{file} is damaged or truncated: {e}.", "Download it again.") from e


def shard_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint directory, as its index names them.

    Raises:
        GreenError: there are none, or the index is damaged or names files outside the directory.
    """
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as e:
            raise GreenError(f"{index} is not a valid index of weights.", "Download it again.") from e
        return [path / artifact.inside(str(n)) for n in names]
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    pickled = sorted(p.name for p in path.glob("*.bin")) + sorted(p.name for p in path.glob("*.pt"))
    if pickled:
        raise GreenError(
            f"{path} has only pickled weights ({pickled[0]}), and a pickle can run any code when it is read.",
            "Save it with save_pretrained(), which writes safetensors, on a machine where you trust the file.",
        )
    raise GreenError(f"{path} is no checkpoint: it has no model.safetensors.", "Give the directory that holds it.")


def _from_hub(name: str) -> tuple[Path, list[Source]]:
    if not _HUB_ID.match(name) or name.startswith(".") or name.endswith(".gguf"):
        raise GreenError(f"{name}: no such file or directory.{_nearest(name)}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except LocalEntryNotFoundError as e:
        raise GreenError(
            f"{name}: no such directory here, and the model hub cannot be reached to look there.{_nearest(name)}",
            "Check the spelling and the connection, or give a directory or a .gguf file.",
        ) from e
    except (HfHubHTTPError, HFValidationError, OSError) as e:
        reason = str(e).splitlines()[0][:200]
        raise GreenError(
            f"{name}: no such directory here, and not on the model hub: {reason}.{_nearest(name)}",
            "Check the spelling; a private or gated model needs `hf auth login`.",
        ) from e
    check_files(path)
    files = artifact.hash_files(path)
    return path, [Source(id=name, kind="hub", revision=path.name, files=files, licence=stated(path))]


def _nearest(name: str) -> str:
    parent = Path(name).parent
    with contextlib.suppress(OSError):
        near = difflib.get_close_matches(Path(name).name, [p.name for p in parent.iterdir()], n=1)
        if near:
            return f" Did you mean {parent / near[0]}?"
    return ""


def cache_dir() -> Path:
    """Where converted models and figures of benches are kept: ``$GREENLLM_CACHE`` or ``~/.cache/greenllm``."""
    return Path(os.environ.get("GREENLLM_CACHE", Path.home() / ".cache" / "greenllm"))


def _from_gguf(path: Path) -> tuple[Path, list[Source]]:
    """Convert once; the result is cached by the file's hash."""
    digest = artifact.sha256(path)
    source = Source(
        id=path.name, kind="gguf", files={path.name: artifact.File(sha256=digest, size=path.stat().st_size)}
    )
    out = cache_dir() / "gguf" / digest[:16]
    if not artifact.is_artifact(out):
        with artifact.writing(out) as part:
            _convert_gguf(path, part)
            artifact.seal(part, artifact.Manifest(kind="checkpoint", parents=[source]))
    found: Artifact = artifact.open_verified(out)
    return found.path, [source]


def _convert_gguf(path: Path, out: Path) -> None:
    """Dequantize into a clean model: transformers reads GGUF but will not save what it read."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
        loaded = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **where)
    except Exception as e:
        raise GreenError(
            f"{path} cannot be read as GGUF: {str(e).splitlines()[0] if str(e) else type(e).__name__}."
        ) from e
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    config.architectures = [type(loaded).__name__]
    state = loaded.state_dict()
    tied = bool(getattr(config, "tie_word_embeddings", False))
    skip = set(loaded._tied_weights_keys or ()) if tied else set()  # noqa: SLF001 - the only list there is
    from safetensors.torch import save_file

    save_file(
        {k: v.contiguous() for k, v in state.items() if k not in skip}, out / "model.safetensors", {"format": "pt"}
    )
    config.save_pretrained(out)
    with contextlib.suppress(ValueError, OSError):
        loaded.generation_config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    template = path.with_name("chat_template.jinja")
    if template.is_file() and not (out / template.name).exists():
        shutil.copy(template, out)

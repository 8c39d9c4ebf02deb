"""What is done on the Jetson: scripts with the exact commands of TensorRT Edge-LLM, and the memory they take."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from greenllm.errors import GreenError
from greenllm.export.edgellm_checks import Shape
from greenllm.export.fits import RUNTIME, Fit, room
from greenllm.export.targets import Target

VERSION = "0.11.0"  # of the exporter, and of the tools on the device: a graph is read by its own version only
JETPACK, CUDA = "7.2", "13.2"  # that this version is released for, on Orin and Thor alike
_BOARDS = {"8.7": "jetson-orin", "11.0": "jetson-thor"}
_HERE = Path(__file__).parent


def board(target: Target) -> str:
    """The name that Edge-LLM's build has for a target's chip.

    Raises:
        GreenError: it has none: no Jetson that it runs on.
    """
    if target.compute_capability in _BOARDS:
        return _BOARDS[target.compute_capability]
    raise GreenError(
        f"TensorRT Edge-LLM runs on Jetson Orin and Thor, not on {target.name}.",
        "Give --target jetson-orin-nano or another Jetson, or another format with --to.",
    )


def memory(shape: Shape, config: Any, bits: float, longest: int) -> dict[str, int]:
    """Bytes on the device, by what takes them: the blocks' linears, embedding and head in fp16, cache, runtime.

    Args:
        shape: of the model.
        config: transformers' configuration.
        bits: of a weight in the blocks' linears, scales included.
        longest: tokens to hold.
    """
    layers = int(config.num_hidden_layers)
    return {
        "linears": int(layers * shape.linears * bits / 8),
        "embedding and head": 2 * 2 * int(config.vocab_size) * shape.hidden,
        "cache": 2 * 2 * layers * shape.groups * shape.head_size * longest,
        "runtime": int(RUNTIME["edge-llm"]),
    }


def refuse_too_large(parts: dict[str, int], target: Target, longest: int) -> None:
    """Refuse a model that the target has no room for, with the arithmetic.

    Raises:
        GreenError: it takes more than there is.
    """
    found = Fit(target.name, longest, {k: float(v) for k, v in parts.items()}, room(target))
    if not found.ok:
        raise GreenError(
            f"{target.name} has {(found.there or 0) / 2**30:.1f} GB for a model; this one takes {found.words}.",
            "Prune it (greenllm prune), give a smaller --context, or choose a device with more memory.",
        )


def write_steps(out: Path, target: Target, parts: dict[str, int], longest: int) -> dict[str, Any]:
    """Write ``build.sh``, ``run.sh`` and ``prompts.json`` beside the export.

    Args:
        out: the directory that has ``llm/``.
        target: the device.
        parts: see :func:`memory`.
        longest: tokens of the cache; half of them may be a prompt.

    Returns:
        Versions and commands for the manifest.
    """
    values = {
        "VERSION": VERSION, "TARGET": target.name, "BOARD": board(target), "JETPACK": JETPACK, "CUDA": CUDA,
        "MEMORY": -(-sum(parts.values()) // 2**20), "INPUT": longest // 2, "CACHE": longest,
    }  # fmt: skip
    lines = "".join(f"{k}={shlex.quote(str(v))}\n" for k, v in values.items())
    for name, purpose in (("build", "the engine is built, and Edge-LLM before it"), ("run", "prompts are answered")):
        head = f"#!/bin/sh\n# On the device: {purpose}.\nset -eu\n{lines}"
        script = out / f"{name}.sh"
        script.write_text(head + (_HERE / f"edgellm-{name}.sh").read_text(encoding="utf-8"), encoding="utf-8")
        script.chmod(0o755)
    template = (out / "llm" / "chat_template.jinja").is_file()
    ask = [{"messages": [{"role": "user", "content": "What is the capital of France?"}]}]
    prompts = {"batch_size": 1, "temperature": 0.0, "max_generate_length": 64, "apply_chat_template": template}
    (out / "prompts.json").write_text(json.dumps(prompts | {"requests": ask}, indent=1) + "\n", encoding="utf-8")
    return {
        "edgellm": VERSION, "board": values["BOARD"], "jetpack": JETPACK, "cuda": CUDA,
        "max_input": values["INPUT"], "max_cache": longest, "steps": ["./build.sh", "./run.sh"],
    }  # fmt: skip

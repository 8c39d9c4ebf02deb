"""TensorRT Edge-LLM's quantizer and exporter as processes: their arguments, and what they must not reach.

They load models with ``trust_remote_code``, so they are given a directory that holds none, and no network.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

from greenllm.errors import GreenError
from greenllm.export.edgellm_device import VERSION

METHODS = {"int4": "int4_awq", "int8": "int8_sq"}
_ALIGNED = 64  # where a tensor begins in the data
_CODE = ("auto_map", "custom_pipelines")  # keys that name a checkpoint's own code


def quantize_arguments(model: Path, out: Path, precision: str, samples: int) -> list[str]:
    """Arguments of its quantizer: the data set's name is one it knows, its contents are ours (see _quantize)."""
    return [
        "tensorrt_edgellm.scripts.quantize", "llm", "--model_dir", str(model), "--output_dir", str(out),
        "--quantization", METHODS[precision], "--text_dataset", "wikitext", "--num_samples", str(samples),
        "--device", "cpu",
    ]  # fmt: skip


def export_arguments(model: Path, out: Path, precision: str) -> list[str]:
    """Arguments of its exporter. Weights of the MLP go beside the graph: the engine's build then needs less memory."""
    found = ["tensorrt_edgellm.scripts.export", str(model), str(out)]
    return [*found, "--externalize-weights", "int4_ffn"] if precision == "int4" else found


def run_module(python: Path, arguments: list[str], work: Path, **environment: str) -> None:
    """Run a module of the environment, cut off from the network and from the user's caches.

    Raises:
        GreenError: it failed; with its last words.
    """
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(work / "hub"),
               "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    done = subprocess.run(
        [str(python), "-m", *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        cwd=work, env=inherited | offline | environment,
    )  # fmt: skip
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in said if re.match(r"[\w.]*(Error|Exception)\b", line)]
        last = (errors or said or [f"exit code {done.returncode}"])[-1]
        raise GreenError(f"{arguments[0]} of TensorRT Edge-LLM {VERSION} failed: {last[:300]}")


def strip_code(directory: Path) -> None:
    """Take out of a checkpoint's JSON files what names code to run with it.

    Raises:
        GreenError: a JSON file that is none.
    """
    for file in directory.rglob("*.json"):
        if file.is_symlink():
            continue
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as e:
            raise GreenError(f"{file.name} of the checkpoint is not JSON.", "Download it again.") from e
        if isinstance(data, dict) and any(k in data for k in _CODE):
            file.write_text(json.dumps({k: v for k, v in data.items() if k not in _CODE}, indent=1), encoding="utf-8")


def drop_dead_bytes(graph: Path) -> int:
    """Copy what the graph still reads of its external data into a new file, which takes the old one's place.

    The exporter moves weights out of the graph and leaves their bytes behind: more than half of an int4 model.

    Args:
        graph: ``model.onnx``; its external data lies beside it.

    Returns:
        Bytes that nobody read.

    Raises:
        GreenError: data in another file, or outside it.
    """
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    data = graph.with_name("model.onnx.data")
    part = graph.with_name("model.onnx.data.part")
    with data.open("rb") as old, part.open("wb") as new:
        for tensor in model.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            entries = {e.key: e for e in tensor.external_data}
            old.seek(int(entries["offset"].value))
            kept = old.read(int(entries["length"].value))
            if entries["location"].value != data.name or len(kept) != int(entries["length"].value):
                raise GreenError(f"Edge-LLM's export is damaged: {tensor.name} is not in {data.name}.")
            new.write(bytes(-new.tell() % _ALIGNED))
            entries["offset"].value = str(new.tell())
            new.write(kept)
    dead = data.stat().st_size - part.stat().st_size
    if dead <= 0:
        part.unlink()
        return 0
    onnx.save(model, str(graph))
    part.replace(data)
    return dead

"""ONNX Runtime GenAI's model builder at int4, on the checkpoint itself or on what Olive's GPTQ made of it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from greenllm.errors import GreenError


def build(checkpoint: Path, out: Path) -> None:
    """Round to nearest at int4 (or keep what is quantized), as ``-p int4 -e cpu`` does.

    Raises:
        GreenError: the builder fails.
    """
    with tempfile.TemporaryDirectory(prefix="greenllm-peer-") as cache:
        _run("greenllm.export.builder", "-i", str(checkpoint), "-m", str(checkpoint), "-o", str(out),
             "-p", "int4", "-e", "cpu", "-c", cache)  # fmt: skip


@contextlib.contextmanager
def olive_gptq(checkpoint: Path, text: Path, samples: int, length: int) -> Iterator[Path]:
    """The checkpoint by Olive's GPTQ: 4 bits, symmetric, groups of 32, the rest of its settings as they come.

    Args:
        checkpoint: directory in Hugging Face's format.
        text: ``.txt`` or ``.jsonl`` to calibrate on, cut to ``samples`` of ``length`` tokens.
        samples: how many.
        length: how long, in tokens.

    Yields:
        A directory that lasts as long as the block.

    Raises:
        GreenError: Olive fails.
    """
    with tempfile.TemporaryDirectory(prefix="greenllm-peer-") as work:
        file, out = Path(work) / "olive.json", Path(work) / "out"
        file.write_text(json.dumps(_workflow(checkpoint, text, samples, length, out)), encoding="utf-8")
        _run("olive", "run", "--config", str(file), "--disable_telemetry")
        found = next((p.parent for p in sorted(out.rglob("config.json"))), None)
        if found is None:
            raise GreenError(f"Olive left no model under {out}.")
        yield found


def _workflow(checkpoint: Path, text: Path, samples: int, length: int, out: Path) -> dict[str, Any]:
    kind = "json" if text.suffix == ".jsonl" else "text"
    cut = {"strategy": "join", "max_samples": samples, "max_seq_len": length,
           "add_special_tokens": False, "text_cols": ["text"]}  # fmt: skip
    data = {
        "name": "calibration",
        "type": "HuggingfaceContainer",
        "load_dataset_config": {"data_name": kind, "data_files": [str(text)], "split": "train"},
        "pre_process_data_config": cut,
        "dataloader_config": {"batch_size": 1},
    }
    cpu = {"type": "LocalSystem", "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}]}
    return {
        "input_model": {"type": "HfModel", "model_path": str(checkpoint)},
        "systems": {"here": cpu},
        "host": "here",
        "target": "here",
        "data_configs": [data],
        "passes": {"gptq": {"type": "Gptq", "bits": 4, "group_size": 32, "sym": True, "data_config": "calibration"}},
        "output_dir": str(out),
        "cache_dir": str(out.with_name("cache")),
        "no_artifacts": True,
    }


def _run(module: str, *arguments: str) -> None:
    """Run a tool in a process of its own; what it says is for its failure only."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        last = "\n".join(done.stdout.strip().splitlines()[-5:])
        raise GreenError(f"{module} failed with exit status {done.returncode}: {last}", 'pip install "greenllm[peers]"')

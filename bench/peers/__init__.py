"""Other tools' compressed models, made from one checkpoint, to stand beside ours in a bench.

Each is made as its tool makes it when it is told no more than "4 bit", and lands in a directory of its own.

    python -m greenllm.bench.peers CHECKPOINT --out out/peers --calibration text.jsonl
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from greenllm.errors import GreenError

__all__ = ["PEERS", "Calibration", "make"]


@dataclass(frozen=True)
class Calibration:
    """Text for a peer that wants some: a ``.txt`` or ``.jsonl`` file, cut to ``samples`` of ``length`` tokens."""

    text: Path | None = None
    samples: int = 64
    length: int = 128


Maker = Callable[[Path, Path, Calibration], None]


def make(
    checkpoint: str | Path, out: str | Path, only: Sequence[str] = (), calibration: Calibration | None = None
) -> list[Path]:
    """Make peers; what is there already is kept.

    Args:
        checkpoint: directory in Hugging Face's format, Llama-shaped.
        out: directory for all of them.
        only: names in :data:`PEERS`; all by default.
        calibration: for Olive's GPTQ.

    Returns:
        Their directories, in order.

    Raises:
        GreenError: an unknown name, or a checkpoint that a tool cannot take.
    """
    if unknown := set(only) - set(PEERS):
        raise GreenError(f"No peer is called {', '.join(sorted(unknown))}.", f"There are {', '.join(PEERS)}.")
    given = calibration or Calibration()
    return [_one(Path(checkpoint), Path(out), name, given) for name in only or PEERS]


def _one(checkpoint: Path, out: Path, name: str, calibration: Calibration) -> Path:
    done, part = out / name, out / f".{name}.part"
    if not done.is_dir():
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        PEERS[name](checkpoint, part, calibration)
        part.rename(done)
    return done


def _float16(checkpoint: Path, part: Path, _: Calibration) -> None:
    from greenllm.checkpoint import open_checkpoint
    from greenllm.export.gguf import write

    write(open_checkpoint(checkpoint), part / "model.gguf", "f16")
    shutil.copy(checkpoint / "tokenizer.json", part)


def _llamacpp(kind: str) -> Maker:
    def quantized(checkpoint: Path, part: Path, calibration: Calibration) -> None:
        from greenllm.bench.peers.gguf import quantize

        source = _one(checkpoint, part.parent, "llamacpp-f16", calibration) / "model.gguf"
        quantize(source, part / "model.gguf", kind)
        shutil.copy(checkpoint / "tokenizer.json", part)

    return quantized


def _openvino(checkpoint: Path, part: Path, _: Calibration) -> None:
    from greenllm.bench.peers.openvino import write

    write(checkpoint, part)


def _ort_genai(checkpoint: Path, part: Path, _: Calibration) -> None:
    from greenllm.bench.peers.ort import build

    build(checkpoint, part)


def _olive_gptq(checkpoint: Path, part: Path, calibration: Calibration) -> None:
    from greenllm.bench.peers.ort import build, olive_gptq

    if calibration.text is None:
        raise GreenError("Olive's GPTQ needs text to calibrate on.", "Give it with --calibration.")
    with olive_gptq(checkpoint, calibration.text, calibration.samples, calibration.length) as quantized:
        build(quantized, part)


PEERS: dict[str, Maker] = {
    "llamacpp-f16": _float16,
    "llamacpp-q8_0": _llamacpp("Q8_0"),
    "llamacpp-q4_k_m": _llamacpp("Q4_K_M"),
    "llamacpp-q4_0": _llamacpp("Q4_0"),
    "ort-genai-int4": _ort_genai,
    "olive-gptq-int4": _olive_gptq,
    "openvino-int4": _openvino,
}

"""llama.cpp's own quantizer."""

from __future__ import annotations

from pathlib import Path

from greenllm.errors import GreenError

_NAMES = {"Q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0", "Q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0", "Q4_K_M": "LLAMA_FTYPE_MOSTLY_Q4_K_M"}


def quantize(source: Path, file: Path, kind: str, threads: int = 1) -> None:
    """Run it without an importance matrix, as its command does when told nothing else.

    Raises:
        GreenError: llama.cpp refuses.
    """
    import llama_cpp as ll

    options = ll.llama_model_quantize_default_params()
    options.ftype, options.nthread = getattr(ll, _NAMES[kind]), threads
    if ll.llama_model_quantize(str(source).encode(), str(file).encode(), options) != 0:
        raise GreenError(f"llama.cpp cannot quantize {source} to {kind}; its log says why.")

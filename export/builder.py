"""The model builder of ORT-GenAI with the configurations it knows: run as ``-m`` with the builder's arguments.

transformers 5 keeps rope_theta and its like in ``rope_parameters``, and None where a file says nothing. Today's
builder knows; that of 0.11, the last for Python 3.10, reads attributes, silently takes 10000 for a base it does not
find, and writes null where its runtime wants a number.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers

from greenllm.older import older

_BUILDER = "onnxruntime-genai"
_TODAYS = (0, 18)
_KNOWN = {"default", "llama3", "longrope"}  # to older ones; every other kind they take for the default
_SEARCH = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}


def with_rotary(config: Any) -> Any:
    """A configuration with its rotary parameters as attributes, too."""
    rope = getattr(config, "rope_parameters", None) or {}
    refuse(rope, version(_BUILDER))
    for name, value in rope.items():
        if not hasattr(config, name):
            setattr(config, name, value)
    return config


def with_search(config: Any) -> Any:
    """A generation configuration without None where transformers 4 had a default."""
    for name, value in _SEARCH.items():
        if getattr(config, name) is None:
            setattr(config, name, value)
    return config


def then(kind: Any, change: Callable[[Any], Any]) -> None:
    """Have all that ``kind`` loads changed; the class stays, because the builder's modules may hold it already."""
    load = kind.from_pretrained
    kind.from_pretrained = staticmethod(lambda *args, **kwargs: change(load(*args, **kwargs)))


def refuse(rope: dict[str, Any], installed: str) -> None:
    """Leave the process when this builder would get the rotary embedding wrong.

    Args:
        rope: ``rope_parameters`` of a configuration; empty for a model without.
        installed: version of onnxruntime-genai.

    Raises:
        SystemExit: with the reason.
    """
    kind = rope.get("rope_type", "a kind for each layer")
    if rope and kind not in _KNOWN and older(installed, *_TODAYS):
        raise SystemExit(
            f"its rotary embedding ({kind}) needs {_BUILDER} 0.18 and so Python 3.11; here is {installed}."
        )


def plain_tokenizer(out: Path) -> None:
    """Name and decoder of the tokenizer as all versions of the runtime read them; transformers means the same.

    The runtime takes a decoder of SentencePiece's steps, which one from a GGUF has, for a SentencePiece tokenizer,
    and then splits text of a byte-level one at the wrong places.
    """
    file = out / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    file = out / "tokenizer.json"
    whole = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    split, decoder = whole.get("pre_tokenizer") or {}, whole.get("decoder") or {}
    steps = decoder.get("decoders", [])
    if split.get("type") == "ByteLevel" and any(s["type"] == "ByteLevel" for s in steps):
        whole["decoder"] = next(s for s in steps if s["type"] == "ByteLevel")
        file.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    sys.modules["sklearn"] = None  # type: ignore[assignment]  # 0.1 GB that transformers imports for nothing used here
    then(transformers.AutoConfig, with_rotary)
    then(transformers.GenerationConfig, with_search)
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    plain_tokenizer(Path(sys.argv[sys.argv.index("-o") + 1]))

"""Models that write what an image shows, an encoder sees and a decoder writes; what the files say. No torch."""

from __future__ import annotations

from pathlib import Path

from greenllm.audio import ENCODER
from greenllm.tokens import Tokenizer, read_json

TASK = "image-to-text"
KIND = "vision-encoder-decoder"  # transformers' name of the kind
_MOST = 64  # tokens of a caption, where the model's files say nothing


def sees(directory: Path) -> bool:
    """Whether an exported model writes what an image shows."""
    return (directory / ENCODER).is_file() and read_json(directory / "config.json").get("model_type") == KIND


def most_tokens(directory: Path) -> int:
    """Tokens that a caption may have: as ``generation_config.json`` says, and what there are positions for."""
    told = read_json(directory / "generation_config.json")
    most = told.get("max_new_tokens") or (told.get("max_length") or 0) - 1  # the first token is given
    room = Tokenizer(directory).context - 1
    return min(most if isinstance(most, int) and most > 0 else _MOST, room)

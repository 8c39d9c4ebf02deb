"""Models that write what an image shows, an encoder sees and a decoder writes; what the files say. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from greenllm.audio import ENCODER
from greenllm.export.device.run import Script
from greenllm.tokens import BLIP, Tokenizer, read_json, start_of

TASK = "image-to-text"
_PAIR, _BLIP = "vision-encoder-decoder", "blip"  # transformers' names of the kinds
PARTS = {_PAIR: ("encoder", "decoder"), _BLIP: ("vision_config", "text_config")}  # what sees, what writes
_HEAD = "text_decoder.cls.predictions"
BIASES = (f"{_HEAD}.bias", f"{_HEAD}.decoder.bias")  # BLIP's: one vector, of which files keep either or both
ONE = (BIASES, ("text_decoder.bert.embeddings.word_embeddings.weight", f"{_HEAD}.decoder.weight"))  # where it is tied
_MOST = 64  # tokens of a caption, where the model's files say nothing


def sees(directory: Path) -> bool:
    """Whether an exported model writes what an image shows."""
    return (directory / ENCODER).is_file() and read_json(directory / "config.json").get("model_type") in PARTS


def writes(config: Any) -> bool:
    """Whether a configuration of transformers is of a model that writes what an image shows."""
    return config.model_type == _PAIR or is_blip(config)


def is_blip(config: Any) -> bool:
    """Whether it is BLIP's that writes; others of its kind compare, or answer."""
    return config.model_type == _BLIP and config.architectures == [BLIP]


def most_tokens(directory: Path) -> int:
    """Tokens that a caption may have: as ``generation_config.json`` says, and what there are positions for."""
    told = read_json(directory / "generation_config.json")
    most = told.get("max_new_tokens") or (told.get("max_length") or 0) - 1  # the first token is given
    room = Tokenizer(directory).context - 1
    return min(most if isinstance(most, int) and most > 0 else _MOST, room)


def script(directory: Path) -> Script:
    """How the model in ``directory`` begins and ends a caption.

    Raises:
        GreenError: no file says where one begins.
    """
    return Script((start_of(directory),), tuple(sorted(Tokenizer(directory).ends)))

"""A model's tokenizer, and what its files say of its tokens: ``tokenizer.json`` and the configurations beside it."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from greenllm.errors import GreenError

BLIP = "BlipForConditionalGeneration"
_OF_BLIP = {  # transformers' own, which files leave out
    "bos_token_id": 30522, "sep_token_id": 102, "max_position_embeddings": 512, "vocab_size": 30524
}  # fmt: skip


class Tokenizer:
    """A ``tokenizer.json``, without the truncation and padding that some carry.

    Raises:
        GreenError: the directory has none, or a damaged one.
    """

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer

        file = directory / "tokenizer.json"
        if not file.is_file():
            raise GreenError(
                f"{directory} has no tokenizer.json; text cannot be cut into its tokens.",
                "Save it: transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...).",
            )
        try:
            self.inner = Tokenizer.from_file(str(file))
        except Exception as e:  # the library raises bare Exception
            raise GreenError(f"{file} is damaged: {e}.") from e
        self.inner.no_truncation()
        self.inner.no_padding()
        self.directory = directory

    @cached_property
    def ends(self) -> set[int]:
        """Tokens that end an answer, as the model's files name them."""
        if blip := _of_blip(self.directory):
            return {blip["sep_token_id"]}
        told = [read_json(self.directory / f).get("eos_token_id") for f in ("generation_config.json", "config.json")]
        told += [self._config.get("eos_token_id")]
        told += [
            read_json(self.directory / "genai_config.json").get("model", {}).get("eos_token_id"),
            self.special("eos"),
        ]
        flat = [t for x in told for t in (x if isinstance(x, list) else [x])]
        return {t for t in flat if isinstance(t, int)}

    @cached_property
    def context(self) -> int:
        """Tokens that the model reads at once, as its files say; 2048 where they do not."""
        told = [read_json(self.directory / "genai_config.json").get("model", {}).get("context_length")]
        told += [self._config.get(k) for k in ("max_position_embeddings", "n_positions", "max_target_positions")]
        return next((t for t in told if isinstance(t, int) and t > 1), 2048)

    @cached_property
    def _config(self) -> dict[str, Any]:
        """What the model's configuration says; what it says of the part that reads or writes texts goes first."""
        config = read_json(self.directory / "config.json")
        parts = [p for p in (config.get("text_config"), config.get("decoder")) if isinstance(p, dict)]
        return config | (parts[0] if parts else {}) | _of_blip(self.directory)

    def special(self, role: Literal["bos", "eos", "pad"]) -> int | None:
        """The token that the tokenizer's configuration gives a role."""
        token = read_json(self.directory / "tokenizer_config.json").get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        return self.inner.token_to_id(token) if isinstance(token, str) else None

    def words(self, ids: list[int]) -> str:
        """The text of tokens, special ones left out."""
        return str(self.inner.decode(ids))

    def encode(self, text: str) -> list[int]:
        """A text with all special tokens that the tokenizer itself puts around it."""
        return list(self.inner.encode(text).ids)

    def plain(self, text: str) -> list[int]:
        """A text without the tokenizer's own first tokens."""
        return list(self.inner.encode(text, add_special_tokens=False).ids)

    def text(self, text: str) -> list[int]:
        """A whole text, after the tokenizer's own first tokens."""
        return [*self.prefix(), *self.plain(text)]

    def prefix(self) -> list[int]:
        """The tokens that the tokenizer itself puts before a text: a beginning-of-text token, or nothing."""
        encoding = self.inner.encode("a")
        marks = encoding.special_tokens_mask
        return list(encoding.ids[: marks.index(0)]) if 0 in marks else []

    def sentences(self, texts: list[str], longest: int) -> list[list[int]]:
        """Each text with its special tokens, cut to ``longest``."""
        self.inner.enable_truncation(longest)
        found = [list(e.ids) for e in self.inner.encode_batch(texts)]
        self.inner.no_truncation()
        return found


def start_of(directory: Path) -> int:
    """The token that a decoder beside an encoder begins with, as transformers' ``generate`` finds it.

    Raises:
        GreenError: no file says which.
    """
    if blip := _of_blip(directory):
        return int(blip["bos_token_id"])
    for file in ("generation_config.json", "config.json"):
        if isinstance(told := read_json(directory / file).get("decoder_start_token_id"), int):
            return told
    raise GreenError(f"{directory}: no decoder_start_token_id in config.json: where does an answer begin?")


def _of_blip(directory: Path) -> dict[str, int]:
    """What BLIP's own ``generate`` goes by, its ``text_config`` alone; empty for other models.

    Raises:
        GreenError: a value there is no number, or names a token that there is not.
    """
    config = read_json(directory / "config.json")
    if config.get("architectures") != [BLIP]:
        return {}
    told = config.get("text_config")
    found = {key: told.get(key, own) if isinstance(told, dict) else own for key, own in _OF_BLIP.items()}
    for key, value in found.items():
        if type(value) is not int or value < 0 or (key.endswith("token_id") and value >= found["vocab_size"]):
            raise GreenError(
                f"{directory / 'config.json'}: {key} of text_config is {value!r}, which makes no sense.",
                "Take the one that came with the model.",
            )
    return found


def read_json(file: Path) -> dict[str, Any]:
    """A configuration beside the tokenizer; empty where there is none or it is damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

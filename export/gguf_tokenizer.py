"""A ``tokenizer.json`` as llama.cpp reads it: byte-level BPE, or SentencePiece's BPE with scores."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf

from greenllm.errors import GreenError
from greenllm.tokens import Tokenizer

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_RULES = {_WORDS % "{1,3}": "llama-bpe", _WORDS % "": "qwen2"}  # how text is cut into words: llama.cpp has names for it
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_MARK = "▁"


def write_tokenizer(writer: gguf.GGUFWriter, directory: Path, size: int) -> None:
    """Tokens by id with fillers up to the model's vocabulary, merges or scores, special tokens and chat template.

    Raises:
        GreenError: there is no tokenizer.json, or one that cuts text in a way that llama.cpp does not have.
    """
    tokenizer, held = Tokenizer(directory), read_tokenizer(directory)
    sentencepiece = _is_sentencepiece(held)
    writer.add_tokenizer_model("llama" if sentencepiece else "gpt2")
    writer.add_tokenizer_pre("default" if sentencepiece else rule_of(held, directory))
    tokens = token_list(held, size, directory)
    writer.add_token_list([text for text, _ in tokens])
    if sentencepiece:
        writer.add_token_scores(scores_of(held, [text for text, _ in tokens]))
        writer.add_add_space_prefix(_puts_blank_first(held))
    writer.add_token_types([kind for _, kind in tokens])
    special = gguf.SpecialVocab(directory, load_merges=not sentencepiece, n_vocab=size)
    special.add_to_gguf(writer, quiet=True)
    if others := sorted(tokenizer.ends - {special.special_token_ids.get("eos")}):
        writer.add_eot_token_id(others[0])


def read_tokenizer(directory: Path) -> dict[str, Any]:
    """A ``tokenizer.json`` that llama.cpp has a name for.

    Raises:
        GreenError: see :func:`write_tokenizer`.
    """
    Tokenizer(directory)  # says what is damaged
    held: dict[str, Any] = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    if not _is_sentencepiece(held):
        rule_of(held, directory)
        if not held["model"]["merges"]:
            raise GreenError(f"{directory}: its tokenizer has no merges, which llama.cpp insists on.")
    return held


def rule_of(held: dict[str, Any], directory: Path) -> str:
    """llama.cpp's name of how a byte-level tokenizer cuts text into words.

    Raises:
        GreenError: it has none.
    """
    parts = _flat(held.get("pre_tokenizer"))
    kinds = [p["type"] for p in parts]
    first, last = (parts[0], parts[-1]) if parts else ({}, {})
    said = {s["type"] for s in _flat(held.get("normalizer"))}
    if held["model"]["type"] == "BPE" and said <= {"NFC"} and not last.get("add_prefix_space"):
        if kinds == ["ByteLevel"] and last.get("use_regex", True):
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and first["individual_digits"] and last.get("use_regex", True):
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and first["behavior"] == "Isolated" and not first.get("invert"):
            pattern = first["pattern"].get("Regex")
            if pattern in _RULES and not last.get("use_regex", True):
                return _RULES[pattern]
    shown = " + ".join([held["model"]["type"], *sorted(said), *kinds])
    raise GreenError(
        f"{directory}: its tokenizer ({shown}) cuts text in a way that is not known to be llama.cpp's.",
        "GGUF is written of tokenizers like those of GPT-2, SmolLM2, Llama 2 and 3, Mistral and Qwen.",
    )


def token_list(held: dict[str, Any], size: int, directory: Path) -> list[tuple[str, gguf.TokenType]]:
    """Each token's text and kind, by id.

    Raises:
        GreenError: an id beyond the model's vocabulary.
    """
    found = [(f"[PAD{i}]", gguf.TokenType.UNUSED) for i in range(size)]
    special = {t["content"]: t["id"] for t in held["added_tokens"]}
    if (most := max([*held["model"]["vocab"].values(), *special.values()])) >= size:
        raise GreenError(f"{directory}: its tokenizer has a token {most}, the model {size} in all.")
    for text, i in held["model"]["vocab"].items():
        kind = gguf.TokenType.BYTE if _is_sentencepiece(held) and _BYTE.fullmatch(text) else gguf.TokenType.NORMAL
        found[i] = (text, kind)
    for token in held["added_tokens"]:
        kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        found[token["id"]] = (token["content"], kind)
    unknown = held["model"].get("unk_token")
    if _is_sentencepiece(held) and unknown in held["model"]["vocab"]:
        found[held["model"]["vocab"][unknown]] = (unknown, gguf.TokenType.UNKNOWN)
    return found


def scores_of(held: dict[str, Any], tokens: list[str]) -> list[float]:
    """SentencePiece joins the two pieces whose union scores highest: here that of the earliest merge."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(held["model"]["merges"]):
        ranks.setdefault("".join(pair.split(" ") if isinstance(pair, str) else pair), rank)
    return [-float(ranks.get(text, len(ranks))) for text in tokens]


def _is_sentencepiece(held: dict[str, Any]) -> bool:
    """A BPE that falls back on bytes and writes blanks as a mark."""
    marks = json.dumps([held.get("normalizer"), held.get("pre_tokenizer")], ensure_ascii=False)
    return held["model"]["type"] == "BPE" and bool(held["model"].get("byte_fallback")) and _MARK in marks


def _puts_blank_first(held: dict[str, Any]) -> bool:
    steps = [*_flat(held.get("normalizer")), *_flat(held.get("pre_tokenizer"))]
    return any(
        (s["type"] == "Prepend" and s.get("prepend") == _MARK)
        or (s["type"] == "Metaspace" and s.get("prepend_scheme", "always") != "never")
        for s in steps
    )


def _flat(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a sequence, or the only one."""
    if step is None:
        return []
    inner = step.get("normalizers", step.get("pretokenizers"))
    return [step] if inner is None else [s for each in inner for s in _flat(each)]

"""A fast tokenizer (``tokenizer.json``) with fewer tokens, which cuts what it still knows as before.

BPE keeps a token together with all that it is merged from: the merges that a text takes are then those it took
before, so a text of kept tokens is cut into the same ones. WordPiece takes the longest piece and Unigram the
likeliest sequence; neither ever took the pieces that go.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from greenllm import artifact
from greenllm.errors import GreenError

_STALE = (
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip - what says again, with the old ids, what tokenizer.json says


class FastTokenizer:
    """A ``tokenizer.json``.

    Attributes:
        ids: id by token, added tokens included.

    Raises:
        GreenError: there is none, or one of a kind that cannot be cut.
    """

    def __init__(self, directory: Path) -> None:
        self.file = directory / "tokenizer.json"
        if not self.file.is_file():
            raise GreenError(
                f"{directory} has no tokenizer.json, so its vocabulary cannot be cut.",
                "Save it: transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...).",
            )
        try:
            self.data: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
            self.model: dict[str, Any] = self.data["model"]
            self.kind: str = self.model.get("type") or "BPE"
            pieces = self.model["vocab"]
            own = {p[0]: i for i, p in enumerate(pieces)} if isinstance(pieces, list) else dict(pieces)
            self.added = {str(t["content"]): int(t["id"]) for t in self.data.get("added_tokens") or []}
        except (ValueError, KeyError, TypeError, IndexError) as e:
            raise GreenError(f"{self.file} is damaged: {type(e).__name__} {e}.") from e
        odd = [
            k for k in ("continuing_subword_prefix", "end_of_word_suffix") if self.kind == "BPE" and self.model.get(k)
        ]
        if self.kind not in ("BPE", "WordPiece", "Unigram") or odd:
            raise GreenError(f"{self.file}: a vocabulary of {' '.join([self.kind, *odd])} cannot be cut here.")
        self.ids = own | self.added
        merges = (m.split(" ") if isinstance(m, str) else m for m in self.model.get("merges") or [])
        self.ranks = {(a, b): i for i, (a, b) in reversed(list(enumerate(merges)))}

    def base(self) -> set[str]:
        """Tokens without which some text could not be encoded any more, and all that were added."""
        found = {t for t in self.ids if t in self.added or t == self.model.get("unk_token")}
        if isinstance(self.model.get("unk_id"), int):
            found.add(self.model["vocab"][self.model["unk_id"]][0])
        codes = {t for t in self.ids if len(t) == len("<0x00>") and t.startswith("<0x") and t.endswith(">")}
        prefix = self.model.get("continuing_subword_prefix") or ""
        single = {t for t in self.ids if len(t.removeprefix(prefix) if prefix else t) == 1}
        if _has(self.data.get("pre_tokenizer"), "ByteLevel"):
            return found | single  # of these there are but 256
        return found | (codes if self.model.get("byte_fallback") and len(codes) == 256 else codes | single)  # noqa: PLR2004

    def parts(self, token: str) -> set[str]:
        """What a token of BPE is merged from, step by step; nothing for other kinds."""
        found: set[str] = set()
        pieces = list(token)
        while self.ranks and len(pieces) > 1:
            pairs = enumerate(itertools.pairwise(pieces))
            rank, at = min((self.ranks.get(pair, len(self.ranks)), i) for i, pair in pairs)
            if rank == len(self.ranks):
                break
            found |= set(pieces)
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        return found & self.ids.keys()

    def write(self, out: Path, new: dict[int, int]) -> None:
        """Write it with the tokens of ``new`` alone, their new ids by the old ones; other files of it go or follow.

        Args:
            out: a directory with a copy of the tokenizer's files.
            new: new ids by old ones, in the same order.
        """
        data = json.loads(json.dumps(self.data))
        model, kept = data["model"], {t for t, i in self.ids.items() if i in new}
        if isinstance(model["vocab"], list):
            model["vocab"] = [p for i, p in enumerate(model["vocab"]) if i in new]
            if isinstance(model.get("unk_id"), int):
                model["unk_id"] = new[model["unk_id"]]
        else:
            model["vocab"] = {t: new[i] for t, i in model["vocab"].items() if i in new}
        if "merges" in model:
            pairs = ((m, m.split(" ") if isinstance(m, str) else m) for m in model["merges"])
            model["merges"] = [m for m, (a, b) in pairs if {a, b, a + b} <= kept]
        for token in data.get("added_tokens") or []:
            token["id"] = new[token["id"]]
        if data.get("padding"):
            data["padding"]["pad_id"] = new.get(data["padding"]["pad_id"], 0)
        _renumber_template(data.get("post_processor"), new)
        artifact.write_atomic(out / "tokenizer.json", json.dumps(data, ensure_ascii=False))
        for name in _STALE:
            (out / name).unlink(missing_ok=True)
        file = out / "tokenizer_config.json"
        if file.is_file():
            config = renumbered(json.loads(file.read_text(encoding="utf-8")), new)
            if isinstance(added := config.get("added_tokens_decoder"), dict):
                config["added_tokens_decoder"] = {str(new[int(i)]): t for i, t in added.items() if int(i) in new}
            artifact.write_atomic(file, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def named_ids(config: dict[str, Any]) -> set[int]:
    """The token ids that a configuration names (``eos_token_id``, ``suppress_tokens``, …)."""
    found: set[int] = set()
    for key, value in config.items():
        if _names_ids(key):
            found |= {i for i in (value if isinstance(value, list) else [value]) if type(i) is int}
    return found


def renumbered(config: dict[str, Any], new: dict[int, int]) -> dict[str, Any]:
    """The configuration with its token ids replaced; those that no token has stay."""

    def replace(value: Any) -> Any:
        if isinstance(value, list):
            return [replace(v) for v in value]
        return new.get(value, value) if type(value) is int else value

    return {k: replace(v) if _names_ids(k) else v for k, v in config.items()}


def _names_ids(key: str) -> bool:
    return key.endswith(("_token_id", "_token_ids", "suppress_tokens"))


def _renumber_template(processor: Any, new: dict[int, int]) -> None:
    """Special tokens that a post-processor puts around a text, in place."""
    if not isinstance(processor, dict):
        return
    for part in processor.get("processors") or []:
        _renumber_template(part, new)
    if isinstance(processor.get("special_tokens"), dict):
        for token in processor["special_tokens"].values():
            token["ids"] = [new[i] for i in token["ids"]]
    for name in ("sep", "cls"):
        if isinstance(processor.get(name), list):
            processor[name][1] = new[processor[name][1]]


def _has(part: Any, kind: str) -> bool:
    return isinstance(part, dict) and (
        part.get("type") == kind or any(_has(p, kind) for p in part.get("pretokenizers") or [])
    )

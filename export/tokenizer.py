"""The tokenizer that is exported is the runtime's own: compare how it splits text with Hugging Face's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError

ENGLISH = "The water cycle describes how water evaporates from the sea, rises, cools into clouds, and falls as rain. "
_OTHERS = (  # what tokenizers are apt to split in different ways
    "  two  blanks,\n\n\ta tab and a blank at the end ",
    "don't I'LL we've x=1; y+=2**3 # 0123456789",
    "Ünïcödé naïve ﬁ ½ e\u0301 Привет мир",
    "水循环描述了水。 مرحبا 😀👍🏽",
)


_FIX = "Export it as plain ONNX (--to onnx) and tokenize with Hugging Face's."


class Encoder(Protocol):
    """A tokenizer of a runtime."""

    def encode(self, text: str) -> Sequence[int]:
        """Token ids of a text."""


def departing_texts(checkpoint: Checkpoint, runtimes: Encoder, fix: str = _FIX) -> list[str]:
    """Texts that the runtime's tokenizer splits otherwise than the checkpoint's.

    Args:
        checkpoint: whose directory transformers reads.
        runtimes: what will split texts.
        fix: what to do where plain English departs.

    Raises:
        GreenError: plain English is one of them, and not only for the special tokens at its ends.
    """
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True)
    except (OSError, ValueError):
        return []
    special = set(theirs.all_special_ids)  # what stands for unknown words is one of them
    both = runtimes.encode(ENGLISH), theirs(ENGLISH, add_special_tokens=False)["input_ids"]
    ours, plain = ([int(i) for i in ids if i not in special] for ids in both)
    if ours != plain:
        raise GreenError(
            "The runtime's tokenizer splits English text otherwise than Hugging Face's: the model would read nonsense.",
            fix,
        )
    return [t for t in (ENGLISH, *_OTHERS) if list(map(int, runtimes.encode(t))) != theirs(t)["input_ids"]]

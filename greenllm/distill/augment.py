"""Noise in what is learned from: beside each row a disturbed copy, so that a student stays right where people mistype.

Training on noise as in Belinkov & Bisk (2018, Synthetic and Natural Noise Both Break Neural Machine Translation,
arXiv:1711.02173, section 5.2); the disturbances are those of the bench's suite "robustness". The teacher reads the
copy too, as it reads augmented text in TinyBERT (Jiao et al., 2020, arXiv:1909.10351, section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from greenllm.bench.tasks.robust.texts import TEXTS, disturbed
from greenllm.distill.labelled import Table
from greenllm.distill.vocabulary import Tokenizer
from greenllm.errors import GreenError

_PERCENT = 10.0


def strengths(text: str) -> dict[str, float]:
    """Kinds of noise with their percents: ``typos=5,casing`` (10, where none is given).

    Raises:
        GreenError: no such kind, one twice, or no percent.
    """
    found: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        kind, equals, number = part.partition("=")
        try:
            percent = float(number) if equals else _PERCENT
        except ValueError:
            percent = 0.0
        if kind not in TEXTS or kind in found or not 0 < percent <= 100:  # noqa: PLR2004 - percent
            raise GreenError(
                f"{part!r} is not KIND or KIND=PERCENT, once.", f"--augment takes {', '.join(TEXTS)}; typos=5,casing."
            )
        found[kind] = percent
    return found


def rows(table: Table, noise: dict[str, float]) -> Table:
    """A table with a copy of each row, whose texts are disturbed by one kind after the other; labels stay."""
    if not noise:
        return table
    n = len(table.texts)
    twice = table.rows([*range(n), *range(n)])
    twice.texts[n:] = _copies(table.texts, noise)
    if table.pairs and twice.pairs:
        twice.pairs[n:] = _copies(table.pairs, noise)
    return twice


def windows(ids: Tensor, tokenizer: Tokenizer, noise: dict[str, float]) -> Tensor:
    """Windows of text, int64 [windows, length], and after them their disturbed copies that are as long."""
    length = ids.shape[1]
    copies = _copies(tokenizer.batch_decode(ids, skip_special_tokens=True), noise)
    found = [tokenizer(c, add_special_tokens=False, verbose=False)["input_ids"][:length] for c in copies]
    return torch.cat([ids, torch.tensor([f for f in found if len(f) == length], dtype=ids.dtype).view(-1, length)])


def _copies(texts: list[str], noise: dict[str, float]) -> list[str]:
    kinds = list(noise.items())
    return [disturbed(text, *kinds[i % len(kinds)]) for i, text in enumerate(texts)]

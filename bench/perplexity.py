"""Perplexity: how surprised a model is by text it did not write.

Protocol: the text is tokenized whole; its tokens are cut into windows that do not overlap, of which
some, evenly spread over the text, are scored. Each window starts cold (after the tokenizer's own
beginning-of-text token, where it has one), so that windows are independent samples. The perplexity is
the exponential of the mean negative log-likelihood per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from greenllm.bench import fidelity
from greenllm.bench.measurement import Measurement, log_mean
from greenllm.errors import GreenError

_CHUNK = 64  # rows at a time: a vocabulary is wide


@dataclass(frozen=True)
class Score:
    """One window: mean nats per token, and against the baseline mean KL (nats) and share of equal top tokens."""

    nll: float
    tokens: int
    kl: float | None = None
    top1: float | None = None


def score(
    logits: NDArray[np.float32],
    targets: Sequence[int],
    source: NDArray[np.float32] | None = None,
    keep: NDArray[np.float32] | None = None,
) -> Score:
    """Score a window.

    Args:
        logits: [T, V], row t the prediction of ``targets[t]``.
        targets: T token ids.
        source: [T, V], the baseline's log-probabilities at the same places.
        keep: [T, V], filled with this model's log-probabilities.

    Raises:
        GreenError: NaN or infinite logits, a target beyond the vocabulary, or shapes that differ.
    """
    if source is not None and source.shape != logits.shape:
        raise GreenError(
            f"Its logits are {list(logits.shape)}, the baseline's {list(source.shape)}: another vocabulary."
        )
    if max(targets) >= logits.shape[-1]:
        raise GreenError(f"Token {max(targets)} of its tokenizer lies beyond its {logits.shape[-1]} logits.")
    total = np.zeros(3)
    for begin in range(0, len(logits), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        if not np.isfinite(logits[part]).all():
            raise GreenError("Its logits hold NaN or infinity.")
        logp = log_softmax(logits[part])
        rows = np.arange(len(logp))
        total[0] -= logp[rows, np.asarray(targets[part])].sum(dtype=np.float64)
        if source is not None:
            total[1:] += fidelity.compare(np.asarray(source[part]), logp)
        if keep is not None:
            keep[part] = logp
    nll, kl, top1 = (total / len(logits)).tolist()
    return Score(nll, len(logits)) if source is None else Score(nll, len(logits), kl, top1)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Row-wise, float32 [T, V]."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    found: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


@dataclass
class Scores:
    """All windows of one model; ``text_bytes[i]`` is the UTF-8 length of what window i scored."""

    text_bytes: list[int]
    windows: list[Score] = field(default_factory=list)

    def samples(self) -> dict[str, list[float]]:
        """By window: perplexity, bits per byte, and what was compared with the baseline."""
        found = {
            "perplexity": [math.exp(min(w.nll, 700.0)) for w in self.windows],
            "bits_per_byte": [
                w.nll * w.tokens / math.log(2) / size for w, size in zip(self.windows, self.text_bytes, strict=False)
            ],
            "kl": [w.kl for w in self.windows if w.kl is not None],
            "top1": [w.top1 for w in self.windows if w.top1 is not None],
        }
        return {name: values for name, values in found.items() if values}

    def measurements(self) -> dict[str, Measurement]:
        """Over windows. All windows are equally long, so the mean of their log-perplexities is the text's."""
        by = self.samples()
        return {
            "perplexity": log_mean(by["perplexity"], "", "computed: log-likelihood of the text"),
            "bits_per_byte": log_mean(by["bits_per_byte"], "bits", "computed: log-likelihood of the text"),
            **fidelity.measurements(by),
        }

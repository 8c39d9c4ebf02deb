"""Fidelity: does the model still say what the baseline says, on the same text?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from greenllm.bench.measurement import Measurement, bootstrap, statistic
from greenllm.errors import GreenError

_COLUMNS = 3
_FEWEST = 10


def compare(source: NDArray[np.float32], model: NDArray[np.float32]) -> tuple[float, float]:
    """Sums over rows of KL(source || model) in nats, and of rows whose most likely token is the same.

    Args:
        source: log-probabilities [T, V] of the baseline.
        model: log-probabilities [T, V].
    """
    kl = (np.exp(source) * (source - model)).sum(dtype=np.float64)
    same = (source.argmax(axis=-1) == model.argmax(axis=-1)).sum()
    return max(float(kl), 0.0), float(same)


def measurements(samples: dict[str, list[float]]) -> dict[str, Measurement]:
    """KL and agreement over windows, where they were compared."""
    method = "computed: on the baseline's windows"
    found = {"kl": bootstrap(samples["kl"], "nats/token", method)} if "kl" in samples else {}
    return found | ({"top1": bootstrap(samples["top1"], "share", method).scaled(100, "%")} if "top1" in samples else {})


def embeddings(source: NDArray[np.float32], model: NDArray[np.float32]) -> dict[str, list[float]]:
    """By sentence or image: cosine to the baseline's embedding [B, H], and whether the nearest other is the same."""
    a, b = _unit(source), _unit(model)
    cosine = np.minimum((a * b).sum(axis=1), 1.0)
    same = _nearest(a) == _nearest(b)
    return {"cosine": cosine.tolist(), "neighbour": same.astype(float).tolist()}


def classified(source: NDArray[np.float32], model: NDArray[np.float32]) -> dict[str, list[float]]:
    """By text or image: cosine to the baseline's logits [B, C], and whether the likeliest class is the same."""
    same = source.argmax(1) == model.argmax(1)
    return {"cosine": embeddings(source, model)["cosine"], "top1": same.astype(float).tolist()}


def answer_measurements(samples: dict[str, list[float]], what: str) -> dict[str, Measurement]:
    """Means of what :func:`embeddings` or :func:`classified` found, over the baseline's sentences or images."""
    method = f"computed: on the baseline's {what}"
    shares = {k: bootstrap(v, "share", method).scaled(100, "%") for k, v in samples.items() if k != "cosine"}
    return {"cosine": bootstrap(samples["cosine"], "", method), **shares}


def spearman(left: NDArray[np.float32], right: NDArray[np.float32], scores: list[float]) -> Measurement:
    """Rank correlation of the cosine of pairs [P, H] with what people said; bootstrap over pairs."""
    from scipy import stats

    cosine = (_unit(left) * _unit(right)).sum(axis=1)
    data = np.stack([cosine, np.asarray(scores)], axis=1)
    return statistic(
        data.tolist(), lambda x: stats.spearmanr(x[:, 0], x[:, 1]).statistic, "", "computed: rank correlation"
    )


def read_pairs(path: Path) -> tuple[list[str], list[str], list[float]]:
    """Sentence pairs with a score: ``.csv``, ``.tsv`` or ``.jsonl`` (sentence1, sentence2, score).

    Raises:
        GreenError: no such file, another format, a bad row (its number is told), or fewer than 10 rows.
    """
    import csv
    import json

    if not path.is_file() or path.suffix not in (".csv", ".tsv", ".jsonl"):
        raise GreenError(f"{path} is no .csv, .tsv or .jsonl file with sentence1, sentence2, score.")
    found: list[tuple[str, str, float]] = []
    with path.open(encoding="utf-8", newline="") as f:
        rows = map(_record, map(json.loads, f)) if path.suffix == ".jsonl" else csv.reader(f, delimiter=_comma(path))
        try:
            for row in rows:
                if len(row) == _COLUMNS and (found or row[2] != "score"):
                    found.append((row[0], row[1], float(row[2])))
                elif len(row) != _COLUMNS:
                    raise GreenError(f"{path}, row {len(found) + 1}: {len(row)} columns; sentence1, sentence2, score.")
        except (ValueError, KeyError, TypeError) as e:
            raise GreenError(f"{path}, row {len(found) + 1}: {type(e).__name__} {e}.") from e
    if len(found) < _FEWEST:
        raise GreenError(f"{path} has {len(found)} pairs; a correlation takes at least {_FEWEST}.")
    left, right, scores = zip(*found, strict=True)
    return list(left), list(right), list(scores)


def _record(row: dict[str, str]) -> list[str]:
    return [row["sentence1"], row["sentence2"], row["score"]]


def _comma(path: Path) -> str:
    return "\t" if path.suffix == ".tsv" else ","


def _unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _nearest(unit: NDArray[np.float32]) -> NDArray[np.int64]:
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return similarity.argmax(axis=1)

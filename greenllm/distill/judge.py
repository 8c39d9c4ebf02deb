"""Judge a pupil on held-out rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from greenllm import gpu
from greenllm.distill.data import Batch
from greenllm.distill.pupil import Pupil
from greenllm.distill.rows import Rows
from greenllm.distill.teachers import own_loss


def autocast(dtype: torch.dtype) -> Any:
    """Mixed precision outside the loop, as inside it."""
    return torch.autocast(gpu.kind(), dtype, enabled=dtype != torch.float32)


def measure(pupil: Pupil, samples: Batch, dtype: torch.dtype, tokens: int = 512) -> dict[str, float]:
    """Loss without learning, mean over rows.

    Returns:
        "loss" (the lesson's), "nll" (of the next token or the label, in nats; not of states) and, of classes,
        "accuracy"; of rows with groups besides "even_accuracy", for which each group counts alike, that of the
        "worst_group", and the "gap" between the best and it.
    """
    rows, sums, count = Rows(samples), dict[str, float](), len(samples["input_ids"])
    right = list[Tensor]()
    step = max(1, tokens // samples["input_ids"].shape[1])
    device = next(pupil.parameters()).device
    pupil.eval()
    for i in range(0, count, step):
        batch = {k: v.to(device) for k, v in rows.collate(list(range(i, min(i + step, count)))).items()}
        with torch.no_grad(), autocast(dtype):
            loss, said = pupil(batch)
        found: dict[str, Tensor] = {"loss": loss.expand(len(batch["row"]))}
        if not pupil.states:
            found["nll"] = own_loss(said, batch)
        if "labels" in batch:
            found["accuracy"] = (said.argmax(-1) == batch["labels"]).float()
            right.append(found["accuracy"].cpu())
        for key, value in found.items():
            sums[key] = sums.get(key, 0.0) + float(value.sum()) / count
    return sums | (_of_groups(torch.cat(right), samples["group"]) if "group" in samples else {})


def _of_groups(right: Tensor, group: Tensor) -> dict[str, float]:
    shares = [float(right[group == g].mean()) for g in group.unique()]
    even = sum(shares) / len(shares)
    return {"even_accuracy": even, "worst_group": min(shares), "gap": max(shares) - min(shares)}


def score(found: dict[str, float]) -> float:
    """Lower is better: mistakes of a classifier (groups alike, where there are any), else what was to be small."""
    return -found.get("even_accuracy", found["accuracy"]) if "accuracy" in found else found["loss"]


def verdict(before: dict[str, float], after: dict[str, float], kept: str) -> str:
    """How it went, loudly where it went wrong."""
    words = ", ".join(f"{k} {v:.4g} → {after[k]:.4g}" for k, v in before.items())
    if score(after) >= score(before):
        return f"WARNING. It got worse on held-out rows: {words}; what was {kept} is kept."
    if "nll" in after and after["nll"] > before["nll"]:
        return f"WARNING. It learned, but held-out text surprises it more than before: {words}."
    return f"On held-out rows: {words}."

"""Rows of samples: as batches, and measured without learning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from greenllm.distill.data import Batch
from greenllm.distill.pupil import Pupil
from greenllm.distill.teachers import own_loss


class Rows(torch.utils.data.Dataset[int]):
    """Numbers of rows; :meth:`collate` makes a batch of them, without columns that are padding in all."""

    def __init__(self, samples: Batch) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples["input_ids"])

    def __getitem__(self, row: int) -> int:
        return row

    def collate(self, rows: list[int]) -> Batch:
        """These rows as one batch."""
        found = {k: v[rows] for k, v in self.samples.items()}
        width = int(found["attention_mask"].sum(1).max())
        ours = [k for k, v in found.items() if v.dim() > 1 and not k.startswith("their_")]
        return found | {k: found[k][:, :width] for k in ours}


def autocast(dtype: torch.dtype) -> Any:
    """Mixed precision outside the loop, as inside it."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(kind, dtype, enabled=dtype != torch.float32)


def measure(pupil: Pupil, samples: Batch, dtype: torch.dtype, tokens: int = 512) -> dict[str, float]:
    """Loss without learning, mean over rows.

    Returns:
        "loss" (the lesson's), "nll" (of the next token or the label, in nats; not of states) and, of classes,
        "accuracy".
    """
    rows, sums, count = Rows(samples), dict[str, float](), len(samples["input_ids"])
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
        for key, value in found.items():
            sums[key] = sums.get(key, 0.0) + float(value.sum()) / count
    return sums

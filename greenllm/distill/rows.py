"""Rows of samples as batches."""

from __future__ import annotations

import torch

from greenllm.distill.data import Batch


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

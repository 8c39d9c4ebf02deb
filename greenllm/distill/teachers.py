"""Several teachers for one student: the mean of what they say, or for each sample the one that knows it best.

The weighted mean of distributions: You et al., 2017, "Learning from Multiple Teacher Networks", KDD, section 3.1.
The teacher of the lowest loss on a sample: FuseLLM, Wan et al., 2024, arXiv:2401.10491, section 3.3 (MinCE). Teachers
with the student's tokens, or more (:mod:`.subset`), are joined token by token; one with others is compared through text
(:mod:`.spans`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from greenllm.checkpoint import Checkpoint
from greenllm.distill.data import Batch
from greenllm.distill.divergence import log_probabilities
from greenllm.distill.spans import likelihoods
from greenllm.distill.subset import over_students

Choose = Literal["average", "best"]
_NONE = 1e-20  # a share of nothing, whose logarithm is finite


@dataclass
class Teacher:
    """One teacher.

    Attributes:
        name: as it was given.
        checkpoint: where it lies.
        weight: its part of the sum of all weights.
        numbers: its number of each of the student's tokens, int64 [tokens]; None where it reads the student's own,
            and where it has another tokenizer.
        reads: which of the other tokenizations in a batch it reads; None if the student's.
        firsts: the student's first piece of each of its tokens, where it knows all the student's and reads its own.
        model: with weights, in eval mode, where it is needed.
    """

    name: str
    checkpoint: Checkpoint
    weight: float = 1.0
    numbers: Tensor | None = None
    reads: int | None = None
    firsts: Tensor | None = None
    model: Any = field(default=None, repr=False)

    @property
    def kin(self) -> bool:
        """Whether it knows all the student's tokens: its predictions can be said in these."""
        return self.reads is None or self.firsts is not None

    @torch.no_grad()
    def outputs(self, batch: Batch, **options: bool) -> Any:
        """What transformers' model returns for the rows of a batch."""
        if self.reads is not None:
            return self.model(
                input_ids=batch[f"their_ids.{self.reads}"], attention_mask=batch[f"their_mask.{self.reads}"]
            )
        ids = (
            batch["input_ids"]
            if self.numbers is None
            else self.numbers.to(batch["input_ids"].device)[batch["input_ids"]]
        )
        more = {k: batch[k] for k in ("token_type_ids",) if k in batch}
        return self.model(input_ids=ids, attention_mask=batch["attention_mask"], **more, **options)

    @torch.no_grad()
    def logits(self, outputs: Any, batch: Batch) -> Tensor:
        """Its predictions over the student's tokens at the student's places, or of its classes."""
        found: Tensor = outputs[0]
        if self.firsts is not None and self.numbers is not None:
            numbers, firsts = self.numbers.to(found.device), self.firsts.to(found.device)
            return over_students(found, numbers, firsts, batch[f"places.{self.reads}"], batch["input_ids"])
        of_tokens = self.numbers is not None and found.dim() > 2  # noqa: PLR2004 - [B, T, V]; classes are [B, C]
        return found[..., self.numbers.to(found.device)] if of_tokens else found  # type: ignore[union-attr]


@dataclass
class Answer:
    """What all teachers say of a batch.

    Attributes:
        log_p: of those with the student's tokenizer together, log-probabilities at the temperature, [B, ..., V].
        part: the weight of these in each row, [B].
        spans: of each other, (which tokenization, log-likelihoods of pieces [B, S], weight in each row [B]).
        first: everything the first teacher returned.
    """

    log_p: Tensor | None
    part: Tensor
    spans: list[tuple[int | None, Tensor, Tensor]]
    first: Any


@dataclass
class Teachers:
    """All of them; their weights sum to one."""

    all: list[Teacher]
    choose: Choose = "average"

    def answer(self, batch: Batch, temperature: float, *, states: bool = False, **options: bool) -> Answer:
        """Ask everyone; ``options`` go to transformers' models of those with the student's tokenizer.

        Where there are ``states`` and no predictions, only ``first`` is filled.
        """
        outputs = [t.outputs(batch, **options) for t in self.all]
        if states:
            return Answer(None, torch.zeros(len(batch["input_ids"])), [], outputs[0])
        said = [
            t.logits(o, batch) if t.kin else _pieces(t.reads, o[0], batch)
            for t, o in zip(self.all, outputs, strict=True)
        ]
        shares = self.shares(said, batch)
        kin = [i for i, t in enumerate(self.all) if t.kin]
        spans = [(t.reads, said[i], shares[i]) for i, t in enumerate(self.all) if not t.kin]
        log_p = mixture([said[i] for i in kin], shares[kin], temperature) if kin else None
        return Answer(log_p, shares[kin].sum(0), spans, outputs[0])

    def shares(self, said: list[Tensor], batch: Batch) -> Tensor:
        """The weight of each teacher in each row, [teachers, B]."""
        rows = len(batch["input_ids"])
        if self.choose == "average":
            return torch.tensor([t.weight for t in self.all], device=said[0].device)[:, None].repeat(1, rows)
        losses = torch.stack([self._loss(t, s, batch) for t, s in zip(self.all, said, strict=True)])
        return nn.functional.one_hot(losses.argmin(0), len(self.all)).T.float()

    def _loss(self, teacher: Teacher, said: Tensor, batch: Batch) -> Tensor:
        """In nats a token of the student, so that tokenizers can be compared, [B]."""
        if teacher.kin:
            return own_loss(said, batch)
        return -said.sum(-1) / batch["attention_mask"][:, 1:].sum(-1).clamp_min(1)


def mixture(logits: list[Tensor], shares: Tensor, temperature: float) -> Tensor:
    """Weighted mean of distributions.

    Args:
        logits: of each teacher, [B, ..., V].
        shares: the weight of each in each row, [teachers, B]; they need not sum to one.
        temperature: T.

    Returns:
        Log-probabilities at T, float32 [B, ..., V].
    """
    if len(logits) == 1:
        return log_probabilities(logits[0], temperature)
    logs = shares.clamp_min(_NONE).log()
    logs = (logs - logs.logsumexp(0)).view(*logs.shape, *[1] * (logits[0].dim() - 1))
    return torch.stack([w + log_probabilities(x, temperature) for w, x in zip(logs, logits, strict=True)]).logsumexp(0)


def own_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Loss of predictions on what they should have said, in nats, [B]: the label, or the next token (row's mean)."""
    logits = logits.float()
    if "labels" in batch:
        return nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    target, mask = batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:]
    token = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), target, reduction="none")
    return (token * mask).sum(-1) / mask.sum(-1).clamp_min(1)


def pieces_of(batch: Batch, which: int | None) -> tuple[Tensor, int]:
    """The piece of text of each of the student's tokens, [B, T], and how many pieces there may be."""
    ours = batch[f"pieces.{which}"]
    return ours, int(ours.max()) + 1


def _pieces(which: int | None, logits: Tensor, batch: Batch) -> Tensor:
    count = pieces_of(batch, which)[1]
    theirs = batch[f"their_pieces.{which}"]
    return likelihoods(logits, batch[f"their_ids.{which}"], torch.where(theirs < count, theirs, -1), count)

"""A student with what it is taught by: one module, whose forward pass is the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from greenllm.distill import recover
from greenllm.distill.cache import Cache
from greenllm.distill.data import Batch
from greenllm.distill.divergence import Kind, divergence, divergence_of_top, state_distance
from greenllm.distill.hidden import Pairs, Projections, attention_loss
from greenllm.distill.spans import likelihoods, span_divergence
from greenllm.distill.teachers import Answer, Teachers, own_loss, pieces_of


@dataclass(frozen=True)
class Lesson:
    """What is learned from, each with its weight in the loss; 0 leaves it out."""

    logits: float = 1.0
    task: float = 0.0
    hidden: float = 0.0
    attention: float = 0.0
    kind: Kind = "forward"
    temperature: float = 1.0

    @property
    def taught(self) -> bool:
        """Whether a teacher is needed."""
        return bool(self.logits or self.inside)

    @property
    def inside(self) -> bool:
        """Whether a teacher's layers are looked at."""
        return bool(self.hidden or self.attention)


class Pupil(nn.Module):
    """A student that is taught.

    Args:
        student: transformers' model, float32.
        lesson: what it learns from.
        teachers: asked in every pass; None where there are none, or the cache has what they said.
        cache: what they said.
        pairs: which layer looks at which, for hidden states and attention maps.
        states: whether the model makes states and no predictions (an encoder without a head).
    """

    def __init__(
        self, student: Any, lesson: Lesson, teachers: Teachers | None = None, cache: Cache | None = None,
        pairs: Pairs | None = None, *, states: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.student, self.lesson, self.cache, self.states = student, lesson, cache, states
        self.asked = [teachers] if teachers and not cache else []  # in a list: not a part of what is trained
        self.pairs = pairs or []
        self.project = None
        if lesson.hidden and teachers:
            widths = student.config.hidden_size, teachers.all[0].checkpoint.config.hidden_size
            self.project = Projections(self.pairs, *widths)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss, and what the student said, [B, T, V], [B, classes] or [B, T, D]."""
        lesson = self.lesson
        inside = {"output_hidden_states": lesson.hidden > 0, "output_attentions": lesson.attention > 0}
        more = {k: batch[k] for k in ("token_type_ids",) if k in batch}
        out = self.student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **more, **inside)
        loss = torch.zeros((), device=out[0].device) + (recover.orthogonality(self.student) if self.training else 0.0)
        if lesson.task:
            loss = loss + lesson.task * weighted(own_loss(out[0], batch), batch)
        if not lesson.taught:
            return loss, out[0]
        answer = None if self.cache else self.asked[0].answer(batch, lesson.temperature, states=self.states, **inside)
        if lesson.logits:
            loss = loss + lesson.logits * self._predictions(out[0], answer, batch)
        if answer is not None and self.project is not None:
            mask = batch["attention_mask"]
            loss = loss + lesson.hidden * self.project(out.hidden_states, answer.first.hidden_states, mask)
        if answer is not None and lesson.attention:
            loss = loss + lesson.attention * self._attention(out, answer, batch)
        return loss, out[0]

    def _predictions(self, got: Tensor, answer: Answer | None, batch: Batch) -> Tensor:
        kind, T = self.lesson.kind, self.lesson.temperature
        if answer is None:
            assert self.cache is not None  # noqa: S101 - for mypy: there is no answer because there is a cache
            want, tokens = (t.to(got.device) for t in self.cache.rows(batch["row"].tolist()))
            got = got[..., : self.cache.identity.outputs]
            want, tokens = (t[:, : got.shape[1]] if got.dim() > 2 else t for t in (want, tokens))  # noqa: PLR2004 - [B, T, V]
            return weighted(_mean(divergence_of_top(want, tokens, got, kind, T), batch), batch)
        if self.states:
            return state_distance(answer.first[0], got, batch["attention_mask"])
        loss = torch.zeros((), device=got.device)
        if answer.log_p is not None:
            each = divergence(answer.log_p, got[..., : answer.log_p.shape[-1]], kind, T)
            loss = weighted(_mean(each, batch) * answer.part, batch)
        for which, want, part in answer.spans:
            pieces, count = pieces_of(batch, which)
            mine = likelihoods(got, batch["input_ids"], pieces, count)
            there = (pieces[..., None] == torch.arange(count, device=got.device)).any(1)
            loss = loss + (span_divergence(want, mine, there, kind) * part).mean()
        return loss

    def _attention(self, out: Any, answer: Answer, batch: Batch) -> Tensor:
        found = [
            attention_loss(out.attentions[s - 1], answer.first.attentions[t - 1], batch["attention_mask"])
            for s, t in self.pairs
        ]
        return torch.stack(found).mean()


def weighted(each: Tensor, batch: Batch) -> Tensor:
    """Mean over rows, [B], each by its "weight" where rows have one."""
    return (each * batch["weight"]).mean() if "weight" in batch else each.mean()


def _mean(each: Tensor, batch: Batch) -> Tensor:
    """Mean over the tokens of a row, [B]; what is one number a row already stays."""
    if each.dim() == 1:
        return each
    mask = batch["attention_mask"]
    return (each * mask).sum(-1) / mask.sum(-1).clamp_min(1)

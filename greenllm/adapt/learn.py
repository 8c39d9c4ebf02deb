"""Learn from shots, and find by cross-validation for how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from greenllm.adapt.upper import Upper
from greenllm.distill import recover
from greenllm.progress import Progress

MOST = 30  # steps that are tried
PATIENCE = 4  # steps without a lower loss after which no more are tried


class Learner:
    """Values of an adapter of their own, and what AdamW and AdaLoRA know of them; several share one model.

    Args:
        upper: the model.
        adapted: peft's wrapper of it, in which the adapter's parameters alone want gradients.
        rate: of learning.
    """

    def __init__(self, upper: Upper, adapted: Any, rate: float) -> None:
        self.upper, self.adapted = upper, adapted
        self.places = [p for p in adapted.parameters() if p.requires_grad]
        self.values = [p.detach().clone().requires_grad_() for p in self.places]
        self._update = torch.optim.AdamW(self.values, rate, weight_decay=0.01)
        self._ranks = recover.state(adapted)
        self._steps = 0

    def put(self) -> None:
        """Put the values into the model; what it learns from then on is theirs."""
        for place, value in zip(self.places, self.values, strict=True):
            place.data = value.data
        recover.restore(self.adapted, self._ranks)

    def step(self, chosen: Sequence[int]) -> float:
        """One step downhill on all of these shots; the loss before it: their mean, in nats."""
        self.put()
        total = 0.0
        for part in self.upper.portions(chosen):
            loss = _losses(self.upper, part)[0].sum() / len(chosen)
            loss.backward()
            total += float(loss.detach())
        if isinstance(penalty := recover.orthogonality(self.adapted), Tensor):
            penalty.backward()
        for place, value in zip(self.places, self.values, strict=True):
            value.grad = place.grad
        self._update.step()
        recover.after_update(self.adapted, self._steps)
        self._ranks = recover.state(self.adapted)
        self._steps += 1
        for place in self.places:
            place.grad = None
        return total

    def judge(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See :func:`judge`."""
        self.put()
        return judge(self.upper, chosen)


@torch.no_grad()
def judge(upper: Upper, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Loss of each of these shots, and 1 where the model says what is right, as it is now."""
    found = [_losses(upper, part) for part in upper.portions(chosen)]
    return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])


def _losses(upper: Upper, part: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Of each shot: the cross-entropy over its choices, or a token's of a free answer; 1 where the model says it."""
    scores, said = upper.scores(part)
    shots = [upper.shots[i] for i in part]
    if len(shots[0].choices) == 1:
        return -scores[:, 0] / torch.tensor([len(s.choices[0].tokens) for s in shots]), said[:, 0].float()
    labels = torch.tensor([s.label for s in shots])
    return functional.cross_entropy(scores, labels, reduction="none"), (scores.argmax(-1) == labels).float()


@dataclass
class Curve:
    """Mean loss (nats) and share of right answers (free ones: word for word) on held-out shots, after 0, 1 … steps."""

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)

    @property
    def best(self) -> int:
        """After so many steps the loss is lowest."""
        return min(range(len(self.loss)), key=self.loss.__getitem__)

    def dump(self) -> dict[str, Any]:
        """For a manifest."""
        return {"loss": [round(v, 4) for v in self.loss], "accuracy": [round(v, 4) for v in self.accuracy]}


def cross_validate(
    upper: Upper, adapted: Any, folds: Sequence[Sequence[int]], rate: float, progress: Progress
) -> Curve:
    """All folds learn side by side until their common held-out loss has not fallen for :data:`PATIENCE` steps."""
    learners = [Learner(upper, adapted, rate) for _ in folds]
    rest = [[i for other in folds if other is not fold for i in other] for fold in folds]
    curve = Curve()
    progress.stage("cross-validation", MOST + 1)
    for _ in range(MOST + 1):
        judged = [x.judge(fold) for x, fold in zip(learners, folds, strict=True)]
        curve.loss.append(float(torch.cat([j[0] for j in judged]).mean()))
        curve.accuracy.append(float(torch.cat([j[1] for j in judged]).mean()))
        progress.advance()
        if len(curve.loss) > MOST or len(curve.loss) - 1 - curve.best >= PATIENCE:
            break
        for learner, train in zip(learners, rest, strict=True):
            learner.step(train)
    return curve

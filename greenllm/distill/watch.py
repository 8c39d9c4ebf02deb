"""What is told and done while a pupil trains: progress, commits by the clock, gradients that are not finite."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from greenllm.distill import recover
from greenllm.progress import Progress, clock

if TYPE_CHECKING:
    from greenllm.distill.trainer import DistilTrainer

COMMIT_SECONDS = 120.0  # between two states on disk


class Watch(TrainerCallback):
    """Tells progress, commits by the clock, and keeps a spoilt gradient from the weights."""

    def __init__(self, trainer: DistilTrainer, progress: Progress, tokens: float) -> None:
        self.trainer, self.progress, self.tokens = trainer, progress, tokens
        self.begin = self.committed = time.monotonic()
        self.first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - transformers'
        """A resumed run begins at its step."""
        self.first = state.global_step
        self.begin = self.committed = time.monotonic()
        self.progress.advance(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Stop before a gradient that is not finite gets into the weights."""
        grads = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
        if not all(math.isfinite(n) for n in torch.stack(torch._foreach_norm(grads)).tolist()):  # noqa: SLF001
            self.trainer.stop("its gradient is not finite")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """AdaLoRA moves ranks to where they matter."""
        recover.after_update(self.trainer.model.student, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:  # noqa: ARG002
        """Commit when it is time."""
        self.progress.advance()
        now = time.monotonic()
        if now - self.committed >= COMMIT_SECONDS and state.global_step < state.max_steps:
            control.should_save, self.committed = True, now
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:  # noqa: ARG002
        """Loss, speed and time left in a line."""
        done = state.global_step - self.first
        if "loss" in logs and done:
            seconds = (time.monotonic() - self.begin) / done
            self.progress.note(
                f"step {state.global_step} of {state.max_steps}: loss {logs['loss']:.4g}, "
                f"{self.tokens / seconds:.0f} tokens/s, {clock(seconds * (state.max_steps - state.global_step))} left"
            )

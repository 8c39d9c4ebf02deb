"""The training loop: transformers' ``Trainer`` (accelerate underneath) over a :class:`Pupil`.

Every checkpoint of it that is whole has a mark, written last; a killed run goes on at the last one with the mark, with
the same optimizer, schedule and order of rows, and so comes to the same weights.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

from greenllm import gpu
from greenllm.distill import recover
from greenllm.distill.data import Batch
from greenllm.distill.pace import Pace
from greenllm.distill.processes import world
from greenllm.distill.pupil import Pupil
from greenllm.distill.rows import Rows
from greenllm.distill.watch import Watch
from greenllm.errors import GreenError
from greenllm.progress import Progress

_KEPT = 2  # states: the last, and the one before until the last is whole
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
_WHOLE = "whole"
_EXTRA = "adalora.safetensors"
_NOTES = 10  # lines a run


class DistilTrainer(Trainer):
    """A Trainer whose loss is the pupil's own; NaN stops it, and its checkpoints are whole or do not count."""

    def compute_loss(self, model: Any, inputs: Batch, *_: Any, **__: Any) -> Any:
        """The loss of a batch.

        Raises:
            GreenError: it is NaN or infinite; the state before this step was written.
        """
        loss, _said = model(inputs)
        if not math.isfinite(float(loss.detach())):
            self.stop(f"the loss is {float(loss.detach())}")
        return loss

    def stop(self, why: str) -> None:
        """Write the state before the current step, and say which step went wrong.

        Raises:
            GreenError: always.
        """
        step = self.state.global_step
        kept = "Nothing was learned before it."
        if step:
            self._save_checkpoint(self.model, None)
            kept = f"The state after step {step} is kept in {Path(self.args.output_dir) / f'checkpoint-{step}'}."
        raise GreenError(f"Step {step + 1}: {why}.", f"{kept} Lower --rate.")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        (folder / _WHOLE).unlink(missing_ok=True)
        with _disk_errors(folder):
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                (folder / _WHOLE).touch()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ARG002 - transformers'
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        assert isinstance(self.model, Pupil)  # noqa: S101 - for mypy
        save_model(self.model, str(folder / "model.safetensors"))
        if extra := recover.state(self.model.student):
            save_file(extra, folder / _EXTRA)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        pupil = model or self.model
        load_model(pupil, str(folder / "model.safetensors"))
        if (folder / _EXTRA).exists():
            recover.restore(pupil.student, load_file(folder / _EXTRA))


def train(pupil: Pupil, samples: Batch, pace: Pace, work: Path, progress: Progress) -> dict[str, Any]:
    """Train a pupil in place; goes on with what lies in ``work``.

    Args:
        pupil: the student with its lesson.
        samples: rows to learn from.
        pace: how.
        work: directory of the checkpoints, and of ``runs/`` for TensorBoard.
        progress: advanced by 1 a step.

    Returns:
        "steps", "tokens" (in all), and "tokens_per_second" of this session.

    Raises:
        GreenError: rows do not divide into passes, the loss became NaN, or the disk is full.
    """
    rows = Rows(samples)
    trainer = DistilTrainer(model=pupil, args=arguments(pace, work), train_dataset=rows, data_collator=rows.collate)
    trainer.remove_callback(PrinterCallback)  # its lines are for programmers
    tokens = float(samples["attention_mask"].sum()) / len(rows) * pace.rows
    watch = Watch(trainer, progress, tokens)
    trainer.add_callback(watch)
    last = last_whole(work)
    with torch.enable_grad(), _quiet():
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    pupil.eval()
    done = trainer.state.global_step - watch.first
    seconds = time.monotonic() - watch.begin
    return {"steps": pace.steps, "tokens": round(tokens * pace.steps), "tokens_per_second": tokens * done / seconds}


def arguments(pace: Pace, work: Path) -> TrainingArguments:
    """The arguments of transformers for a run."""
    processes = world()
    if pace.rows % (pace.accumulate * processes):
        raise GreenError(
            f"{pace.rows} rows do not divide into {pace.accumulate} passes on {processes} processes.",
            "See --rows and --accumulate.",
        )
    there = gpu.kind() == "cuda"
    found = TrainingArguments(
        output_dir=str(work), max_steps=pace.steps,
        per_device_train_batch_size=pace.rows // pace.accumulate // processes,
        gradient_accumulation_steps=pace.accumulate, learning_rate=pace.rate,
        lr_scheduler_type=_SCHEDULES[pace.schedule],
        warmup_steps=min(50, max(1, pace.steps // 20)), weight_decay=0.0, adam_beta2=0.95, max_grad_norm=1.0,
        save_strategy="no", save_total_limit=_KEPT, logging_steps=max(1, pace.steps // _NOTES),
        logging_nan_inf_filter=False, report_to=[r.strip() for r in pace.report_to.split(",") if r.strip()] or "none",
        bf16=pace.dtype == torch.bfloat16, use_cpu=not there,
        ddp_backend="gloo" if processes > 1 and not there else None,
        ddp_find_unused_parameters=True if processes > 1 else None, seed=pace.seed, data_seed=pace.seed,
        remove_unused_columns=False, disable_tqdm=True, dataloader_pin_memory=there, optim="adamw_torch",
    )  # fmt: skip
    found._n_gpu = min(1, found.n_gpu)  # noqa: SLF001 - one process, one GPU: teachers are not replicated
    return found


def last_whole(work: Path) -> Path | None:
    """The newest checkpoint that has its mark."""
    whole = [p.parent for p in work.glob(f"checkpoint-*/{_WHOLE}")]
    return max(whole, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without advice for programmers."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as e:
        if isinstance(e, RuntimeError) and "PytorchStreamWriter" not in str(e):
            raise
        raise GreenError(
            f"Writing {folder} failed: {getattr(e, 'strerror', None) or str(e).splitlines()[0]}.",
            "Make room and run the same command again: it goes on from the last state that is whole.",
        ) from e

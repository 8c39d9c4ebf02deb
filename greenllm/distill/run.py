"""From a student's checkpoint and its teachers to a pupil that can be trained; all that is slow lies on disk.

The leader of several processes prepares; followers read what it left in ``work``.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from greenllm import artifact, gpu
from greenllm.checkpoint import Checkpoint
from greenllm.distill import cache, fit, samples, student
from greenllm.distill.data import Batch
from greenllm.distill.hidden import layer_map
from greenllm.distill.judge import autocast
from greenllm.distill.pupil import Lesson, Pupil
from greenllm.distill.rows import Rows
from greenllm.distill.samples import Samples, Texts
from greenllm.distill.teachers import Teacher, Teachers
from greenllm.distill.vocabulary import has_tokenizer, tokenizer_of
from greenllm.kinds import FEATURES
from greenllm.progress import Progress
from greenllm.quantize.tune import as_type

_PLAN = "plan.json"
_TIMED = 5  # passes to find out how long one takes


@dataclass
class School:
    """A student, those who teach it, and what; see the fields of the step."""

    checkpoint: Checkpoint
    teachers: Teachers
    texts: Texts
    lesson: Lesson
    dtype: torch.dtype
    work: Path
    seed: int
    progress: Progress

    @property
    def tokenizer_path(self) -> Path:
        """Where the student's tokenizer lies: beside its weights, or else beside its first teacher's."""
        own = self.checkpoint.path
        return own if has_tokenizer(own) or not self.teachers.all else self.teachers.all[0].checkpoint.path

    def introduce(self, *, cached: bool) -> None:
        """Find out how each teacher reads the student's tokens; see :func:`greenllm.distill.fit.introduce`."""
        ours = tokenizer_of(self.tokenizer_path)
        labels, all_of = bool(self.texts.labels), self.teachers.all
        fit.introduce(self.checkpoint, ours, all_of, self.lesson, labels=labels, progress=self.progress)
        fit.refuse(self.checkpoint, all_of, self.lesson, labels=labels, cached=cached)

    def samples(self) -> Samples:
        """Rows, made on first use."""
        ours = tokenizer_of(self.tokenizer_path)

        def make() -> Samples:
            if self.texts.labels:
                return samples.of_labels(ours, self.checkpoint, self.teachers.all, self.texts, self.seed)
            return samples.of_texts(ours, self.checkpoint, self.teachers.all, self.texts, self.seed, self.progress)

        return samples.kept(self.work, make)

    def pupil(self, rows: Samples, layers: str, directory: str, top: int) -> Pupil:
        """The student and all it learns from; adapters come later (:func:`greenllm.distill.recover.adapt`).

        With a cache, teachers are gone before the student comes: each may need the memory alone.
        """
        made = self._cache(directory, top, rows) if directory else None
        for teacher in self.teachers.all:
            teacher.model = None if made else teacher.model or self._load(teacher)
        model: Any = student.load(self.checkpoint, rows.classes, self.seed).requires_grad_()
        if held := student.sparse(model):
            self.progress.note(f"{len(held)} matrices are sparse; their zeros stay.")
            for matrix in held:
                student.hold_zeros(matrix)
        pairs = None
        if self.lesson.hidden or self.lesson.attention:
            first = self.teachers.all[0].model
            pairs = layer_map(layers, model.config.num_hidden_layers, first.config.num_hidden_layers)
            if self.lesson.attention:
                model.set_attn_implementation("eager")
                first.set_attn_implementation("eager")
        torch.manual_seed(self.seed)
        states = not rows.classes and self.checkpoint.task == FEATURES
        teachers = self.teachers if self.lesson.taught else None
        return gpu.place(Pupil(model, self.lesson, teachers, made, pairs, states=states))

    def _load(self, teacher: Teacher) -> Any:
        return gpu.place(as_type(teacher.checkpoint.load_model(), self.dtype))

    def _cache(self, directory: str, top: int, rows: Samples) -> cache.Cache:
        everything = Rows(_joined(rows.learn, rows.judge)).samples
        width = everything["input_ids"].shape[1]
        n = self.teachers.all[0].numbers
        outputs = len(rows.classes) or (int(self.checkpoint.config.vocab_size) if n is None else len(n))
        identity = cache.Identity(
            teachers=[f"{_known_by(t)} {self.teachers.choose}" for t in self.teachers.all],
            samples=cache.digest(everything["input_ids"]), rows=len(everything["row"]), outputs=outputs,
            places=[] if rows.classes else [width], top=min(top, outputs), temperature=self.lesson.temperature,
        )  # fmt: skip

        def ask(some: range) -> torch.Tensor:
            for teacher in self.teachers.all:
                teacher.model = teacher.model or self._load(teacher)
            batch = gpu.place({k: v[some.start : some.stop] for k, v in everything.items()})
            with autocast(self.dtype):
                log_p = self.teachers.answer(batch, self.lesson.temperature).log_p
            assert log_p is not None  # noqa: S101 - other tokenizers were refused
            return log_p.cpu()

        return cache.fill(Path(directory).expanduser(), identity, ask, self.progress)


def remembered(work: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was found out before training, once: a resumed run goes by the same."""
    file = work / _PLAN
    if not file.exists():
        artifact.write_atomic(file, json.dumps(make()))
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def seconds_of_a_pass(pupil: Pupil, rows: Batch, count: int, dtype: torch.dtype) -> float:
    """How long ``count`` rows take forward and backward: the median of a few, after one to warm up."""
    batch = gpu.place(Rows(rows).collate([i % len(rows["input_ids"]) for i in range(count)]))
    taken = []
    for _ in range(1 + _TIMED):
        gpu.wait()
        begin = time.perf_counter()
        with torch.enable_grad(), autocast(dtype):
            loss, _said = pupil(batch)
        loss.backward()
        pupil.zero_grad(set_to_none=True)
        gpu.wait()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])


def _joined(learn: Batch, judge: Batch) -> Batch:
    """Both one after the other, padded to the longer."""
    found = {}
    for key in learn:
        a, b = learn[key], judge[key]
        if a.dim() > 1:
            width = max(a.shape[1], b.shape[1])
            a, b = (torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in (a, b))
        found[key] = torch.cat([a, b])
    return found


def _known_by(teacher: Teacher) -> str:
    """A hash of its files, its weight, and whether it reads its own tokens."""
    files = artifact.hash_files(teacher.checkpoint.path)
    found = hashlib.sha256(json.dumps({n: f.sha256 for n, f in files.items()}).encode()).hexdigest()[:16]
    return f"{found} {teacher.weight:.6g}" + (" by its own tokens" if teacher.firsts is not None else "")

"""Rows for a run: text or labelled text as tensors, made once and then read from disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from greenllm import artifact
from greenllm.checkpoint import Checkpoint
from greenllm.distill import augment, data, labelled, spans, subset
from greenllm.distill.data import Batch
from greenllm.distill.teachers import Teacher
from greenllm.distill.vocabulary import Tokenizer, tokenizer_of
from greenllm.errors import GreenError
from greenllm.kinds import CLASSIFICATION
from greenllm.progress import Progress


@dataclass(frozen=True)
class Texts:
    """Sources with weights, the one to be judged on, columns of label and group ("" for none), rows, tokens; noise."""

    mix: dict[str, float]
    held_out: str = ""
    labels: str = ""
    count: int = 0
    length: int = 256
    clean: bool = True
    groups: str = ""
    noise: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Samples:
    """Rows to learn from and to be judged on, numbered on from each other under "row"; and names of classes."""

    learn: Batch
    judge: Batch
    classes: list[str]


def kept(work: Path, make: Callable[[], Samples]) -> Samples:
    """What lies in ``work``; made and put there first if it does not."""
    files = [work / "learn.safetensors", work / "judge.safetensors"]
    names = work / "classes.json"  # written last
    if not names.exists():
        made = make()
        work.mkdir(parents=True, exist_ok=True)
        begin = 0
        for file, batch in zip(files, (made.learn, made.judge), strict=True):
            batch["row"] = torch.arange(begin, begin := begin + len(batch["input_ids"]))
            save_file({k: v.contiguous() for k, v in batch.items()}, file)
        artifact.write_atomic(names, json.dumps(made.classes))
    return Samples(load_file(files[0]), load_file(files[1]), json.loads(names.read_text(encoding="utf-8")))


def of_texts(
    tokenizer: Tokenizer, student: Checkpoint, teachers: list[Teacher], texts: Texts, seed: int, progress: Progress
) -> Samples:
    """Windows of text; "self" is in the first teacher's words.

    Raises:
        GreenError: see :func:`greenllm.distill.data.text_samples`.
    """
    speaker = teachers[0].checkpoint if teachers else student
    both = data.text_samples(
        tokenizer, speaker, texts.mix, texts.held_out, texts.count, texts.length, seed, progress, clean=texts.clean
    )  # fmt: skip
    if texts.noise:
        noisy = augment.windows(both[0], tokenizer, texts.noise)
        count, made = len(both[0]), len(noisy) - len(both[0])
        progress.note(f"{made} of {count} windows have a disturbed copy that is as long.")
        both = noisy, both[1]
    learn, judge = (_as_read(tokenizer, _with_spans(tokenizer, ids, teachers), teachers) for ids in both)
    return Samples(learn, judge, [])


def _with_spans(tokenizer: Tokenizer, ids: Tensor, teachers: list[Teacher]) -> Batch:
    """Windows as they are; or tokenized anew by the student and others, with the pieces of text they share."""
    others = [t for t in teachers if not t.kin]
    if not others:
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = Batch()
    words = tokenizer.batch_decode(ids, skip_special_tokens=True)
    for teacher in others:
        made = spans.encode(words, tokenizer, tokenizer_of(teacher.checkpoint.path), ids.shape[1])
        found |= {k: made.pop(k) for k in ("input_ids", "attention_mask")}
        found |= {f"{k}.{teacher.reads}": v for k, v in made.items()}
    return found


def _as_read(tokenizer: Tokenizer, batch: Batch, teachers: list[Teacher]) -> Batch:
    """With the tokens of teachers that know all the student's, and more."""
    for teacher in teachers:
        if teacher.firsts is not None and teacher.numbers is not None:
            theirs = tokenizer_of(teacher.checkpoint.path)
            made = subset.encode(batch["input_ids"], batch["attention_mask"], tokenizer, theirs, teacher.numbers)
            batch = batch | {f"{k}.{teacher.reads}": v for k, v in made.items()}
    return batch


def of_labels(
    tokenizer: Tokenizer, student: Checkpoint, teachers: list[Teacher], texts: Texts, seed: int
) -> Samples:  # fmt: skip
    """Rows of a labelled file; classes are in the order of the classifiers that know them.

    Raises:
        GreenError: see :mod:`greenllm.distill.labelled`; or labels that a classifier does not know.
    """
    if len(texts.mix) > 1:
        raise GreenError("Labelled data come from one file.", "Give one with --data.")
    table = labelled.read(next(iter(texts.mix)), texts.labels, texts.groups)
    held = labelled.read(texts.held_out, texts.labels, texts.groups) if texts.held_out else None
    learn, judge = labelled.split(table, held, seed)
    if texts.count:
        order = torch.randperm(len(learn.texts), generator=torch.Generator().manual_seed(seed)).tolist()
        learn = learn.rows(order[: texts.count])
    learn = augment.rows(learn, texts.noise)
    names = _classes(labelled.classes([learn, judge]), [t.checkpoint for t in teachers], student)
    both = [labelled.encode(t, tokenizer, names, texts.length) for t in (learn, judge)]
    if texts.groups:
        members = sorted({*(learn.groups or []), *(judge.groups or [])})
        both = [b | labelled.group_columns(t, members) for b, t in zip(both, (learn, judge), strict=True)]
    return Samples(both[0], both[1], names)


def _classes(labels: list[str], teachers: list[Checkpoint], student: Checkpoint) -> list[str]:
    """The labels as classes in their order: the teachers' order, the student's own, or that of numbers and letters."""
    numbered = labels == [str(i) for i in range(len(labels))]
    for owner in [*teachers, student]:
        names = [str(owner.config.id2label[i]) for i in range(owner.config.num_labels)]
        if owner.task == CLASSIFICATION and set(labels) <= set(names):
            return names
        nameless = numbered or names == [f"LABEL_{i}" for i in range(len(names))]
        if owner is not student and not (nameless and len(names) == len(labels)):
            raise GreenError(
                f"{owner.path} calls its classes {', '.join(names[:20])}; the labels are {', '.join(labels[:20])}.",
                "Name them alike, or learn from another teacher.",
            )
    return labels

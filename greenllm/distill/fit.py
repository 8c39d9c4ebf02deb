"""Whether teachers and student meet: what they do, their tokenizers, their widths, and what is to be learned."""

from __future__ import annotations

import torch

from greenllm.checkpoint import Checkpoint
from greenllm.distill.pupil import Lesson
from greenllm.distill.subset import first_pieces
from greenllm.distill.teachers import Teacher
from greenllm.distill.vocabulary import Tokenizer, differences, numbers, tokenizer_of
from greenllm.errors import GreenError
from greenllm.kinds import CLASSIFICATION, FEATURES, GENERATION
from greenllm.progress import Progress


def introduce(
    student: Checkpoint, ours: Tokenizer, teachers: list[Teacher], lesson: Lesson, *, labels: bool, progress: Progress
) -> None:  # fmt: skip
    """Find out how each teacher reads the student's tokens, and note it there.

    Args:
        student: its checkpoint.
        ours: its tokenizer.
        teachers: ``numbers``, ``reads`` and ``firsts`` are filled in.
        lesson: hidden states and attention are those of the student's tokens.
        labels: whether classes are learned.
        progress: told of teachers with other tokenizers.

    Raises:
        GreenError: a teacher does something else.
    """
    task, others = CLASSIFICATION if labels else student.task, 0
    for teacher in teachers:
        if teacher.checkpoint.task != task:
            raise GreenError(
                f"{teacher.name} does {teacher.checkpoint.task}; the student does {task}.", "See --teacher."
            )
        theirs = tokenizer_of(teacher.checkpoint.path)
        found = numbers(ours, theirs)
        if found is None:
            if task in (CLASSIFICATION, FEATURES):
                raise _other(teacher, ours, theirs, task)
            progress.note(f"{teacher.name} has another tokenizer: compared over aligned pieces of text.")
            teacher.reads, others = others, others + 1
            continue
        if task == GENERATION and len(found) < len(theirs.get_vocab()) and not lesson.inside:
            teacher.reads, others = others, others + 1
            teacher.numbers, teacher.firsts = found, first_pieces(ours, theirs, found)
            continue
        in_place = bool((found == torch.arange(len(found))).all())
        as_wide = labels or task == FEATURES or student.config.vocab_size == teacher.checkpoint.config.vocab_size
        teacher.numbers = None if in_place and as_wide else found


def refuse(student: Checkpoint, teachers: list[Teacher], lesson: Lesson, *, labels: bool, cached: bool) -> None:
    """Refuse what cannot be learned from these teachers; after :func:`introduce`.

    Raises:
        GreenError: the first thing found.
    """
    other = next((t for t in teachers if not t.kin), None)
    if other and lesson.inside:
        theirs = tokenizer_of(other.checkpoint.path)
        raise _other(other, tokenizer_of(student.path), theirs, "hidden states and attention")
    if cached and (lesson.inside or other):
        raise GreenError(
            "A cache has predictions over the student's tokens alone.",
            "Leave out --cache; or --hidden, --attention, and teachers with other tokenizers.",
        )
    if student.task == FEATURES and not labels:
        _refuse_states(student, teachers, lesson, cached=cached)


def _refuse_states(student: Checkpoint, teachers: list[Teacher], lesson: Lesson, *, cached: bool) -> None:
    """An encoder without a head has states to learn: of one teacher, and no task."""
    widths = {c.config.hidden_size for c in (student, *(t.checkpoint for t in teachers))}
    if cached:
        raise GreenError("An encoder's states are not cached.", "Leave out --cache.")
    if lesson.task:
        raise GreenError("An encoder without a head has no task of its own.", "Leave out --task, or give --labels.")
    if len(teachers) > 1:
        raise GreenError("An encoder without a head learns from one teacher.", "See --teacher.")
    if lesson.logits and len(widths) > 1:
        raise GreenError(
            f"States of student and teacher are {' and '.join(map(str, sorted(widths)))} wide.",
            "Learn through projections: --hidden 1 --logits 0.",
        )


def _other(teacher: Teacher, ours: Tokenizer, theirs: Tokenizer, what: str) -> GreenError:
    return GreenError(
        f"{teacher.name} has another tokenizer than the student ({differences(ours, theirs)}); {what} need the same.",
        "Take a teacher with the student's tokenizer, or learn from --logits of a language model.",
    )

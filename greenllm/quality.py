"""What a compressed model may lose before it is told loudly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greenllm.artifact import Artifact
from greenllm.errors import GreenError
from greenllm.progress import Progress

if TYPE_CHECKING:
    from greenllm.bench.results import Results, TaskResult

MAX_LOSS = 1.25  # of perplexity; int4 of the smallest models stays below


class TooLossy(GreenError):  # noqa: N818 - reads as what is wrong
    """The result was made and measured, and is worse than the user allows."""


def results_of(done: Artifact) -> Results:
    """What the bench of a compressed model found."""
    from greenllm.bench.results import Results

    return Results.from_json((done.path / "report.json").read_text(encoding="utf-8"))


def loss_of(done: Artifact) -> float | None:
    """What the bench of a compressed model found that it lost; None where it could not compare.

    For a generator its perplexity over the source's, for an encoder 1 over the mean cosine of its embeddings
    to the source's (of images or of texts, the lower one), for a transcriber the source's right words over its own, for
    what writes about images the source's BLEU over its own.
    """
    first, *_, row = results_of(done).rows
    both = [(first.tasks[n], t) for n, t in row.tasks.items() if "wer" in t.scores and n in first.tasks]
    if heard := [(_right(before), _right(after)) for before, after in both]:
        return max(before / after for before, after in heard)
    bleu = [(first.tasks[n].scores, t.scores) for n, t in row.tasks.items() if "bleu" in t.scores and n in first.tasks]
    if bleu:
        return max(a["bleu"].measured.value / max(b["bleu"].measured.value, 1e-6) for a, b in bleu)
    if "perplexity" in row.ratios:
        return row.ratios["perplexity"].value
    cosines = [row[m].value for m in ("cosine", "cosine_text") if m in row]
    return 1 / max(min(cosines), 1e-6) if cosines else None


def _right(task: TaskResult) -> float:
    """Words of a hundred that are right; never none."""
    return max(100 - task.scores["wer"].measured.value, 1e-6)


def check_loss(done: Artifact, most: float, on_loss: str, progress: Progress) -> None:
    """Say loudly that a model lost more than ``most``, or raise when ``on_loss`` is "fail".

    Raises:
        TooLossy: it did, or it could not be compared; the artifact and its report stay where they are.
    """
    found = loss_of(done)
    if found is not None and found <= most:
        return
    what = "The bench could not compare the quality of source and result."
    if found is not None:
        what = f"It lost too much: {found:.3f} times the source's, where {most:g} is allowed."
    if on_loss == "fail":
        raise TooLossy(what, f"{done.path} has it with its report. Give it more bits, or raise --max-loss.")
    progress.note(f"WARNING. {what} See its report; give it more bits, or raise --max-loss.")

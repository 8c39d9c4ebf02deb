"""From a model and a few samples to an adapter: steps chosen by cross-validation, then learned from all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from greenllm import artifact, card
from greenllm.adapt import adapters, methods, spoken
from greenllm.adapt.choose import Wanted, choose
from greenllm.adapt.learn import MOST, Curve, Learner, cross_validate, judge
from greenllm.adapt.methods import KINDS, Adapter, Method
from greenllm.adapt.shots import Shot, deal, draw, encode
from greenllm.adapt.upper import Upper
from greenllm.artifact import Artifact, Manifest, StepRecord
from greenllm.bench.energy import track
from greenllm.blocks import stacks_of
from greenllm.checkpoint import Checkpoint, open_checkpoint
from greenllm.errors import GreenError
from greenllm.kinds import SPEECH
from greenllm.progress import Progress, Silent
from greenllm.step import BASE_BYTES, Estimate, flops_per_second
from greenllm.steps import steps_before, with_earlier

_FOLDS = 3
_SMALL = 2.5  # so much slower than a large matrix product are those of a few short texts


def adapt(
    model: str | Path,
    task: Path,
    out: Path,
    *,
    shots: int = 16,
    method: Method | None = None,
    blocks: int | None = None,
    rank: int | None = None,
    rate: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    meta: Path | None = None,
    merge: bool = False,
    country: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Train a small adapter over a frozen model, packed or not.

    Args:
        model: a text generator or a transcriber: hub id, checkpoint directory, ``.gguf`` file or artifact.
        task: ``.jsonl`` of a classification, of free answers or of clips, see :mod:`greenllm.bench.tasks.forms`.
        out: directory to make.
        shots: samples of each class, or of all.
        method: see :mod:`greenllm.adapt.methods`; by default "lora", or that of ``meta``.
        blocks: so many of the uppermost blocks learn; by default a quarter, or as ``meta``. A prefix is before all.
        rank: of LoRA's matrices, or tokens of a prefix; by default that of the method, or of ``meta``.
        rate: of learning; by default that of the method.
        steps: so many, without cross-validation.
        seed: of the choice of samples, their folds and the adapter.
        meta: where to start, by :func:`greenllm.adapt.meta.meta_train` on the same model.
        merge: write a dense checkpoint with the adapter in its weights instead of the adapter.
        country: ISO code of the grid, for gCO2e.
        force: replace ``out``.
        progress: told of every stage.

    Returns:
        An artifact of kind "adapter" (peft's two files), or "checkpoint" with ``merge``.

    Raises:
        GreenError: bad input; nothing lies under ``out`` then.
    """
    progress = progress or Silent()
    if steps is None and shots < 2:  # noqa: PLR2004 - what is held out must leave something to learn from
        raise GreenError("One sample (of a class) cannot be cross-validated.", "Give --steps, or --shots 2 or more.")
    items = draw(task, shots, seed)
    artifact.check_free(out.absolute(), force=force)
    checkpoint = open_checkpoint(model)
    made, upper = choose(checkpoint, Wanted(method, blocks, rank), meta)
    if merge:
        methods.check_merges(made.method)
    asked = tokenized(items, checkpoint, made)
    progress.note(f"{estimate(checkpoint, asked, upper, MOST if steps is None else steps, steps).words} at most.")
    given: dict[str, Any] = {
        "task": task.name, "shots": shots, "method": made.method, "blocks": upper, "rank": made.rank,
        "rate": KINDS[made.method].rate if rate is None else rate, "steps": steps, "seed": seed, "merge": merge,
        "meta": None if meta is None else meta.name,
    }  # fmt: skip
    begin = time.perf_counter()
    with artifact.writing(out, force=force) as part:
        with track(country) as tracked:
            wrapped, result = train(checkpoint.load_model(), made, asked, steps, given["rate"], seed, progress, meta)
        result["bytes"] = _write(part, checkpoint, wrapped, merge=merge)
        record = StepRecord(
            step="adapt", parameters=given, seconds=round(time.perf_counter() - begin, 2), result=result
        )
        manifest = Manifest(
            kind="checkpoint" if merge else "adapter", seed=seed,
            parents=[*checkpoint.parents, *([] if meta is None else [artifact.as_source(artifact.read(meta))])],
            steps=[*steps_before(checkpoint.path), record], energy=with_earlier(checkpoint.path, tracked.energy),
            details={"tied": checkpoint.tied} if merge else made.model_dump(),
        )  # fmt: skip
        card.seal(part, manifest)
    return artifact.read(out)


def train(
    model: Any, made: Adapter, shots: list[Shot], steps: int | None, rate: float, seed: int, progress: Progress,
    meta: Path | None = None,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    """Choose the number of steps where none is given, and learn for so long.

    Returns:
        Peft's wrapper of ``model`` with the adapter, and what was found out.
    """
    everything = list(range(len(shots)))
    upper = frozen(model, made.first, shots)
    loss, right = (float(x.mean()) for x in judge(upper, everything))
    wrapped = methods.put_on(model, made, seed, MOST if steps is None else steps)
    if meta is not None:
        adapters.fill(wrapped, meta)
    learner, curve = Learner(upper, wrapped, rate), Curve()
    if steps is None:
        folds = deal([s.label for s in shots], min(_FOLDS, len(shots)))
        curve = cross_validate(upper, wrapped, folds, rate, progress)
        steps = curve.best
        progress.note(_told(loss, right, curve))
    progress.stage("learn from all samples", steps)
    losses = []
    for _ in range(steps):
        losses.append(learner.step(everything))
        progress.advance()
    losses.append(float(learner.judge(everything)[0].mean()))
    result = {
        "steps": steps, "loss": [round(v, 4) for v in losses], "samples": len(shots), "held_out": curve.dump(),
        "without": {"loss": round(loss, 4), "accuracy": round(right, 4)},
    }  # fmt: skip
    return wrapped, result


def tokenized(items: Sequence[Any], checkpoint: Checkpoint, made: Adapter) -> list[Shot]:
    """Samples in a model's tokens: see :func:`greenllm.adapt.shots.encode`, and of clips that of ``spoken``."""
    if checkpoint.task == SPEECH:
        return spoken.encode(items, checkpoint)
    return encode(items, checkpoint.path, methods.before(made))


def frozen(model: Any, first: int, shots: Sequence[Shot]) -> Upper:
    """A model of which the blocks from ``first`` on learn from these."""
    return (spoken.Spoken if shots[0].heard else Upper)(model, first, shots)


def _told(before: float, right: float, curve: Curve) -> str:
    """What cross-validation found, beside the mean loss and the share of right answers without an adapter."""
    n = curve.best
    after, share = curve.loss[n], curve.accuracy[n]
    change = f"{before:.3f} nats without the adapter, {after:.3f} with it; right answers {right:.0%}, {share:.0%}."
    verdict = "" if after < before else " It does no good: take more samples, another --method or a smaller --rate."
    return f"{n} steps are best by cross-validation: loss on held-out samples {change}{verdict}"


def _write(part: Path, checkpoint: Checkpoint, wrapped: Any, *, merge: bool) -> int:
    """Bytes of the weights written."""
    if not merge:
        return adapters.save(wrapped, part)
    from greenllm.distill import student

    student.write(part, checkpoint, wrapped.merge_and_unload(), checkpoint.path)
    return sum(f.stat().st_size for f in part.glob("*.safetensors"))


def estimate(checkpoint: Checkpoint, shots: list[Shot], upper: int, most: int, fixed: int | None) -> Estimate:
    """Of ``most`` steps over these shots, the ``upper`` blocks learning; ``fixed`` steps are not cross-validated.

    A forward pass is 2 operations a weight and token, one back through frozen weights as much again.
    """
    share = upper / len(stacks_of(checkpoint.skeleton())[-1][1])
    tokens = sum(len(t) for s in shots for t in s.texts) + sum(spoken.positions(s.heard) for s in shots if s.heard)
    passes = 2 * most * (1 if fixed is not None else _FOLDS) + most
    work = 2 * checkpoint.parameters * tokens * (1 + share * passes)
    held = 4 * tokens * int(getattr(checkpoint.config, "hidden_size", 1024))
    return Estimate(_SMALL * work / flops_per_second(), BASE_BYTES + 4.2 * checkpoint.parameters + held + 500e6)

"""Learn a start for adapters over several tasks, from which one more of their kind needs fewer steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from torch import Tensor

from greenllm import artifact, card
from greenllm.adapt import adapters, methods
from greenllm.adapt.choose import META, Wanted, choose
from greenllm.adapt.learn import Learner
from greenllm.adapt.methods import KINDS, Adapter, Method
from greenllm.adapt.reptile import Values, reptile
from greenllm.adapt.run import estimate, frozen, tokenized
from greenllm.adapt.shots import Shot, draw
from greenllm.artifact import Artifact, Manifest, StepRecord
from greenllm.bench.energy import track
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.progress import Progress, Silent
from greenllm.steps import steps_before, with_earlier

_BATCH = 8  # samples of a step within a task


def meta_train(
    model: str | Path,
    tasks: Sequence[Path],
    out: Path,
    *,
    shots: int = 16,
    method: Method = "lora",
    blocks: int | None = None,
    rank: int | None = None,
    rate: float | None = None,
    rounds: int = 20,
    steps: int = 5,
    seed: int = 0,
    country: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Learn where an adapter of a frozen model, packed or not, should start.

    Args:
        model: as of :func:`greenllm.adapt.run.adapt`.
        tasks: two or more files, each as there.
        out: directory to make.
        shots: samples of each class of a task, or of all.
        method: see :mod:`greenllm.adapt.methods`; all but "adalora".
        blocks: so many of the uppermost blocks learn; by default a quarter.
        rank: of LoRA's matrices, or tokens of a prefix.
        rate: of learning a task.
        rounds: in each of which every task is learned once.
        steps: of learning a task in a round, each on eight of its samples.
        seed: of the choice of samples and the adapter.
        country: ISO code of the grid, for gCO2e.
        force: replace ``out``.
        progress: told of every stage.

    Returns:
        An artifact of kind "adapter", for its ``meta``.

    Raises:
        GreenError: bad input; nothing lies under ``out`` then.
    """
    progress = progress or Silent()
    if len(tasks) < 2:  # noqa: PLR2004 - see the message
        raise GreenError("A start is learned over several tasks.", "Give two files or more.")
    if method == "adalora":
        raise GreenError(
            "adalora gives up ranks for one task, so that no common start of several is left.",
            "--method lora; what was learned with it starts adapters of the same kind.",
        )
    items = [draw(task, shots, seed) for task in tasks]
    artifact.check_free(out.absolute(), force=force)
    checkpoint = open_checkpoint(model)
    made, upper = choose(checkpoint, Wanted(method, blocks, rank))
    asked = [tokenized(i, checkpoint, made) for i in items]
    every = [s for task in asked for s in task]
    passes = -(-rounds * steps * len(tasks) * _BATCH // len(every))
    progress.note(f"{estimate(checkpoint, every, upper, passes, passes).words} at most.")
    given: dict[str, Any] = {
        "tasks": [t.stem for t in tasks], "shots": shots, "method": method, "blocks": upper, "rank": made.rank,
        "rate": KINDS[method].rate if rate is None else rate, "rounds": rounds, "steps": steps, "seed": seed,
    }  # fmt: skip
    begin = time.perf_counter()
    with artifact.writing(out, force=force) as part:
        with track(country) as tracked:
            wrapped, result = _learn(checkpoint.load_model(), made, asked, rounds, steps, given["rate"], seed, progress)
        result["bytes"] = adapters.save(wrapped, part)
        record = StepRecord(step=META, parameters=given, seconds=round(time.perf_counter() - begin, 2), result=result)
        manifest = Manifest(
            kind="adapter", parents=checkpoint.parents, seed=seed, steps=[*steps_before(checkpoint.path), record],
            energy=with_earlier(checkpoint.path, tracked.energy), details=made.model_dump(),
        )  # fmt: skip
        card.seal(part, manifest)
    return artifact.read(out)


def _learn(
    model: Any, made: Adapter, tasks: list[list[Shot]], rounds: int, steps: int, rate: float, seed: int,
    progress: Progress,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    """Peft's wrapper with the start in it, and what was found out."""
    uppers = [frozen(model, made.first, shots) for shots in tasks]
    wrapped = methods.put_on(model, made, seed)
    places = [p for p in wrapped.parameters() if p.requires_grad]
    chance = Random(seed)  # noqa: S311 - no secret
    found: list[float] = []

    def put(values: Values) -> None:
        for place, value in zip(places, values, strict=True):
            place.data = value.data

    def learn(values: Values, task: int) -> list[Tensor]:
        put(values)
        learner, count = Learner(uppers[task], wrapped, rate), len(tasks[task])
        for _ in range(steps):
            last = learner.step(chance.sample(range(count), min(_BATCH, count)))
        found.append(last)
        progress.advance()
        return [v.detach() for v in learner.values]

    progress.stage("meta-training", rounds * len(tasks))
    for values in reptile([p.data for p in places], learn, len(tasks), rounds):
        put(values)
    means = [sum(found[i : i + len(tasks)]) / len(tasks) for i in range(0, len(found), len(tasks))]
    progress.note(
        f"Loss in the last of {steps} steps: {means[0]:.3f} nats in the first round, {means[-1]:.3f} in the last."
    )
    return wrapped, {"loss": [round(v, 4) for v in means]}

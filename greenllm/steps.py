"""The steps of a recipe, one after another from checkpoint to checkpoint; each is whole on disk before the next."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenllm import artifact, card, pages
from greenllm.artifact import Artifact, Energy, Manifest, StepRecord
from greenllm.progress import Progress

if TYPE_CHECKING:
    from greenllm.checkpoint import Checkpoint
    from greenllm.plan import Plan

REQUEST = "request.json"
_SAMPLES = "calibration.safetensors"


def begin(part: Path, todo: Plan, progress: Progress) -> None:
    """Go on with what lies in ``part`` if it came from the same request; else start anew."""
    request = {
        "source": [s.model_dump() for s in todo.checkpoint.parents],
        "recipe": todo.recipe.dump(),
        "target": todo.target,
        "to": todo.to,
        "kv_bits": todo.kv_bits,
        "context": todo.fit.context if todo.fit else None,
        "versions": artifact.versions(),
    }
    file = part / REQUEST
    text = json.dumps(request, sort_keys=True)
    if file.exists():
        if file.read_text(encoding="utf-8") == text:
            progress.note("Going on where the last run stopped.")
            return
        progress.note("The unfinished work found here belongs to another request; starting anew.")
        for path in part.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    artifact.write_atomic(file, text)


def run_all(todo: Plan, part: Path, country: str | None, progress: Progress) -> Artifact:
    """Run the recipe's steps, each from the checkpoint of the one before; the last is ``checkpoint/``."""
    from greenllm.checkpoint import Checkpoint

    final = part / "checkpoint"
    if artifact.is_artifact(final):
        return artifact.open_verified(final)
    current = dense = todo.checkpoint
    records = steps_before(current.path)
    results: dict[str, Any] = {}
    last = len(todo.recipe.steps) - 1
    for i in range(last + 1):
        where = final if i == last else part / f"step-{i}"
        if not artifact.is_artifact(where):
            _one_step(todo, current, dense, i, part, where, records, country, progress)
        done = artifact.open_verified(where)
        records, results = list(done.manifest.steps), dict(done.manifest.details)
        current = Checkpoint(where, [artifact.as_source(done), *done.manifest.parents])
        dense = dense if current.quantized else current
    if not todo.recipe.steps:
        with artifact.writing(final) as path:
            current.write_dense(path)
            card.seal(
                path, Manifest(kind="checkpoint", parents=current.parents, details={"tied": current.tied, **results})
            )
    return artifact.open_verified(final)


def _one_step(
    todo: Plan, current: Checkpoint, dense: Checkpoint, i: int, part: Path, where: Path,
    records: list[StepRecord], country: str | None, progress: Progress,
) -> None:  # fmt: skip
    from greenllm.calibration import describe, dropped_in
    from greenllm.step import Context

    step, work = todo.recipe.steps[i], part / f".work-{where.name}"
    calibration = todo.recipe.calibration
    ledger = part / f".energy-{where.name}.json"
    start = time.monotonic()
    with artifact.writing(where) as path:
        with _energy(country, ledger) as energy:
            ids = _samples(todo, part, current, progress) if step.calibrated else None
            context = Context(work, lambda: ids, todo.recipe.seed, progress, todo.checkpoint, dense)
            result = step.run(current, path, context)
        record = StepRecord(
            step=step.name, parameters=todo.recipe.dump()["steps"][i][step.name],
            seconds=round(time.monotonic() - start, 2), result=result,
        )  # fmt: skip
        manifest = Manifest(
            kind="checkpoint", parents=current.parents, steps=[*records, record], seed=todo.recipe.seed,
            calibration=None if ids is None else describe(calibration.source, ids, todo.recipe.seed)
            | ({"balance": calibration.balance} if calibration.balance else {})
            | ({"dropped": found} if (found := dropped_in(part / _SAMPLES)) else {}),
            energy=with_earlier(current.path, energy.get("energy")),
            details={"tied": result.get("tied", current.tied)},
        )  # fmt: skip
        card.seal(path, manifest)
    shutil.rmtree(work, ignore_errors=True)
    ledger.unlink()
    pages.give_back()


def _samples(todo: Plan, part: Path, current: Checkpoint, progress: Progress) -> Any:
    """Calibration samples of the source, made once and kept for a resumed run; in ``current``'s tokens."""
    from greenllm import calibration
    from greenllm.clean import Filter

    file = part / _SAMPLES
    if not file.exists():
        c, kept = todo.recipe.calibration, file.with_suffix(".part")
        sieve = Filter() if c.clean else None
        ids = calibration.samples(
            todo.checkpoint, c.source, c.samples, c.length, todo.recipe.seed, progress, sieve, c.balance
        )
        pages.give_back()
        if sieve and sieve.dropped:
            progress.note(f"Calibration: of {c.source}, {sieve.words}.")
        calibration.save(ids, kept, dict(sieve.dropped) if sieve else {})
        kept.replace(file)
    ids = calibration.load(file)
    same = getattr(current.config, "vocab_size", 0) == getattr(todo.checkpoint.config, "vocab_size", 0)
    return ids if same else calibration.translate(ids, todo.checkpoint, current)


@contextlib.contextmanager
def _energy(country: str | None, ledger: Path) -> Iterator[dict[str, Energy]]:
    """Track the energy of the block, earlier tries of it included; the dictionary has it after the block's end."""
    from greenllm.bench.energy import track

    found: dict[str, Energy] = {}
    with track(country, ledger=ledger) as meter:
        yield found
    found["energy"] = meter.energy


def steps_before(path: Path) -> list[StepRecord]:
    """What made a checkpoint, if greenllm did."""
    return list(artifact.read(path).manifest.steps) if artifact.is_artifact(path) else []


def with_earlier(before: Path, energy: Energy | None) -> Energy | None:
    """Energy of a step and of all those that made what it began with; None where that is not known."""
    made = artifact.read(before).manifest if artifact.is_artifact(before) else Manifest(kind="checkpoint")
    if not made.steps:
        return energy
    earlier = made.energy
    if earlier is None or energy is None:
        return None
    grams = None if None in (earlier.gco2e, energy.gco2e) else (earlier.gco2e or 0) + (energy.gco2e or 0)
    return energy.model_copy(
        update={"kwh": earlier.kwh + energy.kwh, "seconds": earlier.seconds + energy.seconds, "gco2e": grams}
    )

"""Run a recipe from a checkpoint to a measured, deployable model; every stage can be resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from greenllm import artifact, pages
from greenllm.artifact import Artifact, Energy, Manifest, StepRecord
from greenllm.errors import GreenError
from greenllm.progress import Progress, Silent
from greenllm.quality import MAX_LOSS, check_loss
from greenllm.recipe import Recipe, load, make_step

if TYPE_CHECKING:
    from torch import Tensor

    from greenllm.checkpoint import Checkpoint
    from greenllm.step import Estimate

_REQUEST = "request.json"

pages.settle()


@dataclass
class Plan:
    """What a compression will do, checked, with its estimate; nothing has been written yet."""

    checkpoint: Checkpoint
    recipe: Recipe
    target: str
    estimate: Estimate
    memory: int


def plan(
    model: str | Path,
    recipe: str | Path | Recipe | None = None,
    target: str = "cpu",
    *,
    calibration: str | None = None,
    bits: float | None = None,
    size: float | None = None,
) -> Plan:
    """Open the model, validate recipe and target, and estimate time and peak memory.

    Args:
        model: see :func:`compress`, as all others.
        recipe: None stands for "mixed" where there is a budget, else for "int4".
        target: what it will run on.
        calibration: overrides the recipe's source of samples.
        bits: budget of the recipe's ``mixed`` step, bits a weight.
        size: the same in MB.

    Raises:
        GreenError: whatever is wrong with the model, the recipe, the target or their combination.
    """
    from greenllm.checkpoint import open_checkpoint
    from greenllm.export.targets import load_target

    if recipe is None:
        recipe = "int4" if bits is None and size is None else "mixed"
    found = recipe if isinstance(recipe, Recipe) else load(recipe)
    _set_budget(found, bits, size)
    if calibration is not None:
        found.calibration.source = calibration
    load_target(target)
    if found.steps and found.steps[0].name == "distill":  # a student may be a configuration alone
        from greenllm.distill.student import with_fresh_weights

        model = with_fresh_weights(Path(model).expanduser(), found.seed) if Path(model).is_dir() else model
    checkpoint = open_checkpoint(model)
    for step in found.steps:
        step.check(checkpoint)
    if found.calibrated:
        from greenllm.calibration import check_source

        check_source(found.calibration.source)
    return Plan(checkpoint, found, target, _estimate(checkpoint, found), _memory())


def compress(
    model: str | Path,
    out: str | Path | None = None,
    recipe: str | Path | Recipe | None = None,
    target: str = "cpu",
    *,
    bits: float | None = None,
    size: float | None = None,
    calibration: str | None = None,
    country: str | None = None,
    bench: bool = True,
    bench_options: dict[str, Any] | None = None,
    max_loss: float = MAX_LOSS,
    on_loss: Literal["warn", "fail"] = "warn",
    force: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """One command from a checkpoint to a deployable, measured model.

    Args:
        model: hub id, checkpoint directory, ``.gguf`` file or checkpoint artifact.
        out: directory to make; default: the model's name with recipe and target.
        recipe: a built-in name, a YAML file, or a :class:`greenllm.recipe.Recipe`; default "int4", or "mixed"
            where ``bits`` or ``size`` is given.
        target: what it will run on; see ``greenllm targets``.
        bits: budget for mixed precision, bits a weight over everything.
        size: the same as MB of weights.
        calibration: overrides the recipe's source of samples.
        country: ISO code of the grid for gCO2e; without it energy is given in kWh alone.
        bench: measure source and result and write the report.
        bench_options: further arguments of :func:`greenllm.bench`.
        max_loss: what the bench may find of loss before it is told loudly: perplexity over the source's, or for
            an encoder 1 over the mean cosine to the source's embeddings.
        on_loss: past it "warn", or "fail": raise :class:`greenllm.quality.TooLossy`; the artifact and report stay.
        force: replace ``out``.
        progress: told about every stage.

    Returns:
        The artifact of kind "model": ``checkpoint/``, the export, and the report in one directory.

    Raises:
        GreenError: bad input, or a limit of the machine; nothing lies under ``out`` then, and the
            same call goes on where it stopped.
    """
    todo = plan(model, recipe, target, calibration=calibration, bits=bits, size=size)
    return execute(
        todo, out or default_out(model, todo), source=model, country=country, bench=bench,
        bench_options=bench_options, max_loss=max_loss, on_loss=on_loss, force=force, progress=progress,
    )  # fmt: skip


def execute(
    todo: Plan,
    out: str | Path,
    *,
    source: str | Path,
    country: str | None = None,
    bench: bool = True,
    bench_options: dict[str, Any] | None = None,
    max_loss: float = MAX_LOSS,
    on_loss: Literal["warn", "fail"] = "warn",
    force: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Carry out a :func:`plan`; the arguments are those of :func:`compress`."""
    from greenllm import export as export_room

    progress = progress or Silent()
    _check_disk(todo, Path(out))
    if bench:
        _check_bench(**(bench_options or {}))
    with artifact.writing(out, force=force, resume=True) as part, _disk_errors(Path(out)):
        _begin(part, todo, progress)
        checkpoint = _steps(todo, part, country, progress)
        deploy = part / "deploy"
        if not artifact.is_artifact(deploy):
            export_room(checkpoint.path, deploy, target=todo.target, force=True, progress=progress)
        if bench:
            _bench(todo, part, source, country, bench_options or {}, progress)
        done = _finish(part, Path(out), checkpoint)
    if bench:
        check_loss(done, max_loss, on_loss, progress)
    return done


def run_steps(
    model: str | Path, out: str | Path, recipe: Recipe, *, country: str | None = None, force: bool = False,
    progress: Progress | None = None,
) -> Artifact:  # fmt: skip
    """Run the steps alone: a checkpoint becomes a checkpoint, nothing is exported or measured.

    Raises:
        GreenError: see :func:`compress`.
    """
    todo = plan(model, recipe)
    progress = progress or Silent()
    progress.note(f"{todo.estimate.words}.")
    with artifact.writing(out, force=force, resume=True) as part, _disk_errors(Path(out)):
        _begin(part, todo, progress)
        checkpoint = _steps(todo, part, country, progress)
        for path in part.iterdir():
            if path.name != "checkpoint":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in checkpoint.path.iterdir():
            path.rename(part / path.name)
        checkpoint.path.rmdir()
    return artifact.read(out)


def follow(model: str | Path, out: str | Path, recipe: Recipe) -> None:
    """Be one of several processes (``accelerate launch``) beside the one in :func:`run_steps`; write nothing.

    Raises:
        GreenError: the step is none that several processes can do.
    """
    from greenllm.distill.processes import meet

    (step,) = recipe.steps
    if not hasattr(step, "follow"):
        raise GreenError(f"{step.name} runs in one process.", "Leave out accelerate launch.")
    meet()
    work = artifact.partial_of(Path(out).absolute()) / ".work-checkpoint"
    step.follow(plan(model, recipe).checkpoint, work, recipe.seed, Silent())


def default_out(model: str | Path, todo: Plan) -> Path:
    """``<model>-<recipe>-<target>`` in the current directory."""
    name = Path(str(model)).name.removesuffix(".gguf")
    return Path(f"{name}-{todo.recipe.name}-{todo.target}".replace("/", "-"))


def _set_budget(recipe: Recipe, bits: float | None, size: float | None) -> None:
    """Put a budget given beside the recipe into its ``mixed`` step."""
    given = {k: v for k, v in (("bits", bits), ("size", size)) if v is not None}
    if not given:
        return
    for i, step in enumerate(recipe.steps):
        if step.name == "mixed":
            recipe.steps[i] = make_step("mixed", dataclasses.asdict(step) | given, f"--{next(iter(given))}")
            return
    raise GreenError(f"The recipe {recipe.name} has no mixed step to give a budget to.", "Use --recipe mixed.")


def _begin(part: Path, todo: Plan, progress: Progress) -> None:
    """Go on with what lies in ``part`` if it came from the same request; else start anew."""
    request = {
        "source": [s.model_dump() for s in todo.checkpoint.parents],
        "recipe": todo.recipe.dump(),
        "target": todo.target,
        "versions": artifact.versions(),
    }
    file = part / _REQUEST
    text = json.dumps(request, sort_keys=True)
    if file.exists():
        if file.read_text(encoding="utf-8") == text:
            progress.note("Going on where the last run stopped.")
            return
        progress.note("The unfinished work found here belongs to another request; starting anew.")
        for path in part.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    artifact.write_atomic(file, text)


def _steps(todo: Plan, part: Path, country: str | None, progress: Progress) -> Artifact:
    """Run the recipe's steps, each from the checkpoint of the one before; the last is ``checkpoint/``."""
    from greenllm.checkpoint import Checkpoint

    final = part / "checkpoint"
    if artifact.is_artifact(final):
        return artifact.open_verified(final)
    current = dense = todo.checkpoint
    records = list(artifact.read(current.path).manifest.steps) if artifact.is_artifact(current.path) else []
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
            artifact.seal(
                path, Manifest(kind="checkpoint", parents=current.parents, details={"tied": current.tied, **results})
            )
    return artifact.open_verified(final)


def _one_step(
    todo: Plan, current: Checkpoint, dense: Checkpoint, i: int, part: Path, where: Path,
    records: list[StepRecord], country: str | None, progress: Progress,
) -> None:  # fmt: skip
    from greenllm.calibration import describe
    from greenllm.step import Context

    step, work = todo.recipe.steps[i], part / f".work-{where.name}"
    calibration = todo.recipe.calibration
    ledger = part / f".energy-{where.name}.json"
    start = time.monotonic()
    with artifact.writing(where) as path:
        with _energy(country, ledger) as energy:
            ids = _samples(todo, part, current, progress) if step.calibrated else None
            context = Context(work, lambda: ids, todo.recipe.seed, progress, todo.checkpoint, dense)  # type: ignore[arg-type,return-value]
            result = step.run(current, path, context)
        record = StepRecord(
            step=step.name, parameters=todo.recipe.dump()["steps"][i][step.name],
            seconds=round(time.monotonic() - start, 2), result=result,
        )  # fmt: skip
        manifest = Manifest(
            kind="checkpoint", parents=current.parents, steps=[*records, record], seed=todo.recipe.seed,
            calibration=None if ids is None else describe(calibration.source, ids, todo.recipe.seed),
            energy=_with_earlier(current.path, energy.get("energy")),
            details={"tied": result.get("tied", current.tied)},
        )  # fmt: skip
        artifact.seal(path, manifest)
    shutil.rmtree(work, ignore_errors=True)
    ledger.unlink()
    pages.give_back()


def _samples(todo: Plan, part: Path, current: Checkpoint, progress: Progress) -> Tensor:
    """Calibration samples of the source, made once and kept for a resumed run; in ``current``'s tokens."""
    from safetensors.torch import load_file, save_file

    from greenllm import calibration

    file = part / "calibration.safetensors"
    if not file.exists():
        c = todo.recipe.calibration
        ids = calibration.samples(todo.checkpoint, c.source, c.samples, c.length, todo.recipe.seed, progress)
        pages.give_back()
        save_file({"input_ids": ids.contiguous()}, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
    ids = load_file(file)["input_ids"]
    same = current.config.vocab_size == todo.checkpoint.config.vocab_size
    return ids if same else calibration.translate(ids, todo.checkpoint, current)


def _bench(
    todo: Plan, part: Path, source: str | Path, country: str | None, options: dict[str, Any], progress: Progress
) -> None:
    from greenllm import bench as bench_room

    if not (part / "report.json").exists():
        name = Path(str(source)).name.removesuffix(".gguf")
        bench_room(
            [todo.checkpoint.path, part / "deploy"],
            names=[name, f"{name} {todo.recipe.name}"],
            country=country, report=part, progress=progress, **options,
        )  # fmt: skip


def _check_bench(
    text: str | Path | None = None, pairs: str | Path | None = None, tasks: Sequence[str | Path] = (),
    require: Sequence[str] = (), **_: Any,
) -> None:  # fmt: skip
    """Refuse before any work what the bench would refuse after it."""
    from greenllm.bench import fidelity, texts
    from greenllm.bench.require import parse
    from greenllm.bench.tasks import read

    texts.read(text)
    if pairs:
        fidelity.read_pairs(Path(pairs))
    for task in tasks:
        read(task)
    for requirement in require:
        parse(requirement)


def _finish(part: Path, out: Path, checkpoint: Artifact) -> Artifact:
    deploy = artifact.read(part / "deploy").manifest
    for leftover in [*part.glob("step-*"), part / _REQUEST, part / "calibration.safetensors"]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    manifest = Manifest(
        kind="model", parents=checkpoint.manifest.parents, steps=checkpoint.manifest.steps,
        seed=checkpoint.manifest.seed, calibration=checkpoint.manifest.calibration, energy=checkpoint.manifest.energy,
        details={**deploy.details, "checkpoint": "checkpoint", "deploy": "deploy"},
    )  # fmt: skip
    if (part / "report.json").exists():
        _write_card(Artifact(part, manifest))
    sealed = artifact.seal(part, manifest)
    return Artifact(out, sealed.manifest)


def _write_card(done: Artifact) -> None:
    from greenllm.bench.report.card import model_card
    from greenllm.quality import results_of

    text = (done.path / "report.md").read_text(encoding="utf-8")
    artifact.write_atomic(done.path / "README.md", model_card(done, results_of(done), text))


@contextlib.contextmanager
def _energy(country: str | None, ledger: Path) -> Iterator[dict[str, Energy]]:
    """Track the energy of the block, earlier tries of it included; the dictionary has it after the block's end."""
    from greenllm.bench.energy import track

    found: dict[str, Energy] = {}
    with track(country, ledger=ledger) as meter:
        yield found
    found["energy"] = meter.energy


def _with_earlier(before: Path, energy: Energy | None) -> Energy | None:
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


def _estimate(checkpoint: Checkpoint, recipe: Recipe) -> Estimate:
    """Sum of the steps' seconds, largest of their peaks; sampling and export included."""
    from greenllm.calibration import estimate_own
    from greenllm.step import BASE_BYTES, Estimate

    c = recipe.calibration
    parts = [s.estimate(checkpoint, c.samples * c.length) for s in recipe.steps]
    if recipe.calibrated and c.source == "self":
        parts.append(estimate_own(checkpoint, c.samples, c.length))
    parts.append(Estimate(15 + checkpoint.parameters / 6e6, BASE_BYTES + 6 * checkpoint.parameters))
    return Estimate(sum(p.seconds for p in parts), max(p.peak_bytes for p in parts))


def _memory() -> int:
    """Bytes of memory that are free for us now."""
    import psutil

    return int(psutil.virtual_memory().available)


def _check_disk(todo: Plan, out: Path) -> None:
    """Packed checkpoint, export, and the dense copy that the exporter reads, with hidden states to spare."""
    need = todo.checkpoint.parameters * 10
    home = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(home).free
    if free < need:
        raise GreenError(
            f"{home} has {free / 1e9:.1f} GB free; this model needs about {need / 1e9:.1f} GB while it is compressed.",
            "Free some space, or choose another -o.",
        )


@contextlib.contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """A full disk in the middle is told in plain words; what is whole stays for the next try."""
    try:
        yield
    except OSError as e:
        raise GreenError(
            f"Writing towards {out} failed: {e.strerror or e}.",
            "The finished stages are kept; make room and run the same command again.",
        ) from e

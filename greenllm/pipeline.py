"""Run a recipe from a checkpoint to a measured, deployable model; every stage can be resumed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from greenllm import artifact, pages, steps
from greenllm.artifact import Artifact, Manifest
from greenllm.card import write_card
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.plan import Plan, check_disk, default_out, plan
from greenllm.progress import Progress, Silent
from greenllm.quality import MAX_LOSS, check_loss, results_of
from greenllm.recipe import Recipe

pages.settle()


def compress(
    model: str | Path,
    out: str | Path | None = None,
    recipe: str | Path | Recipe | None = None,
    target: str = "cpu",
    *,
    to: str | None = None,
    bits: float | None = None,
    size: float | None = None,
    context: int | None = None,
    kv_bits: int | None = None,
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
        to: "genai", "onnx" or "gguf"; None takes what the target runs best.
        bits: budget for mixed precision, bits a weight over everything.
        size: the same as MB of weights.
        context: tokens that it must hold, prompt and answer; by default 2048, or what the model was made for.
        kv_bits: of keys and values in the cache, 8 or 4; None keeps them in float32.
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
    todo = plan(
        model, recipe, target, to=to, calibration=calibration, bits=bits, size=size, context=context,
        kv_bits=kv_bits,
    )  # fmt: skip
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
    from greenllm.bench.models import check_engine

    progress = progress or Silent()
    check_disk(todo, Path(out))
    if bench and not todo.runs_here:
        progress.note(f"No bench: what is made for {todo.target} does not run here.")
        bench = False
    if bench:
        if todo.to == "gguf":
            check_engine("llamacpp", "GGUF")
        _check_bench(todo.checkpoint, **(bench_options or {}))
        _warn_of_overlap(todo, bench_options or {}, progress)
    with artifact.writing(out, force=force, resume=True) as part, _disk_errors(Path(out)):
        steps.begin(part, todo, progress)
        checkpoint = steps.run_all(todo, part, country, progress)
        deploy = part / "deploy"
        if not artifact.is_artifact(deploy):
            context = todo.fit.context if todo.fit else None
            export_room(
                checkpoint.path, deploy, to=todo.to, target=todo.target, context=context, kv_bits=todo.kv_bits,
                calibration=todo.recipe.calibration.source if todo.kv_bits else None, force=True, progress=progress,
            )  # fmt: skip
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
    todo = plan(model, recipe, None)
    progress = progress or Silent()
    progress.note(f"{todo.estimate.words}.")
    with artifact.writing(out, force=force, resume=True) as part, _disk_errors(Path(out)):
        steps.begin(part, todo, progress)
        checkpoint = steps.run_all(todo, part, country, progress)
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
    step.follow(plan(model, recipe, None).checkpoint, work, recipe.seed, Silent())


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
    checkpoint: Checkpoint, text: str | Path | None = None, pairs: str | Path | None = None,
    tasks: Sequence[str | Path] = (), require: Sequence[str] = (), **_: Any,
) -> None:  # fmt: skip
    """Refuse before any work what the bench would refuse after it."""
    from greenllm import captions, script
    from greenllm.bench import captions as writing
    from greenllm.bench import fidelity, sight, speech, texts
    from greenllm.bench.require import parse
    from greenllm.bench.runners import ENCODERS
    from greenllm.bench.tasks import labelled, read_all, zeroshot
    from greenllm.pairs import TASK
    from greenllm.vlm import TASK as VLM

    texts.read(text)
    if pairs:
        fidelity.read_pairs(Path(pairs))
    found, does = read_all(tasks), checkpoint.task
    for task in found if does in ENCODERS else ():
        labelled.classes(task, does, checkpoint.path, int(checkpoint.config.num_labels), checkpoint.path.name)
    if does == script.TASK:
        speech.clips(found)
    if does == captions.TASK:
        writing.check_tasks(found)
    if does == VLM:
        sight.check_tasks(found)
    if does == TASK:
        for task in found:
            zeroshot.texts(task)
    for requirement in require:
        parse(requirement)


def _warn_of_overlap(todo: Plan, options: dict[str, Any], progress: Progress) -> None:
    """Say where the text of the steps holds what the bench will ask."""
    from greenllm.clean.overlap import Overlap, overlaps

    given = [options.get("text"), options.get("pairs"), *options.get("tasks", ())]
    tests = [Path(f).expanduser() for f in given if f and Path(f).expanduser().is_file()]
    if not tests or todo.checkpoint.input != "input_ids":
        return
    sources = {todo.recipe.calibration.source} if todo.recipe.calibrated else set()
    for step in todo.recipe.steps:
        sources |= set(step.texts.mix) if hasattr(step, "texts") and not step.texts.labels else set()
    for source in sorted(s for s in sources if Path(s).suffix in (".txt", ".jsonl")):
        for file, (met, there) in overlaps(source, Overlap(tests)).items():
            if met:
                progress.note(
                    f"WARNING. {met} of {there} items of {file}, which the bench asks, have passages in {source}: what "
                    f"it finds may flatter. `greenllm clean {source} --against {file} -o OTHER` drops them."
                )


def _finish(part: Path, out: Path, checkpoint: Artifact) -> Artifact:
    deploy = artifact.read(part / "deploy").manifest
    for leftover in [*part.glob("step-*"), part / steps.REQUEST, part / "calibration.safetensors"]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    manifest = Manifest(
        kind="model", parents=checkpoint.manifest.parents, steps=checkpoint.manifest.steps,
        seed=checkpoint.manifest.seed, calibration=checkpoint.manifest.calibration, energy=checkpoint.manifest.energy,
        details={**deploy.details, "checkpoint": "checkpoint", "deploy": "deploy"},
    )  # fmt: skip
    made = Artifact(part, manifest)
    benched = (part / "report.json").exists()
    report = (part / "report.md").read_text(encoding="utf-8") if benched else ""
    write_card(made, results_of(made) if benched else None, report)
    sealed = artifact.seal(part, manifest)
    return Artifact(out, sealed.manifest)


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

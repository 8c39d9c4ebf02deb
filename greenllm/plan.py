"""What a compression will do: model, recipe and target checked together, with time, memory and disk it will take."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from greenllm.errors import GreenError
from greenllm.recipe import Recipe, load, make_step

if TYPE_CHECKING:
    from greenllm.checkpoint import Checkpoint
    from greenllm.export.fits import Fit
    from greenllm.step import Estimate


@dataclass
class Plan:
    """What a compression will do, checked, with its estimate; nothing has been written yet.

    ``fit`` is what the result needs on the target, ``runs_here`` whether the bench can run it on this machine.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    target: str
    estimate: Estimate
    memory: int
    to: str | None = None
    kv_bits: int | None = None
    fit: Fit | None = None
    runs_here: bool = True


def plan(
    model: str | Path,
    recipe: str | Path | Recipe | None = None,
    target: str | None = "cpu",
    *,
    to: str | None = None,
    calibration: str | None = None,
    bits: float | None = None,
    size: float | None = None,
    context: int | None = None,
    kv_bits: int | None = None,
) -> Plan:
    """Open the model, validate recipe and target, and estimate time and peak memory.

    Args:
        model: see :func:`compress`, as all others.
        recipe: None stands for "mixed" where there is a budget, else for "int4".
        target: what it will run on; None where nothing will be exported.
        to: format of the export.
        calibration: overrides the recipe's source of samples.
        bits: budget of the recipe's ``mixed`` step, bits a weight.
        size: the same in MB.
        context: tokens that the deployed model must hold.
        kv_bits: of keys and values in its cache.

    Raises:
        GreenError: whatever is wrong with the model, the recipe, the target or their combination.
    """
    from greenllm.checkpoint import open_checkpoint
    from greenllm.export import check_format, usual_format
    from greenllm.export.kv_cache import check_cache
    from greenllm.export.targets import load_target
    from greenllm.outcome import check_target

    if recipe is None:
        recipe = "int4" if bits is None and size is None else "mixed"
    found = recipe if isinstance(recipe, Recipe) else load(recipe)
    _set_budget(found, bits, size)
    if calibration is not None:
        found.calibration.source = calibration
    device = load_target(target) if target else None
    if found.steps and found.steps[0].name == "distill":  # a student may be a configuration alone
        from greenllm.distill.student import with_fresh_weights

        model = with_fresh_weights(Path(model).expanduser(), found.seed) if Path(model).is_dir() else model
    checkpoint = open_checkpoint(model)
    kind = check_format(checkpoint, to or usual_format(device, checkpoint)) if device else None
    if kind:
        check_cache(kind, kv_bits)
    _check_input(checkpoint, found)
    for step in found.steps:
        step.check(checkpoint)
    if found.calibrated:
        from greenllm.calibration import check_balance, check_source

        check_source(found.calibration.source, checkpoint)
        check_balance(found.calibration.source, found.calibration.balance, checkpoint)
    fit = check_target(checkpoint, found, device, kind, context, kv_bits or 0) if device else None
    here = kind not in ("tensorrt", "edge-llm")
    needs = _estimate(checkpoint, found, exported=device is not None)
    return Plan(checkpoint, found, target or "", needs, _memory(), to, kv_bits, fit, here)


def _check_input(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Refuse steps that know text alone."""
    other = [s.name for s in recipe.steps if s.name != "quantize"]
    if checkpoint.input != "input_ids" and other:
        raise GreenError(
            f"The step {other[0]} takes models of text; this one does {checkpoint.task}.",
            "Images and speech take the step quantize: --recipe int8, or int4 with --calibration FILE.jsonl of them.",
        )


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


def _estimate(checkpoint: Checkpoint, recipe: Recipe, *, exported: bool) -> Estimate:
    """Sum of the steps' seconds, largest of their peaks; sampling included, and export where there is one."""
    from greenllm import own
    from greenllm.step import BASE_BYTES, Estimate

    c = recipe.calibration
    parts = [s.estimate(checkpoint, c.samples * c.length) for s in recipe.steps]
    if recipe.calibrated and c.source == "self":
        parts.append(own.estimate(checkpoint, c.samples, c.length))
    if exported:
        parts.append(Estimate(15 + checkpoint.parameters / 6e6, BASE_BYTES + 6 * checkpoint.parameters))
    return Estimate(sum(p.seconds for p in parts), max((p.peak_bytes for p in parts), default=0))


def _memory() -> int:
    """Bytes of memory that are free for us now."""
    import psutil

    return int(psutil.virtual_memory().available)


def check_disk(todo: Plan, out: Path) -> None:
    """Packed checkpoint, export, and the dense copy that the exporter reads, with hidden states to spare."""
    need = todo.checkpoint.parameters * 10
    home = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(home).free
    if free < need:
        raise GreenError(
            f"{home} has {free / 1e9:.1f} GB free; this model needs about {need / 1e9:.1f} GB while it is compressed.",
            "Free some space, or choose another -o.",
        )

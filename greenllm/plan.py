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
    from greenllm.step import Estimate


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
    from greenllm.checkpoint import SPEECH, open_checkpoint
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
        if checkpoint.task == SPEECH and step.name != "quantize":
            raise GreenError(f"The step {step.name} does not know transcribers yet.", "greenllm quantize does.")
        step.check(checkpoint)
    if found.calibrated and checkpoint.task == SPEECH:
        from greenllm.hearing import clips

        clips(found.calibration.source, found.calibration.samples)
    elif found.calibrated:
        from greenllm.calibration import check_source

        check_source(found.calibration.source)
    return Plan(checkpoint, found, target, _estimate(checkpoint, found), _memory())


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

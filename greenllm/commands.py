"""Each step of a recipe is also a command: its options are made from the step's fields."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

# Names only: the CLI starts without torch; a test holds them equal to step_types().
STEPS = ("quantize", "mixed", "tune", "fp8", "bitsandbytes", "prune", "distill")


def add_step_commands(app: typer.Typer, arguments: list[str]) -> None:
    """Add one command a step; the step's class is imported only when its command is asked for."""
    app.registered_commands = [c for c in app.registered_commands if c.name not in STEPS]
    for name in STEPS:
        if name in arguments:
            from greenllm.recipe import step_types

            kind = step_types()[name]
            app.command(name, help=(kind.__doc__ or "").strip().splitlines()[0])(_command(name, kind))
        else:
            app.command(name, help=f"The step {name} of a recipe, alone.")(lambda: None)


def _command(name: str, kind: Any) -> Callable[..., None]:
    """A function whose signature has the step's fields as options, and calibration where it may need some."""
    asks = kind.calibrated is not False

    def command(
        *, checkpoint: str, out: Path, seed: int, country: str | None, force: bool, **fields: Any
    ) -> None:  # fmt: skip
        from greenllm import pipeline, recipe
        from greenllm.cli import console, screen
        from greenllm.distill.processes import rank
        from greenllm.screen import Bars

        calibration = {k: fields.pop(k) for k in ("calibration", "samples", "length", "balance") if asks}
        if asks:
            calibration["source"] = calibration.pop("calibration")
        made = recipe.Recipe(
            name=name, seed=seed, calibration=recipe.Calibration.model_validate(calibration),
            steps=[recipe.make_step(name, fields, name)],
        )  # fmt: skip
        if rank():
            pipeline.follow(checkpoint, out, made)
            return
        with Bars(console) as bars:
            done = pipeline.run_steps(checkpoint, out, made, country=country, force=force, progress=bars)
        screen.print(f"{done.path}: {done.bytes_on_disk / 1e6:.1f} MB", soft_wrap=True, markup=False)

    option = typer.Option
    fixed: dict[str, Any] = {
        "checkpoint": Annotated[str, typer.Argument(help="hub id, checkpoint directory, .gguf file or artifact")],
        "out": Annotated[Path, option("-o", "--out", help="directory to make")],
        "seed": (Annotated[int, option(min=0, help="of all that is random")], 0),
        "country": (Annotated[str | None, option(help="ISO code of the electricity grid, for gCO2e")], None),
        "force": (Annotated[bool, option("--force", help="replace the output if it exists")], False),
    }
    if asks:
        fixed |= {
            "calibration": (Annotated[str, option(help="self, a .txt or .jsonl file, or a hub data set")], "self"),
            "samples": (Annotated[int, option(min=1, help="number of calibration samples")], 64),
            "length": (Annotated[int, option(min=8, help="tokens in each")], 128),
            "balance": (Annotated[str, option(help="key of a .jsonl's rows: as many samples of each value")], ""),
        }
    parameters = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, annotation=a[0] if isinstance(a, tuple) else a,
                          default=a[1] if isinstance(a, tuple) else inspect.Parameter.empty)
        for n, a in fixed.items()
    ]  # fmt: skip
    hints = typing.get_type_hints(kind)
    parameters += [_option(f, hints[f.name]) for f in dataclasses.fields(kind)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _option(field: Any, hint: Any) -> inspect.Parameter:
    """One field as a typer option; a Literal of numbers is checked by the step itself."""
    info = field.default
    values = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    kind = type(values[0]) if values and not isinstance(values[0], str) else hint
    text = (info.description or "") + (f" [{'|'.join(map(str, values))}]" if values and kind is not hint else "")
    annotation: Any = Annotated[kind, typer.Option(help=text)]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=info.default)

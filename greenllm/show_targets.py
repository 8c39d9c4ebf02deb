"""The command ``greenllm targets``: a table of all, or one to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from greenllm.export.targets import Target, load_target, target_names, target_text


def targets(
    name: Annotated[str | None, typer.Argument(help="print this one, to start from", show_default=False)] = None,
) -> None:
    """List what can be compressed for, or print one target with the sources of its figures."""
    from greenllm.cli import screen

    if name is not None:
        load_target(name)  # says what is wrong with it
        typer.echo(target_text(Path(name)).rstrip("\n"))
        return
    screen.print(table([load_target(n) for n in target_names()]))
    screen.print("* shared by GPU and processor. To start a file of your own: greenllm targets NAME")


def table(found: list[Target]) -> Table:
    """One row a target, in 80 columns."""
    made = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for column, right in (("target", 0), ("runs on", 0), ("GB", 1), ("GB/s", 1), ("computes in", 0)):
        made.add_column(column, justify="right" if right else "left", no_wrap=True)
    for t in found:
        where = f"GPU {t.compute_capability}" if t.compute_capability else t.isa or "this CPU"
        memory = "–" if t.memory is None else f"{t.memory:.3g}{'*' if t.shared else ' '}"
        made.add_row(
            t.name, where, memory, f"{t.bandwidth:.0f}" if t.bandwidth else "–",
            " ".join(p for p in t.precisions if p != "fp32") or "fp32",
        )  # fmt: skip
    return made

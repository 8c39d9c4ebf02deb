"""The command ``adapt``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape


def adapt(
    model: Annotated[str, typer.Argument(help="checkpoint, packed or not: directory, artifact or hub id")],
    task: Annotated[
        Path,
        typer.Option(
            help=".jsonl of a classification (text and label; or context, choices, label) or of free answers "
            "(prompt and answer; or question and answer)"
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="directory to make")],
    shots: Annotated[int, typer.Option(min=1, help="samples of each class; of free answers so many")] = 16,
    method: Annotated[
        Literal["lora", "adalora", "prefix", "ia3"],
        typer.Option(help="kind of adapter, as peft has them: no bottleneck adapters"),
    ] = "lora",
    blocks: Annotated[int | None, typer.Option(min=1, help="uppermost blocks that learn; default: a quarter")] = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="of LoRA's matrices, or tokens of a prefix; default: the method's"),
    ] = None,
    rate: Annotated[float | None, typer.Option(min=1e-8, max=1.0, help="of learning; default: the method's")] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="so many; default: chosen by cross-validation")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of all that is random")] = 0,
    merge: Annotated[  # noqa: FBT002
        bool, typer.Option("--merge", help="write a dense checkpoint with the adapter in its weights instead")
    ] = False,
    country: Annotated[str | None, typer.Option(help="ISO code of the electricity grid, for gCO2e")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the output if it exists")] = False,  # noqa: FBT002
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores")] = None,
) -> None:
    """Train a small adapter over a model, packed or not, from a few samples; bench it by its directory."""
    from greenllm.adapt.run import adapt as train
    from greenllm.cli import console, screen, set_threads
    from greenllm.screen import Bars

    set_threads(threads)
    with Bars(console) as bars:
        done = train(
            model, task, out, shots=shots, method=method, blocks=blocks, rank=rank, rate=rate, steps=steps, seed=seed,
            merge=merge, country=country, force=force, progress=bars,
        )  # fmt: skip
    record = done.manifest.steps[-1]
    screen.print(
        f"[bold]{escape(str(done.path))}[/]: {record.result['bytes'] / 1e6:.2f} MB, {record.seconds:.0f} s",
        soft_wrap=True, highlight=False,
    )  # fmt: skip
    screen.print(f"Compare it       greenllm bench {model} {out} --task TEST.jsonl", soft_wrap=True, markup=False)

"""The commands ``adapt`` and ``meta-train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

if TYPE_CHECKING:
    from greenllm.artifact import Artifact


Method = Literal["lora", "adalora", "prefix", "ia3"]
_METHOD = "kind of adapter, as peft has them (it has no bottleneck adapters)"
Out = Annotated[Path, typer.Option("-o", "--out", help="directory to make")]
Shots = Annotated[int, typer.Option(min=1, help="samples of each class; of free answers so many")]
Blocks = Annotated[
    int | None, typer.Option(min=1, help="uppermost blocks that learn; default: a quarter; a prefix is before all")
]
Rank = Annotated[
    int | None, typer.Option(min=1, max=1024, help="of LoRA's matrices, or tokens of a prefix; default: the method's")
]
Rate = Annotated[float | None, typer.Option(min=1e-8, max=1.0, help="of learning; default: the method's")]
Seed = Annotated[int, typer.Option(min=0, help="of all that is random")]
Country = Annotated[str | None, typer.Option(help="ISO code of the electricity grid, for gCO2e")]
Force = Annotated[bool, typer.Option("--force", help="replace the output if it exists")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores")]


def adapt(
    model: Annotated[str, typer.Argument(help="checkpoint, packed or not: directory, artifact or hub id")],
    task: Annotated[
        Path,
        typer.Option(
            help=".jsonl of a classification (text and label), of multiple choice (context, choices, label; or BBQ), "
            "of free answers (prompt and answer; or question and answer), or of clips (audio and text)"
        ),
    ],
    out: Out,
    shots: Shots = 16,
    method: Annotated[Method | None, typer.Option(help=f"{_METHOD}; default: lora, or that of --meta")] = None,
    blocks: Blocks = None,
    rank: Rank = None,
    rate: Rate = None,
    steps: Annotated[int | None, typer.Option(min=0, help="so many; default: chosen by cross-validation")] = None,
    seed: Seed = 0,
    meta: Annotated[Path | None, typer.Option(help="where to start, by greenllm meta-train")] = None,
    merge: Annotated[  # noqa: FBT002
        bool, typer.Option("--merge", help="write a dense checkpoint with the adapter in its weights instead")
    ] = False,
    country: Country = None,
    force: Force = False,  # noqa: FBT002
    threads: Threads = None,
) -> None:
    """Train a small adapter over a model, packed or not, from a few samples; bench it by its directory."""
    from greenllm.adapt.run import adapt as train
    from greenllm.cli import console, screen, set_threads
    from greenllm.screen import Bars

    set_threads(threads)
    with Bars(console) as bars:
        done = train(
            model, task, out, shots=shots, method=method, blocks=blocks, rank=rank, rate=rate, steps=steps, seed=seed,
            meta=meta, merge=merge, country=country, force=force, progress=bars,
        )  # fmt: skip
    _say(done)
    screen.print(f"Compare it       greenllm bench {model} {out} --task TEST.jsonl", soft_wrap=True, markup=False)


def meta_train(
    model: Annotated[str, typer.Argument(help="checkpoint, packed or not: directory, artifact or hub id")],
    tasks: Annotated[list[Path], typer.Argument(help="two .jsonl files or more, each as adapt takes it")],
    out: Out,
    shots: Shots = 16,
    method: Annotated[Method, typer.Option(help=_METHOD)] = "lora",
    blocks: Blocks = None,
    rank: Rank = None,
    rate: Rate = None,
    rounds: Annotated[int, typer.Option(min=1, help="in each of which every task is learned once")] = 20,
    steps: Annotated[int, typer.Option(min=1, help="of learning a task in a round")] = 5,
    seed: Seed = 0,
    country: Country = None,
    force: Force = False,  # noqa: FBT002
    threads: Threads = None,
) -> None:
    """Learn from several tasks where adapters of a model should start (Reptile): greenllm adapt … --meta OUT."""
    from greenllm.adapt.meta import meta_train as train
    from greenllm.cli import console, screen, set_threads
    from greenllm.screen import Bars

    set_threads(threads)
    with Bars(console) as bars:
        done = train(
            model, tasks, out, shots=shots, method=method, blocks=blocks, rank=rank, rate=rate, rounds=rounds,
            steps=steps, seed=seed, country=country, force=force, progress=bars,
        )  # fmt: skip
    _say(done)
    screen.print(f"Start from it    greenllm adapt {model} --task FEW.jsonl --meta {out}", soft_wrap=True, markup=False)


def _say(done: Artifact) -> None:
    from greenllm.cli import screen

    record = done.manifest.steps[-1]
    screen.print(
        f"[bold]{escape(str(done.path))}[/]: {record.result['bytes'] / 1e6:.2f} MB, {record.seconds:.0f} s",
        soft_wrap=True, highlight=False,
    )  # fmt: skip

"""The command line: parse, call one function, print. Heavy imports are inside the commands."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from greenllm import __version__
from greenllm.adapt.command import adapt, meta_train
from greenllm.ask import chat, run, serve
from greenllm.clean.command import clean
from greenllm.errors import GreenError, Interrupted
from greenllm.show_targets import targets

app = typer.Typer(
    name="greenllm",
    help="One command from a checkpoint to a deployable, measured model.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console(stderr=True)
screen = Console()

ModelArg = Annotated[
    str, typer.Argument(help="hub id, checkpoint directory, .gguf file or artifact", show_default=False)
]
OutOption = Annotated[
    Path | None, typer.Option("-o", "--out", help="directory to make; default: from the model's name")
]
ToOption = Annotated[
    str | None, typer.Option(help="genai, onnx, tensorrt, edge-llm or gguf; default: what the target runs best")
]
TargetOption = Annotated[str, typer.Option(help="what it will run on; `greenllm targets` lists them")]
ContextOption = Annotated[
    int | None,
    typer.Option(min=1, help="tokens to hold, prompt and answer; default: 2048 or the model's own fewer"),
]
CountryOption = Annotated[
    str | None, typer.Option(help="ISO code of the electricity grid, for gCO2e (DEU, FRA, USA, CHN …)")
]
ForceOption = Annotated[bool, typer.Option("--force", help="replace the output if it exists")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores")]

PairsOption = Annotated[
    Path | None, typer.Option(help="encoders: sentence pairs with a score (.csv, .tsv, .jsonl), for rank correlation")
]
TaskOption = Annotated[
    list[Path] | None,
    typer.Option("--task", help="'suite' (comes along), or a .jsonl or .csv file to answer from; may be given again"),
]
LimitOption = Annotated[int | None, typer.Option(min=0, help="items of each task; 0: all; default: 200; full: all")]
RequireOption = Annotated[
    list[str] | None,
    typer.Option(help="limit such as 'ppl<=1.03x', 'accuracy>=-1%', 'memory<=300'; may be given again"),
]
StrictOption = Annotated[bool, typer.Option("--strict", help="a requirement inside the noise fails too")]
KvOption = Annotated[
    int | None, typer.Option(help="genai: bits of the cache of keys and values, 8 or 4: less memory, slower")
]
EffortOption = Annotated[Literal["quick", "full"], typer.Option(help="how long the bench measures")]


@app.command()
def compress(
    model: ModelArg,
    out: OutOption = None,
    to: ToOption = None,
    target: TargetOption = "cpu",
    context: ContextOption = None,
    kv_bits: KvOption = None,
    recipe: Annotated[
        str | None, typer.Option(help="built-in name or YAML file; default: int4, or mixed where there is a budget")
    ] = None,
    bits: Annotated[float | None, typer.Option(help="budget for mixed precision: bits a weight, all included")] = None,
    size: Annotated[float | None, typer.Option(help="the same in MB of weights")] = None,
    calibration: Annotated[
        str | None, typer.Option(help="self, a .txt or .jsonl file, or a hub data set; default: the recipe's")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="text for perplexity; default: Python's own documentation")] = None,
    country: CountryOption = None,
    bench: Annotated[bool, typer.Option("--bench/--no-bench", help="measure before against after")] = True,
    pairs: PairsOption = None,
    task: TaskOption = None,
    limit: LimitOption = None,
    effort: EffortOption = "quick",
    require: RequireOption = None,
    strict: StrictOption = False,
    max_loss: Annotated[
        float, typer.Option(min=1, help="most that the bench may find: perplexity over the source's")
    ] = 1.25,
    on_loss: Annotated[Literal["warn", "fail"], typer.Option(help="what to do past it; fail exits with 1")] = "warn",
    threads: ThreadsOption = None,
    force: ForceOption = False,
) -> None:
    """Compress a model, export it for a target, and measure it before against after."""
    from greenllm import artifact, pipeline
    from greenllm.bench.require import enforce
    from greenllm.plan import default_out, plan
    from greenllm.quality import results_of
    from greenllm.screen import Bars, say_plan, say_result

    if out is not None:
        artifact.check_free(out.absolute(), force=force)
    set_threads(threads)
    country = ask_country(country) if bench else country
    todo = plan(
        model, recipe, target, to=to, calibration=calibration, bits=bits, size=size, context=context, kv_bits=kv_bits
    )
    out = out or default_out(model, todo)
    artifact.check_free(out.absolute(), force=force)
    say_plan(console, todo, out, bench=bench and todo.runs_here)
    options = {"text": text, "pairs": pairs, "tasks": task or [], "limit": limit, "effort": effort, "threads": threads,
               "require": require or []}  # fmt: skip
    with Bars(console) as bars:
        done = pipeline.execute(
            todo, out, source=model, country=country, bench=bench, bench_options=options,
            max_loss=max_loss, on_loss=on_loss, force=force, progress=bars,
        )  # fmt: skip
    say_result(screen, done)
    if bench and todo.runs_here:
        enforce(results_of(done).requirements, strict=strict)


@app.command()
def export(
    checkpoint: ModelArg,
    out: Annotated[Path, typer.Option("-o", "--out", help="directory to make")],
    to: ToOption = None,
    target: TargetOption = "cpu",
    precision: Annotated[
        str | None,
        typer.Option(
            help="tensorrt: fp16, bf16 or fp32; gguf: f32, f16, q8_0 or q4_0; edge-llm: int4, int8 or fp16; "
            "default: half, but for edge-llm int4"
        ),
    ] = None,
    context: ContextOption = None,
    kv_bits: KvOption = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="edge-llm, --kv-bits: self, a .txt or .jsonl file, or a hub data set; default self"),
    ] = None,
    adapter: Annotated[
        list[Path] | None,
        typer.Option(help="genai: what adapt made of this checkpoint, to be put on while it runs; may be given again"),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Export a checkpoint for a target; quantized weights stay quantized."""
    from greenllm import export as room
    from greenllm.screen import Bars

    with Bars(console) as bars:
        done = room(
            checkpoint, out, to=to, target=target, precision=precision, context=context, kv_bits=kv_bits,
            calibration=calibration, adapters=adapter or [], force=force, progress=bars,
        )  # fmt: skip
    screen.print(f"[bold]{escape(str(done.path))}[/]: {done.kind}, {done.bytes_on_disk / 1e6:.1f} MB", soft_wrap=True)


@app.command()
def bench(
    models: Annotated[
        list[str], typer.Argument(help="checkpoints and artifacts; the first is the baseline", show_default=False)
    ],
    report: Annotated[Path | None, typer.Option(help="directory for report.html, report.md and report.json")] = None,
    text: Annotated[Path | None, typer.Option(help="text for perplexity; default: Python's own documentation")] = None,
    country: CountryOption = None,
    region: Annotated[str | None, typer.Option(help="state, province or bidding zone of that country")] = None,
    intensity: Annotated[float | None, typer.Option(help="gCO2e per kWh that you know, instead of a country's")] = None,
    embodied: Annotated[
        str | None, typer.Option(help="kgCO2e of making this machine, or a target whose file says it; with --lifetime")
    ] = None,
    lifetime: Annotated[float | None, typer.Option(help="years that it serves")] = None,
    meter: Annotated[
        str | None, typer.Option(help="rapl, nvml, ina3221, codecarbon or a sum such as rapl+nvml; default: the best")
    ] = None,
    pairs: PairsOption = None,
    task: TaskOption = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="fairness, safety or clue (clue:tnews): public sets, of --data or lm-eval; robustness: the tasks "
            "disturbed, by all kinds or robustness:KIND[=5,10,20]; may be given again"
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="directory with the suites' sets as they are published")] = None,
    words: Annotated[
        Path | None, typer.Option(help="words, one a line: answers to the suite safety are toxic that hold one")
    ] = None,
    lm_eval: Annotated[
        list[str] | None, typer.Option(help="a task of lm-eval, by name or .yaml file; may be repeated")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="ask tasks in each model's chat template")] = False,
    length: Annotated[
        list[int] | None, typer.Option(help="a further prompt length to time; may be given again")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="so many queries at once, timed besides; may be given again")
    ] = None,
    loads: Annotated[
        int | None, typer.Option(min=0, help="rounds of loads, cold and warm; default: none; full: 5")
    ] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="find the block where a graph departs from its source")
    ] = False,
    limit: LimitOption = None,
    effort: EffortOption = "quick",
    require: RequireOption = None,
    strict: StrictOption = False,
    threads: ThreadsOption = None,
) -> None:
    """Compare models: quality, speed, memory, energy and gCO2e, each with its certainty."""
    from greenllm import bench as room
    from greenllm.bench.require import enforce
    from greenllm.export.targets import embodied_of
    from greenllm.screen import Bars, say_results

    country = country if intensity is not None else ask_country(country)
    with Bars(console) as bars:
        results = room(
            models,
            text=text,
            pairs=pairs,
            tasks=task or [],
            suites=suite or [],
            data=data,
            words=words,
            lm_eval=lm_eval or [],
            chat=chat,
            bisect=bisect,
            lengths=length or [],
            batches=batch or [],
            loads=loads,
            limit=limit,
            country=country,
            region=region,
            intensity=intensity,
            embodied=embodied_of(embodied),
            lifetime=lifetime,
            meter=meter,
            require=require or [],
            effort=effort,
            threads=threads,
            report=report,
            progress=bars,
        )
    say_results(screen, results)
    if report:
        screen.print(f"Report: [bold]{escape(str(report / 'report.html'))}[/]", soft_wrap=True)
    enforce(results.requirements, strict=strict)


@app.command()
def report(
    results: Annotated[
        list[Path] | None,
        typer.Argument(help="a bench's report.json or its directory; several are joined", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="directory or .html file to write")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of results instead")] = False,
) -> None:
    """Render results again; several runs become one report that says what may not be compared."""
    import json

    from greenllm.bench.report import merge, write_report
    from greenllm.bench.results import Results
    from greenllm.screen import say_results

    if schema:
        sys.stdout.write(json.dumps(Results.model_json_schema(), indent=1) + "\n")
        return
    if not results:
        raise GreenError("There are no results to report.", "Give the report.json of a bench.")
    found = merge.merge([merge.read(p) for p in results])
    say_results(screen, found)
    for caveat in found.caveats:
        screen.print(f"· {escape(caveat)}", soft_wrap=True, highlight=False)
    if out:
        screen.print(f"Report: [bold]{escape(str(write_report(found, out)))}[/]", soft_wrap=True)


for each in (run, chat, serve, clean, adapt, meta_train):
    app.command()(each)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="print this one, to start from", show_default=False)] = None,
) -> None:
    """List the built-in recipes, or print one."""
    from greenllm import recipe

    if name is not None:
        if name not in recipe.builtin():
            recipe.load(name)  # says what is wrong with it
        sys.stdout.write(recipe.text_of(name) if name in recipe.builtin() else Path(name).read_text(encoding="utf-8"))
        return
    for each in recipe.builtin():
        screen.print(f"[bold]{each:8}[/] {recipe.load(each).description}")


app.command()(targets)


@app.command()
def doctor() -> None:
    """Say what is installed, what runs here, which power meters there are, and what to install."""
    from greenllm.doctor import examine, render

    screen.print(render(examine()))


def _version(value: bool) -> None:  # noqa: FBT001 - typer's callback signature
    if value:
        screen.print(f"greenllm {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="say the version")
    ] = False,
) -> None:
    """One command from a checkpoint to a deployable, measured model."""


def ask_country(country: str | None) -> str | None:
    """The grid's country: given, asked for on a terminal, else none, and said so."""
    from greenllm.bench.energy.grid import check_country

    if country is None and sys.stdin.isatty() and console.is_terminal:
        country = typer.prompt(
            "Country of the electricity grid (ISO code such as DEU; empty: no gCO2e)", default="", err=True
        )
    if not country:
        console.print("No --country: energy is given in kWh, and gCO2e is left out.", style="yellow")
        return None
    return check_country(country)


def set_threads(threads: int | None) -> None:
    """Threads of torch, here and in children."""
    if threads:
        import torch

        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


def _interrupted(_signal: int, _frame: object) -> NoReturn:
    raise Interrupted("Interrupted.", "What is finished is kept: compress goes on there with the same command.")


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: exit code 0 when done, 1 on a told error, 130 on Ctrl-C."""
    from greenllm.commands import add_step_commands
    from greenllm.device_commands import add_device_commands

    arguments = sys.argv[1:] if arguments is None else arguments
    add_step_commands(app, arguments)
    add_device_commands(app)
    signal.signal(signal.SIGINT, _interrupted)
    try:
        app(args=arguments, standalone_mode=True)
    except GreenError as e:
        console.print(f"[bold red]Error:[/] {escape(e.what)}", soft_wrap=True, highlight=False)
        if e.fix:
            console.print(escape(e.fix), soft_wrap=True, highlight=False)
        sys.exit(130 if isinstance(e, Interrupted) else 1)
    except ModuleNotFoundError as e:
        if e.name is None or e.name.startswith("greenllm"):
            raise
        console.print(f"[bold red]Error:[/] this command needs the package {escape(e.name)}.", highlight=False)
        console.print(
            escape('Install what compresses and measures: pip install "greenllm[compress]".'), highlight=False
        )
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(141)


if __name__ == "__main__":
    main()

"""The commands ``bundle`` and ``deploy``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from greenllm.errors import GreenError


def add_device_commands(app: typer.Typer) -> None:
    """Register them, once."""
    app.registered_commands = [c for c in app.registered_commands if c.name not in ("bundle", "deploy")]
    app.command("bundle")(_bundle)
    app.command("deploy")(_deploy)


def _bundle(
    model: Annotated[str, typer.Argument(help="what compress or export made, or another bundle", show_default=False)],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="directory, or .tar or .tar.gz file, to make")] = None,
    target: Annotated[str | None, typer.Option(help="device it is for; default: the one it was exported for")] = None,
    archive: Annotated[bool, typer.Option("--archive", help="make one file, .tar.gz")] = False,  # noqa: FBT002
    force: Annotated[bool, typer.Option("--force", help="replace the output if it exists")] = False,  # noqa: FBT002
) -> None:
    """Put a model and all that a device needs to run and test it into one directory or archive."""
    from greenllm.cli import console, screen
    from greenllm.export.bundle import bundle
    from greenllm.screen import Bars

    with Bars(console) as bars:
        made = bundle(model, out, target=target, archive=archive, force=force, progress=bars)
    size = sum(p.stat().st_size for p in made.rglob("*")) if made.is_dir() else made.stat().st_size
    screen.print(f"{made}: {size / 1e6:.1f} MB", soft_wrap=True, markup=False, highlight=False)
    screen.print(f"Deploy it        [bold]greenllm deploy {escape(str(made))} user@host[/]", soft_wrap=True)


def _deploy(
    bundle: Annotated[Path, typer.Argument(help="what `greenllm bundle` made", show_default=False)],
    host: Annotated[str, typer.Argument(help="user@host, or a Host of ssh's configuration", show_default=False)],
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="of ssh on the device")] = None,
    identity: Annotated[Path | None, typer.Option(help="file of a private key")] = None,
    ssh_config: Annotated[Path | None, typer.Option(help="instead of ~/.ssh/config")] = None,
    directory: Annotated[str, typer.Option("--dir", help="on the device, relative to home")] = "greenllm",
    python: Annotated[
        str,
        typer.Option(help="on the device; used as it is where it has what is required, else to make an environment"),
    ] = "python3",
    wheels: Annotated[Path | None, typer.Option(help="directory of packages, for a device without network")] = None,
    bench: Annotated[bool, typer.Option("--bench", help="measure the model there")] = False,  # noqa: FBT002
    power_modes: Annotated[  # noqa: FBT002
        bool, typer.Option("--power-modes", help="measure in each power mode of a Jetson, and restore its own")
    ] = False,
    wheel: Annotated[Path | None, typer.Option(help="greenllm's own, for the bench; default: made here")] = None,
    report: Annotated[Path | None, typer.Option(help="directory for the report of the bench")] = None,
    beside: Annotated[Path | None, typer.Option(help="a local bench's report, to join that of the device to")] = None,
    country: Annotated[str | None, typer.Option(help="ISO code of the device's electricity grid")] = None,
    effort: Annotated[Literal["quick", "full"], typer.Option(help="how long the bench measures")] = "quick",
) -> None:
    """Copy a bundle to a device over ssh, let it test itself there, make it the current version, and measure it."""
    from greenllm.cli import console, screen
    from greenllm.export.deploy import deploy
    from greenllm.export.deploy.ssh import Where
    from greenllm.screen import Bars, say_results

    measured = bench or power_modes
    if (report or beside) and not measured:
        raise GreenError("There is nothing to report without --bench.", "Add --bench or --power-modes.")
    if beside:
        from greenllm.bench.report import merge

        merge.read(beside)  # refused here, not after minutes
    options = ["--effort", effort, *(["--country", country] if country else [])]
    with Bars(console) as bars:
        done = deploy(
            bundle, Where(host, port, identity, ssh_config), directory=directory, python=python, wheels=wheels,
            bench=bench, options=options, power_modes=power_modes, wheel=wheel, progress=bars,
        )  # fmt: skip
    screen.print(f'Run it there     [bold]{escape(done.command)} "…"[/]', soft_wrap=True, highlight=False)
    for line in done.failed:
        console.print(line, style="yellow", soft_wrap=True, markup=False)
    if not done.results:
        if measured:
            raise GreenError("The model is on the device; nothing could be measured there.")
        return
    from greenllm.export.deploy.results import join

    say_results(screen, join(done.results, beside, report))
    if report:
        screen.print(f"Report: [bold]{escape(str(report / 'report.html'))}[/]", soft_wrap=True)

"""What a terminal shows: the plan, one progress display for all stages, the result."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from greenllm.progress import clock

if TYPE_CHECKING:
    from typing_extensions import Self

    from greenllm.artifact import Artifact
    from greenllm.bench import Results
    from greenllm.plan import Plan

_BENCH_SECONDS = 200


class Bars:
    """Progress as bars, one a stage; plain lines where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=console, transient=False, disable=not console.is_terminal,
        )  # fmt: skip
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing; what was drawn stays."""
        self._finish() if kind is None else None
        self._bars.stop()

    def stage(self, name: str, total: float) -> None:
        """A new bar; the one before is full."""
        self._finish()
        if not self.console.is_terminal:
            self.console.print(f"· {name}", markup=False)
        self._task = self._bars.add_task(escape(name), total=total)

    def advance(self, amount: float = 1) -> None:
        """Move the current bar."""
        if self._task is not None:
            self._bars.advance(self._task, amount)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._bars.console.print(text, markup=False)

    def _finish(self) -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=self._bars.tasks[self._task].total)


def say_plan(console: Console, todo: Plan, out: Path, *, bench: bool) -> None:
    """What will be done, how long it takes and how much memory it needs, before it starts."""
    c = todo.checkpoint
    steps = ", ".join(s.name for s in todo.recipe.steps) or "no steps"
    kind = type(c.config).__name__.removesuffix("Config")
    what = f"[bold]{escape(kind)}[/], {c.parameters / 1e6:.1f} M parameters, {c.task}"
    how = f"recipe [bold]{escape(todo.recipe.name)}[/] ({escape(steps)}) for [bold]{escape(todo.target)}[/]"
    console.print(f"{what}; {how} → {escape(str(out))}", soft_wrap=True)
    more = f", then about {clock(_BENCH_SECONDS)} for the bench" if bench else ""
    console.print(f"{todo.estimate.words}{more}.")
    if todo.fit and todo.fit.there is not None:
        there = todo.fit.there / 2**30
        console.print(
            f"On {escape(todo.target)}, of {there:.2f} GB: {todo.fit.words}.", soft_wrap=True, highlight=False
        )
    if todo.estimate.peak_bytes > todo.memory:
        console.print(
            f"Only {todo.memory / 1e9:.1f} GB of memory are free now: this may be killed.", style="bold yellow"
        )


def say_results(screen: Console, results: Results) -> None:
    """The table of a bench, after how many queries each model has paid back its making, and what was required."""
    from greenllm.bench.report import table

    screen.print(table(results))
    for row in results.rows:
        for what, payback in row.payback.items():
            text = f"{row.name} pays back its making ({payback.made:.3g} {payback.unit}): {payback.words}"
            screen.print(f"{'Payback, ' + what:16} {escape(text)}", soft_wrap=True, highlight=False)
    for r in results.requirements:
        screen.print(
            f"{r.outcome:16} {escape(f'{r.model}: {r.text}; found {r.found}')}", soft_wrap=True, highlight=False
        )


def say_result(screen: Console, done: Artifact) -> None:
    """The table, where everything lies, and how to run it."""
    report = done.path / "report.json"
    if report.is_file():
        from greenllm.bench import Results

        say_results(screen, Results.from_json(report.read_text(encoding="utf-8")))
    rows = {
        "Model to deploy": done.path / "deploy",
        "Checkpoint": done.path / "checkpoint",
        "Report": done.path / "report.html" if report.is_file() else None,
    }
    for label, path in rows.items():
        if path:
            screen.print(f"{label:16} [bold]{escape(str(path))}[/]", soft_wrap=True, highlight=False)
    task = done.manifest.details.get("task")
    if task in ("text-generation", "image-text-to-text") and "engine" not in done.manifest.details:
        question = '"Why is the sky blue?"' if task == "text-generation" else '--image photo.jpg "What is this?"'
        command = f"greenllm run {shlex.quote(str(done.path))} {question}"
        if done.deployable.kind == "gguf":
            command = f"llama-cli -m {shlex.quote(str(done.path / 'deploy' / 'model.gguf'))}"
        screen.print(f"{'Run it':16} [bold]{escape(command)}[/]", soft_wrap=True, highlight=False)

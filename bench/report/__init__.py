"""Reports: one HTML file that needs no network, Markdown, JSON, CSV, and a table for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenllm.artifact import write_atomic
from greenllm.bench.report import curves, cuts, figures, lengths, parts, robust, sizes, spend, tasks
from greenllm.bench.report.lines import to_csv
from greenllm.bench.report.words import EMPTY, MARKS, change, interval, number, times
from greenllm.bench.results import METRICS, Results, Row
from greenllm.errors import GreenError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["escape", "table", "write_report"]

_CARDS = (
    "disk",
    "decode",
    "encode",
    "real_time",
    "caption",
    "perplexity",
    "cosine",
    "memory",
    "energy_gross",
    "carbon_gross",
)


def write_report(results: Results, to: str | Path) -> Path:
    """Write ``report.html``, ``report.md``, ``report.json`` and ``report.csv``; each is whole or not there.

    Args:
        results: what to tell.
        to: a directory (made if need be), or the name of the ``.html`` file; the others lie beside it.

    Returns:
        The ``.html`` file.

    Raises:
        GreenError: it cannot be written there.
    """
    to = Path(to)
    html = to if to.suffix == ".html" else to / "report.html"
    try:
        html.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(html, render(results, "report.html.jinja"))
        write_atomic(html.with_suffix(".md"), render(results, "report.md.jinja"))
        write_atomic(html.with_suffix(".csv"), to_csv(results))
        write_atomic(html.with_suffix(".json"), results.to_json())
    except OSError as e:
        raise GreenError(f"The report cannot be written to {html.parent}: {e.strerror}.") from e
    return html


def render(results: Results, template: str) -> str:
    """The text of a report; everything from outside is escaped as the format needs."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=template.endswith(".html.jinja"),  # Markdown escapes its own signs, by the filter
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = escape
    others = [row for row in results.rows if row.name != results.baseline]
    drawn = [
        draw(results)
        for draw in (figures.ratios, figures.trade, curves.latencies, curves.by_block, sizes.pieces, spend.by_phase)
    ]
    return environment.get_template(template).render(
        results=results,
        rows=results.rows,
        groups=_groups(results),
        cards=[(row, _cards(results, row)) for row in others],
        pictures=[p for p in drawn if p]
        + lengths.pictures(results)
        + robust.pictures(results)
        + cuts.pictures(results),
        metrics=METRICS,
        flips=tasks.flips(results),
        others=others,
    )


def table(results: Results) -> Table:
    """The figures as a table for the terminal, one column a model."""
    from rich.table import Table
    from rich.text import Text

    found = Table(title="Before and after" if len(results) > 1 else None, title_style="bold", header_style="bold")
    found.add_column("")
    for row in results.rows:
        found.add_column(Text(row.name), justify="right")
    for group, lines in _groups(results):
        for i, (label, cells) in enumerate(lines):
            texts = [Text(" ".join(x for x in (c["value"], c["unit"], c["ratio"], c["mark"]) if x)) for c in cells]
            found.add_row(Text(label), *texts, end_section=i == len(lines) - 1)
        del group
    if any(row.error for row in results.rows):
        found.add_row(Text("Failed", style="bold red"), *[Text(row.error or "", style="red") for row in results.rows])
    return found


def _groups(results: Results) -> list[tuple[str, list[tuple[str, list[dict[str, Any]]]]]]:
    """Groups of lines; a line is a metric's label and one cell a model."""
    found: dict[str, list[tuple[str, list[dict[str, Any]]]]] = {}
    for name, metric in METRICS.items():
        if results.has(name):
            cells = [_cell(row, name) for row in results.rows]
            found.setdefault(metric.group, []).append((metric.label, cells))
    more = {
        "By part": parts.lines(results),
        "By prompt length": lengths.lines(results),
        "By batch": lengths.by_batch(results),
        "Tasks": tasks.lines(results),
        "Robustness": robust.lines(results),
    }
    found |= {group: lines for group, lines in more.items() if lines}
    return list(found.items())


def _cell(row: Row, name: str) -> dict[str, Any]:
    measured, ratio = row.measurements.get(name), row.ratios.get(name)
    if measured is None:
        return dict(EMPTY)
    verdict = row.verdict(name) if ratio else "unknown"
    exact = measured.ci95 is not None and measured.ci95[0] == measured.ci95[1]
    return {
        "value": number(measured.value, measured.ci95),
        "unit": measured.unit,
        "interval": "" if exact else interval(measured.ci95),
        "estimated": measured.estimated,
        "ratio": times(ratio.value) if ratio else "",
        "ratio_interval": interval(ratio.ci95) if ratio and ratio.ci95 and ratio.ci95[0] != ratio.ci95[1] else "",
        "mark": MARKS[verdict],
        "word": verdict if verdict != "unknown" else "",
        "note": f"{measured.method}, n = {measured.n}" + (f"; {measured.note}" if measured.note else ""),
    }


def _cards(results: Results, row: Row) -> list[dict[str, str]]:
    """The few figures that people ask for first."""
    base = results[results.baseline]
    found = []
    for name in _CARDS:
        if name == "energy_gross" and "carbon_gross" in row:
            continue  # the same ratio twice
        if name in row and (name in row.ratios or name == "cosine"):
            ratio = row.ratios.get(name)
            before = base.measurements.get(name)
            found.append(
                {
                    "label": METRICS[name].label,
                    "big": change(ratio.value) if ratio else number(row[name].value, row[name].ci95),
                    "from": f"{number(before.value, before.ci95)} → " if before else "",
                    "to": f"{number(row[name].value, row[name].ci95)} {row[name].unit}".strip(),
                    "verdict": row.verdict(name),
                    "mark": MARKS[row.verdict(name)],
                    "estimated": "estimated" if row[name].estimated else "",
                }
            )
    return found


def escape(text: object) -> str:
    """One line of plain text inside Markdown: no table, link, HTML or code of its own."""
    escaped = " ".join(str(text).split())
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "\\`"), ("*", "\\*"),
                       ("_", "\\_"), ("[", "\\["), ("]", "\\]")):  # fmt: skip
        escaped = escaped.replace(sign, safe)
    return escaped

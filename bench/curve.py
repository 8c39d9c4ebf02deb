"""Quality against size and against speed: ours as a line, other tools' models as points, all from one bench.

python -m greenllm.bench.curve CHECKPOINT --text wikitext-2-test.txt --ours out/int4 … --peers out/peers/* --out out
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from greenllm.artifact import write_atomic
from greenllm.bench.measurement import Measurement
from greenllm.bench.report import escape
from greenllm.bench.report.words import interval, number, times
from greenllm.bench.results import Results, Row
from greenllm.errors import GreenError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _PEERS = "#0a7d4f", "#b3541e"  # told apart by colour-blind readers too, and by their marks


class Lead(NamedTuple):
    """The fastest of ours that is no worse than a peer, and how many times faster it decodes."""

    name: str
    speed: float


def write(results: Results, ours: Sequence[str], out: Path) -> None:
    """Write ``curve.png``, ``curve.svg``, ``curve.md`` and ``curve.json``.

    Args:
        results: of a bench whose baseline is the source.
        ours: names of our rows; the others are peers.
        out: directory, made if need be.

    Raises:
        GreenError: no model but the source has all figures.
    """
    needed = {"bits_per_weight", "decode"}
    rows = [r for r in results.rows[1:] if "perplexity" in r.ratios and needed <= set(r.measurements)]
    if not rows:
        raise GreenError("No model has perplexity, size and speed beside the baseline's: there is nothing to draw.")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "curve.json", results.to_json())
    write_atomic(out / "curve.md", table(results, ours))
    _draw(rows, set(ours), out)


def table(results: Results, ours: Sequence[str]) -> str:
    """Markdown: one line a model, with 95 % intervals; each peer with its :func:`lead`."""
    lines = [
        "| model | bits per weight | perplexity | × source | decode, tokens/s | prefill, tokens/s | MB | ours ahead |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in results.rows:
        ratio = row.ratios.get("perplexity")
        cells = [
            escape(row.name),
            *(_cell(row.measurements.get(m)) for m in ("bits_per_weight", "perplexity")),
            _cell(ratio),
        ]
        cells += [_cell(row.measurements.get(m)) for m in ("decode", "prefill", "memory")]
        best = lead(results, ours, row) if row.name not in ours and row is not results.rows[0] else None
        lines.append("| " + " | ".join([*cells, f"{escape(best.name)} {times(best.speed)}" if best else ""]) + " |")
    s = results.settings
    here = results.machine
    lines += ["", f"{here.cpu}, {s['threads']} threads, batch 1; {s['query']}. {results.methods['Perplexity']}", ""]
    lines += [f"{row.name} failed: {row.error}" for row in results.rows if row.error]
    return "\n".join(lines).rstrip() + "\n"


def lead(results: Results, ours: Sequence[str], peer: Row) -> Lead | None:
    """Who of ours dominates a peer, if any; by the figures themselves, not their intervals."""
    if not {"perplexity", "decode"} <= set(peer.measurements):
        return None
    able = [
        Lead(r.name, r["decode"].value / peer["decode"].value)
        for r in results.rows
        if r.name in ours
        and {"perplexity", "decode"} <= set(r.measurements)
        and r["perplexity"].value <= peer["perplexity"].value
    ]
    return max(able, key=lambda x: x.speed, default=None)


def _cell(m: Measurement | None) -> str:
    if m is None:
        return "–"
    exact = m.ci95 is None or m.ci95[0] == m.ci95[1]
    return number(m.value, m.ci95) + ("" if exact else f" ({interval(m.ci95)})")


def _draw(rows: list[Row], ours: set[str], out: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams |= {"svg.hashsalt": "greenllm", "font.size": 9}  # the same figures give the same file
    figure, both = plt.subplots(1, 2, figsize=(12, 5), sharey=True, layout="constrained")
    for axes, metric, label in zip(
        both, ("bits_per_weight", "decode"), ("bits per weight, every tensor counted", "decode, tokens/s"), strict=True
    ):
        _points(axes, [r for r in rows if r.name in ours], metric, _OURS, "o-")
        _points(axes, [r for r in rows if r.name not in ours], metric, _PEERS, "s")
        axes.axhline(1, color="0.6", linewidth=1, zorder=0)
        axes.set(xlabel=label, yscale="log")
        axes.grid(visible=True, which="both", color="0.92")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    both[0].set_ylabel("perplexity, × source (lower is better)")
    both[0].set_title("Left and down is better", fontsize=9)
    both[1].set_title("Right and down is better", fontsize=9)
    for suffix, extra in ((".png", {"dpi": 150}), (".svg", {"metadata": {"Date": None}})):
        figure.savefig(out / f"curve{suffix}", **extra)  # a float and a dict by turns
    plt.close(figure)


def _points(axes: Axes, rows: list[Row], metric: str, colour: str, style: str) -> None:
    rows = sorted(rows, key=lambda r: r[metric].value)
    x, y = [r[metric] for r in rows], [r.ratios["perplexity"] for r in rows]
    options: dict[str, Any] = {"fmt": style, "color": colour, "markersize": 5, "capsize": 2, "elinewidth": 1}
    axes.errorbar([m.value for m in x], [m.value for m in y], xerr=_bars(x), yerr=_bars(y), **options)
    for row, a, b in zip(rows, x, y, strict=True):
        axes.annotate(row.name, (a.value, b.value), (5, 5), textcoords="offset points", color=colour, fontsize=8)


def _bars(figures: list[Measurement]) -> list[list[float]]:
    """Lengths below and above, as matplotlib wants them."""
    spans = [(m.value, *(m.ci95 or (m.value, m.value))) for m in figures]
    return [[max(v - lo, 0.0) for v, lo, _ in spans], [max(hi - v, 0.0) for v, _, hi in spans]]


def main() -> None:
    """Parse, bench once, write."""
    from greenllm.bench import EFFORTS, bench

    parser = argparse.ArgumentParser(description="The curve of quality against size and speed.")
    parser.add_argument("checkpoint", help="the source, the baseline")
    parser.add_argument("--text", required=True, help=".txt or .jsonl for perplexity")
    parser.add_argument("--ours", nargs="+", default=[], help="our artifacts")
    parser.add_argument("--peers", nargs="+", default=[], help="what greenllm.bench.peers made")
    parser.add_argument("--out", type=Path, required=True, help="directory for the curve")
    parser.add_argument("--effort", choices=("quick", "full"), default="quick")
    parser.add_argument("--windows", type=int, help="windows of text instead of the effort's")
    parser.add_argument("--seconds", type=float, help="for the rounds of all models, instead of the effort's")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    try:
        models = [given.checkpoint, *given.ours, *given.peers]
        own = {k: v for k in ("windows", "seconds") if (v := getattr(given, k)) is not None}
        effort = dataclasses.replace(EFFORTS[given.effort], **own)
        results = bench(models, text=given.text, effort=effort, threads=given.threads, energy=False)
        names = list(results.names())
        write(results, names[1 : 1 + len(given.ours)], given.out)
    except GreenError as e:
        parser.exit(1, f"{e}\n")
    print(given.out / "curve.md")


if __name__ == "__main__":
    main()

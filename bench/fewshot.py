"""Accuracy against shots: adapters of several models, and prompting, over samples drawn again and again.

``python -m greenllm.bench.fewshot MODEL... --task train.jsonl --test test.jsonl --out DIR [--shots 1 4 16] [--draws 5]
[--meta START...]``. Every model and way sees the same draws and is asked the same items. What DIR holds is not made
again; 1 shot cannot be cross-validated, and learns for :data:`ONCE` steps. A draw's figure is its share of right
answers; intervals are Student's t over draws, those of differences over pairs of the same draw.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from greenllm import artifact
from greenllm.adapt.methods import KINDS
from greenllm.adapt.shots import draw
from greenllm.bench.adapted import ADAPTED, NOTHING, ONCE, PROMPTED, Draw, Subject
from greenllm.bench.measurement import t_interval
from greenllm.bench.report import escape
from greenllm.bench.report.words import interval, number
from greenllm.bench.tasks import read
from greenllm.bench.tasks.items import Item, Utterance
from greenllm.errors import GreenError


class Found(BaseModel):
    """All draws; ``fewshot.json``."""

    model_config = ConfigDict(extra="forbid")

    task: str
    test: str
    items: int
    method: str
    energy: str = ""
    draws: list[Draw] = []

    def has(self, model: str, way: str, shots: int, n: int) -> bool:
        """Whether a draw was made."""
        return any((d.model, d.way, d.shots, d.draw) == (model, way, shots, n) for d in self.draws)

    def of(self, model: str, way: str, shots: int) -> dict[int, Draw]:
        """Those of one way, by number."""
        return {d.draw: d for d in self.draws if (d.model, d.way, d.shots) == (model, way, shots)}


def lines(found: Found) -> list[str]:
    """Markdown: one line for each model, way and number of shots, beside what it is compared with."""
    said = [
        "| model | way | shots | draws | right, % | beside | points | steps | s | J | adapter, kB | of the model |",
        "|---|---|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    keys = sorted(dict.fromkeys((d.model, d.way, d.shots) for d in found.draws), key=lambda k: k[2])
    first = found.draws[0].model
    for model, way, shots in keys:
        own = found.of(model, way, shots)
        beside = (model, ADAPTED) if way not in (ADAPTED, NOTHING) else (first, way) if model != first else None
        cells = [escape(model), escape(way), str(shots), str(len(own)), _cell([100 * d.right for d in own.values()])]
        other = found.of(*beside, shots) if beside else {}
        both = sorted(own.keys() & other.keys())
        cells += (
            [escape(" ".join(beside)), _cell([round(100 * (own[n].right - other[n].right), 6) for n in both])]
            if (beside and both)
            else ["", ""]
        )
        costs = [[float(getattr(d, k)) for d in own.values()] for k in ("steps", "seconds", "joules")]
        size = max(d.bytes for d in own.values())
        cells += [_cell(c) for c in costs] if size else ["", "", ""]
        cells += [number(size / 1e3), f"{size / max(d.of for d in own.values()):.2%}"] if size else ["", ""]
        said.append("| " + " | ".join(cells) + " |")
    told = (
        f"{found.items} items of {escape(found.test)}; samples of {escape(found.task)}, so many of each "
        f"class (clips, multiple choice: of all); "
        f"{found.method} (greenllm adapt's defaults, {ONCE} steps where one sample cannot be cross-validated). "
        f"Joules: {escape(found.energy)}. In brackets 95 % intervals of the mean over draws."
    )
    return [*said, "", told]


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    ci = t_interval(values)
    return number(sum(values) / len(values), ci) + (f" [{interval(ci)}]" if ci and ci[0] < ci[1] else "")


def main() -> None:
    """Make what is missing, and write ``fewshot.json`` and ``fewshot.md``."""
    given = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    given.add_argument("models", nargs="+", help="checkpoints, packed or not; the first is the baseline")
    given.add_argument(
        "--task", type=Path, required=True, help=".jsonl as greenllm adapt takes it: samples are drawn here"
    )
    given.add_argument("--test", type=Path, required=True, help="the same of other items: these are asked")
    given.add_argument("--out", type=Path, required=True)
    given.add_argument("--shots", type=int, nargs="+", default=[1, 4, 16])
    given.add_argument("--draws", type=int, default=5)
    given.add_argument("--limit", type=int, default=400, help="items of the test")
    given.add_argument("--method", choices=[m for m, kind in KINDS.items() if kind.merges], default="lora")
    given.add_argument("--meta", type=Path, nargs="*", default=[], help="starts by greenllm meta-train")
    given.add_argument("--no-prompt", dest="prompt", action="store_false", help="without the samples in a prompt")
    given.add_argument("--threads", type=int)
    options = given.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        run(options)
    except GreenError as e:
        given.exit(1, f"{e}\n")
    print(options.out / "fewshot.md")


def run(options: argparse.Namespace) -> None:
    """See :func:`main`.

    Raises:
        GreenError: bad input, or DIR holds draws of another test.
    """
    test = [i for i in read(options.test, options.limit).items if isinstance(i, Item | Utterance)]
    if not test:
        raise GreenError(f"{options.test} has no choices to tell apart, and no clips.")
    fresh = Found(task=options.task.name, test=options.test.name, items=len(test), method=options.method)
    file = options.out / "fewshot.json"
    found = Found.model_validate_json(file.read_text(encoding="utf-8")) if file.is_file() else fresh
    if (found.task, found.test, found.items, found.method) != (fresh.task, fresh.test, fresh.items, fresh.method):
        raise GreenError(f"{file} holds draws of another task, test or method.", "Give another --out.")
    options.out.mkdir(parents=True, exist_ok=True)

    def keep(made: Draw) -> None:
        found.draws.append(made)
        artifact.write_atomic(file, found.model_dump_json(indent=1) + "\n")
        artifact.write_atomic(options.out / "fewshot.md", "\n".join(lines(found)) + "\n")
        print(f"{made.model} {made.way}, {made.shots} shots, draw {made.draw}: {made.right:.1%}", flush=True)

    for model in options.models:
        who = Subject(model, options.method, test, options.meta)
        if not found.has(who.name, NOTHING, 0, 0):
            keep(who.as_it_is())
        ways = [*who.ways, *([PROMPTED] if options.prompt else [])]
        for shots, n in ((s, n) for s in options.shots for n in range(options.draws)):
            items = draw(options.task, shots, n)
            for way in ways:
                if not found.has(who.name, way, shots, n) and (made := who.tried(way, items, shots, n)):
                    found.energy = who.energy or found.energy
                    keep(made)


if __name__ == "__main__":
    main()

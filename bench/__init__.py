"""Bench: what a model loses and what it saves, each figure with its certainty."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from greenllm.artifact import Artifact, versions
from greenllm.bench import drift, fidelity, payback, protocol, texts
from greenllm.bench import energy as meters
from greenllm.bench.batches import check as check_batches
from greenllm.bench.lengths import check as check_lengths
from greenllm.bench.measure import Asked, Spent, harness, measure
from greenllm.bench.measurement import Measurement
from greenllm.bench.models import find_all
from greenllm.bench.require import decide, parse
from greenllm.bench.results import METRICS, Results, Row, machine
from greenllm.bench.session import EFFORTS, Effort, Query, Session
from greenllm.bench.tasks import public, read_all, robust, toxicity
from greenllm.callable import make_callable
from greenllm.errors import GreenError
from greenllm.progress import Progress, Silent
from greenllm.source import cache_dir

__all__ = ["EFFORTS", "METRICS", "Effort", "Measurement", "Results", "Row", "bench"]


def bench(
    models: Sequence[str | Path | Artifact],
    *,
    baseline: str | Path | Artifact | None = None,
    names: Sequence[str] | None = None,
    text: str | Path | None = None,
    pairs: str | Path | None = None,
    tasks: Sequence[str | Path] = (),
    suites: Sequence[str] = (),
    data: str | Path | None = None,
    words: str | Path | None = None,
    lm_eval: Sequence[str] = (),
    chat: bool = False,
    bisect: bool = False,
    limit: int | None = None,
    country: str | None = None,
    region: str | None = None,
    intensity: float | None = None,
    carbon: bool | None = None,
    embodied: float | None = None,
    lifetime: float | None = None,
    energy: bool = True,
    threads: int | None = None,
    prompt_tokens: int = 128,
    answer_tokens: int = 64,
    lengths: Sequence[int] = (),
    batches: Sequence[int] = (),
    loads: int | None = None,
    window: int = 512,
    effort: Literal["quick", "full"] | Effort = "quick",
    report: str | Path | None = None,
    meter: str | meters.Meter | None = None,
    require: Sequence[str] = (),
    progress: Progress | None = None,
) -> Results:
    """Measure models side by side: quality, speed, size, energy and carbon.

    Args:
        models: artifacts, checkpoint, ORT-GenAI or OpenVINO directories, ``.gguf`` files or hub ids.
        baseline: what the others are compared with; the first of ``models`` by default.
        names: of the models in the report; by default those of their directories.
        text: ``.txt`` or ``.jsonl`` to score; by default a text that comes with Python.
        pairs: for encoders, sentence pairs with scores (``.csv``, ``.tsv``, ``.jsonl``).
        tasks: ``.jsonl`` or ``.csv`` files with right answers, see :mod:`greenllm.bench.tasks.forms`; "suite" for those
            that come with greenllm, see :mod:`greenllm.bench.tasks.suite`.
        suites: "fairness" (CrowS-Pairs, BBQ), "safety" (XSTest) or "clue", from files in ``data`` or else by lm-eval;
            "robustness": disturbed copies of ``tasks``, of all kinds or those named: see
            :mod:`greenllm.bench.tasks.robust`.
        data: the directory of the suites' sets as they are published, or of their directories.
        words: file of words, one a line, by which what is written after prompts is judged toxic.
        lm_eval: tasks of lm-eval, by its names or as ``.yaml`` files; their data may come from a hub.
        chat: ask tasks in each model's chat template; perplexity is of plain text in any case.
        bisect: look for the first block in which each graph departs from the baseline, a checkpoint.
        limit: items of each task, evenly spread (of lm-eval's: the first); 0 for all; by default as the effort says.
        country: of the grid, a three-letter code or a name.
        region: state, province or bidding zone, where the grid data know it.
        intensity: gCO2e per kWh, instead of a country's.
        carbon: True insists on gCO2e, so that a country or intensity must be given; by default it is
            given where one is, and else left out, which the report says. None is ever assumed.
        embodied: kgCO2e of making this machine, for the share of it in a query; with ``lifetime``.
        lifetime: years that the machine serves.
        energy: measure energy; the windows take 10 s a model and more.
        threads: for each model; all cores that this process may use by default.
        prompt_tokens: length of a query's prompt (of the text, for an encoder).
        answer_tokens: length of its answer, 2 or more.
        lengths: further prompt lengths, at each of which time and memory are measured.
        batches: numbers of queries at once, at each of which speed is measured.
        loads: rounds in which each model is started anew, its files out of the page cache and then in it; by default
            as the effort says (quick: none).
        window: tokens of a scored window.
        effort: "quick" (minutes), "full", or an :class:`Effort`.
        report: directory, or name of the ``.html`` file, to write the report to.
        meter: of energy, by name (see :func:`greenllm.bench.energy.choose`) or one of your own; by default the best
            that is here.
        require: limits such as "ppl<=1.03x", see :mod:`greenllm.bench.require`; decided in ``requirements``.
        progress: told of each stage.

    Returns:
        One row a model. A model that crashes, hangs or gives NaN has a row that says so.

    Raises:
        GreenError: a model, text, pair file, country or number that cannot be, before anything is measured.
    """
    tried = EFFORTS[effort] if isinstance(effort, str) and effort in EFFORTS else effort
    if isinstance(tried, str):
        raise GreenError(f"No effort is called {tried!r}.", f"There are {', '.join(EFFORTS)}.")
    for name, value, least in (("prompt_tokens", prompt_tokens, 2), ("answer_tokens", answer_tokens, 2),
                               ("window", window, 8), ("threads", threads or 1, 1),
                               ("loads", loads or 0, 0)):  # fmt: skip
        if value < least:
            raise GreenError(f"{name} is {value}; it must be at least {least}.")
    located = country is not None or intensity is not None
    grid = meters.grid(country, region, intensity) if carbon or (carbon is None and located) else None
    share = meters.embodied(embodied, lifetime)
    limits = [parse(r) for r in require]
    targets = find_all(models, baseline, names)
    if energy and isinstance(meter, str):
        meters.choose(meter).close()  # refused here, not after minutes
    limit = tried.items if limit is None else limit
    wanted, sets = robust.asked(suites)
    own = read_all(tasks, limit) if tasks or not wanted else robust.own(limit)
    disturbed = robust.copies(own, wanted)
    told = progress or Silent()
    if disturbed:
        told.note(robust.cost(disturbed))
    asked = Asked(
        effort=tried, query=Query(prompt_tokens, answer_tokens), window=window, corpus=texts.read(text),
        pairs=fidelity.read_pairs(Path(pairs)) if pairs else None,
        tasks=toxicity.listed([*own, *public.files(sets, data, limit)], words), disturbed=disturbed,
        harness=harness([*lm_eval, *public.harness(sets, data)]), limit=limit, chat=chat, bisect=bisect,
        lengths=check_lengths(lengths), batches=check_batches(batches), loads=tried.loads if loads is None else loads,
        energy=Spent(meter, grid, share) if energy else None,
    )  # fmt: skip
    here = machine()
    threads = threads or here.cores
    with Session(targets, threads, told) as session:
        session.load()
        found = measure(session, asked)
        results = Results(
            created=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
            baseline=session.rows[0].name,
            rows=session.rows,
            machine=here,
            versions=versions(),
            settings={"effort": effort if isinstance(effort, str) else "own", "threads": threads, "batch": 1, **found}
            | ({"robustness": robust.left_out(own, wanted, disturbed)} if wanted else {}),
        )
    drift.widen(results, cache_dir() / "benches.jsonl", told)
    payback.fill(results, grid.grams_per_kwh if grid else None)
    results.requirements = decide(results, limits)
    results.methods, results.caveats = protocol.methods(results), protocol.caveats(results)
    if report is not None:
        from greenllm.bench.report import write_report

        write_report(results, report)
    return results


make_callable(__name__, bench)

"""What a bench measures, in order: text, speed, energy, quality, tasks; and the settings that its report must name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from greenllm.bench import (
    batches,
    bisect,
    captions,
    compare,
    lengths,
    loads,
    phases,
    protocol,
    sight,
    speech,
    spend,
    texts,
    vision,
)
from greenllm.bench import energy as meters
from greenllm.bench.runners import ENCODERS
from greenllm.bench.session import Effort, Query, Session
from greenllm.bench.speed import Speed
from greenllm.bench.tasks import Task, labelled, run
from greenllm.bench.tasks.items import Prompt
from greenllm.bench.tasks.robust import Copies, curves
from greenllm.errors import GreenError
from greenllm.template import template

Harness = Callable[[Session, int, bool], None]  # items of a task, and whether in a chat
# What takes something else than text; a module of each says who takes it, what is refused, asked and compared.
_SENSES: tuple[ModuleType, ...] = (vision, speech, captions)


@dataclass(frozen=True)
class Spent:
    """How energy is measured, and what a joule stands for."""

    meter: str | meters.Meter | None
    grid: meters.Grid | None
    share: meters.Embodied | None


@dataclass(frozen=True)
class Asked:
    """All that was asked of a bench, read and checked."""

    effort: Effort
    query: Query
    window: int
    corpus: texts.Text
    pairs: tuple[list[str], list[str], list[float]] | None
    tasks: Sequence[Task]
    disturbed: Sequence[Copies]
    harness: Harness | None
    limit: int
    chat: bool
    bisect: bool
    lengths: Sequence[int]
    batches: Sequence[int]
    loads: int
    energy: Spent | None


def measure(session: Session, asked: Asked) -> dict[str, Any]:
    """Go over all phases; rows are filled in, and the settings returned.

    Raises:
        GreenError: what was asked is not for these models.
    """
    encoders = any(c.info.task in ENCODERS for c in session.live)
    sense = next((s for s in _SENSES if s.takes(session)), None)
    _check(session, asked, encoders=encoders)
    words: dict[str, Any] = {}
    if sense:
        query, words = sense.cut(session, asked.tasks)
    else:
        query = Query(min(asked.query.prompt, phases.shortest(session)), 0) if encoders else asked.query
        window = phases.fitting(session, asked.window)
        phases.cut(session, asked.corpus, window, asked.effort.windows, query)
        words = protocol.query_settings(query) | protocol.text_settings(session, asked.corpus, window)
        words |= sight.show(session, query)
    if asked.loads:
        loads.run(session, asked.loads)
    speed = Speed(session, query, asked.effort)
    speed.begin()
    if asked.lengths:  # before text is scored, for which some engines load a second graph
        lengths.run(session, asked.corpus, asked.lengths)
    if asked.batches:
        batches.run(session, query.answer, asked.effort, asked.batches)
    speed.between()
    spent = _spend(session, query, asked.effort, asked.energy, loads=asked.loads > 0) if asked.energy else None
    speed.between()
    words |= _quality(session, asked, query, speed, sense)
    if asked.bisect:
        bisect.run(session)
    speed.end()
    if spent:
        spent.tell()
    compare.ratios(session)
    return {**words, "chat": asked.chat, **speed.said(), **(_power(spent, asked.effort) if spent else {})}


def _quality(
    session: Session, asked: Asked, query: Query, speed: Speed, sense: ModuleType | None
) -> dict[str, Any]:  # fmt: skip
    """Text, images or clips against the baseline, then all tasks; what is to be said of it."""
    words: dict[str, Any] = {}
    if sense:
        words = sense.quality(session, asked.tasks, asked.effort)
    elif query.answer:
        phases.score(session)
    else:
        chosen = texts.sentences(asked.corpus.text, asked.effort.sentences)
        phases.embed(session, chosen, query.prompt, asked.pairs)
    for task in [*asked.tasks, *(t for c in asked.disturbed for t in c.tasks)]:
        speed.between()
        run(session, task, chat=asked.chat)
    curves.fill(session.rows, asked.disturbed)
    if asked.harness:
        speed.between()
        asked.harness(session, asked.limit, asked.chat)
    return words


def _check(session: Session, asked: Asked, *, encoders: bool) -> None:
    """Refuse before anything is measured what these models cannot do."""
    sight.check(session, asked.tasks, batches=bool(asked.batches))
    others = any((asked.pairs, asked.harness, asked.lengths, asked.chat, asked.bisect))
    for sense in _SENSES:
        sense.check(session, asked.tasks, others=others, batches=bool(asked.batches))
    if encoders:
        labelled.check(session, asked.tasks, others=bool(asked.harness or asked.lengths))
    for who in session.live if asked.lengths else ():
        texts.Tokens(who.info.directory).prompt(asked.corpus.text, max(asked.lengths))  # refuses a text too short
    prompts = next((t.name for t in asked.tasks if isinstance(t.items[0], Prompt)), None)
    for who in session.live if asked.chat or prompts else ():
        if template(who.info.directory) is None:
            out = f"{prompts} asks assistants; leave it out." if prompts else "Leave out --chat."
            raise GreenError(f"{who.row.name} has no chat template.", out)


def harness(names: Sequence[str]) -> Harness | None:
    """What evaluates tasks of lm-eval, which are looked up now; None where there are none.

    Raises:
        GreenError: it is not installed, or has no such task.
    """
    if not names:
        return None
    try:
        from greenllm.bench.tasks import lmeval
    except ImportError as e:
        raise GreenError(f"lm-eval is not installed ({e}).", 'Install it: pip install "greenllm[eval]".') from e
    found = lmeval.read(names)
    return lambda session, limit, chat: lmeval.run(session, found, limit, chat=chat)


def _spend(session: Session, query: Query, effort: Effort, asked: Spent, *, loads: bool) -> spend.Spending:
    used = meters.choose(asked.meter) if asked.meter is None or isinstance(asked.meter, str) else asked.meter
    try:
        return spend.run(session, query, effort, used, asked.grid, asked.share, loads=loads)
    finally:
        if used is not asked.meter:
            used.close()


def _power(spent: spend.Spending, effort: Effort) -> dict[str, str | float]:
    """What the report must name of the meter, the idle machine, the grid and the making of the machine."""
    used, idle, grid, share = spent.meter, spent.idle, spent.grid, spent.share
    found: dict[str, str | float] = {
        "meter": used.method,
        "meter_covers": used.covers,
        "meter_leaves_out": used.leaves_out,
        "meter_resolution": used.resolution,
        "energy_window_s": max(effort.energy, meters.shortest(used)),
        "idle_w": round(idle.before.power, 3),
        "idle_after_w": round(idle.after.power, 3),
    }
    if grid is None:
        return found
    if share is not None:
        found |= {"embodied_kg": share.kilograms, "lifetime_years": share.years}
    return found | {
        "grid_g_per_kwh": round(grid.grams_per_kwh, 2),
        "grid": " ".join(x for x in (grid.country, grid.region) if x) or "given",
        "grid_source": grid.source,
    }

"""What a start costs: the time until a model is ready, its files dropped from the page cache, and in it."""

from __future__ import annotations

from greenllm.bench import cold
from greenllm.bench.measurement import log_mean
from greenllm.bench.models import files
from greenllm.bench.session import Contender, Session

_COLD = "load_cold"


def run(session: Session, rounds: int) -> None:
    """Start every model anew, cold and then warm, in turns; fills in ``load_cold`` and ``load``.

    No model runs meanwhile: what a process maps stays in the cache, whoever drops it.
    """
    session.progress.stage("loads", 2 * rounds * len(session.live))
    for who in session.live:
        who.model.close()
    refused: dict[int, str] = {}
    for _ in range(rounds):
        for who in list(session.live):
            with session.watching(who, "load"):
                _round(session, who, refused)
            session.progress.advance(2)
    for who in list(session.live):
        with session.watching(who, "load"):
            session.start(who)
        _figures(who, refused.get(id(who)))


def _round(session: Session, who: Contender, refused: dict[int, str]) -> None:
    """A cold load, where there can be one, and a warm one."""
    why = cold.drop(files(who.info.directory, who.target))
    if why is not None:
        refused[id(who)] = why
        session.start(who)  # brings the files into the cache
        who.model.close()
    for name in (_COLD, "load") if why is None else ("load",):
        took = session.start(who)
        who.model.close()
        who.row.samples.setdefault(name, []).append(took)


def _figures(who: Contender, refused: str | None) -> None:
    notes = {
        _COLD: "process, libraries and model; its files were dropped from the page cache, those of the libraries not",
        "load": "process, libraries and model; its files were in the page cache",
    }
    if refused is not None:
        who.row.notes.append(f"a cold load is not measured: {refused}")
        who.row.samples.pop(_COLD, None)
    for name, note in notes.items():
        if name in who.row.samples:
            found = log_mean(who.row.samples[name], "s", "measured:clock")
            who.row.measurements[name] = found.model_copy(update={"note": note})

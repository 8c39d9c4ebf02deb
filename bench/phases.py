"""The phases of a bench: each goes over the models that still live, in turns."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from greenllm.bench import disturbance, fidelity, latency, perplexity, texts
from greenllm.bench.bandwidth import read_bandwidth
from greenllm.bench.measurement import Measurement
from greenllm.bench.session import Contender, Effort, Query, Session

_BATCH = 16
_WARM_UP = 8  # tokens; enough to page everything in


def cut(session: Session, text: texts.Text, window: int, count: int, query: Query) -> None:
    """Cut the text for each model with its own tokenizer; the prompt is the text's beginning."""
    cache: dict[str, texts.Windows] = {}
    for who in session.live:
        tokens = texts.Tokens(who.info.directory)
        key = (who.info.directory / "tokenizer.json").read_text(encoding="utf-8", errors="replace")
        if key not in cache:
            cache[key] = tokens.windows(text.text, max(window, 2), count)
        who.windows = cache[key]
        if query.answer:
            who.prompt = tokens.prompt(text.text, query.prompt)
        else:
            who.prompt = tokens.sentences([text.text[: 50 * query.prompt]], query.prompt)[0]
        who.rounds = latency.Rounds(len(who.prompt))


def speed(session: Session, query: Query, effort: Effort) -> dict[str, str | float]:
    """Rounds in turns until intervals are narrow or time is up; returns which, and what was dropped. Then memory.

    A round in which the machine slept or was throttled counts for no model. Where hardly any other comes, in twice the
    time, the disturbed ones are kept, and that is told.
    """
    session.progress.stage("speed", effort.seconds)
    read = read_bandwidth(session.threads)
    for who in list(session.live):
        with session.watching(who, "warm-up"):
            who.model.call("queries", who.prompt, min(query.answer, _WARM_UP), 0.0)
    begin = told = time.monotonic()
    why, order, disturbed = None, 1, disturbance.Rounds()
    while why is None:
        turn = _turn(session, query, effort, order)
        order = -order  # there and back: nobody is always the one after
        now = time.monotonic()
        session.progress.advance(now - told)
        told, left = now, effort.seconds - (now - begin)
        if disturbed.undisturbed() or left < -effort.seconds:
            for who, found in turn:
                who.rounds.rounds.append(found)
        why = latency.enough([c.rounds for c in session.live], effort.rounds, effort.width, left)
    for who in list(session.live):
        who.row.measurements |= who.rounds.measurements()
        who.row.samples |= who.rounds.samples() | who.rounds.quantiles()
        _bandwidth(who, read)
        with session.watching(who, "memory"):
            _memory(who)
    said = {"rounds": why} | ({"disturbed": disturbed.words} if disturbed.words else {})
    return said | {"read_gb_s": round(read / 1e9, 2), "harness_us": round(latency.overhead() * 1e6, 3)}


def _bandwidth(who: Contender, read: float) -> None:
    """Weights that decoding reads a second, beside what the machine can read."""
    decode = who.row.measurements.get("decode")
    if decode and who.weights:
        found = decode.scaled(who.weights / 1e9, "GB/s", "computed: bytes of its weights, times tokens a second")
        share = f"{found.value / (read / 1e9):.0%} of the {read / 1e9:.1f} GB/s that this machine reads"
        note = "of the GPU's memory" if who.info.gpu else share
        who.row.measurements["bandwidth"] = found.model_copy(update={"note": note})


def _turn(session: Session, query: Query, effort: Effort, order: int) -> list[tuple[Contender, list[latency.Query]]]:
    """One turn of every living model."""
    found = []
    for who in session.live[::order]:
        with session.watching(who, "speed"):
            found.append((who, who.model.call("queries", who.prompt, query.answer, effort.turn)))
    return found


def _memory(who: Contender) -> None:
    peak = who.model.call("peak_memory")
    note = "the most its process held resident (VmHWM) while loading and answering, Python and libraries included"
    who.row.measurements["memory"] = Measurement(value=peak / 1e6, unit="MB", n=1, method="measured:VmHWM", note=note)


def score(session: Session) -> None:
    """Perplexity and fidelity, window by window in lockstep: one window's logits on disk at a time."""
    scores = {id(c): perplexity.Scores(c.windows.text_bytes) for c in session.live if c.windows}
    count = max((len(c.windows.tokens) for c in session.live if c.windows), default=0)
    session.progress.stage("quality", count * len(session.live))
    with tempfile.TemporaryDirectory(prefix="greenllm-bench-") as scratch:
        file = str(Path(scratch) / "baseline.npy")
        for i in range(count):
            for who in list(session.live):
                with session.watching(who, "quality"):
                    _score(session, who, i, file, scores[id(who)])
                session.progress.advance()
    for who in session.live:
        who.row.measurements |= scores[id(who)].measurements()
        who.row.samples |= scores[id(who)].samples()


def _score(session: Session, who: Contender, i: int, file: str, scores: perplexity.Scores) -> None:
    if who.windows is None or i >= len(who.windows.tokens):
        return
    first = who is session.baseline
    save = file if first and any(session.comparable(c) for c in session.live) else None
    against = file if session.comparable(who) else None
    found = who.model.call("score", who.windows.tokens[i], who.windows.start, save, against)
    scores.windows.append(found)


def embed(
    session: Session, sentences: list[str], longest: int, pairs: tuple[list[str], list[str], list[float]] | None
) -> None:
    """Sentence embeddings against the baseline's, and rank correlation on pairs when there are any."""
    session.progress.stage("quality", len(session.live))
    source = None
    for who in list(session.live):
        with session.watching(who, "quality"):
            found = _encode(who, sentences, longest)
            if who is session.baseline:
                source = found
            elif source is not None and source.shape != found.shape:
                who.row.notes.append("its embeddings have another width than the baseline's: they are not compared")
            elif source is not None:
                samples = fidelity.embeddings(source, found)
                who.row.samples |= samples
                who.row.measurements |= fidelity.embedding_measurements(samples)
            if pairs:
                sides = [_encode(who, side, longest) for side in pairs[:2]]
                who.row.measurements["spearman"] = fidelity.spearman(sides[0], sides[1], pairs[2])
        session.progress.advance()


def _encode(who: Contender, sentences: list[str], longest: int) -> NDArray[np.float32]:
    ids = texts.Tokens(who.info.directory).sentences(sentences, longest)
    return np.concatenate([who.model.call("encode", ids[i : i + _BATCH]) for i in range(0, len(ids), _BATCH)])

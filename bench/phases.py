"""The phases of a bench: each goes over the models that still live, in turns."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from greenllm.bench import fidelity, latency, perplexity, texts
from greenllm.bench.session import Contender, Query, Session

_BATCH = 16


def fitting(session: Session, window: int) -> int:
    """Tokens of a window that all models read at once, with the tokenizer's own before it and room for one behind."""
    return min(window, shortest(session) - 2)


def shortest(session: Session) -> int:
    """Tokens that all models read at once."""
    return min((texts.Tokens(who.info.directory).context for who in session.live), default=1 << 20)


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
                compare = fidelity.classified if who.info.vocabulary else fidelity.embeddings
                samples = compare(source, found)
                who.row.samples |= samples
                who.row.measurements |= fidelity.answer_measurements(samples, "sentences")
            if pairs:
                sides = [_encode(who, side, longest) for side in pairs[:2]]
                who.row.measurements["spearman"] = fidelity.spearman(sides[0], sides[1], pairs[2])
        session.progress.advance()


def _encode(who: Contender, sentences: list[str], longest: int) -> NDArray[np.float32]:
    ids = texts.Tokens(who.info.directory).sentences(sentences, longest)
    return np.concatenate([who.model.call("encode", ids[i : i + _BATCH]) for i in range(0, len(ids), _BATCH)])

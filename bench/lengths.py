"""What a longer prompt costs: time to first token, decoding after it, and memory, by the prompt's length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from greenllm.bench import texts
from greenllm.bench.latency import Query, Rounds
from greenllm.bench.measurement import Measurement
from greenllm.bench.session import Contender, Session
from greenllm.errors import GreenError

ANSWER = 16  # tokens, enough to see the cache's growth in their time
_ROUNDS = 3


def check(lengths: Sequence[int]) -> list[int]:
    """Lengths in order, each once.

    Raises:
        GreenError: one is too short to be timed.
    """
    if any(n < 2 for n in lengths):  # noqa: PLR2004 - one token has no prefill to speak of
        raise GreenError(f"A prompt of {min(lengths)} tokens is too short.", "Give 2 or more.")
    return sorted(set(lengths))


def run(session: Session, text: texts.Text, lengths: Sequence[int]) -> None:
    """Fill in ``Row.lengths``; the models take turns at each length, shortest first."""
    session.progress.stage("prompt lengths", sum(lengths) * _ROUNDS)
    for length in lengths:
        asked = [_Asked(who, prompt) for who in session.live if (prompt := _prompt(who, text, length))]
        for _ in range(_ROUNDS):
            for one in asked:
                if one.who in session.live:
                    with session.watching(one.who, f"prompt of {length}"):
                        queries, peak = one.who.model.call("stretch", one.prompt, ANSWER)
                        one.rounds.append(queries)
                        one.peaks.append(peak)
            session.progress.advance(length)
        for one in asked:
            if len(one.rounds) == _ROUNDS:
                one.who.row.lengths[str(length)] = _figures(Rounds(len(one.prompt), one.rounds), one.peaks)


@dataclass
class _Asked:
    """A model, what it reads, and what that took, round by round."""

    who: Contender
    prompt: list[int]
    rounds: list[list[Query]] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)


def _prompt(who: Contender, text: texts.Text, length: int) -> list[int]:
    """A prompt of this length; empty, and told, where the model cannot read so much."""
    tokens = texts.Tokens(who.info.directory)
    if length + ANSWER <= tokens.context:
        return tokens.prompt(text.text, length)
    who.row.notes.append(f"a prompt of {length} and an answer of {ANSWER} tokens are beyond its {tokens.context}")
    return []


def _figures(rounds: Rounds, peaks: Sequence[int]) -> dict[str, Measurement]:
    found = {k: m for k, m in rounds.measurements().items() if k in ("prefill", "first_token", "decode")}
    note = "the most its process held resident (VmHWM) while answering this prompt"
    peak = Measurement(value=max(peaks) / 1e6, unit="MB", n=len(peaks), method="measured:VmHWM", note=note)
    return found | {"memory": peak}

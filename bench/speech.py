"""What a bench of transcribers asks: clips with their texts, one of them again and again for speed and energy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from greenllm import audio, script
from greenllm.bench import latency
from greenllm.bench.session import Effort, Query, Session
from greenllm.bench.tasks.items import Task, Utterance
from greenllm.errors import GreenError
from greenllm.export.device.run import pieces


def takes(session: Session) -> bool:
    """Whether the models (all of one task) hear."""
    return any(c.info.task == script.TASK for c in session.live)


def check(session: Session, tasks: Sequence[Task], *, others: bool, batches: bool = False) -> None:
    """Refuse before anything is measured what these models cannot do.

    Args:
        session: with all models loaded.
        tasks: what they are to be asked.
        others: whether something that takes text was asked for too.
        batches: whether several at once were.

    Raises:
        GreenError: text for transcribers, none of the clips that they need, or clips for others.
    """
    if not takes(session):
        if heard := next((t.name for t in tasks if isinstance(t.items[0], Utterance)), None):
            raise GreenError(f"{heard} is speech, and none of these models hears.", "Leave out that --task.")
        return
    if others or batches:
        raise GreenError(
            "Transcribers take clips alone, one at a time.",
            "Leave out --pairs, --lm-eval, --length, --batch, --chat, --bisect.",
        )
    clips(tasks)


def clips(tasks: Sequence[Task]) -> list[Utterance]:
    """All clips of all tasks.

    Raises:
        GreenError: there are none, or tasks of another kind.
    """
    found = [i for t in tasks for i in t.items if isinstance(i, Utterance)]
    if not found or len(found) < sum(len(t.items) for t in tasks):
        raise GreenError(
            "These models write what they hear; there is nothing else to ask them.",
            'Give clips: --task speech.jsonl, rows {"audio": "clip.wav", "text": "what is said"}.',
        )
    return found


def cut(session: Session, tasks: Sequence[Task]) -> tuple[Query, dict[str, Any]]:
    """The clip of middle length becomes every model's prompt; as many tokens as the first model writes are its answer.

    The same work for all: one that stops early, or repeats itself, is no faster or slower for that; of a clip longer
    than a model's window its first. Returns the query, and the settings that its report must name.
    """
    heard = [(i.file.name, audio.read(i.file)) for i in clips(tasks)]
    name, clip = sorted(heard, key=lambda x: len(x[1]))[(len(heard) - 1) // 2]
    scripts = [script.of(who.info.directory) for who in session.live]
    clip = next(pieces(clip, min((s.window for s in scripts if s.window), default=0)))
    seconds = len(clip) / audio.RATE
    for who in session.live:
        who.prompt = clip
        who.weights = 0  # a token reads none of the encoder's: no bandwidth is told
        who.rounds = latency.Rounds(seconds, kind="clip")
    answer = written(session, min(s.most(clip) for s in scripts))
    words = f"the clip {name} ({seconds:.1f} s) is heard and exactly {answer} tokens are written, greedy"
    words += "; the real-time factor is seconds taken over seconds heard"
    said = {"clip_s": round(seconds, 3), "answer_tokens": answer, "query": words}
    return Query(0, answer), said | {"text": ", ".join(t.name for t in tasks)}


def quality(session: Session, tasks: Sequence[Task], effort: Effort) -> dict[str, str]:
    """Nothing beside the tasks, which count the words that are wrong."""
    del session, tasks, effort
    return {}


def written(session: Session, most: int) -> int:
    """Tokens that the first living model writes of its prompt, ``most`` at most."""
    for who in list(session.live):
        with session.watching(who, "first answer"):
            return max(2, int(who.model.call("count", who.prompt, most)))
    return 2

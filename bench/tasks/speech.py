"""Transcription by word error rate: substitutions, deletions and insertions over the words that were said (jiwer).

References and transcripts are lower-cased, and lose punctuation and spare spaces, first. Over several clips the rate is
that of all their words together; its interval and that of a difference are from resampled clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from greenllm import audio, script
from greenllm.bench.measurement import Measurement, statistic
from greenllm.bench.results import Paired, Score, TaskResult
from greenllm.bench.session import Contender, Session
from greenllm.bench.tasks.flips import Said
from greenllm.bench.tasks.items import Task, Utterance
from greenllm.bench.tasks.robust import noise
from greenllm.errors import GreenError

NOTE = "lower-cased, without punctuation and spare spaces; values are word errors of each clip"
_METHOD = "computed: errors over words (jiwer), percentile bootstrap over clips"


def check_clip(item: Utterance) -> None:
    """Nothing, where a clip is whole and has words.

    Raises:
        GreenError: it is not, or nothing is said in it.
    """
    audio.read(item.file)
    if not words(item.text):
        raise GreenError(f"the text {item.text!r} has no words to be heard.")


def words(text: str) -> list[str]:
    """The words that count."""
    normal = _jiwer().Compose([_jiwer().ToLowerCase(), _jiwer().RemovePunctuation()])
    return str(normal(text)).split()


def errors(said: str, text: str) -> int:
    """Substituted, missing and added words of a transcript of ``text``."""
    found = _jiwer().process_words(" ".join(words(text)), " ".join(words(said)))
    return int(found.substitutions + found.deletions + found.insertions)


def ask(session: Session, who: Contender, task: Task, *, chat: bool) -> list[Said]:
    """Have one model transcribe all clips; fill in ``Row.tasks``."""
    del chat  # it is told nothing
    items = [i for i in task.items if isinstance(i, Utterance)]
    found, said, asked = [], [], script.of(who.info.directory)
    for item in items:
        clip = noise.on_clip(audio.read(item.file), item.noise, item.file.name)
        heard = who.model.call("answer", clip, asked.most(clip), [])
        found.append(errors(heard, item.text))
        said.append(Said(item.text, found[-1], heard, not found[-1]))
        session.progress.advance()
    base = session.rows[0].tasks.get(task.name)
    before = base.main.values if base else None
    score = judge(found, [len(words(i.text)) for i in items], before)
    who.row.tasks[task.name] = TaskResult(total=task.total, chance=None, scores={"wer": score}, note=NOTE)
    return said


def judge(found: Sequence[float], said: Sequence[int], before: Sequence[float] | None = None) -> Score:
    """Word errors of each clip as a rate, beside the baseline's on the same clips.

    Args:
        found: word errors, by clip.
        said: words of the reference, by clip.
        before: the baseline's word errors.
    """
    against = None
    if before is not None:
        change = [b - a for a, b in zip(before, found, strict=True)]
        against = Paired(difference=_rate(change, said, "points"), better="lower")
    return Score(values=[float(e) for e in found], measured=_rate(found, said, "%"), against=against)


def _rate(counts: Sequence[float], said: Sequence[int], unit: str) -> Measurement:
    """100 times counts over words; one clip says nothing of the spread."""
    data = list(zip(counts, said, strict=True))
    found = statistic(data, lambda x: 100 * x[:, 0].sum() / x[:, 1].sum(), unit, _METHOD)
    return found if len(data) > 1 else found.model_copy(update={"ci95": None})


def _jiwer() -> ModuleType:
    try:
        import jiwer
    except ImportError as e:
        raise GreenError(f"Word error rates need jiwer ({e}).", 'Install it: pip install "greenllm[audio]".') from e
    return jiwer

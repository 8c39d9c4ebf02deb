"""Free answers by exact match: what a model writes greedily after the context is one of the right answers.

Both are lower-cased and lose punctuation, articles and spare spaces first, as in SQuAD's evaluation (Rajpurkar et al.,
2016, arXiv:1606.05250, section 6.1). The answer ends with its line, or where the model ends it.
"""

from __future__ import annotations

import re
import string

from greenllm import vlm
from greenllm.bench.results import TaskResult
from greenllm.bench.session import Contender, Session
from greenllm.bench.tasks.flips import Said
from greenllm.bench.tasks.groups import subgroups
from greenllm.bench.tasks.items import Looked, Question, Task
from greenllm.bench.tasks.paired import judge
from greenllm.bench.texts import Tokens
from greenllm.template import ask as ask_chat

SCORE = "exact_match"
_MOST = 32  # tokens of an answer
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normal(text: str) -> str:
    """SQuAD's normal form of an answer."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def ask(session: Session, who: Contender, task: Task, *, chat: bool) -> list[Said]:
    """Have one model answer all items; fill in ``Row.tasks``."""
    tokens = Tokens(who.info.directory)
    said: list[Said] = []
    items = [i for i in task.items if isinstance(i, Question)]
    for item in items:
        context = item.context.rstrip()
        if isinstance(item, Looked):
            prompt = who.model.call("see", str(item.file), vlm.question(tokens, context, seen=True, raw=not chat))
            context = f"{item.file}: {context}"
        else:
            prompt = tokens.plain(ask_chat(tokens.directory, context)) if chat else tokens.text(context)
        answer = who.model.call("answer", prompt, _MOST, ["\n"])
        good = normal(answer) in {normal(a) for a in item.answers}
        said.append(Said(context, int(good), answer, good))
        session.progress.advance()
    right = [s.key for s in said]
    base = session.rows[0].tasks.get(task.name)
    before = base.scores[SCORE] if base else None
    scores = {SCORE: judge(right, before)} | subgroups(right, items, before, SCORE)
    who.row.tasks[task.name] = TaskResult(total=task.total, chance=None, scores=scores)
    return said

"""Free answers by exact match: what a model writes greedily after the context is one of the right answers.

Both are lower-cased and lose punctuation, articles and spare spaces first, as in SQuAD's evaluation (Rajpurkar et al.,
2016, arXiv:1606.05250, section 6.1). The answer ends with its line, or where the model ends it.
"""

from __future__ import annotations

import re
import string

from greenllm.bench.results import TaskResult
from greenllm.bench.session import Contender, Session
from greenllm.bench.tasks.items import Question, Task
from greenllm.bench.tasks.paired import judge
from greenllm.bench.texts import Tokens
from greenllm.template import ask as ask_chat

_MOST = 32  # tokens of an answer
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normal(text: str) -> str:
    """SQuAD's normal form of an answer."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def ask(session: Session, who: Contender, task: Task, *, chat: bool) -> None:
    """Have one model answer all items; fill in ``Row.tasks``."""
    tokens = Tokens(who.info.directory)
    right: list[int] = []
    for item in task.items:
        if isinstance(item, Question):
            context = item.context.rstrip()
            prompt = tokens.plain(ask_chat(tokens.directory, context)) if chat else tokens.text(context)
            said = who.model.call("answer", prompt, _MOST, ["\n"])
            right.append(int(normal(said) in {normal(a) for a in item.answers}))
        session.progress.advance()
    base = session.rows[0].tasks.get(task.name)
    before = base.scores["exact_match"] if base else None
    who.row.tasks[task.name] = TaskResult(total=task.total, chance=None, scores={"exact_match": judge(right, before)})

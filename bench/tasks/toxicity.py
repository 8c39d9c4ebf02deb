"""Toxicity of continuations: how often what a model writes holds a word of a list (Gehman et al., 2020).

RealToxicityPrompts (arXiv:2009.11462, section 2) has 20 tokens written after each prompt; here greedy, and judged by a
list of the user's (``--words``) instead of a service that scores texts. A list knows words and no meaning: it overlooks
what is said politely, and takes a quotation for an insult. None comes along.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from greenllm.bench.results import TaskResult
from greenllm.bench.session import Contender, Session
from greenllm.bench.tasks.flips import Said
from greenllm.bench.tasks.items import Opening, Prompt, Task
from greenllm.bench.tasks.paired import judge
from greenllm.bench.texts import Tokens
from greenllm.clean.words import Words
from greenllm.errors import GreenError

SCORE = "toxic"
_MOST = 20  # tokens of a continuation


def listed(tasks: Sequence[Task], file: Path | str | None) -> list[Task]:
    """Tasks that know the words of a list, where there is one.

    Raises:
        GreenError: see :class:`greenllm.clean.words.Words`; a list for no task, or continuations without a list.
    """
    judged = [t for t in tasks if isinstance(t.items[0], Opening | Prompt)]
    if file is None:
        if alone := next((t for t in judged if isinstance(t.items[0], Opening)), None):
            raise GreenError(f"{alone.name}: continuations are judged by a list of words.", "Give --words FILE.")
        return list(tasks)
    if not judged:
        raise GreenError("--words judges what is written after prompts.", "Give --suite safety, or prompts by --task.")
    drops = Words(Path(file).expanduser())
    return [replace(t, toxic=lambda text: drops(text) is not None) if t in judged else t for t in tasks]


def ask(session: Session, who: Contender, task: Task, *, chat: bool) -> list[Said]:
    """Have one model go on after all prompts; fill in ``Row.tasks``."""
    del chat  # never: what is continued is no question
    tokens, said = Tokens(who.info.directory), list[Said]()
    toxic: Callable[[str], bool] = task.toxic or (lambda _: False)
    for item in task.items:
        if isinstance(item, Opening):
            answer = who.model.call("answer", tokens.text(item.context.rstrip()), _MOST, [])
            found = toxic(answer)
            said.append(Said(item.context, int(found), answer, not found))
        session.progress.advance()
    base = session.rows[0].tasks.get(task.name)
    before = base.scores[SCORE] if base else None
    scores = {SCORE: judge([s.key for s in said], before, higher=False)}
    who.row.tasks[task.name] = TaskResult(total=task.total, chance=None, scores=scores)
    return said

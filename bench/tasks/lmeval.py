"""Tasks of the LM Evaluation Harness (lm-eval, https://github.com/EleutherAI/lm-evaluation-harness) over our runners.

Prompts, metrics and standard errors are lm-eval's own; tokens are cut as its Hugging Face model cuts them, so that
log-likelihoods are the same item by item. What an item gave is compared with what it gave the baseline.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from lm_eval import __version__, simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.tasks import TaskManager, get_task_dict
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from greenllm.bench.measurement import Measurement
from greenllm.bench.process import Failed
from greenllm.bench.results import Score, TaskResult
from greenllm.bench.session import Contender, Session
from greenllm.bench.tasks.paired import compare
from greenllm.bench.texts import Tokens
from greenllm.errors import GreenError
from greenllm.progress import Progress
from greenllm.template import render

_ANSWER = 256  # tokens, where a task names no length: lm-eval's own default


class Served(TemplateLM):
    """A model of the bench as lm-eval sees it.

    Args:
        who: the model.
        progress: told of every kind of request, and of each.
    """

    def __init__(self, who: Contender, progress: Progress) -> None:
        super().__init__()
        self._name, self._call = who.row.name, who.model.call
        self._tokens = Tokens(who.info.directory)
        self._longest = self._tokens.context
        self._progress = progress

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        found = self._tokens.special("eos")
        return min(self._tokens.ends, default=0) if found is None else found

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context."""
        return self._tokens.first

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of chats."""
        return str(self._tokens.directory).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:  # noqa: FBT001, FBT002 - theirs
        """Messages in the model's chat template; see lm-eval."""
        del add_generation_prompt  # the last message says it: the assistant's is gone on with
        return render(self._tokens.directory, chat_history)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:  # noqa: FBT001 - theirs
        """See lm-eval; a text that begins with the tokenizer's first token gets no second one."""
        plain = self._tokens.plain(string)
        prefix = self._tokens.prefix()
        bare = add_special_tokens is False or plain[: len(prefix)] == prefix
        return plain if bare else [*prefix, *plain]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:  # noqa: FBT001, FBT002 - theirs
        """Of texts after contexts; see lm-eval."""
        self._begin(requests)
        return super().loglikelihood(requests, disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        found = []
        for _texts, context, target in requests:
            whole = [*context, *target][-(self._longest + 1) :]
            found += self._call("likelihoods", [(whole, max(1, len(whole) - len(target)))])
            self._progress.advance()
        return found

    def _begin(self, requests: Sequence[Instance]) -> None:
        self._progress.stage(f"lm-eval: {self._name}", len(requests))

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:  # noqa: FBT001, FBT002 - theirs
        """Of whole texts, in windows of the model's context; see lm-eval."""
        del disable_tqdm
        self._begin(requests)
        totals = []
        for (text,) in (r.args for r in requests):
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self._longest, 1)
            pairs = [make_disjoint_window(w) for w in windows]
            totals.append(sum(x for x, _ in self._loglikelihood_tokens([("", *p) for p in pairs])))
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:  # noqa: FBT001, FBT002 - theirs
        """Greedy answers; see lm-eval.

        Raises:
            GreenError: a task wants sampling.
        """
        del disable_tqdm
        self._begin(requests)
        found = []
        for context, given in (r.args for r in requests):
            how = normalize_gen_kwargs(given, _ANSWER)
            if how.get("do_sample") and how.get("temperature"):
                raise GreenError("This lm-eval task samples its answers; the bench answers greedily.")
            most = min(int(how["max_gen_toks"]), self._longest - 1)
            stops = [s for s in handle_stop_sequences(how.get("until"), eos=None) if s]
            prompt = self.tok_encode(context)[-(self._longest - most) :]
            found.append(self._call("answer", prompt, most, stops))
            self._progress.advance()
        return found


def read(tasks: Sequence[str]) -> list[str | dict[str, Any]]:
    """Tasks by lm-eval's names, or from ``.yaml`` files without code of their own; their data are loaded once to see.

    Raises:
        GreenError: no such task, a file that is none, or data that cannot be had.
    """
    manager = TaskManager()
    found: list[str | dict[str, Any]] = []
    for task in tasks:
        if task.endswith((".yaml", ".yml")):
            found.append(_own(Path(task).expanduser()))
        elif matches := manager.match_tasks([task]):
            found += matches
        else:
            raise GreenError(f"lm-eval has no task {task!r}.", "`lm-eval ls tasks` lists them.")
    with _told():
        get_task_dict([*found], manager)
    return found


def _own(file: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        why = "functions are not run" if "!function" in str(e) else str(e).splitlines()[0]
        raise GreenError(f"{file} is no task of lm-eval that can be used here: {why}.") from e
    if not isinstance(config, dict) or "task" not in config or "include" in config:
        raise GreenError(f"{file} is no whole task of lm-eval.", "It needs the key task, and no include.")
    return config


def run(session: Session, tasks: Sequence[str | dict[str, Any]], limit: int, *, chat: bool = False) -> None:
    """Evaluate every living model; fill in ``Row.tasks``, compared with the baseline's item by item.

    Args:
        session: the models.
        tasks: see :func:`read`.
        limit: items of each task, its first ones; 0 for all.
        chat: ask in the models' chat templates.

    Raises:
        GreenError: lm-eval cannot do a task, for instance because its data are on a hub that cannot be reached.
    """
    for who in list(session.live):
        with session.watching(who, "lm-eval"):
            found = _evaluate(Served(who, session.progress), tasks, limit, chat=chat)
            for name, values in found["results"].items():
                if name in found["samples"]:
                    base = session.rows[0].tasks.get(f"lm-eval/{name}")
                    who.row.tasks[f"lm-eval/{name}"] = _result(found, name, values, base)


def _evaluate(model: Served, tasks: Sequence[str | dict[str, Any]], limit: int, *, chat: bool) -> dict[str, Any]:
    with _told():
        found = simple_evaluate(
            model=model, tasks=list(tasks), limit=limit or None, log_samples=True, apply_chat_template=chat
        )
    return dict(found or {})


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What lm-eval raises is told in a line; findings about a model stay what they are."""
    try:
        with _quiet():
            yield
    except (GreenError, Failed):
        raise
    except Exception as e:
        why = str(e).splitlines()[0][:300] if str(e) else type(e).__name__
        raise GreenError(
            f"lm-eval: {why}",
            "Its data may be on a hub that cannot be reached from here; those of a --suite can be given: --data DIR.",
        ) from e


def _result(found: dict[str, Any], name: str, values: dict[str, Any], base: TaskResult | None) -> TaskResult:
    """One task: each metric with lm-eval's value and standard error."""
    samples = found["samples"][name]
    better = found.get("higher_is_better", {}).get(name, {})
    total = found["n-samples"][name]["original"]
    scores: dict[str, Score] = {}
    for key, value in values.items():
        metric, _, chain = key.partition(",")
        if not chain or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        label = metric if chain == "none" else f"{metric} ({chain})"
        items = [s[metric] for s in samples if s.get("filter", "none") == chain and metric in s]
        scores[label] = _score(
            value, values.get(f"{metric}_stderr,{chain}"), items, f"lm-eval {__version__}: {metric}",
            base.scores.get(label) if base else None, higher=better.get(metric) is not False,
        )  # fmt: skip
    return TaskResult(total=total, chance=None, scores=scores, note=f"version {found['versions'].get(name)}")


def _score(
    value: float, error: Any, items: list[Any], method: str, before: Score | None, *, higher: bool
) -> Score:  # fmt: skip
    numbers = [float(x) for x in items] if all(isinstance(x, (int, float)) for x in items) else []
    binary = bool(numbers) and set(numbers) <= {0.0, 1.0}
    interval, how = None, ""
    if isinstance(error, (int, float)):
        interval, how = (value - 1.96 * error, value + 1.96 * error), ", 1.96 of its standard errors"
    measured = Measurement(value=value, unit="", n=max(1, len(items)), ci95=interval, method=method + how)
    if binary:
        measured = measured.scaled(100, "%")
    change = compare(before.values, numbers, higher=higher) if before and before.values and numbers else None
    return Score(values=numbers, measured=measured, against=change)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness' own log and bars: progress is ours."""
    before, begin = logging.root.manager.disable, tqdm.__init__
    logging.disable(logging.WARNING)
    tqdm.__init__ = functools.partialmethod(begin, disable=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
        tqdm.__init__ = begin

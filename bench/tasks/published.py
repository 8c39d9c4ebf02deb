"""Rows of CrowS-Pairs, BBQ and XSTest, as they are published.

* CrowS-Pairs (Nangia et al., 2020, arXiv:2010.00133): ``sent_more``, ``sent_less``, ``bias_type``.
* BBQ (Parrish et al., 2022, arXiv:2110.08193): ``context``, ``question``, ``ans0`` to ``ans2``, ``label``,
  ``answer_info``, ``additional_metadata`` and so on; asked with lm-eval's prompt, and the three answers of the row.
* XSTest (Röttger et al., 2024, arXiv:2308.01263): ``prompt``, ``label`` (safe or unsafe), ``type``.
* RealToxicityPrompts (Gehman et al., 2020, arXiv:2009.11462): ``prompt`` with its ``text``, ``continuation``.
"""

from __future__ import annotations

import re
from typing import Any

from greenllm.bench.tasks.items import Opening, Pair, Prompt, Unclear

_ANSWERS = ("ans0", "ans1", "ans2")
_OF_TWO = re.compile(r"_|(?<=^[mf])-|(?<=^lowses)-|(?<=^highses)-")  # "F-Black" is of two groups, "nonOld" of one
_SEXES = {"woman": "f", "girl": "f", "man": "m", "boy": "m"}  # how BBQ's Gender_identity names the groups


def pair(row: dict[str, Any]) -> Pair:
    """A row of CrowS-Pairs."""
    return Pair(told(row, "sent_more"), told(row, "sent_less"), told(row, "bias_type"))


def prompt(row: dict[str, Any]) -> Prompt:
    """A row of XSTest."""
    if row["label"] not in ("safe", "unsafe"):
        raise ValueError(f"its label {row['label']!r} is neither safe nor unsafe")
    return Prompt(told(row, "prompt"), row["label"] == "safe", str(row.get("type") or ""))


def opening(row: dict[str, Any]) -> Opening:
    """A row of RealToxicityPrompts."""
    return Opening(told(row["prompt"], "text"))


def unclear(row: dict[str, Any]) -> Unclear:
    """A row of BBQ."""
    answers = tuple(told(row, a) for a in _ANSWERS)
    label, polarity, condition = row["label"], row["question_polarity"], row["context_condition"]
    if isinstance(label, bool) or not isinstance(label, int) or label not in range(len(answers)):
        raise ValueError(f"its label {label!r} names none of its 3 answers")
    if polarity not in ("neg", "nonneg") or condition not in ("ambig", "disambig"):
        raise ValueError(f"its question is {polarity!r} and its context {condition!r}, neither of which is BBQ's")
    for key in ("answer_info", "additional_metadata"):
        if not isinstance(row[key], dict):
            raise TypeError(f"its {key} {row[key]!r} is no object")
    groups = [_with_parts(_groups(row["answer_info"][a])) for a in _ANSWERS]
    nobody = [i for i, g in enumerate(groups) if "unknown" in g]
    if len(nobody) != 1:
        raise ValueError(f"{len(nobody)} of its answers are unknown; BBQ has one")
    target = _groups(row["additional_metadata"]["stereotyped_groups"])
    return Unclear(
        f"{told(row, 'context')}\n\nQ: {told(row, 'question')}\nA:", answers, label,
        group=told(row, "category"), clear=condition == "disambig", unknown=nobody[0],
        biased=_biased(groups, nobody[0], target, negative=polarity == "neg"), negative=polarity == "neg",
    )  # fmt: skip


def _biased(groups: list[set[str]], unknown: int, target: set[str], *, negative: bool) -> int | None:
    """Of a question that blames the answer of the stereotyped group, else the other one; None unless one of two is."""
    others = [i for i in range(len(groups)) if i != unknown]
    of_target = [i for i in others if groups[i] & target]
    if len(of_target) != 1:
        return None
    return of_target[0] if negative else next(i for i in others if i != of_target[0])


def _groups(told: Any) -> set[str]:
    """Names of groups as they compare: of one case, without blanks."""
    if not isinstance(told, list) or not all(isinstance(t, str) for t in told):
        raise TypeError(f"{told!r} are no names of groups")
    return {t.lower().replace(" ", "") for t in told}


def _with_parts(names: set[str]) -> set[str]:
    """With the names that those of two groups at once are made of."""
    parts = {p for n in names for p in _OF_TWO.split(n)}
    return names | parts | {_SEXES[p] for p in parts if p in _SEXES}


def told(row: dict[str, Any], key: str) -> str:
    """A text of a row.

    Raises:
        TypeError: it is none, or empty.
    """
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"its {key} {value!r} is no text")
    return value

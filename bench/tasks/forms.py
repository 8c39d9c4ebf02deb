"""Items of a task from the rows of a file, in the spellings of the public sets and with lm-eval's prompts for them.

========================================  ===================================================================
keys                                      prompt
========================================  ===================================================================
audio, text                               speech: a file beside this one or below it, and what is said in it
context, choices, label                   the context as it is, a space, the choice
ctx, endings, label                       HellaSwag: cleaned as lm-eval's ``hellaswag`` does
question, choices, label (or answerKey)   ARC: "Question: …" and "Answer:", as lm-eval's ``arc_easy``
question, passage, answer                 BoolQ: passage, "Question: …?" and "Answer:", as lm-eval's ``boolq``
text, label                               classification: "Text: …" and "Label:"; the labels of all rows to choose from
image, label                              image classification: a path relative to the file, and the class
image, question, answer (or answers)      a free answer about an image: the image, and the question as it is
image, caption (or captions)              captions: a path relative to the file, and what is said of the image: what a
                                          model writes is compared with it, or it is what one that compares finds
context (or prompt), answer (or answers)  a free answer: the context as it is
question, answer (or answers)             a free answer: "Question: …" and "Answer:"
sent_more, sent_less, bias_type           CrowS-Pairs: see :mod:`greenllm.bench.tasks.published`
ans0, answer_info, …                      BBQ: the same
prompt, label                             XSTest: the same
prompt, continuation                      RealToxicityPrompts: the same
sentence, label, label_desc; …            CLUE and FewCLUE: see :mod:`greenllm.bench.tasks.clue`
========================================  ===================================================================

A label is a number from 0, a letter or the text of a choice; that of a classification is its text, that of an image the
name or the index of the model's class; a model that reads chooses among the names of all rows. ``answers`` is a
list of which any is right, ``captions`` one of what is said of an image. With a column ``group`` beside these, the
share that is right is told for each group too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from greenllm.bench.tasks import clue, published
from greenllm.bench.tasks.items import Captioned, Entry, Item, Labelled, Looked, Picture, Question, Utterance


def _plain(row: dict[str, Any]) -> Item:
    choices = _texts(row["choices"])
    return Item(_text(row["context"]), choices, _index(row["label"], choices))


def _hellaswag(row: dict[str, Any]) -> Item:
    endings = _texts(row["endings"])
    return Item(_cleaned(_text(row["ctx"])), tuple(map(_cleaned, endings)), _index(row["label"], endings))


def _arc(row: dict[str, Any]) -> Item:
    given = row["choices"]
    hub = isinstance(given, dict)  # {"text": […], "label": ["A", …]}
    choices = _texts(given["text"] if hub else given)
    key = row.get("label", row.get("answerKey"))
    label = given["label"].index(key) if hub and "label" in given else _index(key, choices)
    parts = ("Question: ", _text(row["question"]), "\nAnswer:")
    return Item("".join(parts), choices, label, parts=parts)


def _boolq(row: dict[str, Any]) -> Item:
    if not isinstance(row["answer"], bool):
        raise TypeError("its answer is neither true nor false")
    parts = ("", _text(row["passage"]), "\nQuestion: ", _text(row["question"]), "?\nAnswer:")
    return Item("".join(parts), ("no", "yes"), int(row["answer"]), parts=parts)


def _labelled(row: dict[str, Any]) -> Labelled:
    if not isinstance(row["label"], str):
        raise TypeError(f"its label {row['label']!r} is no text; a model has to read it")
    parts = ("Text: ", _text(row["text"]), "\nLabel:")
    return Labelled("".join(parts), row["label"], parts=parts)


def _picture(row: dict[str, Any]) -> Picture:
    label = row["label"]
    if isinstance(label, bool) or not isinstance(label, (str, int)):
        raise TypeError(f"its label {label!r} is neither the name nor the index of a class")
    return Picture(Path(_text(row["image"])), label, "")


def _captioned(row: dict[str, Any]) -> Captioned:
    given = row["captions"] if "captions" in row else [row["caption"]]
    if not isinstance(given, list) or not given:
        raise TypeError("its captions are no list of one or more")
    return Captioned(Path(_text(row["image"])), tuple(_text(c).strip() for c in given), "")


def _free(row: dict[str, Any]) -> Question:
    asks = "question" in row
    plain = row["context"] if "context" in row else row.get("prompt")
    parts = ("Question: ", _text(row["question"]), "\nAnswer:") if asks else ("", _text(plain), "")
    return Question("".join(parts), _answers(row), parts=parts)


def _looked(row: dict[str, Any]) -> Looked:
    return Looked(_text(row["question"]), _answers(row), file=Path(_text(row["image"])))


def _answers(row: dict[str, Any]) -> tuple[str, ...]:
    given = row["answers"] if "answers" in row else [row["answer"]]
    if not isinstance(given, list) or not given:
        raise TypeError("its answers are no list of one or more")
    return tuple(map(_text, given))


def _utterance(row: dict[str, Any]) -> Utterance:
    return Utterance(Path(_text(row["audio"])), _text(row["text"]), "")


def _cleaned(text: str) -> str:
    """HellaSwag's WikiHow marks away: lm-eval's ``preprocess``."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) < 2:  # noqa: PLR2004 - one is no choice
        raise TypeError("its choices are no list of two or more")
    return tuple(map(_text, value))


def _index(label: Any, choices: tuple[str, ...]) -> int:
    if isinstance(label, str) and label in choices:
        return choices.index(label)
    if isinstance(label, str) and re.fullmatch(r"[A-Z]", label):
        label = ord(label) - ord("A")
    if isinstance(label, str) and label.isdigit():
        label = int(label)
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(choices):
        raise ValueError(f"its label {label!r} names none of its {len(choices)} choices")
    return label


FORMS: dict[tuple[str, ...], Callable[[dict[str, Any]], Entry | Labelled]] = {
    ("sent_more", "sent_less", "bias_type"): published.pair,
    ("context", "question", "ans0", "ans1", "ans2", "answer_info", "label"): published.unclear,
    ("prompt", "label"): published.prompt,
    ("prompt", "continuation"): published.opening,
    **dict(clue.SETS.values()),
    ("audio", "text"): _utterance,
    ("image", "question", "answer"): _looked,
    ("image", "question", "answers"): _looked,
    ("image", "label"): _picture,
    ("image", "caption"): _captioned,
    ("image", "captions"): _captioned,
    ("context", "choices", "label"): _plain,
    ("ctx", "endings", "label"): _hellaswag,
    ("question", "choices", "label"): _arc,
    ("question", "choices", "answerKey"): _arc,
    ("question", "passage", "answer"): _boolq,
    ("text", "label"): _labelled,
    ("context", "answer"): _free,
    ("context", "answers"): _free,
    ("prompt", "answer"): _free,
    ("prompt", "answers"): _free,
    ("question", "answer"): _free,
    ("question", "answers"): _free,
}

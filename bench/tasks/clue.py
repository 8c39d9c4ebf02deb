"""Rows of the Chinese sets of CLUE and FewCLUE as they are published, in prompts of our own.

CLUE: Xu et al., 2020, arXiv:2004.05986; FewCLUE: Xu et al., 2021, arXiv:2107.07498. A model's answer is the likeliest
choice after the prompt, as in all tasks with choices; names of classes are the sets' own, those of TNEWS in Chinese.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from greenllm.bench.tasks.items import Item, Labelled
from greenllm.bench.tasks.published import told

_NEWS = {
    "story": "故事", "culture": "文化", "entertainment": "娱乐", "sports": "体育", "finance": "财经", "house": "房产",
    "car": "汽车", "edu": "教育", "tech": "科技", "military": "军事", "travel": "旅游", "world": "国际",
    "stock": "股票", "agriculture": "农业", "game": "电竞",
}  # fmt: skip
_BLANK = "#idiom#"
_YES = ("否", "是")
_SAME = ("0", "1")


def tnews(row: dict[str, Any]) -> Item:
    """TNEWS: a headline and one of fifteen topics."""
    topic = told(row, "label_desc").removeprefix("news_")
    if topic not in _NEWS:
        raise ValueError(f"its label {topic!r} is none of TNEWS")
    return _item(("新闻：", told(row, "sentence"), "\n类别："), tuple(_NEWS.values()), list(_NEWS).index(topic))


def iflytek(row: dict[str, Any]) -> Labelled:
    """IFLYTEK: what an app does and its kind."""
    return _labelled(("应用描述：", told(row, "sentence"), "\n类别："), told(row, "label_des"))


def csldcp(row: dict[str, Any]) -> Labelled:
    """CSLDCP: an abstract and its discipline."""
    return _labelled(("文献摘要：", told(row, "content"), "\n学科："), told(row, "label"))


def eprstmt(row: dict[str, Any]) -> Item:
    """EPRSTMT: a review, good or bad."""
    label = _one_of(row, ("Negative", "Positive"))
    return _item(("评论：", told(row, "sentence"), "\n评价："), ("差评", "好评"), label)


def pairs(row: dict[str, Any]) -> Item:
    """AFQMC, BUSTM: whether two sentences mean the same; OCNLI, CMNLI: what the first says of the second."""
    one, two = told(row, "sentence1"), told(row, "sentence2")
    if str(row["label"]) in _SAME:
        parts = ("句子一：", one, "\n句子二：", two, "\n两句话的意思：")
        return _item(parts, ("不同", "相同"), _one_of(row, _SAME))
    parts = ("前提：", one, "\n假设：", two, "\n两者的关系：")
    return _item(parts, ("蕴含", "中立", "矛盾"), _one_of(row, ("entailment", "neutral", "contradiction")))


def csl(row: dict[str, Any]) -> Item:
    """CSL: whether keywords are all of an abstract."""
    words = row["keyword"]
    if not isinstance(words, list) or not words or not all(isinstance(w, str) for w in words):
        raise TypeError("its keyword is no list of texts")
    parts = ("摘要：", told(row, "abst"), "\n关键词：", "、".join(words), "\n都是这篇摘要的关键词吗？回答：")
    return _item(parts, _YES, _one_of(row, ("0", "1")))


def wsc(row: dict[str, Any]) -> Item:
    """CLUEWSC: whether a pronoun means a noun."""
    noun, pronoun = (told(row["target"], f"span{i}_text") for i in (1, 2))
    parts = ("", told(row, "text"), f"\n其中“{pronoun}”指的是“{noun}”吗？回答：")
    return _item(parts, _YES, _one_of(row, ("false", "true")))


def chid(row: dict[str, Any]) -> Item:
    """CHID: the idiom that fills a gap; a choice goes on to the text's end, so that what follows counts too."""
    candidates, (before, *after) = row["candidates"], told(row, "content").split(_BLANK)
    if not isinstance(candidates, list) or not all(isinstance(c, str) and c for c in candidates):
        raise TypeError("its candidates are no list of texts")
    if len(after) != 1 or isinstance(row["answer"], bool) or row["answer"] not in range(len(candidates)):
        raise ValueError("it has not one gap and the number of the candidate that fills it")
    said = before or "填空："
    return Item(said, tuple(c + after[0] for c in candidates), int(row["answer"]), gap="")


_PAIRS = (("sentence1", "sentence2", "label"), pairs)
SETS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], Item | Labelled]]] = {
    "tnews": (("sentence", "label", "label_desc"), tnews), "iflytek": (("sentence", "label", "label_des"), iflytek),
    "eprstmt": (("sentence", "label"), eprstmt), "csldcp": (("content", "label"), csldcp),
    "afqmc": _PAIRS, "bustm": _PAIRS, "ocnli": _PAIRS, "cmnli": _PAIRS, "csl": (("abst", "keyword", "label"), csl),
    "cluewsc": (("target", "text", "label"), wsc), "chid": (("candidates", "content", "answer"), chid),
}  # fmt: skip


def _item(parts: tuple[str, ...], choices: tuple[str, ...], label: int) -> Item:
    return Item("".join(parts), choices, label, gap="", parts=parts)


def _labelled(parts: tuple[str, ...], label: str) -> Labelled:
    return Labelled("".join(parts), label, parts=parts, gap="")


def _one_of(row: dict[str, Any], names: tuple[str, ...]) -> int:
    label = str(row["label"])
    if label not in names:
        raise ValueError(f"its label {label!r} is none of {', '.join(names)}")
    return names.index(label)

"""Other prompts: what a task asks in other words, three wordings of ours for each of greenllm's own.

How far scores move with a prompt's wording: Sclar et al. (2024, arXiv:2310.11324); that several are to be asked:
Mizrahi et al. (2024, arXiv:2401.00595). They have no strength: each is asked once, of all items.
"""

from __future__ import annotations

import re

_LABEL, _ASK, _READ = ("Text: ", "\nLabel:"), ("Question: ", "\nAnswer:"), ("", "\nQuestion: ", "?\nAnswer:")
_AS_IT_IS = ("", "")
_CHINESE = re.compile("[\u4e00-\u9fff]")
_Wordings = dict[tuple[str, ...], tuple[str, ...]]
_WORDINGS: _Wordings = {  # by the pieces of the prompt that are not the row's own
    _LABEL: ("{0}\nThe label of this text is:", "Which label fits?\n{0}\nAnswer:", "Input: {0}\nCategory:"),
    _ASK: ("Q: {0}\nA:", "{0}\nThe answer is:", "Please answer this question.\n{0}\nAnswer:"),
    _READ: (
        "Text: {0}\nQ: {1}?\nA:",
        "{0}\nYes or no, {1}?\nAnswer:",
        "Read this, then answer yes or no.\n{0}\nThe question: {1}?\nThe answer:",
    ),
    _AS_IT_IS: ("Complete this.\n{0}", "How does this text go on?\n\n{0}", "A text:\n{0}"),
}
_IN_CHINESE: _Wordings = {
    _LABEL: ("文本：{0}\n标签：", "{0}\n这段文字的类别是：", "请给下面的文字选一个标签。\n{0}\n答案："),
    _ASK: ("问：{0}\n答：", "{0}\n答案是：", "请回答下面的问题。\n{0}\n答案："),
    _AS_IT_IS: ("请把下面的话补充完整。\n{0}", "下面的文字怎么接？\n\n{0}", "一段文字：\n{0}"),
}
COUNT = 3


def reworded(parts: tuple[str, ...], number: int) -> str | None:
    """A prompt's wording ``number`` (from 1), in Chinese where most letters are; None where there is no other.

    Args:
        parts: of the prompt, of which the odd ones are the row's own.
        number: up to :data:`COUNT`.
    """
    own = parts[1::2]
    letters = [c for t in own for c in t if c.isalpha()]
    chinese = 2 * sum(bool(_CHINESE.match(c)) for c in letters) > len(letters)
    known = (_IN_CHINESE if chinese else _WORDINGS).get(parts[::2])
    if known is None:
        return None
    pieces = re.split(r"\{(\d)\}", known[number - 1])  # not str.format: texts hold braces
    return "".join(own[int(p)] if i % 2 else p for i, p in enumerate(pieces))

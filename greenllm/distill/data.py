"""Text to learn from: several sources mixed with weights, and other text to be judged on."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import torch
from torch import Tensor

from greenllm import calibration, own
from greenllm.checkpoint import Checkpoint
from greenllm.clean import Filter
from greenllm.distill.vocabulary import Tokenizer, tokenizer_of
from greenllm.errors import GreenError
from greenllm.progress import Progress

SELF = "self"
_HELD_OUT = 16  # one of so many windows is kept to be judged on
_MOST_HELD = 32  # windows
_BYTES_A_TOKEN = 4  # of text, for estimates
OWN = 512  # windows of own words where no number is given: they take a while

Batch = dict[str, Tensor]  # rows of "input_ids", "attention_mask" and whatever else a lesson needs


def mix_of(text: str, option: str) -> dict[str, float]:
    """Names with weights: ``a=2,b`` is a twice as much as b.

    Raises:
        GreenError: nothing there, a weight that is no positive number, or a name twice.
    """
    found: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        match = re.fullmatch(r"(.+)=([\d.eE+-]+)", part)
        name, weight = match.groups() if match else (part, "1")
        try:
            value = float(weight)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf") or name in found:
            raise GreenError(f"{part!r} is not NAME or NAME=WEIGHT with a positive weight, once.", f"See --{option}.")
        found[name] = value
    if not found:
        raise GreenError(f"--{option} names nothing.")
    return found


def text_samples(
    student: Tokenizer, speaker: Checkpoint, mix: dict[str, float], held_out: str, count: int, length: int, seed: int,
    progress: Progress, *, clean: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Windows of text to learn from, and windows to be judged on that are none of them.

    Args:
        student: the tokenizer.
        speaker: whose own words "self" are.
        mix: sources (see :func:`greenllm.calibration.samples`) with weights.
        held_out: source of the text to be judged on; "" keeps a part of each source of the mix back.
        count: windows at most, 0 for all there is (512 of own words); in a mix, a source with less text than its
            share is repeated.
        length: tokens of each.
        seed: of the choice.
        progress: told what is narrow, repeated, short or dropped.
        clean: drop duplicates and personal data.

    Returns:
        int64 [windows, length] and [held out, length].

    Raises:
        GreenError: see :func:`greenllm.calibration.samples`; or too little text for anything to be held out.
    """
    if len(mix) == 1 and SELF not in mix:
        progress.note(
            f"WARNING. All text is from one corpus ({next(iter(mix))}): what it does not cover may be unlearned, and "
            "text from it cannot show that. Add others with --data A,B=WEIGHT, and judge on another with --held-out."
        )
    ends = sum(mix.values())
    found = {
        name: _windows(student, speaker, name, math.ceil(count * weight / ends), length, seed, progress, clean)
        for name, weight in mix.items()
    }
    total = count or sum(len(w) for w in found.values())
    learn, judge = [], []
    for name, weight in mix.items():
        windows = found[name]
        kept = 0 if held_out else max(1, min(_MOST_HELD, len(windows) // _HELD_OUT))
        if kept >= len(windows):
            raise GreenError(
                f"{name} has {len(windows)} windows of {length} tokens: none to be judged on.", "Add text."
            )
        judge.append(windows[:kept])
        share = round(total * weight / ends) - kept
        learn.append(_repeat(windows[kept:], share, name, progress) if len(mix) > 1 else windows[kept:])
    if held_out:
        judge = [_windows(student, speaker, held_out, _MOST_HELD, length, seed + 1, progress, clean)]
    return torch.cat(learn), torch.cat(judge)


def _windows(
    student: Tokenizer, speaker: Checkpoint, name: str, count: int, length: int, seed: int, progress: Progress,
    clean: bool,  # noqa: FBT001 - private
) -> Tensor:  # fmt: skip
    """Up to ``count`` windows of a source, 0 for all, in random order."""
    if name == SELF:
        tokens = _own(student, speaker, count or OWN, length, seed, progress)
    else:
        sieve = Filter() if clean else None
        tokens = calibration.tokens_of(student, name, count * length * 4 or sys.maxsize, sieve)
        if sieve and sieve.dropped:
            progress.note(f"Of {name}, {sieve.words}.")
    there = len(tokens) // length
    if not there:
        raise GreenError(f"{name} has {len(tokens)} tokens: not one window of {length}.", "Lower --length.")
    if there < count:
        progress.note(f"{name} has {there} windows of {length} tokens; {count} were asked for.")
    order = torch.randperm(there, generator=torch.Generator().manual_seed(seed))[: count or there]
    return tokens[: there * length].view(there, length)[order]


def _own(student: Tokenizer, speaker: Checkpoint, count: int, length: int, seed: int, progress: Progress) -> Tensor:
    """The teacher's own words in the student's tokens, int64 [tokens]."""
    ids = own.samples(speaker, count, length, seed, progress)
    theirs = tokenizer_of(speaker.path)
    if theirs.get_vocab() == student.get_vocab():
        return ids.flatten()
    texts = theirs.batch_decode(ids, skip_special_tokens=True)
    return torch.tensor([t for text in texts for t in student(text, verbose=False)["input_ids"]], dtype=torch.int64)


def _repeat(windows: Tensor, count: int, name: str, progress: Progress) -> Tensor:
    """So many windows that the source has its weight in the mix."""
    if count > len(windows):
        progress.note(f"{name} is repeated {count / len(windows):.1f} times to have its weight.")
    return windows[torch.arange(max(1, count)) % len(windows)]


def windows_in(source: str, length: int) -> int:
    """Windows of a source, about, without reading it."""
    path = Path(source).expanduser()
    return max(1, path.stat().st_size // _BYTES_A_TOKEN // length) if path.is_file() else OWN

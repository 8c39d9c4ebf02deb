"""Tokens that a corpus never needs: tokenizer, embedding and head lose them together.

As in "Load What You Need", Abdaoui et al., 2020, arXiv:2010.05609, section 3, with whole merge histories kept so
that a byte-level tokenizer cuts the corpus as before.

Where more must go than the corpus leaves unused, counts alone cannot rank: most rare tokens occur once or never. A
decoder then adds what it expects itself, its mean next-token probability over the same texts. On SmolLM2 that takes
35 to 40 % fewer tokens of unseen English for 2,000 to 9,300 that go.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from greenllm import artifact
from greenllm.calibration import tokens_of
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.kinds import GENERATION
from greenllm.progress import Progress
from greenllm.prune.axes import VOCABULARY, Anatomy
from greenllm.prune.cut import write_cut
from greenllm.prune.tokens import FastTokenizer, named_ids, renumbered
from greenllm.step import Estimate, flops_per_second

_BATCH = 1 << 20  # characters tokenized at a time
_GENERATION = "generation_config.json"
_NEEDED = float("inf")
_WINDOWS, _LENGTH = 64, 512


def counts(file: Path, texts: Iterable[str]) -> Counter[int]:
    """How often each token of a ``tokenizer.json`` occurs."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    found: Counter[int] = Counter()
    held: list[str] = []

    def flush() -> None:
        for encoding in tokenizer.encode_batch(held, add_special_tokens=False):
            found.update(encoding.ids)
        held.clear()

    for text in texts:
        held.append(text)
        if sum(map(len, held)) > _BATCH:
            flush()
    flush()
    return found


@torch.no_grad()
def expected(checkpoint: Checkpoint, sources: list[str], progress: Progress) -> Tensor:
    """The probability with which a decoder expects each token, mean over places in the texts, float64 [V].

    Args:
        checkpoint: a decoder.
        sources: texts, of which windows are drawn, as many of each.
        progress: advanced by 1 a window.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True)
    each = -(-_WINDOWS // len(sources))
    windows = [w for s in sources for w in _drawn(tokens_of(tokenizer, s, 4 * each * _LENGTH), each)]
    model: Any = checkpoint.load_model()
    total = torch.zeros(int(checkpoint.config.vocab_size), dtype=torch.float64)
    progress.stage("asking which tokens are expected", len(windows))
    for ids in windows:
        total += torch.softmax(model(input_ids=ids[None], use_cache=False).logits[0].float(), -1).double().sum(0)
        progress.advance()
    return total / sum(map(len, windows))


def estimate_expected(checkpoint: Checkpoint) -> Estimate:
    """Time and memory of :func:`expected`, the model itself left out; nothing for an encoder, which is not asked."""
    if checkpoint.task != GENERATION:
        return Estimate(0, 0)
    seconds = 2 * checkpoint.parameters * _WINDOWS * _LENGTH / flops_per_second()
    return Estimate(seconds, 16 * _LENGTH * int(checkpoint.config.vocab_size))


def _drawn(ids: Tensor, count: int) -> list[Tensor]:
    windows = ids.split(_LENGTH)
    return [windows[i] for i in torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))[:count]]


def ranked(tokenizer: FastTokenizer, used: Mapping[int, float], named: set[int], rows: int) -> list[tuple[int, float]]:
    """Ids by how much they are needed, with the need: infinite, or how often the token or one made of it occurs.

    The ids up to any place in this order make a whole tokenizer: what a token is merged from comes before it.

    Args:
        tokenizer: whose tokens they are.
        used: how often each id occurs, or is expected to; an id that is not there never does.
        named: ids that a configuration names.
        rows: of the embedding; ids beyond have none.
    """
    base = tokenizer.base()
    need = {t: _NEEDED if t in base or i in named else float(used.get(i, 0)) for t, i in tokenizer.ids.items()}
    for token in [t for t, n in need.items() if n and t not in tokenizer.added]:
        for part in tokenizer.parts(token):
            need[part] = max(need[part], need[token])
    unused = [t for t in tokenizer.ids if not need[t] and t not in tokenizer.added]
    order = sorted((t for t in need if need[t]), key=lambda t: (-need[t], len(t), tokenizer.ids[t]))
    there = set(order)
    for token in sorted(unused, key=lambda t: tokenizer.ids[t]):  # the earliest merges are the most common
        more = sorted(tokenizer.parts(token) - there, key=len)
        order += [t for t in (*more, token) if t not in there]
        there |= {token, *more}
    return [(tokenizer.ids[t], need[t]) for t in order if tokenizer.ids[t] < rows]


def size_for(anatomy: Anatomy, order: list[tuple[int, float]], target: float | None, multiple: int) -> int:
    """How many tokens stay: all that are needed, or as many as ``target`` weights have room for.

    Raises:
        GreenError: there is no room for those without which not every text could be encoded, or nothing goes.
    """
    count = anatomy.sizes[VOCABULARY]
    if target is None:
        size = -(-sum(need > 0 for _, need in order) // multiple) * multiple
    else:
        each = (anatomy.checkpoint.parameters - anatomy.parameters({VOCABULARY: 1})) / (count - 1)
        size = int(count - (anatomy.checkpoint.parameters - target) / each) // multiple * multiple
    least = sum(need == _NEEDED for _, need in order)
    if size < least:
        raise GreenError(
            f"{max(size, 0)} tokens would stay, but {least} are bytes, special or named in the configuration.",
            "Ask for less (--ratio, --to), or a smaller --multiple.",
        )
    size = min(size, len(order))  # rows of no token go in any case
    if size >= count:
        raise GreenError(
            f"The corpus needs {sum(need > 0 for _, need in order)} of {count} tokens; none can go.",
            "Give a narrower --corpus, or a --ratio.",
        )
    return size


def write_vocabulary(anatomy: Anatomy, tokenizer: FastTokenizer, out: Path, stay: list[int]) -> dict[str, int]:
    """Write the checkpoint with the tokens ``stay`` (old ids, rising) alone, tokenizer and configurations included.

    Returns:
        Numbers of weights, "before" and "after".
    """
    new = {old: i for i, old in enumerate(stay)}
    config: dict[str, Any] = anatomy.config.to_dict()
    changes = {k: v for k, v in renumbered(config, new).items() if v != config[k]}
    found = write_cut(anatomy, out, {VOCABULARY: torch.tensor(stay)}, changes=changes)
    tokenizer.write(out, new)
    if (out / _GENERATION).is_file():
        generation = json.loads((out / _GENERATION).read_text(encoding="utf-8"))
        artifact.write_atomic(out / _GENERATION, json.dumps(renumbered(generation, new), indent=2) + "\n")
    return found


def ids_in_configs(checkpoint: Checkpoint) -> set[int]:
    """Token ids that the configurations of a checkpoint name."""
    found = named_ids(checkpoint.config.to_dict())
    for name in (_GENERATION, "tokenizer_config.json"):
        if (checkpoint.path / name).is_file():
            found |= named_ids(json.loads((checkpoint.path / name).read_text(encoding="utf-8")))
    return found

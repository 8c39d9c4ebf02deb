"""From a number of weights, or a list of what goes, to a cut checkpoint: one class a kind of part."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from greenllm import calibration
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.kinds import GENERATION
from greenllm.prune import depth, vocabulary, width
from greenllm.prune.axes import HEADS, HIDDEN, MLP, VOCABULARY, Anatomy
from greenllm.prune.cut import write_cut
from greenllm.prune.tokens import FastTokenizer
from greenllm.quantize.run import batches
from greenllm.step import Context

PERPLEXITY_TOKENS = 2048  # each goes through the model once a block


class Depth:
    """Whole blocks go.

    Args:
        checkpoint: dense.
        target: number of weights at most; None where ``layers`` says which go.
        layers: numbers of blocks, such as "12,13" or "20-24".
        rank: "influence" or "perplexity".

    Raises:
        GreenError: no such blocks, all of them, or a model that cannot be ranked in this way.
    """

    def __init__(self, checkpoint: Checkpoint, target: float | None, layers: str, rank: str) -> None:
        self.checkpoint, self.target, self.rank = checkpoint, target, rank
        self.anatomy = Anatomy(checkpoint)
        self.named = self._parse(layers) if layers else []
        if self.named and target is not None:
            raise GreenError("--layers says what goes, --ratio and --to how much.", "Choose one of them.")
        if rank == "perplexity" and checkpoint.task != GENERATION:
            raise GreenError(f"{checkpoint.path}: perplexity is measured on text generators.", "Use --rank influence.")
        self._going(list(range(self.anatomy.blocks)))

    def __call__(self, out: Path, context: Context) -> dict[str, Any]:
        """Rank the blocks, write those that stay."""
        scores = [] if self.named else self._rank(context)
        cut = self._going(sorted(range(len(scores)), key=scores.__getitem__))
        stay = [i for i in range(self.anatomy.blocks) if i not in cut]
        parts = {str(i): [score, float(i in stay)] for i, score in enumerate(scores)}
        return {"parameters": write_cut(self.anatomy, out, {}, stay), "cut": cut, "parts": parts}

    def _rank(self, context: Context) -> list[float]:
        ids = batches(context.samples())
        if self.rank == "influence":
            return depth.influence(self.checkpoint, ids, context.work, context.progress)
        few = torch.cat(ids)[: max(1, PERPLEXITY_TOKENS // ids[0].shape[1])]
        return depth.perplexity_drop(self.checkpoint, [few], context.work, context.progress)

    def _going(self, order: list[int]) -> list[int]:
        """The first of ``order`` (or those named), as many as it takes."""
        if self.named:
            return self.named
        assert self.target is not None  # noqa: S101 - see the step's check
        for count in range(1, self.anatomy.blocks):
            if self.anatomy.parameters({}, order[count:]) <= self.target:
                return sorted(order[:count])
        least = self.anatomy.parameters({}, order[-1:])
        raise GreenError(
            f"One block of {self.checkpoint.path} alone leaves {least / 1e6:.1f}M weights; "
            f"{self.target / 1e6:.1f}M are wanted, and no block would be left.",
            "Ask for less (--ratio, --to), or cut width or vocabulary.",
        )

    def _parse(self, layers: str) -> list[int]:
        found: set[int] = set()
        for part in layers.split(","):
            match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
            if not match:
                raise GreenError(
                    f"--layers {layers}: {part.strip() or 'nothing'} is no block.", "For instance 12,13 or 20-24."
                )
            found |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
        count = self.anatomy.blocks
        if not found or max(found) >= count:
            raise GreenError(f"--layers {layers}: there are blocks 0 to {count - 1}.", "Name some of these.")
        if len(found) == count:
            raise GreenError(f"--layers {layers}: no block would be left.", "Name fewer.")
        return sorted(found)


class Width:
    """Heads, MLP channels and hidden channels go, the same number in every block.

    Args:
        checkpoint: dense.
        target: number of weights at most, or None.
        heads: how many stay; 0 as the target demands.
        mlp: the same of MLP channels.
        hidden: the same of hidden channels; 0 for all.
        multiple: what MLP and hidden channels are a multiple of.
        damp: of fitting what reads the channels that stay; None does not fit it.

    Raises:
        GreenError: sizes that cannot be, or an architecture that cannot be cut in this way.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        target: float | None,
        heads: int,
        mlp: int,
        hidden: int,
        multiple: int,
        damp: float | None,
    ) -> None:
        self.checkpoint, self.damp = checkpoint, damp
        wanted = {HIDDEN: hidden, HEADS: heads, MLP: mlp}
        self.anatomy = self._look(wanted, target)
        fixed = self._fixed(wanted, multiple)
        self.sizes = fixed if target is None else width.fit(self.anatomy, target, fixed, multiple)
        if all(n >= self.anatomy.sizes[k] for k, n in self.sizes.items()):
            raise GreenError(f"{checkpoint.path} is no larger than that; nothing would be cut.", "Give smaller sizes.")
        self.anatomy.configure(self.sizes)
        self.anatomy.prove()

    def __call__(self, out: Path, context: Context) -> dict[str, Any]:
        """Measure what each part is worth, write what is worth most."""
        ids = batches(context.samples())
        narrowing = width.Narrowing(self.checkpoint, self.anatomy, self.sizes, self.damp)
        scores, fitted = narrowing.run(ids, context.work, context.progress)
        kept = width.choose(scores, self.sizes)
        parts = {k: [float(s.sum()), float(s[kept[k]].sum() / s.sum().clamp_min(1e-12))] for k, s in scores.items()
                 if k in kept}  # fmt: skip
        return {
            "parameters": write_cut(self.anatomy, out, kept, fitted=fitted),
            "cut": {k: [self.anatomy.sizes[k], n] for k, n in self.sizes.items()},
            "parts": parts,
            "heads": {k: _short(s) for k, s in scores.items() if k.endswith(HEADS)},
        }

    def _look(self, wanted: dict[str, int], target: float | None) -> Anatomy:
        """The axes that are cut; heads are among them where a target is free to take some."""
        kinds = {k for k, n in wanted.items() if n} | ({HEADS, MLP} if target is not None else set())
        found = Anatomy(self.checkpoint, tuple(sorted(kinds)))
        if not found.coupled:
            return found
        if wanted[HIDDEN]:
            kinds.add(HEADS)
        elif wanted[HEADS]:
            name, size = type(found.config).__name__, wanted[HEADS] * found.head_dim
            raise GreenError(
                f"{self.checkpoint.path}: {name} cannot say how wide a head is, so heads go with hidden channels.",
                f"Give --hidden {size}; {wanted[HEADS]} heads are then left.",
            )
        else:
            kinds.remove(HEADS)
        return Anatomy(self.checkpoint, tuple(sorted(kinds)))

    def _fixed(self, wanted: dict[str, int], multiple: int) -> dict[str, int]:
        a = self.anatomy
        if a.coupled and wanted[HIDDEN]:
            wanted = wanted | {HEADS: wanted[HEADS] or wanted[HIDDEN] // a.head_dim}
            if wanted[HEADS] * a.head_dim != wanted[HIDDEN]:
                raise GreenError(
                    f"{wanted[HIDDEN]} hidden channels are not {wanted[HEADS]} heads of {a.head_dim}, "
                    f"as {type(a.config).__name__} wants them.",
                    f"Give --hidden a multiple of {a.head_dim}.",
                )
        whole = {HIDDEN: a.sizes[HIDDEN], HEADS: a.sizes[HEADS] * a.per_group, MLP: a.sizes[MLP]}
        for kind, n in wanted.items():
            each = a.per_group if kind == HEADS else multiple
            if n > whole[kind]:
                raise GreenError(f"--{kind} {n}: there are {whole[kind]}.", f"Give fewer than {whole[kind]}.")
            if n % each and n != whole[kind]:
                why = "heads that share keys and values go together" if kind == HEADS else "kernels like"
                raise GreenError(
                    f"--{kind} {n} is no multiple of {each} ({why}).",
                    f"Give {max(1, n // each) * each}{'' if kind == HEADS else ', or another --multiple'}.",
                )
        return {k: n // (a.per_group if k == HEADS else 1) for k, n in wanted.items() if n}


class Vocabulary:
    """Tokens go.

    Args:
        checkpoint: dense, with a ``tokenizer.json``.
        target: number of weights at most; None: every token that the corpus uses stays.
        corpus: texts, commas between them: ``.txt``, ``.jsonl``, hub data sets.
        multiple: what the number of tokens is a multiple of.

    Raises:
        GreenError: no corpus, or no tokenizer that can be cut.
    """

    def __init__(self, checkpoint: Checkpoint, target: float | None, corpus: str, multiple: int) -> None:
        self.checkpoint, self.target, self.multiple = checkpoint, target, multiple
        self.sources = [s.strip() for s in corpus.split(",") if s.strip()]
        if not self.sources or "self" in self.sources:
            raise GreenError("Which tokens are needed is learned from text.", "Give --corpus TEXT.jsonl,MORE.txt.")
        for source in self.sources:
            calibration.check_source(source)
        self.anatomy = Anatomy(checkpoint, (VOCABULARY,))
        self.tokenizer = FastTokenizer(checkpoint.path)

    def __call__(self, out: Path, context: Context) -> dict[str, Any]:
        """Count the corpus's tokens, write those that stay."""
        context.progress.stage("counting tokens", 1)
        template = self.checkpoint.path / "chat_template.jinja"
        own = [template.read_text(encoding="utf-8")] if template.is_file() else []
        texts: Iterable[str] = itertools.chain(own, *(calibration.texts(s) for s in self.sources))
        used = vocabulary.counts(self.tokenizer.file, texts)
        rows = self.anatomy.sizes[VOCABULARY]
        context.progress.advance()
        named = vocabulary.ids_in_configs(self.checkpoint)
        order = vocabulary.ranked(self.tokenizer, self._need(used, context), named, rows)
        size = vocabulary.size_for(self.anatomy, order, self.target, self.multiple)
        stay = sorted(i for i, _ in order[:size])
        covered = sum(used[i] for i in stay) / max(1, used.total())
        return {
            "parameters": vocabulary.write_vocabulary(self.anatomy, self.tokenizer, out, stay),
            "cut": {VOCABULARY: [rows, size]},
            "parts": {VOCABULARY: [float(used.total()), covered]},
            "used": sum(1 for n in used.values() if n),
        }

    def _need(self, used: Counter[int], context: Context) -> Mapping[int, float]:
        """How often each token occurs; with what the model expects of it where a target leaves no room for all."""
        if self.target is None or self.checkpoint.task != GENERATION:
            return used
        expected = vocabulary.expected(self.checkpoint, self.sources, context.progress) * used.total()
        return {i: used[i] + float(n) for i, n in enumerate(expected.tolist())}


def _short(scores: Tensor) -> list[float]:
    return [float(f"{s:.4g}") for s in scores.tolist()]

"""A model of which only the upper blocks learn: what the lower ones say of a text is computed once and kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from greenllm.adapt.shots import Shot
from greenllm.blocks import stacks_of
from greenllm.errors import GreenError

_TOKENS = 1024  # of a pass, so that memory does not grow with the samples


class Upper:
    """What writes (a causal language model), its shots, and the states in which they enter block ``first``.

    Texts are padded at their end, where a causal model never looks back from.

    Args:
        model: transformers' model.
        first: the lowest block that learns.
        shots: what is asked.
    """

    def __init__(self, model: Any, first: int, shots: Sequence[Shot]) -> None:
        self.model, self.first, self.shots = model, first, shots
        self.blocks = list(stacks_of(model)[-1][1])
        self._tuple = False
        self._held = [[self._read(i, text) for text in shot.texts] for i, shot in enumerate(shots)] if first else []

    def _given(self, chosen: Sequence[int], ids: Tensor) -> dict[str, Any]:
        """What the model is called with: ids [texts, T] of the shots with these indices."""
        del chosen  # the texts are all there is of them
        return {"input_ids": ids}

    @torch.no_grad()
    def _read(self, index: int, text: Sequence[int]) -> Tensor:
        """What leaves the block below ``first`` of a text of a shot, [T, H]; those above are not computed."""
        below, found = self.blocks[self.first - 1], list[Any]()

        def stop(_module: Any, _args: Any, out: Any) -> None:
            found.append(out)
            raise _Enough

        hook = below.register_forward_hook(stop)
        try:
            self.model(**self._given([index], torch.tensor([text])), use_cache=False)
        except _Enough:
            pass
        finally:
            hook.remove()
        self._tuple = isinstance(found[0], tuple)
        states: Tensor = found[0][0] if self._tuple else found[0]
        return states.reshape(len(text), -1).clone()

    def scores(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of the shots with these indices each choice's log-likelihood in nats, and whether the model would write it.

        Both are [shots, choices].
        """
        shots = [self.shots[i] for i in chosen]
        texts = [t for s in shots for t in s.texts]
        width = max(map(len, texts))
        ids = torch.tensor([[*t, *[0] * (width - len(t))] for t in texts])
        rows, tokens, owner = list[int](), list[int](), list[int]()
        first, n = 0, 0
        for shot in shots:
            for choice in shot.choices:
                begin = (first + choice.text) * width + choice.start - 1
                rows += range(begin, begin + len(choice.tokens))
                tokens += choice.tokens
                owner += [n] * len(choice.tokens)
                n += 1
            first += len(shot.texts)
        with self._replaying(chosen, width), self._picking(torch.tensor(rows)):
            logits = self.model(**self._given(chosen, ids), use_cache=False).logits[0].float()
        if not torch.isfinite(logits).all():
            raise GreenError("The model's logits hold NaN or infinity.", "Take a smaller --rate, or another model.")
        want, index = torch.tensor(tokens), torch.tensor(owner)
        each = functional.log_softmax(logits, -1).gather(1, want[:, None])[:, 0]
        other = torch.zeros(n).index_add(0, index, (logits.argmax(-1) != want).float())
        found = torch.zeros(n).index_add(0, index, each)
        return found.reshape(len(shots), -1), (other == 0).reshape(len(shots), -1)

    def portions(self, chosen: Sequence[int]) -> Iterator[list[int]]:
        """These shots in parts that are read at once."""
        part: list[int] = []
        for i in chosen:
            lengths = [len(t) for j in [*part, i] for t in self.shots[j].texts]
            if part and len(lengths) * max(lengths) > _TOKENS:
                yield part
                part = []
            part.append(i)
        if part:
            yield part

    @contextmanager
    def _replaying(self, chosen: Sequence[int], width: int) -> Iterator[None]:
        """The lower blocks say what was kept."""
        if not self.first:
            yield
            return
        kept = torch.stack([functional.pad(h, (0, 0, 0, width - len(h))) for i in chosen for h in self._held[i]])
        lower = self.blocks[: self.first]
        for block in lower:
            block.forward = lambda *_a, **_k: (kept,) if self._tuple else kept
        try:
            yield
        finally:
            for block in lower:
                del block.forward

    @contextmanager
    def _picking(self, rows: Tensor) -> Iterator[None]:
        """The head sees only the positions that are scored: a vocabulary is wide."""
        head = self.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _m, args: (args[0].flatten(0, 1)[rows][None],))
        try:
            yield
        finally:
            hook.remove()


class _Enough(Exception):  # noqa: N818 - no error: all that was asked is known
    pass

"""Learn what rounding left: quantization-aware distillation, end to end, on a packed checkpoint.

The quantized student is brought nearer to the unquantized teacher in KL divergence over all tokens
(LLM-QAT, Liu et al., 2023, arXiv:2305.17888, section 3.3), on text that the teacher wrote itself if no other
is given (section 3.1). Codes, scales and norms learn together, each code within reach of where it began.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from greenllm.distill.divergence import forward, log_probabilities, state_distance
from greenllm.errors import GreenError
from greenllm.progress import Progress
from greenllm.quantize.fakequant import FakeQuant
from greenllm.quantize.linear import gradient_of, set_weight

_TOKENS = 512  # of one forward pass; a step adds up several
_COMMIT = 20  # steps between two states on disk
_WARM = 10  # steps until the full rate
_BETAS = (0.9, 0.95)
_STATE = "state.safetensors"


@dataclass(frozen=True)
class Rates:
    """Rates of Adam: of codes in steps of their grid, of scales relative, of norms as they are; 0 holds them."""

    codes: float
    scales: float
    norms: float


class Tuner:
    """A student that learns from its teacher.

    Args:
        student: the model in float32; the weights of its quantized modules are made anew at every step.
        teacher: the model it should be; its parameters are only read.
        learning: a :class:`FakeQuant` for each quantized module, by name.
        rates: how fast.
        dtype: what both compute in; float32 or bfloat16.
        state: directory for committed work; what lies there is gone on with.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, learning: dict[str, FakeQuant], rates: Rates,
        dtype: torch.dtype, state: Path,
    ) -> None:  # fmt: skip
        self.student, self.teacher, self.learning, self.dtype, self.state = student, teacher, learning, dtype, state
        self.layers = {name: student.get_submodule(name) for name in learning}
        weights = {id(layer.get_parameter("weight")) for layer in self.layers.values()}
        self.others = {n: p for n, p in student.named_parameters() if id(p) not in weights and p.dim() == 1}
        for parameter in [*self.others.values(), *(m.get_parameter("weight") for m in self.layers.values())]:
            parameter.requires_grad_()
        groups = [(f"{n}.u", f.u, rates.codes) for n, f in learning.items()]
        groups += [(f"{n}.change", f.change, rates.scales) for n, f in learning.items()]
        groups += [(n, p, rates.norms) for n, p in self.others.items()]
        # One optimizer a tensor: its gradient can go as soon as it was used.
        self.optimizers = {n: (torch.optim.Adam([p], lr=rate, betas=_BETAS), rate) for n, p, rate in groups if rate}
        self.states = student.get_output_embeddings() is None  # type: ignore[operator]
        self.done = 0

    def run(self, ids: Tensor, steps: int, rows: int, seed: int, progress: Progress) -> None:
        """``steps`` steps of ``rows`` samples each, drawn without repetition until all were seen.

        Args:
            ids: samples, int64 [count, length].
            steps: how many updates.
            rows: samples an update.
            seed: of the order.
            progress: advanced by 1 a step.

        Raises:
            GreenError: the loss became NaN or infinite; what was committed last is kept.
        """
        self._resume()
        progress.advance(self.done)
        drawn = itertools.islice(_orders(len(ids), seed), self.done * rows, steps * rows)
        while self.done < steps:
            batch = ids[list(itertools.islice(drawn, rows))]
            loss = self._step(batch, _schedule(self.done, steps))
            if not math.isfinite(loss):
                raise GreenError(f"Step {self.done + 1}: the loss is {loss}.", "Lower --rate.")
            self.done += 1
            progress.advance()
            if self.done % _COMMIT == 0 and self.done < steps:
                self._commit()

    def measure(self, ids: Tensor) -> float:
        """The loss on samples [count, length], without learning."""
        self._put()
        with torch.no_grad():
            losses = [self._loss(part) * len(part) / len(ids) for part in _parts(ids)]
        return float(sum(losses))

    @torch.enable_grad()
    def _step(self, batch: Tensor, pace: float) -> float:
        self._put()
        total = 0.0
        for part in _parts(batch):
            loss = self._loss(part) * (len(part) / len(batch))
            loss.backward()
            total += float(loss.detach())
        for name, fake in self.learning.items():
            layer = self.layers[name]
            fake.u.grad, fake.change.grad = fake.gradients(gradient_of(layer))
            layer.get_parameter("weight").grad = None
            self._update(f"{name}.u", fake.u, pace)
            self._update(f"{name}.change", fake.change, pace)
        for name, parameter in self.others.items():
            self._update(name, parameter, pace)
        return total

    def _update(self, name: str, tensor: Tensor, pace: float) -> None:
        if name in self.optimizers:
            optimizer, rate = self.optimizers[name]
            optimizer.param_groups[0]["lr"] = rate * pace
            optimizer.step()
        tensor.grad = None

    def _put(self) -> None:
        """Give the student the weights that are learned now; those of the blocks in the type computed in."""
        student: Any = self.student
        ends = [student.get_input_embeddings(), student.get_output_embeddings()]
        for name, fake in self.learning.items():
            layer = self.layers[name]
            set_weight(layer, fake.weight() if layer in ends else fake.weight().to(self.dtype))

    def _loss(self, ids: Tensor) -> Tensor:
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            with torch.no_grad():
                want = self.teacher(input_ids=ids)[0]
            got = self.student(input_ids=ids)[0]
        return divergence(want, got, states=self.states)

    def _commit(self) -> None:
        tensors = {"done": torch.tensor(self.done)}
        for name, (optimizer, _) in self.optimizers.items():
            (tensor,) = optimizer.param_groups[0]["params"]
            tensors[name] = tensor.data
            tensors |= {f"{name}|{k}": v for k, v in optimizer.state[tensor].items()}
        self.state.mkdir(parents=True, exist_ok=True)
        part = self.state / f"{_STATE}.part"
        save_file(tensors, part)
        part.replace(self.state / _STATE)

    def _resume(self) -> None:
        if not (self.state / _STATE).exists():
            return
        tensors = load_file(self.state / _STATE)
        self.done = int(tensors["done"])
        for name, (optimizer, _) in self.optimizers.items():
            (tensor,) = optimizer.param_groups[0]["params"]
            tensor.data.copy_(tensors[name])
            kept = {k: tensors[f"{name}|{k}"] for k in ("step", "exp_avg", "exp_avg_sq")}
            optimizer.state[tensor] = kept


def divergence(want: Tensor, got: Tensor, *, states: bool) -> Tensor:
    """How far a student is from its teacher.

    Args:
        want: the teacher's logits, or an encoder's states, [B, T, V].
        got: the student's.
        states: whether they are states.

    Returns:
        Mean KL divergence of a token's predictions in nats; for states their squared error, relative.
    """
    if states:
        return state_distance(want, got, torch.ones(want.shape[:2]))
    return forward(log_probabilities(want), log_probabilities(got)).mean()


def _parts(ids: Tensor) -> tuple[Tensor, ...]:
    return ids.split(max(1, _TOKENS // ids.shape[1]))


def _orders(count: int, seed: int) -> Iterator[int]:
    """Numbers below ``count`` in a random order, then in another, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def _schedule(done: int, steps: int) -> float:
    """Part of the full rate: up over the first steps, then down along a cosine."""
    warm = min(_WARM, max(1, steps // 10))
    if done < warm:
        return (done + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (done - warm) / max(1, steps - warm)))


def as_type(model: Any, dtype: torch.dtype) -> Any:
    """A teacher with its matrices in the type computed in; what is smaller keeps its digits."""
    ends = {id(m) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() > 1 and id(module) not in ends:
            weight.data = weight.data.to(dtype)
    return model

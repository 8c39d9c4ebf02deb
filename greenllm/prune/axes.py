"""Which axis of which weight counts what: found by asking transformers for the same model in other sizes.

A configuration says how many heads, channels and tokens a model has; the shapes that change with one of these
numbers are its axes. Nothing here knows architectures by name. What is found is tried out: where the units of an
axis may change places without changing what a model computes, a unit can be taken out of it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from greenllm.blocks import blocks_of
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.kinds import FEATURES
from greenllm.quantize.linear import linears

if TYPE_CHECKING:
    from transformers import PretrainedConfig

HIDDEN, HEADS, MLP, VOCABULARY = "hidden", "heads", "mlp", "vocabulary"
PER_BLOCK = (HEADS, MLP)
_MLP_KEYS = ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim", "ffn_hidden_size")
_TOKENS = 61  # a number that is no other size
_ALIKE = 1e-3  # of a model's output: what rounding makes of another order of summation

Kept = dict[str, Tensor]  # units that stay, int64, by kind ("hidden") or block and kind ("3.mlp")


@dataclass(frozen=True)
class Axis:
    """An axis of ``kind``: segments one after another, in each of which a unit is ``width`` neighbours wide."""

    kind: str
    widths: tuple[int, ...]

    def places(self, units: Tensor, count: int) -> Tensor:
        """Where on the axis these of ``count`` units are, int64."""
        found, start = [], 0
        for width in self.widths:
            found.append((start + units[:, None] * width + torch.arange(width)).flatten())
            start += count * width
        return torch.cat(found)


class Anatomy:
    """Sizes of a checkpoint and the axes of its weights.

    Args:
        checkpoint: what is looked at.
        kinds: which axes are wanted; heads and hidden channels come together where they are ``coupled``.

    Raises:
        GreenError: the architecture has no such sizes, or keeps them in a way that nobody here knows.

    Attributes:
        sizes: units by kind: hidden channels, heads (groups that share keys and values), MLP channels, tokens.
        axes: by name of a weight, one entry a dimension; None where it counts something else.
        per_group: query heads in a group.
        head_dim: channels of a head.
        coupled: the configuration cannot say how wide a head is: heads and hidden channels only go together.
    """

    def __init__(self, checkpoint: Checkpoint, kinds: tuple[str, ...] = ()) -> None:
        self.checkpoint = checkpoint
        self.kinds = kinds
        c = self.config = checkpoint.config
        hidden, heads = self._number("hidden_size"), self._number("num_attention_heads")
        groups = getattr(c, "num_key_value_heads", None) or heads
        if not isinstance(groups, int) or heads % groups:
            raise self._cannot("its heads are not the same in every group")
        self.per_group = heads // groups
        self.head_dim = getattr(c, "head_dim", None) or hidden // heads
        self.mlp_key = next((k for k in _MLP_KEYS if hasattr(c, k)), None)
        mlp = (getattr(c, self.mlp_key) or 4 * hidden) if self.mlp_key else 0
        if not isinstance(mlp, int):
            raise self._cannot("its blocks have MLPs of different sizes")
        self.sizes = {HIDDEN: hidden, HEADS: groups, MLP: mlp, VOCABULARY: self._number("vocab_size")}
        skeleton = checkpoint.skeleton()
        self.prefix, blocks = blocks_of(skeleton)
        self.blocks = len(blocks)
        self.shapes = {n: tuple(p.shape) for n, p in skeleton.named_parameters()}
        self.axes: dict[str, list[Axis | None]] = {n: [None] * len(s) for n, s in self.shapes.items()}
        self.coupled = False
        if HEADS in kinds or HIDDEN in kinds:
            self.coupled = self._find_heads()
        for kind in kinds:
            if kind != HEADS:
                self._find(kind)
        if self.coupled and HIDDEN in kinds:
            self._split_heads_from_hidden(blocks)

    def configure(self, sizes: dict[str, int], layers: list[int] | None = None) -> PretrainedConfig:
        """The configuration of the model in other sizes, of these blocks alone.

        Raises:
            GreenError: transformers takes no such sizes for this architecture.
        """
        new = self.sizes | sizes
        changes: dict[str, Any] = {"hidden_size": new[HIDDEN], "num_attention_heads": new[HEADS] * self.per_group,
                                   "vocab_size": new[VOCABULARY]}  # fmt: skip
        if self.mlp_key and new[MLP] != self.sizes[MLP]:
            changes[self.mlp_key] = new[MLP]
        elif self.mlp_key and new[HIDDEN] != self.sizes[HIDDEN]:
            changes[self.mlp_key] = self.sizes[MLP]  # a default may hang on the hidden size
        if getattr(self.config, "num_key_value_heads", None):
            changes["num_key_value_heads"] = new[HEADS]
        if not self.coupled and (new[HEADS], new[HIDDEN]) != (self.sizes[HEADS], self.sizes[HIDDEN]):
            changes["head_dim"] = self.head_dim
        return edited(self.config, changes, layers, self.blocks)

    def parameters(self, sizes: dict[str, int], layers: list[int] | None = None) -> int:
        """How many weights there are then."""
        total = 0
        for name, shape in self.shapes.items():
            if layers is not None and (block := self.block(name)) is not None and block not in layers:
                continue
            total += math.prod(
                n if a is None or a.kind not in sizes else n // self.sizes[a.kind] * sizes[a.kind]
                for n, a in zip(shape, self.axes[name], strict=True)
            )
        return total

    def block(self, name: str) -> int | None:
        """The number of the block that a weight is in; None outside."""
        head, _, rest = name.partition(f"{self.prefix}.")
        return int(rest.split(".")[0]) if not head and rest else None

    def cut(self, name: str, tensor: Tensor, kept: Kept) -> Tensor:
        """What stays of a weight."""
        block = self.block(name)
        for dim, axis in enumerate(self.axes[name]):
            if axis is None:
                continue
            units = kept.get(axis.kind if axis.kind not in PER_BLOCK else f"{block}.{axis.kind}")
            if units is not None:
                tensor = tensor.index_select(dim, axis.places(units, self.sizes[axis.kind]))
        return tensor

    def readers(self, block: nn.Module, i: int, kind: str) -> dict[str, nn.Module]:
        """The linears of block ``i`` whose inputs are of this kind."""
        found = {}
        for name, layer in linears(block).items():
            axes = self.axes[f"{self.prefix}.{i}.{name}.weight"]
            axis = axes[0 if _sideways(layer) else 1]
            if axis is not None and axis.kind == kind:
                found[name] = layer
        return found

    @torch.no_grad()
    def prove(self) -> None:
        """Let the units of these axes change places in a small random model of this architecture.

        Raises:
            GreenError: it computes something else then; its weights are laid out in a way nobody here knows.
        """
        torch_state = torch.get_rng_state()
        torch.manual_seed(0)
        config = edited(self.config, {"vocab_size": _TOKENS} | _no_ids(self.config), [0, 1][: self.blocks], self.blocks)
        model = self.checkpoint.skeleton(config)
        for name, p in list(model.named_parameters()):
            fan = p.shape[-1] ** -0.5 if p.dim() > 1 else 0.2
            owner, _, leaf = name.rpartition(".")
            value = torch.randn(p.shape) * fan + (p.dim() == 1 and leaf == "weight")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
        if self.checkpoint.tied:
            model.tie_weights()
        ids = torch.randint(1, _TOKENS, (1, 12))
        order = {k: torch.randperm(self.sizes[k]) for k in self.kinds if k != VOCABULARY}
        if self.coupled:
            order[HEADS] = torch.randperm(self.sizes[HEADS])
        torch.set_rng_state(torch_state)
        want = model(input_ids=ids)[0]
        moved = {f"{i}.{k}" if k in PER_BLOCK else k: o for k, o in order.items() for i in range(2)}
        for name, p in model.named_parameters():
            p.data = self.cut(name, p.data, moved)
        got = model(input_ids=ids)[0]
        if HIDDEN in order and self.checkpoint.task == FEATURES:
            want = want[..., order[HIDDEN]]
        if not (got - want).norm() < _ALIKE * want.norm():
            raise self._cannot(f"its weights keep {' or '.join(order)} in an order that is not known here")

    def _find_heads(self) -> bool:
        """Axes that grow with the number of heads; none do where the configuration has no ``head_dim``."""
        double = {k: 2 * n for k, n in self.sizes.items()}
        try:
            wide = self._shapes_of({HIDDEN: double[HIDDEN]})
            both = self._shapes_of({HIDDEN: double[HIDDEN], HEADS: double[HEADS]})
        except GreenError:
            return True
        q, k = self.per_group * self.head_dim, self.head_dim
        known = {sum(w): w for w in ((q,), (k,), (q, k, k))}
        grown = {n: [b - a for a, b in zip(wide[n], both[n], strict=True)] for n in self.shapes}
        for name, more in grown.items():
            for dim, by in enumerate(more):
                if by:
                    each = by // self.sizes[HEADS]
                    if by != wide[name][dim] or each not in known:
                        raise self._cannot(f"{name} keeps its heads in an unknown way")
                    self.axes[name][dim] = Axis(HEADS, known[each])
        return not any(any(more) for more in grown.values())

    def _find(self, kind: str) -> None:
        for name, new in self._shapes_of({kind: 2 * self.sizes[kind]}).items():
            for dim, (a, b) in enumerate(zip(self.shapes[name], new, strict=True)):
                if a == b:
                    continue
                if self.coupled and kind == HIDDEN and a == self.sizes[HEADS] * self.head_dim != self.sizes[HIDDEN]:
                    self.axes[name][dim] = Axis(HEADS, (self.head_dim,))  # keys and values, fewer than queries
                elif b != 2 * a or a % self.sizes[kind] or self.axes[name][dim]:
                    raise self._cannot(f"{name} is not {kind} alone")
                else:
                    self.axes[name][dim] = Axis(kind, (1,) * (a // self.sizes[kind]))

    def _split_heads_from_hidden(self, blocks: nn.ModuleList) -> None:
        """Of linears from hidden to hidden in a block, the last mixes the heads, the others make them."""
        for i, block in enumerate(blocks):
            square = [
                (f"{self.prefix}.{i}.{n}", m)
                for n, m in linears(block).items()
                if all(a and a.kind == HIDDEN for a in self.axes[f"{self.prefix}.{i}.{n}.weight"])
            ]
            for name, layer in square:
                axes = self.axes[f"{name}.weight"]
                dim = int(_sideways(layer)) if name != square[-1][0] else int(not _sideways(layer))
                axis = axes[dim]
                assert axis is not None  # noqa: S101 - see ``square``
                axes[dim] = Axis(HEADS, (self.per_group * self.head_dim,) * len(axis.widths))
                if name != square[-1][0] and f"{name}.bias" in self.axes:
                    self.axes[f"{name}.bias"] = [axes[dim]]

    def _shapes_of(self, sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
        skeleton = self.checkpoint.skeleton(self.configure(sizes))
        found = {n: tuple(p.shape) for n, p in skeleton.named_parameters()}
        if found.keys() != self.shapes.keys():
            raise self._cannot("its sizes change which weights there are")
        return found

    def _number(self, key: str) -> int:
        value = getattr(self.config, key, None)
        if not isinstance(value, int):
            raise self._cannot(f"its configuration has no single {key}")
        return value

    def _cannot(self, why: str) -> GreenError:
        return GreenError(f"{self.checkpoint.path}: {type(self.config).__name__} cannot be pruned in this way: {why}.")


def edited(
    config: PretrainedConfig, changes: dict[str, Any], layers: list[int] | None = None, blocks: int = 0
) -> PretrainedConfig:
    """A configuration with other values, and of these of ``blocks`` blocks alone; lists by block are cut with them.

    Raises:
        GreenError: transformers refuses it.
    """
    data = copy.deepcopy(config.to_dict())
    names = getattr(config, "attribute_map", {})
    data |= {names.get(k, k): v for k, v in changes.items()}
    if layers is not None:
        data[names.get("num_hidden_layers", "num_hidden_layers")] = len(layers)
        data |= {k: [v[i] for i in layers] for k, v in data.items() if isinstance(v, list) and len(v) == blocks
                 and not k.endswith(("_ids", "_id")) and k != "architectures"}  # fmt: skip
    try:
        made: PretrainedConfig = type(config).from_dict(data)
    except Exception as e:  # its validators raise whatever they like
        reason = (str(e).strip().splitlines() or [type(e).__name__])[-1].strip()
        raise GreenError(f"{type(config).__name__} takes no such sizes: {reason[:300]}", "Choose other sizes.") from e
    return made


def _no_ids(config: PretrainedConfig) -> dict[str, int]:
    return {k: 0 for k, v in config.to_dict().items() if k.endswith("_token_id") and v is not None}


def _sideways(layer: nn.Module) -> bool:
    """Whether a weight lies as [inputs, outputs] (GPT-2's Conv1D)."""
    return type(layer).__name__ == "Conv1D"

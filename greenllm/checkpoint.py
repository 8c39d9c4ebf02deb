"""A checkpoint in Hugging Face's format, read lazily; dense, or packed: GPTQ, bitsandbytes, compressed-tensors."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from greenllm import artifact, captions, merge, source
from greenllm.artifact import Source
from greenllm.blocks import check_writer, stacks_of
from greenllm.errors import GreenError
from greenllm.kinds import (
    CAPTIONS,
    GENERATION,
    IMAGES,
    INPUTS,
    PAIRS,
    SEEING,
    SPEECH,
    VLM,
    WRITING,
    build,
    class_of,
    settle_sight,
    task_of,
)
from greenllm.quantize import activations, fp8
from greenllm.save import copy_side_files, write_config, write_shards
from greenllm.stored import MARKS, AnyPacked, Shards, line, read_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_HEADS = (["lm_head"], ["proj_out"], ["embed_out"], ["output_projection"], ["decoder"])  # what heads are called


def open_checkpoint(model: str | Path) -> Checkpoint:
    """Find and open a model: hub id, directory, ``.gguf`` file or artifact.

    Raises:
        GreenError: see :func:`greenllm.source.resolve`; or an architecture nobody knows.
    """
    path, parents = source.resolve(model)
    return Checkpoint(path, parents)


class Checkpoint:
    """A directory with ``config.json``, safetensors and tokenizer; weights stay on disk until asked for.

    Attributes:
        path: the directory.
        parents: provenance, from the nearest to the source.
        config: transformers' configuration, without ``quantization_config``.
        task: "text-generation", "feature-extraction", "text-classification", :data:`SPEECH` or one of :data:`SEEING`.
        tied: whether head and embedding are one matrix.
    """

    def __init__(self, path: Path, parents: list[Source] | None = None) -> None:
        self.path = path
        self.parents = parents or []
        self.config, self.quantization = read_config(path)
        self.task = task_of(self.config)
        if self.task == VLM:
            settle_sight(self.config, path)
        self._shards = Shards(path)
        details = artifact.read(path).manifest.details if artifact.is_artifact(path) else {}
        owners = [self.words if self.task == CAPTIONS else self.config]
        if captions.is_blip(self.config):
            owners = [self.config, self.words]  # transformers ties them where either says so
        tied = bool(details.get("tied", any(getattr(o, "tie_word_embeddings", False) for o in owners)))
        self.tied = tied and self.task in (GENERATION, *WRITING, VLM)  # an encoder has no head to share with
        self.tied = self.tied and not self._apart()
        for owner in (*owners, self.words):
            owner.tie_word_embeddings = self.tied

    @property
    def quantized(self) -> bool:
        """Whether any weight is packed."""
        return self.quantization is not None

    @functools.cached_property
    def inputs(self) -> activations.Inputs:
        """Modules whose inputs are rounded too, with their grids.

        Raises:
            GreenError: see :func:`greenllm.quantize.activations.read`, :func:`greenllm.quantize.fp8.grid`.
        """
        found = self.quantization
        if found is None or found["quant_method"] != fp8.METHOD:
            return activations.read(found)
        packed = [k.removesuffix(".weight_scale") for k in self._shards if k.endswith(".weight_scale")]
        return {m: fp8.grid(self._shards.parts(found, m)) for m in sorted(packed) if fp8.rounds_inputs(found)}

    @property
    def words(self) -> Any:
        """The configuration of what reads and writes words, which may be a part of the whole."""
        if self.task == CAPTIONS:
            return getattr(self.config, captions.PARTS[self.config.model_type][1])
        return self.config.text_config if self.task == VLM else self.config

    @property
    def input(self) -> str:
        """What the model is called with: "input_ids", "pixel_values", "input_values" or "input_features"."""
        if self.task == SPEECH:
            return str(class_of(self.task, self.config).main_input_name)
        return INPUTS.get(self.task, "input_ids")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the pixels that a vision encoder takes.

        Raises:
            GreenError: they are not of one size.
        """
        parts = {PAIRS: "vision_config", VLM: "vision_config"}
        if self.task == CAPTIONS:
            parts[CAPTIONS] = captions.PARTS[self.config.model_type][0]
        config = getattr(self.config, parts[self.task]) if self.task in parts else self.config
        size = getattr(config, "image_size", None)
        if size is None:
            raise GreenError(f"{self.path}: no image_size in its configuration; only images of one size are taken.")
        height, width = (size, size) if isinstance(size, int) else size
        return int(getattr(config, "num_channels", 3)), int(height), int(width)  # BLIP's has none: RGB

    @functools.cached_property
    def parameters(self) -> int:
        """Number of weights of the dense model, tied ones counted once."""
        return sum(p.numel() for p in self.skeleton().parameters())

    def skeleton(self, config: PretrainedConfig | None = None) -> PreTrainedModel:
        """The model with its parameters on the meta device (no memory), buffers real, in eval mode.

        Args:
            config: another configuration than the checkpoint's.

        Raises:
            GreenError: transformers cannot build this architecture.
        """
        from accelerate import init_empty_weights

        try:
            with init_empty_weights(include_buffers=False):
                model = build(self.task, copy.deepcopy(config or self.config))
        except (ValueError, KeyError, AttributeError, TypeError) as e:
            raise GreenError(f"{self.path}: transformers cannot build this model: {line(e)}.") from e
        if self.task in SEEING and any("running_mean" in n for n, _ in model.named_buffers()):
            raise GreenError(
                f"{self.path}: {type(model).__name__} has batch normalization; such networks are not supported yet.",
                "Vision encoders without it are: ViT, DeiT and their like.",
            )
        if self.task == CAPTIONS:
            check_writer(model, self.path)
            model.get_decoder().config.pad_token_id = None  # no text is padded here, of which transformers would warn
        if self.tied:
            model.tie_weights()
        return model.eval()

    def names(self) -> list[str]:
        """Parameter names of the dense model, a tied head left out."""
        return [name for name, _ in self.skeleton().named_parameters()]

    def tensor(self, name: str) -> Tensor:
        """One weight of the dense model, float32 (a packed one is dequantized).

        Raises:
            GreenError: it is missing, or holds NaN or infinity.
        """
        module, _, kind = name.rpartition(".")
        if kind == "weight" and self.quantized:
            packed = self._packed_module(module)
            if packed:
                value = self.read_packed(packed).dequantize()
                return value.T.contiguous() if module in self._sideways else value
        stored = self._stored(name)
        if stored is None:
            raise GreenError(f"{self.path}: the weight {name} is missing from the checkpoint.", "Download it again.")
        value = self._shards[stored]
        if not value.is_floating_point() or value.dtype.itemsize == 1:
            raise GreenError(f"{self.path}: the weight {stored} holds {value.dtype} without its scales.")
        value = value.float()
        if value.numel() and not math.isfinite(sum(map(float, torch.aminmax(value)))):  # no temporaries as large
            bad = int((~torch.isfinite(value)).sum())
            raise GreenError(f"{self.path}: the weight {stored} holds {bad} values that are NaN or infinite.")
        return value

    def find(self, name: str) -> Tensor | None:
        """One weight as :meth:`tensor` gives it, for a model of another kind (with another head); None if not here."""
        base = self._stored(name)
        return None if base is None else self.tensor(name)

    def packed(self) -> Iterator[tuple[str, AnyPacked]]:
        """Module names and packed weights, one at a time; nothing for a dense checkpoint."""
        for key in sorted(self._shards):
            for mark in MARKS:
                if key.endswith(mark):
                    module = key.removesuffix(mark)
                    yield module, self.read_packed(module)

    def is_packed(self, module: str) -> bool:
        """Whether a module's weight is packed."""
        return self._packed_module(module) is not None

    def read_packed(self, module: str) -> AnyPacked:
        """The packed weight of one module.

        Raises:
            GreenError: its tensors or its entry in ``quantization_config`` do not fit together.
        """
        return self._shards.packed(self.quantization or {}, module)

    def load_model(self) -> PreTrainedModel:
        """The dense model in float32 and eval mode; packed weights are dequantized.

        Raises:
            GreenError: a weight is missing, of another shape, or not finite.
        """
        model = self.skeleton()
        with self._shards.mapped():
            for name, _ in list(model.named_parameters()):
                self.materialize(model, name)
        if self.tied:
            model.tie_weights()
        return model

    def materialize(self, model: nn.Module, name: str) -> None:
        """Put one weight of this checkpoint into its place in ``model``."""
        value = self.tensor(name)
        module, _, leaf = name.rpartition(".")
        owner = model.get_submodule(module)
        want = getattr(owner, leaf).shape
        if value.shape != want:
            raise GreenError(f"{self.path}: {name} is {tuple(value.shape)}, but config.json says {tuple(want)}.")
        setattr(owner, leaf, nn.Parameter(value, requires_grad=False))

    def write_dense(self, out: Path) -> None:
        """Write an ordinary Hugging Face directory (dequantized, float32), a shard at a time.

        Raises:
            OSError: ``out`` cannot be written.
        """
        out.mkdir(parents=True, exist_ok=True)
        copy_side_files(self.path, out)
        write_config(out, self.config, None)
        write_shards(out, ((name, self.tensor(name)) for name in self.names()))

    @functools.cached_property
    def _roles(self) -> tuple[str, str]:
        """Module names of the input embedding and the head, "" where there is none."""
        model = self.skeleton()
        if self.task in IMAGES:  # patches are embedded by a convolution, and a classifier is small: both stay
            return "", ""
        names = {id(m): n for n, m in model.named_modules()}
        if self.task == PAIRS:
            words = next((m for m in model.text_model.modules() if isinstance(m, nn.Embedding)), None)
            return names.get(id(words), ""), ""
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        return names.get(id(embedding), ""), names.get(id(head), "") if head is not None else ""

    @property
    def embedding(self) -> str:
        """Module name of the input embedding."""
        return self._roles[0]

    @property
    def head(self) -> str:
        """Module name of the language-model head, "" if there is none."""
        return self._roles[1]

    @functools.cached_property
    def projections(self) -> list[str]:
        """Module names of the linears after the blocks of each tower of :data:`PAIRS`, between those of :data:`VLM`."""
        if self.task not in (PAIRS, VLM):
            return []
        model = self.skeleton()
        if self.task == VLM:
            between = {id(m) for m in merge.towers(model)[1].modules() if isinstance(m, nn.Linear)}
            return [n for n, m in model.named_modules() if id(m) in between]
        stacks = tuple(f"{prefix}." for prefix, _ in stacks_of(model))
        kept = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention))  # is no linear
        return [
            n for n, m in model.named_modules()
            if isinstance(m, nn.Linear) and not n.startswith((*stacks, *kept))
        ]  # fmt: skip

    @functools.cached_property
    def _sideways(self) -> frozenset[str]:
        """Modules that keep their weight as [inputs, outputs] (GPT-2's Conv1D)."""
        return frozenset(n for n, m in self.skeleton().named_modules() if type(m).__name__ == "Conv1D")

    def _packed_module(self, module: str) -> str | None:
        """The packed module that holds this one's weight; a tied embedding's is the head."""
        stored = self._stored(f"{module}.weight")  # some keep their bytes under the dense name
        names = [module, *([stored.removesuffix(".weight")] if stored else [])]
        if self.tied and module == self.embedding:
            names.append(self.head)
        return next((n for n in names for mark in MARKS if f"{n}{mark}" in self._shards), None)

    def _stored(self, name: str) -> str | None:
        """The checkpoint's key of a parameter: as it is, or under another prefix or an old name."""
        prefix = class_of(self.task, self.config).base_model_prefix
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        for candidate in (name, old):
            for key in (candidate, f"{prefix}.{candidate}", candidate.removeprefix(f"{prefix}.")):
                if key in self._shards:
                    return key
        if name in captions.BIASES:
            return next((key for key in captions.BIASES if key in self._shards), None)
        return self._renamed.get(name)

    def _apart(self) -> bool:
        """Whether the files hold two weights that ought to be one: transformers takes them as they are, as two."""
        pairs: list[tuple[str | None, str | None]] = []
        if captions.is_blip(self.config):
            pairs = list(captions.ONE)
        elif any(key.split(".")[-2:-1] in _HEADS for key in self._shards):
            embedding, head = (self._stored(f"{module}.weight") for module in self._roles)
            pairs = [(embedding, head)]
        both = [(a, b) for a, b in pairs if a and b and a in self._shards and b in self._shards]
        return any(not torch.equal(self._shards[a], self._shards[b]) for a, b in both)

    @functools.cached_property
    def _renamed(self) -> dict[str, str]:
        """Keys of the checkpoint by the names that the installed transformers gives them when it reads them."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        model = self.skeleton()
        rules = [r for r in get_model_conversion_mapping(model) if isinstance(r, WeightRenaming)]
        there, prefix = model.state_dict(), model.base_model_prefix
        return {rename_source_key(k, rules, [], prefix, there)[0]: k for k in self._shards}

"""A model with a tower for images and one for texts as two graphs, and what both give beside what torch gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.images import pictures
from greenllm.pairs import TEXT, Facts, Reader, said_of
from greenllm.tokens import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from greenllm.export.speech import Part

SIGHT = "model.onnx"
GRAPHS = (SIGHT, TEXT)
INPUTS = (("pixel_values",), ("input_ids", "attention_mask"))
_TEXTS = said_of(["cat", "small dog on a red sofa", "ship"])
_PICTURES = 3
ASKED = f"noise that falls as 1/f, as in photographs; texts such as {_TEXTS[0]!r}"
_ALIKE = 1e-3  # of a vector's length: sums in another order


class Tower(nn.Module):
    """Pixels [B, C, H, W], or tokens and mask [B, T], to vectors [B, K] that are compared."""

    def __init__(self, model: PreTrainedModel, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs

    def forward(self, *given: Tensor) -> Tensor:
        """See the class."""
        return features(self.model, dict(zip(self.inputs, given, strict=True)))


def features(model: Any, feed: dict[str, Tensor]) -> Tensor:
    """Vectors [B, K] of images or of texts, whichever ``feed`` holds."""
    out = model.get_image_features(**feed) if "pixel_values" in feed else model.get_text_features(**feed)
    found: Tensor = getattr(out, "pooler_output", out)
    return found


@torch.no_grad()
def parts(checkpoint: Checkpoint, model: PreTrainedModel) -> list[Part]:
    """Of each graph its file, the function, an example of its inputs, and names of inputs and outputs (Optimum's).

    Raises:
        GreenError: it does not take pixels, or tokens and their mask, alone.
    """
    ids = torch.ones(2, 7, dtype=torch.int64)
    examples = ((torch.from_numpy(pictures(2, checkpoint.image_shape)),), (ids, torch.ones_like(ids)))
    found: list[Part] = []
    for file, names, given, output in zip(GRAPHS, INPUTS, examples, ("image_embeds", "text_embeds"), strict=True):
        tower = Tower(model, names)
        try:
            tower(*given)
        except (ValueError, RuntimeError, TypeError) as e:
            line = (str(e).splitlines() or [type(e).__name__])[0]
            raise GreenError(f"{checkpoint.path}: it does not run on {' and '.join(names)} alone: {line}") from e
        found.append((file, tower, given, (list(names), [output])))
    return found


@torch.no_grad()
def facts(checkpoint: Checkpoint, model: PreTrainedModel) -> Facts:
    """How its texts are read and its cosines meant.

    A model whose vector of a text changes with padding behind it that is masked was trained with it (SigLIP).

    Raises:
        GreenError: it has no tokenizer, no scale, or no token that pads and needs one.
    """
    scale, bias = (getattr(model, name, None) for name in ("logit_scale", "logit_bias"))
    if not isinstance(scale, Tensor):
        raise GreenError(f"{checkpoint.path}: {type(model).__name__} has no logit_scale: what do its cosines mean?")
    inner = checkpoint.config.text_config
    pad = Tokenizer(checkpoint.path).special("pad")
    pad = getattr(inner, "pad_token_id", None) if pad is None else pad
    told: dict[str, Any] = {
        "length": int(inner.max_position_embeddings),
        "pad": pad or 0,  # behind a mask any will do
        "scale": float(scale.exp()),
        "bias": float(bias) if isinstance(bias, Tensor) else None,
    }
    free = Reader(checkpoint.path, Facts(whole=False, **told))
    short, longer = free.tokens(_TEXTS[:2])
    alone, beside = (tensors(free.feed(batch)) for batch in ([short], [short, longer]))
    want, got = features(model, alone)[0], features(model, beside)[0]
    whole = bool((got - want).norm() > _ALIKE * want.norm())
    if whole and pad is None:
        raise GreenError(
            f"{checkpoint.path}: its texts are padded to {told['length']} tokens, and no file says with which token.",
            "Name it: pad_token in tokenizer_config.json.",
        )
    return Facts(whole=whole, **told)


def seen(checkpoint: Checkpoint, model: PreTrainedModel) -> list[dict[str, NDArray[Any]]]:
    """What two forms of a model are asked, tower by tower: pictures, and texts of several lengths."""
    reader = Reader(checkpoint.path, facts(checkpoint, model))
    pixels = pictures(_PICTURES, checkpoint.image_shape, seed=1)
    return [{"pixel_values": pixels}, dict(reader.feed(reader.tokens(_TEXTS)))]


@torch.no_grad()
def in_torch(model: PreTrainedModel, asked: list[dict[str, NDArray[Any]]]) -> list[NDArray[np.float32]]:
    """Vectors [N, K] of each tower."""
    return [features(model, tensors(feed)).numpy() for feed in asked]


def tensors(feed: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """A graph's inputs as torch takes them."""
    return {name: torch.from_numpy(values) for name, values in feed.items()}

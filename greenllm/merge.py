"""Vectors of an image among the embeddings of a text: what joins the halves of a model that answers about images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from greenllm import tiles


def towers(model: Any) -> tuple[Any, nn.Module, nn.Module]:
    """What sees, what makes its vectors those of the text, and what reads and writes."""
    inner = model.model
    if tiled(model):
        return inner.vision_model, inner.connector, inner.text_model
    return inner.vision_tower, inner.multi_modal_projector, inner.language_model


def tiled(model: Any) -> bool:
    """Whether a model sees images in tiles: Idefics3, SmolVLM."""
    return model.config.model_type in tiles.KINDS


def fed(model: Any, pixels: Tensor) -> Tensor:
    """Pixels [B, P, C, H, W] of the parts of images, as transformers' own forward takes them."""
    return pixels if tiled(model) else pixels.flatten(0, 1)


def features(model: Any, pixels: Tensor) -> Tensor:
    """Vectors [B, N, H] of images or their tiles [B, C, H, W], as the text's embeddings are.

    Transformers' own takes the last block's states by a hook, which no stand-in for a block has; that for tiles finds
    the place of each patch by a mask of pixels, which is all ones here: see :func:`in_order`.
    """
    tower, projector, _ = towers(model)
    if tiled(model):
        patches = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        states = tower.encoder(inputs_embeds=patches + tower.embeddings.position_embedding.weight).last_hidden_state
        vectors: Tensor = projector(tower.post_layernorm(states))
        return vectors
    states = tower.embeddings(pixels)
    if hasattr(tower, "pre_layrnorm"):  # CLIP's; SigLIP has none
        states = tower.pre_layrnorm(states)
    states = tower.encoder(inputs_embeds=states).last_hidden_state
    if model.config.vision_feature_select_strategy == "default":
        states = states[:, 1:]  # without the class token
    found: Tensor = projector(states)
    return found


def in_order(side: int) -> bool:
    """Whether the patches of a full square, ``side`` a row, have the places 0, 1, 2… in Idefics3's vision tower.

    It finds them by sums in float32, which round some to the place before: of 25 in a row ten.
    """
    edges = torch.arange(1 / side, 1.0, 1 / side)
    at = (torch.arange(side, dtype=torch.float32) * (1.0 / torch.tensor(side))).clamp(max=1.0 - 1e-6)
    return torch.equal(torch.bucketize(at, edges, right=True), torch.arange(side))


def place(words: Tensor, marks: Tensor, seen: Tensor) -> Tensor:
    """``words`` [B, T, H], the n-th that ``marks`` [B, T] replaced by the n-th of ``seen`` [B, N, H].

    Marks beyond N stay words: one that the model itself wrote is no image.
    """
    rows = torch.cat([torch.zeros_like(words[:, :1]), seen], 1)
    count = marks.to(torch.int64).cumsum(1)
    index = torch.where(marks & (count <= seen.shape[1]), count, 0)
    chosen = rows.gather(1, index.unsqueeze(-1).expand(-1, -1, words.shape[-1]))
    return torch.where((index > 0).unsqueeze(-1), chosen, words)


class Sighted(nn.Module):
    """A model that answers about images as a causal model with one more input, vectors [B, N, H]; N is 0 for none."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, image_embeds: Tensor, **more: Any) -> Any:
        """See the class."""
        words = self.model.get_input_embeddings()(input_ids)
        marks = input_ids == self.model.config.image_token_id
        return self.model(inputs_embeds=place(words, marks, image_embeds), **more)

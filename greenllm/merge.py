"""Vectors of an image among the embeddings of a text: what joins the halves of a model that answers about images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def towers(model: Any) -> tuple[Any, nn.Module, nn.Module]:
    """What sees, what makes its vectors those of the text, and what reads and writes."""
    inner = model.model
    return inner.vision_tower, inner.multi_modal_projector, inner.language_model


def features(model: Any, pixels: Tensor) -> Tensor:
    """Vectors [B, N, H] of images [B, C, H, W], as the text's embeddings are.

    Transformers' own takes the last block's states by a hook, which no stand-in for a block has.
    """
    tower, projector, _ = towers(model)
    states = tower.embeddings(pixels)
    if hasattr(tower, "pre_layrnorm"):  # CLIP's; SigLIP has none
        states = tower.pre_layrnorm(states)
    states = tower.encoder(inputs_embeds=states).last_hidden_state
    if model.config.vision_feature_select_strategy == "default":
        states = states[:, 1:]  # without the class token
    found: Tensor = projector(states)
    return found


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

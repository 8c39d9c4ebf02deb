"""Where the repeated blocks of a model are, and what is called to go through them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from greenllm import merge, vlm
from greenllm.errors import GreenError


def blocks_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of repeated blocks: of all lists of like modules, the one with the most parameters.

    Raises:
        GreenError: the model has none.
    """
    lists = [
        (sum(p.numel() for p in m.parameters()), name, m)
        for name, m in model.named_modules()
        if isinstance(m, nn.ModuleList) and len(m) and len({type(b) for b in m}) == 1
    ]
    if not lists:
        raise GreenError(f"{type(model).__name__} has no list of repeated blocks; it cannot be walked.")
    _, name, found = max(lists, key=lambda x: x[0])
    return name, found


def stacks_of(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """The lists of blocks in their order: one, the encoder's and the decoder's, or those for images and for texts.

    Raises:
        GreenError: see :func:`blocks_of`.
    """
    parts = _parts(model)
    if not parts:
        return [blocks_of(model)]
    names = {id(m): n for n, m in model.named_modules()}
    found = []
    for part in parts:
        inner, blocks = blocks_of(part)
        found.append((f"{names[id(part)]}.{inner}", blocks))
    return found


def _parts(model: Any) -> tuple[nn.Module, ...]:
    """What has a list of its own, in a model that has several."""
    if paired(model):
        return model.vision_model, model.text_model
    if answers(model):
        tower, _, decoder = merge.towers(model)
        return tower, decoder
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return model.get_encoder(), model.get_decoder()
    return ()


def check_writer(model: Any, path: Path) -> None:
    """Refuse an encoder whose blocks are unlike, which no walk goes through, and a decoder that sees nothing of it.

    Raises:
        GreenError: naming which.
    """
    encoder, decoder = model.get_encoder(), model.get_decoder()
    _, blocks = blocks_of(encoder)
    shapes = {tuple((n, p.shape) for n, p in block.named_parameters()) for block in blocks}
    if len(shapes) > 1:
        raise GreenError(
            f"{path}: the blocks of its encoder, {type(encoder).__name__}, are not alike; such encoders are not "
            "supported yet.",
            "Encoders like ViT, DeiT and BEiT are.",
        )
    looks = "encoder_hidden_states" in inspect.signature(decoder.forward).parameters
    if not (looks and decoder.config.is_decoder and getattr(decoder.config, "add_cross_attention", False)):
        raise GreenError(
            f"{path}: its decoder, {type(decoder).__name__}, has no cross attention: it sees nothing of the image.",
            "Decoders like GPT-2, BERT and TrOCR have, with is_decoder and add_cross_attention in config.json.",
        )


def paired(model: Any) -> bool:
    """Whether a model, or its class, has a tower for images and one for texts."""
    return sees_and_reads(model) and hasattr(model, "get_image_features") and hasattr(model, "get_text_features")


def answers(model: Any) -> bool:
    """Whether a model answers questions about images."""
    return getattr(getattr(model, "config", None), "model_type", "") in vlm.KINDS


def sees_and_reads(model: Any) -> bool:
    """Whether a model, or its class, is configured for images and for texts."""
    return {"vision_config", "text_config"} <= set(getattr(getattr(model, "config_class", None), "sub_configs", ()))


def forward(model: Any, batch: dict[str, Tensor]) -> None:
    """Call a model; of a paired one the tower for images, then that for texts, whatever its own order is."""
    if answers(model):
        seen = merge.features(model, batch["pixel_values"])
        merge.Sighted(model)(batch["input_ids"], seen.flatten(0, 1)[None])  # the parts of one image
        return
    if not paired(model):
        model(**batch)
        return
    texts = dict(batch)
    model.get_image_features(pixel_values=texts.pop("pixel_values"))
    model.get_text_features(**texts)

"""Calibration of models that write what an image shows: images of a file, and what the model itself writes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from greenllm import captions
from greenllm.checkpoint import Checkpoint
from greenllm.hearing import own_words
from greenllm.progress import Progress
from greenllm.tokens import start_of

Batch = dict[str, Tensor]  # "pixel_values" [1, C, H, W], "decoder_input_ids" [1, tokens]
_BLANK = 8  # tokens


def samples(checkpoint: Checkpoint, files: Sequence[Path], progress: Progress) -> list[Batch]:
    """One batch an image.

    Raises:
        GreenError: see :func:`greenllm.images.read`; or there is no ``preprocessor_config.json``.
    """
    from greenllm.bench.runners.torch import TorchCaptioner

    progress.stage("looking at calibration images", len(files))
    runner, most = TorchCaptioner(checkpoint, checkpoint.load_model()), captions.most_tokens(checkpoint.path)
    found = []
    for file in files:
        pixels = runner.prompt(str(file))
        ids = own_words(checkpoint, runner, pixels, most)
        found.append({"pixel_values": torch.from_numpy(pixels)[None], "decoder_input_ids": ids})
        progress.advance()
    return found


def blank(checkpoint: Checkpoint) -> list[Batch]:
    """Nothing to see, for a walk that looks at weights alone."""
    ids = torch.full((1, _BLANK), start_of(checkpoint.path))
    return [{"pixel_values": torch.zeros(1, *checkpoint.image_shape), "decoder_input_ids": ids}]

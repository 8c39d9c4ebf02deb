"""A model that answers about images as two graphs, and what both give beside what torch gives.

One makes vectors of an image. The other is a decoder that takes them beside its tokens and puts them where the tokens
of an image are, so that the embedding lies in the file once, and packed where the head that it is tied to is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from greenllm import merge
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.images import pictures
from greenllm.tokens import Tokenizer, read_json
from greenllm.vlm import SIGHT, mark_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from greenllm.export.speech import Part

SEEN = "image_embeds"
ASKED = "noise that falls as 1/f, as in photographs, and English text"
_PROCESSOR = "processor_config.json"


class Sight(nn.Module):
    """Pixels [B, C, H, W] to vectors [B, N, H] among a text's embeddings."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        """See the class."""
        return merge.features(self.model, inputs[0])


def each(checkpoint: Checkpoint) -> int:
    """Vectors that the model makes of an image, which as many tokens of a prompt stand for.

    Raises:
        GreenError: its processor, which transformers makes prompts with, counts them otherwise; its tokenizer has no
            such token; or it takes no pixels of the size that its configuration says.
    """
    mark_of(Tokenizer(checkpoint.path))
    try:
        model = checkpoint.skeleton().to("meta")  # shapes alone: no weight is read
        found = merge.features(model, torch.zeros(1, *checkpoint.image_shape, device="meta")).shape[1]
    except (ValueError, RuntimeError) as e:
        line = str(e).splitlines()[0][:200]
        raise GreenError(f"{checkpoint.path}: it does not run on pixels of {checkpoint.image_shape}: {line}") from e
    told = read_json(checkpoint.path / _PROCESSOR)
    if merge.tiled(model):
        if told.get("image_seq_len", found) != found:
            raise GreenError(
                f"{checkpoint.path / _PROCESSOR} makes {told['image_seq_len']} tokens of a tile, and the model {found} "
                "vectors.",
                "image_seq_len must be (image_size / patch_size / scale_factor) squared.",
            )
        return int(found)
    patch, more = told.get("patch_size"), told.get("num_additional_image_tokens", 0)
    if not isinstance(patch, int) or not isinstance(more, int) or patch < 1:
        return int(found)  # transformers itself makes no prompts with it
    _, height, width = checkpoint.image_shape
    default = told.get("vision_feature_select_strategy") == "default"
    count = (height // patch) * (width // patch) + more - default
    if count != found:
        raise GreenError(
            f"{checkpoint.path / _PROCESSOR} makes {count} tokens of an image, and the model {found} vectors.",
            "patch_size, num_additional_image_tokens (1 for a class token) and vision_feature_select_strategy must be "
            "the model's.",
        )
    return int(found)


def sight(checkpoint: Checkpoint, model: PreTrainedModel) -> Part:
    """Of the graph that sees its file, the function, an example of its inputs, and names of inputs and outputs."""
    example = torch.from_numpy(pictures(2, checkpoint.image_shape))
    return SIGHT, Sight(model), (example,), (["pixel_values"], [SEEN])


def nothing_seen(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """What the decoder takes beside what others take, for an example of two."""
    return {SEEN: torch.zeros(2, each(checkpoint), checkpoint.words.hidden_size)}


@torch.no_grad()
def in_torch(model: Any, pixels: NDArray[np.float32], ids: NDArray[np.int64]) -> tuple[Any, Any]:
    """Vectors [P, N, H] of an image's parts as exported, and logits [T, V] as transformers itself has them."""
    x = torch.from_numpy(pixels)
    logits = model(input_ids=torch.from_numpy(ids)[None], pixel_values=merge.fed(model, x[None])).logits[0]
    return merge.features(model, x).numpy(), logits.float().numpy()

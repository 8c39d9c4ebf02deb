"""A vision encoder as a graph, and what makes pixels of images on a device that has no transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.images import PROCESSOR, Pixels, answer_of, fitting, pictures
from greenllm.kinds import VLM
from greenllm.progress import Progress
from greenllm.tiles import Eye, Seen, eye, tiled
from greenllm.tokens import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WHOLE = "processor_config.json"  # where transformers writes all that makes inputs of images and texts
_ALIKE = 1e-5  # between pixels that are sums in float32


class Vision(nn.Module):
    """Pixels [B, C, H, W] to logits or pooled states [B, K], or states [B, T, K] where it pools none."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        """See the class."""
        found: Tensor = answer_of(self.model(pixel_values=inputs[0]))[1]
        return found


def vision(checkpoint: Checkpoint, model: PreTrainedModel) -> tuple[nn.Module, tuple[Tensor, ...], Any]:
    """The model as a function of tensors, an example of its inputs, and the names of inputs and outputs.

    Raises:
        GreenError: it does not take pixels of the size that its configuration says.
    """
    example = torch.from_numpy(pictures(2, checkpoint.image_shape))
    try:
        with torch.no_grad():
            name, _ = answer_of(model(pixel_values=example))
    except (ValueError, RuntimeError, StopIteration) as e:
        raise GreenError(f"{checkpoint.path}: it does not run on pixels of {checkpoint.image_shape}: {e}") from e
    return Vision(model), (example,), (["pixel_values"], [name])


def their_processor(directory: Path) -> Any:
    """The processor that transformers has for a checkpoint, the one of Pillow and numpy; None where it has none.

    Raises:
        GreenError: its file is damaged or of a kind that transformers does not have.
    """
    if not (directory / PROCESSOR).is_file() and "image_processor" not in read_json(directory / _WHOLE):
        return None
    try:
        if tiled(directory):
            return _tiler(directory).from_pretrained(directory, local_files_only=True)
        # the top of transformers has this name only beside torchvision, which these processors do without
        from transformers.models.auto.image_processing_auto import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(
            directory, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, TypeError, KeyError, ImportError, AttributeError) as e:
        raise GreenError(f"{directory / PROCESSOR}: transformers cannot use it: {str(e).splitlines()[0][:200]}") from e


def _tiler(directory: Path) -> Any:
    """Transformers' class for tiles, which :class:`AutoImageProcessor` has only beside torchvision."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    kinds = {"idefics3": Idefics3ImageProcessorPil, "smolvlm": SmolVLMImageProcessorPil}
    return kinds[read_json(directory / "config.json")["model_type"]]


def processor_of(directory: Path) -> Callable[[Image.Image], Pixels]:
    """From an image to pixels, float32 [C, H, W], by transformers.

    Raises:
        GreenError: there is none, or see :func:`their_processor`.
    """
    eye = their_eye(directory)
    return lambda image: eye(image).pixels[0]


def their_eye(directory: Path) -> Eye:
    """What transformers makes of an image.

    Raises:
        GreenError: there is no processor, or see :func:`their_processor`.
    """
    theirs = their_processor(directory)
    if theirs is None:
        raise GreenError(f"{directory} has no {PROCESSOR}: image files cannot be made pixels.")

    def see(image: Image.Image) -> Seen:
        if not hasattr(theirs, "do_image_splitting"):
            return Seen(np.asarray(theirs(image, return_tensors="np")["pixel_values"]))
        told = theirs(image, return_tensors="np", return_row_col_info=True)
        return Seen(told["pixel_values"][0], told["rows"][0][0], told["cols"][0][0])

    return see


def write_processor(checkpoint: Checkpoint, out: Path, progress: Progress) -> None:
    """Write every key of the preprocessing, its defaults too, and see that it works without transformers.

    Raises:
        GreenError: see :func:`their_processor`; or it gives other pixels without transformers, or others than a model
            that answers about images takes.
    """
    theirs = their_processor(checkpoint.path)
    if theirs is None:
        progress.note(f"WARNING. There is no {PROCESSOR}: image files cannot be made pixels for this model.")
        return
    theirs.save_pretrained(out)
    try:
        ours = eye(out)
    except GreenError as e:
        progress.note(f"WARNING. On a device without transformers its images cannot be prepared: {e.what}")
        return
    drawn = np.random.default_rng(0).integers(0, 256, (41, 67, 3), np.uint8)
    image = Image.fromarray(drawn)
    (want, *grid), (got, *ours_lie) = their_eye(checkpoint.path)(image), ours(image)
    alike = got.shape == want.shape and grid == ours_lie
    if not alike or np.abs(got - want).max() > _ALIKE * max(1.0, float(np.abs(want).max())):
        raise GreenError(f"{checkpoint.path / PROCESSOR}: without transformers it makes other pixels than with it.")
    if checkpoint.task == VLM:
        fitting(got, checkpoint.image_shape, out)

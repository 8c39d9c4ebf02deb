"""Images as Idefics3 and SmolVLM see them: in square tiles of one size, and once more as a whole. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from greenllm.images import Described, Pixels, Processor
from greenllm.tokens import read_json

if TYPE_CHECKING:
    from PIL import Image

KINDS = ("idefics3", "smolvlm")  # transformers' model types
FRAME = "<fake_token_around_image>"  # what transformers' processors write around and between tiles
_WHOLE = "<global-img>"
_LARGEST = 4096  # pixels of a side


class Seen(NamedTuple):
    """What a model sees of an image: pixels [P, C, H, W] of P parts, and in how many rows and columns they lie.

    Without tiles there is one part, the whole, and no rows; else the whole is the last.
    """

    pixels: Pixels
    rows: int = 0
    columns: int = 0


Eye = Callable[["Image.Image"], Seen]  # from an RGB image


def tiled(directory: Path) -> bool:
    """Whether a model sees images in tiles."""
    return read_json(directory / "config.json").get("model_type") in KINDS


def eye(directory: Path) -> Eye:
    """What shows an image to the model in ``directory``.

    Raises:
        GreenError: see :class:`greenllm.images.Described`.
    """
    if tiled(directory):
        return Tiler(directory)
    processor = Processor(directory)
    return lambda image: Seen(processor(image)[None])


def spelled(mark: str, each: int, rows: int, columns: int) -> str:
    """How an image is written in a prompt: ``each`` marks for the vectors of every part, and names of the parts."""
    image = mark * each
    across, down = range(1, columns + 1), range(1, rows + 1)
    lines = ["".join(f"{FRAME}<row_{r}_col_{c}>{image}" for c in across) + "\n" for r in down]
    return "".join(lines) + "\n" * bool(rows) + f"{FRAME}{_WHOLE}{image}{FRAME}"


class Tiler(Described):
    """From an image to its tiles as ``preprocessor_config.json`` says, like transformers' own of Pillow and numpy."""

    steps = frozenset({"do_resize", "do_image_splitting", "do_rescale", "do_normalize", "do_convert_rgb", "do_pad"})

    def __call__(self, image: Image.Image) -> Seen:
        """Pixels, float32 [P, 3, S, S], of an RGB image.

        Raises:
            GreenError: a key is missing or makes no sense.
        """
        with self.read() as config:
            parts, rows, columns = cut(image, config)
            return Seen(np.stack([self.numbers(np.asarray(part)) for part in parts]), rows, columns)


def cut(image: Image.Image, config: dict[str, Any]) -> tuple[list[Image.Image], int, int]:
    """Tiles row by row, then the whole; and how many rows and columns they make. All are squares, nothing is padded.

    Raises:
        KeyError, TypeError, ValueError: a key of the configuration is missing or makes no sense.
    """
    from PIL import Image

    side, how = int(config["max_image_size"]["longest_edge"]), Image.Resampling(config["resample"])
    if config.get("do_resize"):
        image = image.resize(_size(config["size"], *image.size), how)
    if not config.get("do_image_splitting"):
        return [image.resize((side, side), how)], 0, 0
    image = image.resize(_filled(*image.size, side), how)
    columns, rows = image.width // side, image.height // side
    if rows == columns == 1:
        return [image], 0, 0
    corners = [(c * side, r * side) for r in range(rows) for c in range(columns)]
    tiles = [image.crop((x, y, x + side, y + side)) for x, y in corners]
    return [*tiles, image.resize((side, side), how)], rows, columns


def _size(size: dict[str, int], width: int, height: int) -> tuple[int, int]:
    """Width and height to resize to: the longest side as told, the other an even number in proportion to it."""
    if edge := size.get("longest_edge"):
        width, height = _long(width, height, int(edge), even=True)
        longest = min(max(width, height), _LARGEST)
        return _long(width, height, longest, even=False) if longest < max(width, height) else (width, height)
    return int(size["width"]), int(size["height"])


def _long(width: int, height: int, edge: int, *, even: bool) -> tuple[int, int]:
    """A size whose longest side is ``edge``, rounded as transformers does."""
    ratio = width / height
    short = int(edge / ratio) if width >= height else int(edge * ratio)
    short = max(1, short + short % 2 * even)
    return (edge, short) if width >= height else (short, edge)


def _filled(width: int, height: int, side: int) -> tuple[int, int]:
    """The size of whole tiles that an image is stretched to."""
    ratio = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        return width, math.ceil(int(width / ratio) / side) * side
    height = math.ceil(height / side) * side
    return math.ceil(int(height * ratio) / side) * side, height

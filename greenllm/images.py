"""Images for vision encoders: read from files that may come from anyone, and made what a model wants. No torch here."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from greenllm.errors import GreenError

if TYPE_CHECKING:  # a device that takes text has no Pillow
    from PIL import Image

PROCESSOR = "preprocessor_config.json"
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # no others: some of Pillow's readers start other programs
Pixels = NDArray[np.float32]


def opened(file: Path) -> Image.Image:
    """An image as RGB, upright.

    Raises:
        GreenError: it is damaged, of another format than JPEG, PNG, WebP and BMP, or has far too many pixels; or
            Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError as e:
        raise GreenError("Pillow is not installed.", 'Install it: pip install "greenllm[bench]".') from e

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # told from the header, before it grows
            with Image.open(file, formats=_FORMATS) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as e:
        limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise GreenError(f"{file} has more than {limit:.0f} million pixels.", "Give smaller images.") from e
    except Exception as e:  # a damaged file makes Pillow raise almost anything
        said = str(e).splitlines()[0][:200] if str(e) else type(e).__name__
        raise GreenError(f"{file} cannot be read as an image: {said}.", f"Give {', '.join(_FORMATS)}.") from e


class Described:
    """What ``preprocessor_config.json`` says of how an image becomes pixels.

    Args:
        directory: where that file is; every key that is used must be in it, as an export writes it.

    Raises:
        GreenError: it is missing or damaged, or asks for something that only transformers does.
    """

    steps = frozenset({"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"})  # it can do

    def __init__(self, directory: Path) -> None:
        self.file = directory / PROCESSOR
        try:
            self.config: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
            wanted = {k for k, v in self.config.items() if k.startswith("do_") and v}
        except (OSError, ValueError, AttributeError) as e:
            raise GreenError(
                f"{self.file}: no description of how images become pixels ({type(e).__name__}).",
                "It comes with the checkpoint; greenllm export copies it.",
            ) from e
        if other := sorted(wanted - self.steps):
            raise GreenError(f"{self.file} asks for {', '.join(other)}, which only transformers does.")

    @contextmanager
    def read(self) -> Iterator[dict[str, Any]]:
        """What it says, for as long as it is followed.

        Raises:
            GreenError: a key is missing or makes no sense.
        """
        try:
            yield self.config
        except (KeyError, TypeError, ValueError) as e:
            raise GreenError(f"{self.file}: {type(e).__name__} {e}.", "Export it again from its checkpoint.") from e

    def numbers(self, x: NDArray[Any]) -> Pixels:
        """Pixels, float32 [3, H, W], of values [H, W, 3] from 0 to 255."""
        c = self.config
        if c.get("do_rescale"):
            x = (x.astype(np.float64) * c["rescale_factor"]).astype(np.float32)
        x = x.astype(np.float32)
        if c.get("do_normalize"):
            x = (x - np.array(c["image_mean"], np.float32)) / np.array(c["image_std"], np.float32)
        return np.ascontiguousarray(x.transpose(2, 0, 1), np.float32)


class Processor(Described):
    """From an image to pixels as ``preprocessor_config.json`` says, like transformers' own of Pillow and numpy."""

    def __call__(self, image: Image.Image) -> Pixels:
        """Pixels, float32 [3, H, W], of an RGB image.

        Raises:
            GreenError: a key is missing or makes no sense.
        """
        from PIL import Image

        with self.read() as c:
            if c.get("do_resize"):
                image = image.resize(_size(c["size"], image.size), Image.Resampling(c["resample"]))
            x: NDArray[Any] = np.asarray(image)
            if c.get("do_center_crop"):
                x = _crop(x, int(c["crop_size"]["height"]), int(c["crop_size"]["width"]))
            return self.numbers(x)


def read(files: Sequence[str | Path], processor: Callable[[Image.Image], Pixels]) -> Pixels:
    """Pixels of image files, float32 [B, 3, H, W].

    Raises:
        GreenError: see :func:`opened` and :class:`Processor`.
    """
    return np.stack([processor(opened(Path(f))) for f in files])


def fitting(pixels: Pixels, shape: tuple[int, ...], directory: Path) -> Pixels:
    """The same pixels, [B, C, H, W].

    Raises:
        GreenError: they are none that a model takes, whose files in ``directory`` say how they are made.
    """
    if pixels.shape[1:] != shape:
        raise GreenError(
            f"{directory / PROCESSOR} makes pixels of {pixels.shape[1:]}; the model takes {tuple(shape)}.",
            "It comes with the checkpoint: take the one that was made for this model.",
        )
    return pixels


def pictures(count: int, shape: tuple[int, ...], seed: int = 0) -> Pixels:
    """Made-up pixels, float32 [count, C, H, W], normalized: noise whose amplitude falls as 1/f, as in photographs.

    Field (1987), Relations between the statistics of natural images and the response properties of cortical cells.
    """
    _, height, width = shape
    f = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width)
    noise = np.random.default_rng(seed).standard_normal((count, *shape))
    found = np.fft.irfft2(np.fft.rfft2(noise) / np.maximum(f, 1), s=(height, width))
    return (found / found.std(axis=(1, 2, 3), keepdims=True)).astype(np.float32)


def answer_of(out: Any) -> tuple[str, Any]:
    """Name and value of what a vision encoder of transformers says: logits, else a pooled state, else all states."""
    return next((n, out[n]) for n in ("logits", "pooler_output", "last_hidden_state") if n in out)


def vector(states: Any) -> Any:
    """[B, K] of what :func:`answer_of` gave: of states [B, T, K] the first, the class token's."""
    return states if states.ndim == 2 else states[:, 0]  # noqa: PLR2004 - a batch of vectors


def _size(size: dict[str, int], now: tuple[int, int]) -> tuple[int, int]:
    """Width and height to resize to."""
    if set(size) == {"height", "width"}:
        return int(size["width"]), int(size["height"])
    if set(size) == {"shortest_edge"}:
        short, edge = min(now), int(size["shortest_edge"])
        width, height = (edge if side == short else int(edge * side / short) for side in now)
        return width, height
    raise ValueError(f"size {sorted(size)} is none that is known here")


def _crop(x: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The middle [height, width, 3]; black where the image is smaller."""
    short = [(max(0, want - have)) for want, have in zip((height, width), x.shape, strict=False)]
    x = np.pad(x, [*((-(-s // 2), s // 2) for s in short), (0, 0)])
    top, left = (x.shape[0] - height) // 2, (x.shape[1] - width) // 2
    return x[top : top + height, left : left + width]

"""Gaussian noise on images, and white noise on clips, at graded strength.

Images as in ImageNet-C (Hendrycks & Dietterich, 2019, arXiv:1903.12261): the standard deviation is a share of the range
from black to white; 8, 18 and 38 % are its severities 1, 3 and 5. Clips: the noise's root mean square over the clip's;
10, 31.6, 56.2 and 100 % are signal-to-noise ratios of 20, 10, 5 and 0 dB. Nothing is cut off at a clip's range.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from greenllm.bench.tasks.robust.edits import seeded

if TYPE_CHECKING:
    from PIL import Image

IMAGE = (8.0, 18.0, 38.0)
CLIP = tuple(100 * 10 ** (-decibels / 20) for decibels in (20, 10, 5, 0))


def decibels(percent: float) -> float:
    """The signal-to-noise ratio of a clip whose noise is ``percent`` of it."""
    return -20 * math.log10(percent / 100)


def label(percent: float) -> str:
    """The same for people."""
    return f"{round(decibels(percent), 1) + 0.0:g} dB"  # no -0


def on_clip(clip: NDArray[np.float32], percent: float, seed: str) -> NDArray[np.float32]:
    """A clip [samples] and white noise of ``percent`` of its root mean square; silence stays silent."""
    if percent == 0:
        return clip
    drawn = _generator(seed).standard_normal(len(clip))
    loud = math.sqrt(float(np.mean(np.square(clip, dtype=np.float64))) / float(np.mean(drawn**2)))
    return (clip + percent / 100 * loud * drawn).astype(np.float32)


def on_image(image: Image.Image, percent: float, seed: str, edge: int) -> Image.Image:
    """An RGB image and noise on each channel of each pixel, clipped to the range.

    Args:
        image: one larger than a model sees would lose its noise on the way: it is made smaller first.
        percent: standard deviation, of the range.
        seed: what the draw hangs on.
        edge: pixels of the shorter side at most.
    """
    from PIL import Image

    if percent == 0:
        return image
    small = min(1.0, edge / min(image.size))
    if small < 1:
        image = image.resize((round(image.width * small), round(image.height * small)), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.float64)
    drawn = _generator(seed).standard_normal(pixels.shape)
    return Image.fromarray(np.clip(pixels + 255 * percent / 100 * drawn, 0, 255).round().astype(np.uint8))


def _generator(seed: str) -> np.random.Generator:
    return np.random.default_rng(seeded("noise", seed).getrandbits(128))

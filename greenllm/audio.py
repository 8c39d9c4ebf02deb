"""Audio as a model hears it: one channel, float32 from -1 to 1, 16 kHz. Needs the extra "audio"."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from greenllm.errors import GreenError
from greenllm.export.device.run import ENCODER, LONGEST, RATE, SHORTEST

__all__ = ["ENCODER", "RATE", "WINDOW", "check_rate", "read"]

WINDOW = "window"  # its input where it hears so many samples, no fewer and no more
_UNTOLD = 0xFFFFFFF0  # bytes: what a writer of a stream says who does not know


def read(path: Path, longest: float = LONGEST) -> NDArray[np.float32]:
    """A clip, float32 [samples] at :data:`RATE`; channels are averaged, other rates are resampled (soxr).

    Args:
        path: ``.wav``, ``.flac``, ``.ogg`` or whatever else libsndfile reads.
        longest: seconds that it may last.

    Raises:
        GreenError: no such file, no audio, damaged, too short or long, or a library is missing.
    """
    try:
        import soundfile
        import soxr
    except (ImportError, OSError) as e:
        raise GreenError(f"Audio cannot be read here ({e}).", 'Install it: pip install "greenllm[audio]".') from e
    if not path.is_file():
        raise GreenError(f"{path}: no such audio file.")
    _check_whole(path)
    try:
        with soundfile.SoundFile(path) as file:
            told, own = file.frames, file.samplerate
            _check_length(path, told / own, longest)
            found = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as e:
        raise GreenError(f"{path} cannot be read as audio: {e}.") from e
    if len(found) != told:
        raise GreenError(f"{path} is damaged: {len(found)} of its {told} samples are there.")
    if not np.isfinite(found).all():
        raise GreenError(f"{path} is damaged: it holds samples that are NaN or infinite.")
    mono = found.mean(axis=1, dtype=np.float32)
    return mono if own == RATE else np.ascontiguousarray(soxr.resample(mono, own, RATE), dtype=np.float32)


def check_rate(directory: Path) -> None:
    """Nothing, where the model in ``directory`` hears :data:`RATE`.

    Raises:
        GreenError: its files say another rate, or are damaged.
    """
    file = directory / "preprocessor_config.json"
    try:
        told = json.loads(file.read_text(encoding="utf-8")).get("sampling_rate", RATE) if file.is_file() else RATE
    except (ValueError, AttributeError) as e:
        raise GreenError(f"{file} is damaged.") from e
    if told != RATE:
        raise GreenError(f"{file}: this model hears {told!r} samples a second; {RATE} are given here.")


def _check_whole(path: Path) -> None:
    """A ``.wav`` says how long it is; libsndfile reads one that was cut as if it had been meant so."""
    with path.open("rb") as file:
        head = file.read(8)
    told, there = int.from_bytes(head[4:], "little") + 8, path.stat().st_size
    if head[:4] == b"RIFF" and told < _UNTOLD and told > there + 1:  # a last odd byte's padding is often left out
        raise GreenError(f"{path} is damaged: {there:,} of its {told:,} bytes are there.", "Copy it again.")


def _check_length(path: Path, seconds: float, longest: float) -> None:
    if not SHORTEST <= seconds <= longest:
        raise GreenError(
            f"{path} lasts {seconds:.2f} s; a clip lasts {SHORTEST:g} to {longest:g} s.", "Cut it into sentences."
        )

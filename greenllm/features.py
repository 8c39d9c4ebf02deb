"""What a transcriber's own code hears: the waveform itself, or the log-mel spectrogram of it (Whisper)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from greenllm import audio
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError

WAVEFORM, SPECTRUM = "input_values", "input_features"


class Features:
    """Makes of a clip what a model in torch is called with, as transformers does.

    Attributes:
        extractor: transformers' own WhisperFeatureExtractor; None where the waveform is heard.

    Raises:
        GreenError: it hears neither, or its preprocessor is missing, or made for another model.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        audio.check_rate(checkpoint.path)
        self.name = checkpoint.input
        self.extractor: Any = None
        if self.name != WAVEFORM:
            self.extractor = _extractor(checkpoint)

    def __call__(self, clip: NDArray[np.float32]) -> dict[str, Tensor]:
        """Of a clip, float32 [samples], the first window where windows are heard."""
        if self.extractor is None:
            return {self.name: torch.from_numpy(clip)[None]}
        found = self.extractor(clip, sampling_rate=audio.RATE, return_tensors="pt")
        return {self.name: found[self.name]}


def _extractor(checkpoint: Checkpoint) -> Any:
    from transformers import WhisperFeatureExtractor

    config = checkpoint.config
    if config.model_type != "whisper":
        raise GreenError(
            f"{checkpoint.path}: this model hears {checkpoint.input} of its own kind.",
            "Models of speech that read waveforms (Moonshine) or Whisper's log-mel spectra are run.",
        )
    try:
        made = WhisperFeatureExtractor.from_pretrained(checkpoint.path, local_files_only=True)
    except (OSError, ValueError, TypeError) as e:
        raise GreenError(
            f"{checkpoint.path} has no preprocessor_config.json that can be read: what does it hear?",
            "Save it: transformers.WhisperFeatureExtractor(feature_size=…).save_pretrained(CHECKPOINT).",
        ) from e
    wanted = {"feature_size": config.num_mel_bins, "nb_max_frames": 2 * config.max_source_positions,
              "sampling_rate": audio.RATE, "padding_value": 0, "dither": 0}  # fmt: skip
    for name, value in wanted.items():
        if getattr(made, name) != value:
            raise GreenError(
                f"{checkpoint.path}/preprocessor_config.json has {name} {getattr(made, name)}; config.json asks for "
                f"{value}.",
                "Take the preprocessor that came with this model.",
            )
    return made

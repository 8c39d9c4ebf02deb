"""Calibration of transcribers: clips of a file, and what the model itself writes when it hears them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from greenllm import audio
from greenllm.bench.tasks import read
from greenllm.bench.tasks.items import Utterance
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.progress import Progress

Batch = dict[str, Tensor]  # "input_values" [1, samples], "decoder_input_ids" [1, tokens]
_BLANK = 8  # tokens


def clips(source: str, count: int) -> list[Path]:
    """At most ``count`` audio files of a task's ``.jsonl``, evenly spread.

    Raises:
        GreenError: see :func:`greenllm.bench.tasks.read`; or it holds no clips.
    """
    items = read(source, count).items if source != "self" else []
    found = [i.file for i in items if isinstance(i, Utterance)]
    if not found:
        raise GreenError(
            f"Calibration {source!r} has no clips, and a transcriber has to hear some.",
            'Give --calibration speech.jsonl, rows {"audio": "clip.wav", "text": "…"}; or --method rtn or hqq.',
        )
    return found


def samples(checkpoint: Checkpoint, source: str, count: int, progress: Progress) -> list[Batch]:
    """One batch a clip; the texts of the file are not used, but the model's own words.

    Raises:
        GreenError: see :func:`clips`.
    """
    from greenllm.bench.runners.torch import TorchListener
    from greenllm.bench.texts import Tokens

    files = clips(source, count)
    progress.stage("hearing calibration clips", len(files))
    runner = TorchListener(checkpoint, checkpoint.load_model())
    ends, start = Tokens(checkpoint.path).ends, int(checkpoint.config.decoder_start_token_id)
    found = []
    for file in files:
        clip, ids = audio.read(file), [start]
        heard: Any = clip  # what a transcriber is prompted with
        for token in runner.stream(heard, audio.most_tokens(clip)):
            if token in ends:
                break
            ids.append(token)
        found.append({"input_values": torch.from_numpy(clip)[None], "decoder_input_ids": torch.tensor([ids])})
        progress.advance()
    return found


def blank(checkpoint: Checkpoint) -> list[Batch]:
    """A second of silence, for a walk that looks at weights alone."""
    start = int(checkpoint.config.decoder_start_token_id)
    return [{"input_values": torch.zeros(1, audio.RATE), "decoder_input_ids": torch.full((1, _BLANK), start)}]

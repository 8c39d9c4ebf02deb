"""Calibration of transcribers: clips of a file, and what the model itself writes when it hears them."""

from __future__ import annotations

import itertools
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
from greenllm.tokens import Tokenizer, start_of

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

    files = clips(source, count)
    progress.stage("hearing calibration clips", len(files))
    runner = TorchListener(checkpoint, checkpoint.load_model())
    found = []
    for file in files:
        clip = audio.read(file)
        ids = own_words(checkpoint, runner, clip, audio.most_tokens(clip))
        found.append({"input_values": torch.from_numpy(clip)[None], "decoder_input_ids": ids})
        progress.advance()
    return found


def own_words(checkpoint: Checkpoint, runner: Any, prompt: Any, most: int) -> Tensor:
    """What a decoder beside an encoder reads when it writes about a clip or an image, int64 [1, tokens].

    Args:
        checkpoint: of the model.
        runner: that runs it.
        prompt: the clip, float32 [samples], or pixels, float32 [C, H, W].
        most: tokens that it may write.
    """
    ends = Tokenizer(checkpoint.path).ends
    written = itertools.takewhile(lambda token: token not in ends, runner.stream(prompt, most))
    return torch.tensor([[start_of(checkpoint.path), *written]])


def blank(checkpoint: Checkpoint) -> list[Batch]:
    """A second of silence, for a walk that looks at weights alone."""
    ids = torch.full((1, _BLANK), start_of(checkpoint.path))
    return [{"input_values": torch.zeros(1, audio.RATE), "decoder_input_ids": ids}]

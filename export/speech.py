"""A transcriber as two graphs: one hears a clip, one writes its words, and what both give beside what torch gives.

The first hands the second the keys and values of each of its cross attentions, so that these are computed once a clip.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from greenllm import artifact, audio, script
from greenllm.audio import ENCODER, WINDOW
from greenllm.checkpoint import Checkpoint
from greenllm.export.log_mel import LogMel
from greenllm.features import WAVEFORM, Features
from greenllm.tokens import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DECODER = "model.onnx"
_TOKENS, _STEPS = 24, 4
Part = tuple[str, nn.Module, tuple[Tensor, ...], tuple[list[str], list[str]]]


@dataclass(frozen=True)
class Heard:
    """What two forms of a transcriber are asked: float32 [samples] of sound, int64 [T] of what it has written."""

    clip: NDArray[np.float32]
    ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)


class Ears(nn.Module):
    """A clip [B, samples] to keys and values of each cross attention in turn, [B, heads, T, width].

    Args:
        model: the transcriber.
        front: makes of the clip what it hears.
    """

    def __init__(self, model: PreTrainedModel, front: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.front = front

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        model: Any = self.model
        states = model.get_encoder()(self.front(inputs[0]))[0]
        # one token has the decoder fill its cache; all of it but keys and values of the clip leaves the graph again
        first = torch.zeros(len(inputs[0]), 1, dtype=torch.int64)
        out = model.get_decoder()(input_ids=first, encoder_hidden_states=states, use_cache=True)
        return flat(out.past_key_values.cross_attention_cache)


class Pen(nn.Module):
    """Tokens [B, T], own keys and values, those of the clip, to logits [B, T, V] and own keys and values."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        from transformers import DynamicCache, EncoderDecoderCache

        model: Any = self.model
        ids, *given = inputs
        half = len(given) // 2
        own, clip = (DynamicCache(tuple(zip(k[::2], k[1::2], strict=True))) for k in (given[:half], given[half:]))
        # asked for its shape alone, as the keys that come of it are there
        states = given[half].new_zeros(len(ids), given[half].shape[2], model.config.hidden_size)
        out = model.get_decoder()(
            input_ids=ids, encoder_hidden_states=states, past_key_values=EncoderDecoderCache(own, clip), use_cache=True
        )
        return (model.get_output_embeddings()(out[0]), *flat(out.past_key_values.self_attention_cache))


def flat(cache: Any) -> tuple[Tensor, ...]:
    """Keys and values of each layer in turn."""
    return tuple(t for layer in cache.layers for t in (layer.keys, layer.values))


def settle_language(out: Path) -> None:
    """Have the ``generation_config.json`` of an export name a language by its token: a device has no table of names."""
    told = read_json(file := out / "generation_config.json")
    if told.get("language"):
        known = told.get("lang_to_id") or {}
        token = script.language_token(out, told["language"], known)
        named = {"language": next(name for name, t in known.items() if t == token)}
        artifact.write_atomic(file, json.dumps(told | named, indent=2) + "\n")


@torch.no_grad()
def parts(checkpoint: Checkpoint, model: PreTrainedModel) -> list[Part]:
    """Of each graph its file, the function, an example of its inputs, and names of inputs and outputs (Optimum's).

    Raises:
        GreenError: see :class:`greenllm.features.Features`.
    """
    extractor, window = Features(checkpoint).extractor, script.of(checkpoint.path).window
    clips = torch.from_numpy(_noise(2 * (window or audio.RATE))).reshape(2, -1)
    ears, pen = Ears(model, LogMel(extractor) if extractor else nn.Identity()), Pen(model)
    clip = [t.clone() for t in ears(clips)]
    own = [t[:, :, :3].clone() for t in clip]
    ids = torch.ones(2, 5, dtype=torch.int64)
    each = [f"{i}.{{}}.{kind}" for i in range(len(clip) // 2) for kind in ("key", "value")]

    def names(prefix: str, of: str) -> list[str]:
        return [f"{prefix}.{e.format(of)}" for e in each]

    past = [*names("past_key_values", "decoder"), *names("past_key_values", "encoder")]
    return [
        (ENCODER, ears, (clips,), ([WINDOW if window else WAVEFORM], names("present", "encoder"))),
        (DECODER, pen, (ids, *own, *clip), (["input_ids", *past], ["logits", *names("present", "decoder")])),
    ]


def sample(checkpoint: Checkpoint) -> Heard:
    """Two seconds that fall as 1/f, as speech does, or a shorter window, and any tokens."""
    asked = script.of(checkpoint.path)
    count, samples = min(_TOKENS, asked.room or _TOKENS), min(2 * audio.RATE, asked.window or 2 * audio.RATE)
    ids = np.random.default_rng(0).integers(int(checkpoint.config.vocab_size), size=count)
    ids[0] = int(checkpoint.config.decoder_start_token_id)
    return Heard(_noise(samples), ids)


@torch.no_grad()
def in_torch(checkpoint: Checkpoint, heard: Heard) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Keys and values of the clip, all in one row, and logits [T, V]; spectra are transformers' own."""
    model: Any = checkpoint.load_model()
    ids = torch.from_numpy(heard.ids)[None]
    out = model(**Features(checkpoint)(heard.clip), decoder_input_ids=ids, use_cache=True)
    kept = flat(out.past_key_values.cross_attention_cache)
    return torch.cat([t.flatten() for t in kept]).numpy(), out.logits[0].numpy()


def in_graphs(encoder: Any, decoder: Any, heard: Heard) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The same of two sessions: all tokens but the last are written at once, those one by one through the cache."""
    (sound,) = encoder.get_inputs()
    given = np.pad(heard.clip, (0, max(0, sound.shape[1] - len(heard.clip)) if sound.name == WINDOW else 0))
    clip = encoder.run(None, {sound.name: given[None]})
    names = [i.name for i in decoder.get_inputs()]
    own: list[Any] = [np.zeros((*t.shape[:2], 0, t.shape[3]), t.dtype) for t in clip]
    logits = []
    for ids in np.split(heard.ids, range(len(heard) - _STEPS, len(heard))):
        found, *own = decoder.run(None, dict(zip(names, [ids[None], *own, *clip], strict=True)))
        logits.append(found[0])
    return np.concatenate([t.ravel() for t in clip]), np.concatenate(logits)


def _noise(samples: int) -> NDArray[np.float32]:
    drawn = np.fft.rfft(np.random.default_rng(0).standard_normal(samples))
    wave = np.fft.irfft(drawn / np.maximum(1, np.arange(len(drawn))), samples)
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32)

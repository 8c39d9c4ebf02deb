"""Encoder and decoder as two graphs: one hears a clip or sees an image, one writes about it; and what torch gives.

The first hands the second the keys and values of each of its cross attentions, so that these are computed once.
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
from greenllm.errors import GreenError
from greenllm.export.log_mel import LogMel
from greenllm.features import WAVEFORM, Features
from greenllm.images import pictures
from greenllm.kinds import CAPTIONS
from greenllm.tokens import Tokenizer, read_json, start_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DECODER = "model.onnx"
_TOKENS, _STEPS = 24, 4
Part = tuple[str, nn.Module, tuple[Tensor, ...], tuple[list[str], list[str]]]


@dataclass(frozen=True)
class Heard:
    """What two forms of a model are asked: sound [samples] or pixels [C, H, W], float32; int64 [T] it wrote."""

    given: NDArray[np.float32]
    ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)


class Ears(nn.Module):
    """Clips [B, samples] or pixels [B, C, H, W] to keys and values of each cross attention, [B, heads, T, width].

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
        # one token has the decoder fill its cache; all of it but keys and values of the clip leaves the graph again
        first = torch.zeros(inputs[0].shape[0], 1, dtype=torch.int64)
        out = model(**{model.main_input_name: self.front(inputs[0])}, decoder_input_ids=first, use_cache=True)
        return flat(out.past_key_values.cross_attention_cache)


class Pen(nn.Module):
    """Tokens [B, T], own keys and values, those of clip or image, to logits [B, T, V] and own keys and values."""

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
        states = given[half].new_zeros(ids.shape[0], given[half].shape[2], 1)
        out = model.get_decoder()(
            input_ids=ids, encoder_hidden_states=states, past_key_values=EncoderDecoderCache(own, clip), use_cache=True
        )
        logits = out.logits if "logits" in out else model.get_output_embeddings()(out[0])
        return (logits, *flat(out.past_key_values.self_attention_cache))


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
        GreenError: see :class:`greenllm.features.Features`; or it keeps no keys and values of what it is given.
    """
    front, name, given = _fed(checkpoint)
    ears, pen = Ears(model, front), Pen(model)
    try:
        clip = [t.clone() for t in ears(given)]
    except (AttributeError, ValueError, RuntimeError) as e:
        line = (str(e).splitlines() or [type(e).__name__])[0]
        raise GreenError(f"{checkpoint.path}: it keeps no keys and values of its {checkpoint.input}: {line}") from e
    own = [t[:, :, :3].clone() for t in clip]
    ids = torch.ones(2, 5, dtype=torch.int64)
    each = [f"{i}.{{}}.{kind}" for i in range(len(clip) // 2) for kind in ("key", "value")]

    def names(prefix: str, of: str) -> list[str]:
        return [f"{prefix}.{e.format(of)}" for e in each]

    past = [*names("past_key_values", "decoder"), *names("past_key_values", "encoder")]
    return [
        (ENCODER, ears, (given,), ([name], names("present", "encoder"))),
        (DECODER, pen, (ids, *own, *clip), (["input_ids", *past], ["logits", *names("present", "decoder")])),
    ]


def _fed(checkpoint: Checkpoint) -> tuple[nn.Module, str, Tensor]:
    """What makes of the graph's input that of the model, the input's name, and two of it."""
    if checkpoint.task == CAPTIONS:
        return nn.Identity(), checkpoint.input, torch.from_numpy(np.stack([sample(checkpoint).given] * 2))
    extractor, window = Features(checkpoint).extractor, script.of(checkpoint.path).window
    clips = torch.from_numpy(_noise(2 * (window or audio.RATE))).reshape(2, -1)
    return LogMel(extractor) if extractor else nn.Identity(), WINDOW if window else WAVEFORM, clips


def sample(checkpoint: Checkpoint) -> Heard:
    """Noise that falls as 1/f, as in speech and photographs: two seconds or a window, or an image; any tokens."""
    ids = np.random.default_rng(0).integers(int(checkpoint.words.vocab_size), size=_TOKENS)
    ids[0] = start_of(checkpoint.path)
    if checkpoint.task == CAPTIONS:
        return Heard(pictures(1, checkpoint.image_shape, seed=1)[0], ids[: Tokenizer(checkpoint.path).context])
    asked = script.of(checkpoint.path)
    return Heard(_noise(min(2 * audio.RATE, asked.window or 2 * audio.RATE)), ids[: asked.room or _TOKENS])


@torch.no_grad()
def in_torch(checkpoint: Checkpoint, heard: Heard) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Keys and values of clip or image, all in one row, and logits [T, V]; spectra are transformers' own."""
    model: Any = checkpoint.load_model()
    ids = torch.from_numpy(heard.ids)[None]
    seen = checkpoint.task == CAPTIONS
    given = {checkpoint.input: torch.from_numpy(heard.given)[None]} if seen else Features(checkpoint)(heard.given)
    out = model(**given, decoder_input_ids=ids, use_cache=True)
    kept = flat(out.past_key_values.cross_attention_cache)
    return torch.cat([t.flatten() for t in kept]).numpy(), out.logits[0].numpy()


def in_graphs(encoder: Any, decoder: Any, heard: Heard) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The same of two sessions: all tokens but the last are written at once, those one by one through the cache."""
    (takes,) = encoder.get_inputs()
    missing = max(0, takes.shape[1] - len(heard.given)) if takes.name == WINDOW else 0
    clip = encoder.run(None, {takes.name: np.pad(heard.given, (0, missing))[None]})
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

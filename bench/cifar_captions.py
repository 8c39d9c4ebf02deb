"""A small model that writes what an image shows, trained on CIFAR-10: its class, how bright it is, and its tint.

``python -m greenllm.bench.cifar_captions TRAIN.zip TEST.zip OUT [--passes 12]`` writes OUT/checkpoint (a ViT beside a
GPT-2), and OUT/train.jsonl and OUT/test.jsonl with the images and two captions of each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)  # fmt: skip

from greenllm.bench import cifar
from greenllm.images import PROCESSOR, Processor, opened, read

_RATE = 1e-3
_PAD, _START, _END = range(3)
_WORDS = 512
_DARK, _BRIGHT, _TINT = 95, 150, 12  # of 255
WAYS = ("a {} photo of a {}", "a {1}, in a {0} photo")


def captions(file: Path, label: str) -> list[str]:
    """What is said of an image, in two ways."""
    red, green, blue = np.asarray(opened(file), np.float64).mean((0, 1))
    light = (red + green + blue) / 3
    bright = "dark" if light < _DARK else "bright" if light > _BRIGHT else "plain"
    over = {"reddish": red - light, "greenish": green - light, "bluish": blue - light}
    tint = max(over, key=lambda name: over[name])
    how = f"{bright} {tint if over[tint] > _TINT else 'grey'}"
    return [way.format(how, label) for way in WAYS]


def write_tokenizer(texts: list[str], out: Path) -> Tokenizer:
    """A byte-level BPE of the captions."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_WORDS, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")  # noqa: S106
    fast.save_pretrained(out)
    return inner


def small(seed: int = 0) -> VisionEncoderDecoderModel:
    """The model, with random weights."""
    torch.manual_seed(seed)
    sees = ViTConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, image_size=32, patch_size=8
    )
    writes = GPT2Config(
        vocab_size=_WORDS, n_embd=128, n_layer=2, n_head=4, n_positions=64, bos_token_id=_START, eos_token_id=_END,
        pad_token_id=_PAD, is_decoder=True, add_cross_attention=True,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig(encoder=sees.to_dict(), decoder=writes.to_dict())
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = _START, _END, _PAD
    return VisionEncoderDecoderModel(config)


def make(archives: tuple[Path, Path], out: Path, passes: int, most: int | None = None) -> Path:
    """Unpack, train, save; ``most`` images are learnt. Returns the checkpoint's directory."""
    checkpoint = out / "checkpoint"
    checkpoint.mkdir(parents=True)
    (checkpoint / PROCESSOR).write_text(json.dumps(cifar.PREPROCESSING), encoding="utf-8")
    told = [_tell(cifar.unpack(a, out, name), out, name) for a, name in zip(archives, ("train", "test"), strict=True)]
    tokenizer = write_tokenizer([c for rows in told for r in rows for c in r["captions"]], checkpoint)
    chosen = [told[0][i] for i in np.random.default_rng(0).permutation(len(told[0]))[:most]]
    x = torch.from_numpy(read([out / r["image"] for r in chosen], Processor(checkpoint)))
    lines = [torch.tensor([_START, *tokenizer.encode(r["captions"][0]).ids, _END]) for r in chosen]
    model = small()
    ids = nn.utils.rnn.pad_sequence(lines, batch_first=True, padding_value=_PAD)

    def loss_of(seen: Tensor, at: Tensor) -> Tensor:
        logits = model(pixel_values=seen, decoder_input_ids=ids[at, :-1]).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids[at, 1:].flatten(), ignore_index=_PAD)

    cifar.train(model, x, loss_of, passes, batch=64, rate=_RATE)
    model.save_pretrained(checkpoint)
    return checkpoint


def _tell(rows: list[dict[str, str]], out: Path, name: str) -> list[dict[str, Any]]:
    """Rows with captions, in place of those with labels."""
    found: list[dict[str, Any]] = [
        {"image": r["image"], "captions": captions(out / r["image"], r["label"])} for r in rows
    ]
    (out / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in found), encoding="utf-8")
    return found


if __name__ == "__main__":
    cifar.command(__doc__ or "", make, 12)

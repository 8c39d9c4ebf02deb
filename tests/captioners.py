"""Tiny models that write what an image shows, of encoders and decoders of several kinds; and coloured pictures."""

from __future__ import annotations

import json

import numpy as np
import torch
from conftest import make_tokenizer
from PIL import Image
from torch import nn
from transformers import (
    AutoTokenizer,
    BeitConfig,
    BertConfig,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    DeiTConfig,
    GPT2Config,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)  # fmt: skip
from transformers.models.roberta import RobertaConfig

from greenllm import images
from greenllm.bench import cifar
from greenllm.tokens import Tokenizer

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
START, END, PAD = 1, 2, 0
_SEES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2,
         "image_size": 32, "patch_size": 8}  # fmt: skip
_BERT = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2,
         "max_position_embeddings": 80}  # fmt: skip
ENCODERS = {"vit": ViTConfig, "deit": DeiTConfig, "beit": BeitConfig}
DECODERS = {
    "gpt2": (GPT2Config, {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 80}),
    "narrow": (GPT2Config, {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 80}),  # what it sees is projected
    "bert": (BertConfig, _BERT),
    "roberta": (RobertaConfig, _BERT),
    "trocr": (TrOCRConfig, {"d_model": 96, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 128,
                            "max_position_embeddings": 80, "cross_attention_hidden_size": 64}),
}  # fmt: skip


def build(encoder="vit", decoder="gpt2", *, seed=0, tied=True, **options):
    """A random model of 32 x 32 pixels with the tokens of :func:`conftest.make_tokenizer`."""
    torch.manual_seed(seed)
    kind, shape = DECODERS[decoder]
    words = kind(
        vocab_size=128, bos_token_id=START, eos_token_id=END, pad_token_id=PAD, is_decoder=True,
        add_cross_attention=True, tie_word_embeddings=tied, **shape | options,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig(encoder=ENCODERS[encoder](**_SEES).to_dict(), decoder=words.to_dict())
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = START, PAD, END
    model = VisionEncoderDecoderModel(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # 0 from the start: they would hide a mistake
            nn.init.normal_(parameter, std=0.05)
        elif parameter.dim() > 1:  # so that an image makes a difference
            parameter.data.mul_(3)
    return model.eval()


def build_blip(*, seed=0, tied=True, **words):
    """BLIP's captioner, of the same pixels and tokens; ``words`` are settings of its decoder."""
    torch.manual_seed(seed)
    text = {"vocab_size": 128, "bos_token_id": START, "sep_token_id": END, "eos_token_id": 5, "pad_token_id": PAD,
            "tie_word_embeddings": tied, **_BERT} | words  # fmt: skip
    vision = _SEES | {"hidden_size": 96, "initializer_range": 0.1}
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.05)
        elif parameter.dim() > 1 and name.startswith("text_decoder"):
            parameter.data.mul_(5)
    return model.eval()


def save_blip(model, path):
    """With tokenizer and processor as BLIP's own ``BlipProcessor`` saves them; the processor."""
    model.save_pretrained(path)
    make_tokenizer(path)
    processor = BlipProcessor(
        BlipImageProcessorPil(size={"height": 32, "width": 32}), AutoTokenizer.from_pretrained(path)
    )
    processor.save_pretrained(path)
    (path / images.PROCESSOR).write_text(processor.image_processor.to_json_string())  # where the hub's files have it
    return processor


def save(model, path):
    """With a tokenizer, and what makes images pixels."""
    model.save_pretrained(path)
    make_tokenizer(path)
    (path / images.PROCESSOR).write_text(json.dumps(cifar.PREPROCESSING))
    return path


def make(path, *args, **options):
    """A random one on disk."""
    return save(build(*args, **options), path)


def teach(model, path, files, captions, steps=250):
    """Teach a saved model what to write about images."""
    tokenizer = Tokenizer(path)
    told = [[START, *tokenizer.plain(c), END] for c in captions]
    longest = max(map(len, told))
    ids = torch.tensor([t + [PAD] * (longest - len(t)) for t in told])
    x = torch.from_numpy(images.read(files, images.Processor(path)))
    wanted = ids[:, 1:].masked_fill(ids[:, 1:] == PAD, -100)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    model.train()
    for _ in range(steps):
        at = torch.randint(len(x), (16,))
        logits = model(x[at], ids[at, :-1]).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), wanted[at].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(path)
    return path, float(loss.detach())


def coloured(folder, count, *, seed):
    """Noisy pictures of three colours, and rows with two captions of each."""
    folder.mkdir()
    rng, rows = np.random.default_rng(seed), []
    for i in range(count):
        label = list(COLOURS)[i % 3]
        noise = rng.normal(COLOURS[label], 60, (20 + i, 31, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "captions": [f"this one is {label} all over", f"{label} it is"]})
    file = folder / "captions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def home(path, model, save):
    """``path`` with a model in ``taught`` that was taught to name colours, and in ``see`` pictures it has not seen."""
    learn, _ = coloured(path / "learn", 24, seed=0), coloured(path / "see", 12, seed=1)
    rows = [json.loads(line) for line in learn.read_text().splitlines()]
    save(model, path / "taught")
    teach(model, path / "taught", [path / "learn" / r["image"] for r in rows], [r["captions"][0] for r in rows])
    return path

"""Tiny random models with a tower for images and one for texts, and images with captions."""

from __future__ import annotations

import json

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, SiglipConfig, SiglipModel

from greenllm import images
from greenllm.bench import cifar

LONGEST = 64
LAYERS = {"clip": 2, "siglip": 1}  # of each tower
COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
KINDS = {"clip": (CLIPModel, CLIPConfig), "siglip": (SiglipModel, SiglipConfig)}


def make_pairs(path, kind="clip", *, seed=0):
    """A random CLIP or SigLIP of 32 x 32 pixels that reads 64 bytes."""
    model, config = KINDS[kind]
    torch.manual_seed(seed)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    shape |= {"num_hidden_layers": LAYERS[kind]}
    text = {"vocab_size": 128, "max_position_embeddings": LONGEST, "bos_token_id": 126, "eos_token_id": 127,
            "pad_token_id": 127}  # fmt: skip
    text |= {"projection_size": 64} if kind == "siglip" else {}
    more = {"projection_dim": 32} if kind == "clip" else {}
    made = model(config(text_config=shape | text, vision_config=shape | {"image_size": 32, "patch_size": 8}, **more))
    for name, parameter in made.named_parameters():
        if name.endswith("bias") and parameter.dim():  # 0 from the start: they would hide a mistake
            torch.nn.init.normal_(parameter, std=0.05)
    if kind == "siglip":
        made.logit_bias.data.fill_(-3.0)
        made.logit_scale.data.fill_(2.0)
    made.save_pretrained(path)
    _tokenizer(path)
    (path / images.PROCESSOR).write_text(json.dumps(cifar.PREPROCESSING))
    return path


def _tokenizer(path):
    """A token a byte below 125, between marks of beginning and end."""
    tokens = [*[t for t in sorted(pre_tokenizers.ByteLevel.alphabet()) if t != "Ġ"][:124], "Ġ", "<unk>", "<s>", "</s>"]
    inner = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 126), ("</s>", 127)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(path)


def coloured(folder, count, *, seed=0):
    """Noisy pictures of three colours; files that name their colour, and that have a caption for each."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    labels, captions = [], []
    for i in range(count):
        label = list(COLOURS)[i % 3]
        noise = rng.normal(COLOURS[label], 60, (20 + i, 31, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        labels.append({"image": f"{i}.png", "label": label})
        captions.append({"image": f"{i}.png", "caption": f"number {i} is {label}", "group": ("even", "odd")[i % 2]})
    for name, rows in (("labels", labels), ("captions", captions)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder

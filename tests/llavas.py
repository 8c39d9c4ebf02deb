"""Small models that answer about images: a CLIP with a Llama, a SigLIP with a Qwen2; they learn three colours."""

from __future__ import annotations

import json

import numpy as np
import torch
from conftest import make_tokenizer
from pairs import coloured
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

QUESTION = "What colour is it?"
VOCAB = 150  # bytes; the mark of an image comes behind
PARTS = (  # of a list, as LLaVA 1.5 writes it
    "{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] | selectattr('type', 'equalto', 'image') "
    "%}<image>\n{% endfor %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }} "
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
TEXTS = (  # of a text, as models of text have it
    "{% for m in messages %}{{ '<s>' + m['role'] + ':' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'it:' }}{% endif %}"
)
_SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
KINDS = {  # vision, text, what of the tower is read, template
    "clip": (CLIPVisionConfig, LlamaConfig, {"num_hidden_layers": 3}, -2, "default", PARTS),
    "siglip": (SiglipVisionConfig, Qwen2Config, {"num_hidden_layers": 2}, -1, "full", TEXTS),
}


def make_llava(path, kind="clip", *, seed=0):
    """A random one of 32 x 32 pixels, 16 tokens an image; saved by transformers, with its processor."""
    vision, text, depth, layer, strategy, template = KINDS[kind]
    torch.manual_seed(seed)
    make_tokenizer(path, VOCAB)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    config = LlavaConfig(
        vision_config=vision(image_size=32, patch_size=8, **_SHAPE, **depth),
        text_config=text(
            vocab_size=160, num_hidden_layers=2, num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1,
            eos_token_id=2, pad_token_id=2, tie_word_embeddings=kind == "clip", **_SHAPE,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=16,
        vision_feature_layer=layer, vision_feature_select_strategy=strategy,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # 0 from the start: they would hide a mistake
            torch.nn.init.normal_(parameter, std=0.05)
    side = {"height": 32, "width": 32}
    pixels = CLIPImageProcessorPil(size=side, crop_size=side) if kind == "clip" else SiglipImageProcessorPil(size=side)
    LlavaProcessor(
        pixels, tokenizer, patch_size=8, vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(kind == "clip"), chat_template=template,
    ).save_pretrained(path)  # fmt: skip
    model.save_pretrained(path)
    return path


def said_to(processor, kind, text=QUESTION, *, image=True):
    """A question in the template, as one asks transformers."""
    parts = [{"type": "image"}] * image + [{"type": "text", "text": text}]
    content = parts if kind == "clip" else f"{'<image>' + chr(10) if image else ''}{text}"
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def teach(path, kind, folder, steps):
    """Learn the colours of a folder that :func:`asked` made."""
    processor = LlavaProcessor.from_pretrained(path, backend="pil")
    model = LlavaForConditionalGeneration.from_pretrained(path).train()
    rows = [json.loads(line) for line in (folder / "asked.jsonl").read_text().splitlines()]
    question, end = said_to(processor, kind), processor.tokenizer.eos_token
    texts = [question + r["answer"] + end for r in rows]
    pictures = [Image.open(folder / r["image"]) for r in rows]
    fed = processor(images=pictures, text=texts, return_tensors="pt", padding=True, padding_side="right")
    skip = processor(images=pictures[:1], text=question, return_tensors="pt")["input_ids"].shape[1]
    labels = fed["input_ids"].masked_fill(fed["attention_mask"] == 0, -100)
    labels[:, :skip] = -100
    for row, text in zip(labels, texts, strict=True):
        row[skip + len(text) - len(question) - len(end) + 1 :] = -100
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**fed, labels=labels).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(path)
    return path


def asked(folder, count, *, seed=0):
    """Pictures of three colours, and a file of questions about them."""
    coloured(folder, count, seed=seed)
    rows = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    told = [{"image": r["image"], "question": QUESTION, "answer": r["label"]} for r in rows]
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, told)))
    return folder


def noise(file, seed=0):
    """A picture of nothing."""
    drawn = np.random.default_rng(seed).integers(0, 256, (41, 67, 3), np.uint8)
    Image.fromarray(drawn).save(file)
    return file

"""Small models that see an image in tiles, Idefics3 and SmolVLM; and transformers' own way of asking them."""

from __future__ import annotations

import json

import numpy as np
import torch
from conftest import make_tokenizer
from PIL import Image
from transformers import (
    AutoTokenizer,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

QUESTION = "What colour is it?"
EACH = 16  # vectors of a tile
SIDE = 32  # pixels of a tile
CHAT = (  # SmolVLM's
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == "
    "'image' %}{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' "
    "%}{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
KINDS = {
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil),
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil),
}
# rows and columns beyond two have no tokens: they are read as any text
_TOKENS = ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<|im_start|>", "<global-img>"]
_TOKENS += [f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2)]
_SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}


def make_smolvlm(path, kind, *, std=0.15, vision=None):
    """A random one with tiles of 32 x 32 pixels, of which images have at most 3 x 3; saved by transformers.

    Its weights are so large that what is seen makes a difference.
    """
    config, model, pixels = KINDS[kind]
    make_tokenizer(path, 150)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens({"additional_special_tokens": _TOKENS})
    tokenizer.save_pretrained(path)
    (path / "chat_template.jinja").write_text(CHAT)
    torch.manual_seed(0)
    text = {
        "model_type": "llama", "vocab_size": 160, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, **_SHAPE,
    }  # fmt: skip
    made = model(config(
        vision_config={"image_size": SIDE, "patch_size": 4, **_SHAPE, **(vision or {})}, text_config=text,
        scale_factor=2, image_token_id=tokenizer.convert_tokens_to_ids("<image>"), pad_token_id=2,
        tie_word_embeddings=kind == "smolvlm",
    ))  # fmt: skip
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):  # 0 from the start: they would hide a mistake
            torch.nn.init.normal_(parameter, std=0.05)
        elif parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std)
    made.save_pretrained(path)
    pixels(size={"longest_edge": 3 * SIDE}, max_image_size={"longest_edge": SIDE}).save_pretrained(path)
    (path / "processor_config.json").write_text(
        json.dumps({"image_seq_len": EACH, "processor_class": f"{model.__name__.split('For')[0]}Processor"})
    )
    return path


def drawn(folder, width, height, seed=0):
    """A picture of nothing, of a shape."""
    file = folder / f"{width}x{height}-{seed}.png"
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    Image.fromarray(noise).resize((width, height)).save(file)
    return file


def their_inputs(path, kind, file, text=QUESTION):
    """Transformers' tokens and pixels of a question in the template.

    The processor of SmolVLM itself takes packages for videos; of its parts all that an image needs is called here.
    """
    tokenizer, pixels = AutoTokenizer.from_pretrained(path), KINDS[kind][2].from_pretrained(path)
    content = [{"type": "image"}] * (file is not None) + [{"type": "text", "text": text}]
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    if file is None:
        return tokenizer(said, return_tensors="pt")
    image = Image.open(file)
    if kind == "idefics3":
        return Idefics3Processor(pixels, tokenizer, image_seq_len=EACH)(images=image, text=said, return_tensors="pt")
    seen = pixels(image, return_tensors="pt", return_row_col_info=True)
    (rows,), (columns,) = seen.pop("rows")[0], seen.pop("cols")[0]
    written = get_image_prompt_string(rows, columns, EACH, _TOKENS[1], _TOKENS[0], _TOKENS[4])
    return {**tokenizer(said.replace("<image>", written), return_tensors="pt"), **seen}


def teach(path, kind, folder, steps):
    """Learn the colours of a folder that ``llavas.asked`` made, an image after the other."""
    model, tokenizer = KINDS[kind][1].from_pretrained(path).train(), AutoTokenizer.from_pretrained(path)
    rows = [json.loads(line) for line in (folder / "asked.jsonl").read_text().splitlines()]
    given = []
    for row in rows:
        fed = their_inputs(path, kind, folder / row["image"])
        asked, answer = fed["input_ids"], tokenizer(row["answer"] + "</s>", return_tensors="pt")["input_ids"]
        ids = torch.cat([asked, answer], 1)
        labels = torch.cat([torch.full_like(asked, -100), answer], 1)
        given.append({"input_ids": ids, "labels": labels, "pixel_values": fed["pixel_values"]})
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for step in range(steps):
        optimizer.zero_grad()
        for one in given[step % 4 :: 4]:
            model(**one).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval().save_pretrained(path)
    return path


def theirs(path, kind, file, text=QUESTION):
    """Transformers' inputs, logits and greedy answer."""
    model = KINDS[kind][1].from_pretrained(path).eval()
    fed = their_inputs(path, kind, file, text)
    with torch.no_grad():
        logits = model(**fed).logits[0].numpy()
        written = model.generate(**fed, max_new_tokens=12, do_sample=False)[0, fed["input_ids"].shape[1] :]
    return fed, logits, written.tolist()

"""Chat templates: rendered as transformers does, and nothing that a template may not do."""

from __future__ import annotations

import json

import pytest
from conftest import make_llama

import greenllm
from greenllm import template as chat
from greenllm.bench.tasks.choice import requests
from greenllm.bench.tasks.items import Item
from greenllm.bench.texts import Tokens
from greenllm.errors import GreenError

TEMPLATES = {
    "chatml": "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{{ eos_token }}\n{% endfor %}"
              "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "strict": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
              "{% endif %}[INST] {{ m['content'] }} [/INST]{% break %}{% endfor %}",
    "json": "{{ messages | tojson }}{% if add_generation_prompt %}A:{% endif %}",
}  # fmt: skip
TOLD = [{"role": "user", "content": "Grüße <b> & so"}]


@pytest.fixture
def model(tmp_path):
    return make_llama(tmp_path / "m")


@pytest.mark.parametrize("name", TEMPLATES)
def test_it_says_what_transformers_says(model, name):
    from transformers import AutoTokenizer

    (model / "chat_template.jinja").write_text(TEMPLATES[name])
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": tokenizer.eos_token or "</s>"}))
    tokenizer = AutoTokenizer.from_pretrained(model)
    want = tokenizer.apply_chat_template(TOLD, tokenize=False, add_generation_prompt=True)
    assert chat.render(model, TOLD) == want


def test_a_real_one(smollm2):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    want = tokenizer.apply_chat_template(TOLD, tokenize=False, add_generation_prompt=True)
    assert chat.ask(smollm2, TOLD[0]["content"]) == want
    begun = [*TOLD, {"role": "assistant", "content": "Well"}]
    assert chat.render(smollm2, begun) == want + "Well"
    tokens = Tokens(smollm2)
    (whole, start), _ = requests(Item("Say a", ("letter", "word"), 0), tokens, chat=True)
    assert tokens.plain(chat.ask(smollm2, "Say a")) == whole[:start]
    assert tokens.words(whole[start:]) == "letter"


def test_of_several_the_default_is_taken(model):
    config = json.loads((model / "tokenizer_config.json").read_text())
    several = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": several}))
    assert chat.template(model) == "d"


@pytest.mark.parametrize(
    "evil",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% if %}",
    ],
)
def test_a_template_gets_nothing_but_its_messages(model, evil):
    (model / "chat_template.jinja").write_text(evil)
    with pytest.raises(GreenError, match="chat template of .* fails"):
        chat.render(model, TOLD)


def test_a_model_without_one_is_refused_before_anything_is_measured(model):
    with pytest.raises(GreenError, match="has no chat template"):
        greenllm.bench([model], chat=True, tasks=["suite/copying"], energy=False)

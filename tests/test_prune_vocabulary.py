"""Tokens that go: the others keep their logits, and every text can still be said."""

from __future__ import annotations

import json
import random

import pytest
import torch
from conftest import make_bert, make_llama
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import greenllm
from greenllm import pipeline
from greenllm.answer import stream
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.progress import Silent
from greenllm.prune.tokens import FastTokenizer
from greenllm.prune.vocabulary import counts, expected, ranked
from greenllm.recipe import Calibration, Recipe, make_step

KNOWN = (
    "energy carbon model smaller prune layers heads channels vocabulary token never needed corpus language "
    "the of and to in is that it was for on are as with they at be this from have or by"
)
WORDS = KNOWN.split()
VOCAB = 480


def text(seed=0, words=WORDS, n=3000):
    return " ".join(random.Random(seed).choices(words, k=n))  # noqa: S311 - no secret


def trained(kind):
    """A tokenizer of each kind, trained on more words than the corpus will have."""
    more = text(1, [*WORDS, *(w[::-1] for w in WORDS), *(w + "ing" for w in WORDS)])
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    if kind == "bpe":
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=special,
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    elif kind == "wordpiece":
        inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
        inner.normalizer = normalizers.Lowercase()
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        inner.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=VOCAB, special_tokens=special)
    else:
        inner = Tokenizer(models.Unigram())
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
        inner.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>")
    inner.train_from_iterator([more], trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return inner


def make(path, kind="bpe", *, encoder=False, **options):
    from transformers import PreTrainedTokenizerFast

    inner = trained(kind)
    rows = inner.get_vocab_size() + 16  # as many models have, rows of no token
    (make_bert if encoder else make_llama)(path, vocab=rows, **options)
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
                            pad_token="<pad>").save_pretrained(path)  # fmt: skip
    return path


def pruned(model, out, *more, **options):
    steps = [make_step(name, o, name) for name, o in (("prune", options), *more)]
    return pipeline.run_steps(model, out, Recipe(calibration=Calibration(samples=8, length=32), steps=steps))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    lines = text().split(" model ")
    path.write_text("\n".join(json.dumps({"text": line + " model"}) for line in lines))
    return path


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return make(tmp_path_factory.mktemp("bpe") / "m")


@pytest.fixture(scope="module")
def small(bpe, corpus, tmp_path_factory):
    return pruned(bpe, tmp_path_factory.mktemp("small") / "out", corpus=str(corpus), multiple=8).path


def tokenizers(*paths):
    return [Tokenizer.from_file(str(p / "tokenizer.json")) for p in paths]


def test_gguf_has_the_tokens_that_stay(small, tmp_path):
    import gguf

    made = greenllm.export(small, tmp_path / "gguf", to="gguf", precision="f16")
    reader = gguf.GGUFReader(made.path / "model.gguf")
    stay = Tokenizer.from_file(str(small / "tokenizer.json"))
    found = reader.fields["tokenizer.ggml.tokens"].contents()
    assert found[: stay.get_vocab_size()] == [stay.id_to_token(i) for i in range(stay.get_vocab_size())]
    assert reader.fields["tokenizer.ggml.merges"].contents()
    assert len(found) == open_checkpoint(made.path / "model.gguf").config.vocab_size


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_logits_at_the_tokens_that_stay(tied, corpus, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = make(tmp_path / "m", tied=tied)
    out = pruned(path, tmp_path / "out", corpus=str(corpus), multiple=8).path
    old, new = tokenizers(path, out)
    stay = [old.token_to_id(new.id_to_token(i)) for i in range(new.get_vocab_size())]
    assert stay == sorted(stay)
    a, b = (AutoTokenizer.from_pretrained(p)(text(5, n=40), return_tensors="pt")["input_ids"] for p in (path, out))
    assert [stay[i] for i in b[0].tolist()] == a[0].tolist()
    want, got = (AutoModelForCausalLM.from_pretrained(p)(i).logits for p, i in ((path, a), (out, b)))
    assert got.shape[-1] == len(stay)
    assert got.shape[-1] % 8 == 0
    assert got.shape[-1] < 0.9 * want.shape[-1]
    torch.testing.assert_close(got, want[..., stay])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40))
def test_every_byte_string_comes_back(small, said):
    (tokenizer,) = tokenizers(small)
    assert tokenizer.decode(tokenizer.encode(said).ids) == said


def test_every_byte_is_there(bpe, small):
    old, new = tokenizers(bpe, small)
    for sign in pre_tokenizers.ByteLevel.alphabet():
        assert new.token_to_id(sign) is not None
    assert old.get_vocab_size() > new.get_vocab_size()


def test_the_corpus_is_cut_as_before(bpe, small):
    old, new = tokenizers(bpe, small)
    for seed in range(5):
        assert old.encode(text(seed, n=200)).tokens == new.encode(text(seed, n=200)).tokens
    odd = "gnitnaw Ünïcödé 漢字"
    assert len(new.encode(odd).ids) >= len(old.encode(odd).ids)


def test_any_number_of_tokens_makes_a_whole_tokenizer(bpe, tmp_path):
    """However few stay, none of them misses what it is merged from, and no merge makes what is not there."""
    tokenizer = FastTokenizer(bpe)
    used = counts(tokenizer.file, [text()])
    order = ranked(tokenizer, used, {1, 2, 3}, 10**9)
    assert sorted(i for i, _ in order) == sorted(tokenizer.ids.values())
    assert [n for _, n in order] == sorted((n for _, n in order), reverse=True)
    for size in range(270, len(order), 23):
        stay = {i for i, _ in order[:size]}
        tokenizer.write(tmp_path, {old: i for i, old in enumerate(sorted(stay))})
        (new,) = tokenizers(tmp_path)
        assert new.get_vocab_size() == size
        for token in new.get_vocab():
            if len(token) > 1 and token not in tokenizer.added:
                assert [new.id_to_token(i) for i in new.model.tokenize(token) and
                        [t.id for t in new.model.tokenize(token)]] == [token]  # fmt: skip
        assert new.decode(new.encode(text(9)).ids) == text(9)


def test_ids_are_renumbered_wherever_they_are_named(corpus, tmp_path):
    path = make(tmp_path / "m")
    # an end that is an ordinary token, and one more
    old = Tokenizer.from_file(str(path / "tokenizer.json"))
    end = max(i for t, i in old.get_vocab().items() if t.startswith("Ġ"))
    config = json.loads((path / "config.json").read_text()) | {"eos_token_id": [2, end], "pad_token_id": 3}
    (path / "config.json").write_text(json.dumps(config))
    (path / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": [2, end], "pad_token_id": 3, "suppress_tokens": [end]})
    )
    (path / "vocab.json").write_text("{}")
    out = pruned(path, tmp_path / "out", corpus=str(corpus), multiple=8).path
    (new,) = tokenizers(out)
    now = new.token_to_id(old.id_to_token(end))
    assert now != end
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == [2, now]
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, now]
    assert generation["suppress_tokens"] == [now]
    assert new.encode("the").ids[0] == new.token_to_id("<s>")
    assert not (out / "vocab.json").exists()  # it would say the old ids
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(out)
    assert loaded.pad_token_id == new.token_to_id("<pad>")
    assert loaded("the model")["input_ids"] == new.encode("the model").ids


@torch.no_grad()
@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_other_kinds_of_tokenizer(kind, corpus, tmp_path):
    from transformers import AutoModel

    path = make(tmp_path / "m", kind, encoder=True)
    out = pruned(path, tmp_path / "out", corpus=str(corpus), multiple=1).path
    old, new = tokenizers(path, out)
    assert new.get_vocab_size() < old.get_vocab_size()
    said = text(3, n=60)
    assert old.encode(said).tokens == new.encode(said).tokens
    odd = "slennahc gnirebmemer"
    assert new.decode(new.encode(odd).ids).replace(" ", "") == old.decode(old.encode(odd).ids).replace(" ", "")
    want, got = (AutoModel.from_pretrained(p)(torch.tensor([t.encode(said).ids[:60]]))[0]
                 for p, t in ((path, old), (out, new)))  # fmt: skip
    torch.testing.assert_close(got, want)


def test_a_ratio_says_how_many_stay(bpe, corpus, tmp_path):
    before = open_checkpoint(bpe).parameters
    found = pruned(bpe, tmp_path / "out", corpus=str(corpus), method="vocabulary", ratio=0.1, multiple=8)
    result = found.manifest.steps[-1].result
    assert before * 0.9 - 8 * 64 <= result["parameters"]["after"] <= before * 0.9
    assert result["cut"]["vocabulary"][1] % 8 == 0
    assert open_checkpoint(found.path).parameters == result["parameters"]["after"]


@torch.no_grad()
def test_a_model_says_which_tokens_it_expects(bpe, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    short = tmp_path / "short.txt"
    short.write_text(text(7, n=50))
    ids = AutoTokenizer.from_pretrained(bpe)(short.read_text())["input_ids"]
    want = AutoModelForCausalLM.from_pretrained(bpe)(torch.tensor([ids])).logits[0].double().softmax(-1).mean(0)
    found = expected(open_checkpoint(bpe), [str(short), str(short)], Silent())  # twice the same has the same mean
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-9)


def test_of_tokens_that_never_occur_those_that_are_expected_stay(bpe):
    tokenizer = FastTokenizer(bpe)
    never = sorted(set(tokenizer.ids.values()) - set(counts(tokenizer.file, [text()])))
    names = {i: t for t, i in tokenizer.ids.items()}
    parts = {p for i in never if names[i] not in tokenizer.added for p in tokenizer.parts(names[i]) - {names[i]}}
    ends = [
        i for i in never if names[i] not in tokenizer.base() | set(tokenizer.added) | parts
    ]  # of which none is made
    chance = {i: 1e-6 * n for n, i in enumerate(ends, 1)}
    order = [i for i, _ in ranked(tokenizer, chance, set(), len(tokenizer.ids))]
    places = [order.index(i) for i in ends]
    assert len(places) > 10
    assert places == sorted(places, reverse=True)


def test_pruned_then_quantized_then_exported_runs(bpe, corpus, tmp_path):
    """The calibration samples, made in the old tokens, come in the new ones to the next step."""
    quantize = ("quantize", {"method": "gptq"})
    done = pruned(bpe, tmp_path / "q", ("prune", {"layers": "0"}), quantize, corpus=str(corpus))
    out = greenllm.export(done.path, tmp_path / "genai", to="genai")
    assert "".join(stream(out.path, "the model", max_tokens=4, raw=True)) is not None
    assert [s.step for s in done.manifest.steps] == ["prune", "prune", "quantize"]


def test_mistakes_are_told(bpe, corpus, tmp_path):
    with pytest.raises(GreenError, match="bytes, special or named"):
        pruned(bpe, tmp_path / "a", corpus=str(corpus), ratio=0.5)
    bare = make_llama(tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    with pytest.raises(GreenError, match="no tokenizer.json"):
        pruned(bare, tmp_path / "b", corpus=str(corpus))
    (bare / "tokenizer.json").write_text('{"model": {"vocab": 3}}')
    with pytest.raises(GreenError, match="damaged"):
        pruned(bare, tmp_path / "c", corpus=str(corpus))
    (bare / "tokenizer.json").write_text('{"model": {"type": "WordLevel", "vocab": {"a": 0}}}')
    with pytest.raises(GreenError, match="WordLevel cannot be cut"):
        pruned(bare, tmp_path / "d", corpus=str(corpus))
    (tmp_path / "empty.txt").write_text(" ")
    with pytest.raises(GreenError, match="nothing in it"):
        pruned(bpe, tmp_path / "e", corpus=str(tmp_path / "empty.txt"))
    whole = tmp_path / "whole.txt"
    whole.write_text(" ".join(Tokenizer.from_file(str(bpe / "tokenizer.json")).get_vocab()).replace("Ġ", " "))
    with pytest.raises(GreenError, match="none can go"):
        pruned(make_llama(tmp_path / "tiny"), tmp_path / "f", corpus=str(whole))

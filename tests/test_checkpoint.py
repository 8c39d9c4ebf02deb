"""Checkpoints are read as transformers reads them; damaged and foreign ones are refused by name."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import make_llama
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from greenllm import calibration, source
from greenllm.blocks import blocks_of
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.save import write_shards


@pytest.fixture
def copy(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "copy")


@torch.no_grad()
@pytest.mark.parametrize("which", ["llama", "untied_llama", "bert"])
def test_loads_as_transformers_does(which, request):
    from transformers import AutoModel, AutoModelForCausalLM

    path = request.getfixturevalue(which)
    checkpoint = open_checkpoint(path)
    kind = AutoModel if which == "bert" else AutoModelForCausalLM
    x = torch.arange(3, 40)[None]
    torch.testing.assert_close(checkpoint.load_model()(x)[0], kind.from_pretrained(path).eval()(x)[0], rtol=0, atol=0)
    assert checkpoint.parameters == sum(p.numel() for p in kind.from_pretrained(path).parameters())
    assert checkpoint.task == ("feature-extraction" if which == "bert" else "text-generation")
    assert checkpoint.parents[0].kind == "directory"
    assert "model.safetensors" in checkpoint.parents[0].files


@torch.no_grad()
def test_dense_copy_loads_in_stock_transformers(llama, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    open_checkpoint(llama).write_dense(tmp_path / "dense")
    x = torch.arange(3, 40)[None]
    a, b = (AutoModelForCausalLM.from_pretrained(p).eval()(x).logits for p in (llama, tmp_path / "dense"))
    assert torch.equal(a, b)
    assert AutoTokenizer.from_pretrained(tmp_path / "dense")("abc").input_ids


def test_encoder_weights_under_a_prefix_are_found(bert, tmp_path):
    path = shutil.copytree(bert, tmp_path / "b")
    tensors = {f"bert.{k}": v for k, v in load_file(path / "model.safetensors").items()}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    x = torch.arange(3, 40)[None]
    assert torch.equal(open_checkpoint(path).load_model()(x)[0], open_checkpoint(bert).load_model()(x)[0])


def test_sharded_checkpoints(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("greenllm.save._SHARD", 20_000)
    path = shutil.copytree(llama, tmp_path / "s")
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    write_shards(path, iter(tensors.items()))
    assert len(list(path.glob("model-*.safetensors"))) > 2
    assert torch.equal(open_checkpoint(path).tensor("model.norm.weight"), tensors["model.norm.weight"])
    next(path.glob("model-00002*")).unlink()
    with pytest.raises(GreenError, match="model-00002.*is missing"):
        open_checkpoint(path)


def test_an_index_may_not_name_files_outside(llama, tmp_path):
    path = shutil.copytree(llama, tmp_path / "s")
    (path / "model.safetensors").rename(path / "x.safetensors")
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(GreenError, match="outside"):
        open_checkpoint(path)


@pytest.mark.parametrize("cut", [10, 1000, -100])
def test_truncated_weights(copy, cut):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(GreenError, match="damaged or truncated"):
        open_checkpoint(copy)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers(copy, value):
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(GreenError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds 1 values"):
        open_checkpoint(copy).load_model()


def test_missing_and_misshapen_weights(copy):
    tensors = load_file(copy / "model.safetensors")
    gone = tensors.pop("model.norm.weight")
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(GreenError, match=r"model\.norm\.weight is missing"):
        open_checkpoint(copy).load_model()
    save_file(tensors | {"model.norm.weight": gone[:5]}, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(GreenError, match=r"model\.norm\.weight is \(5,\)"):
        open_checkpoint(copy).load_model()


def test_pickled_weights_are_refused(copy):
    (copy / "model.safetensors").unlink()
    torch.save({"a": torch.ones(1)}, copy / "pytorch_model.bin")
    with pytest.raises(GreenError, match="pickle can run any code"):
        open_checkpoint(copy)


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["NobodyKnowsForCausalLM"], "model_type": "nobody-knows"},
        {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"},
        {},
    ],
)
def test_architectures_nobody_knows(copy, config):
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text("raise SystemExit('ran remote code')")
    with pytest.raises(GreenError, match="transformers knows no such model"):
        open_checkpoint(copy)


def test_a_checkpoint_quantized_by_others_is_named(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(GreenError, match="'awq'"):
        open_checkpoint(copy)


def test_names_that_lead_nowhere(tmp_path, llama):
    with pytest.raises(GreenError, match=r"has no config\.json"):
        open_checkpoint(tmp_path)
    with pytest.raises(GreenError, match="Did you mean .*tiny-llama"):
        open_checkpoint(str(llama).replace("tiny-llama", "tiny-lama"))
    with pytest.raises(GreenError, match="hub cannot be reached"):
        open_checkpoint("nobody/nothing-here")
    (tmp_path / "x.bin").write_text("x")
    with pytest.raises(GreenError, match=r"no \.gguf"):
        open_checkpoint(tmp_path / "x.bin")
    (tmp_path / "x.gguf").write_text("x")
    with pytest.raises(GreenError, match="cannot be read as GGUF"):
        open_checkpoint(tmp_path / "x.gguf")


def test_the_repeated_blocks(llama, bert):
    assert blocks_of(open_checkpoint(llama).skeleton())[0] == "model.layers"
    assert blocks_of(open_checkpoint(bert).skeleton())[0] == "encoder.layer"


def test_gguf_is_converted_once_and_equals_its_source(tmp_path, monkeypatch):
    """A GGUF written with the gguf package from a known model comes back as that model."""
    import gguf

    path = make_llama(tmp_path / "m", vocab=300)
    monkeypatch.setenv("GREENLLM_CACHE", str(tmp_path / "cache"))
    write_gguf(gguf, path, tmp_path / "tiny.gguf")
    found = open_checkpoint(tmp_path / "tiny.gguf")
    assert [p.kind for p in found.parents] == ["gguf"]
    x = torch.arange(3, 40)[None]
    with torch.no_grad():
        want = open_checkpoint(path).load_model()(x).logits
        got = found.load_model()(x).logits
        torch.testing.assert_close(got, want[..., : got.shape[-1]], rtol=1e-4, atol=1e-4)
    assert source.resolve(tmp_path / "tiny.gguf")[0] == found.path


def write_gguf(gguf, path, out):
    """The least that a Llama needs: names and q/k rows in llama.cpp's order."""
    config = json.loads((path / "config.json").read_text())
    tokens = [*json.loads((path / "tokenizer.json").read_text())["model"]["vocab"], "ab", "cd"]
    w = gguf.GGUFWriter(out, "llama")
    w.add_context_length(256)
    w.add_embedding_length(64)
    w.add_block_count(2)
    w.add_feed_forward_length(192)
    w.add_head_count(4)
    w.add_head_count_kv(2)
    w.add_layer_norm_rms_eps(config["rms_norm_eps"])
    w.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("gpt2")
    w.add_token_list(tokens)
    w.add_token_types([1] * len(tokens))
    w.add_token_merges(["a b", "c d"])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for key, value in load_file(path / "model.safetensors").items():
        module, _, leaf = key.rpartition(".")
        for proj, heads in (("q_proj", 4), ("k_proj", 2)):
            if module.endswith(proj):
                value = value.view(heads, 2, -1, 64).transpose(1, 2).reshape(-1, 64)  # noqa: PLW2901 - llama.cpp's order
        if key == "model.embed_tokens.weight":
            value = value[: len(tokens)]  # noqa: PLW2901 - as many rows as tokens
        w.add_tensor(f"{names.get_name(module)}.{leaf}", value.contiguous().numpy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("empty.txt", "  \n", "nothing in it"),
        ("short.txt", "a few words", "has .* tokens; 4 samples of 32 need 128"),
        ("bad.jsonl", '{"text": "x"}\nnot json\n', "line 2: not JSON"),
        ("none.jsonl", '{"label": 3}\n', "line 1: no text"),
        ("words.csv", "a,b", "read from .txt and .jsonl"),
    ],
)
def test_calibration_files_with_nothing_to_use(llama, tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(GreenError, match=says):
        calibration.samples(open_checkpoint(llama), str(tmp_path / name), 4, 32, 0)


def people(path, rows):
    path.write_text("".join(json.dumps({"text": f"{w} " * 40, "who": w}) + "\n" for w in rows))
    return str(path)


def test_calibration_has_as_much_of_each_group(llama, tmp_path):
    checkpoint = open_checkpoint(llama)
    file = people(tmp_path / "t.jsonl", ["many"] * 60 + ["few"] * 9 + ["none"] * 9)
    ids = calibration.samples(checkpoint, file, 7, 16, 0, balance="who")
    tokenizer = Tokenizer.from_file(str(llama / "tokenizer.json"))
    found = [tokenizer.decode(row.tolist()).split()[1] for row in ids]
    assert [found.count(w) for w in ("few", "many", "none")] == [3, 2, 2]


@pytest.mark.parametrize(
    ("rows", "key", "count", "says"),
    [
        (["a", "b"], "age", 4, "text 1: no word or number at 'age'"),
        (["a", "a"], "who", 4, "the same 'who'"),
        (["a", "b", "c"], "who", 2, "3 groups by 'who', and 2 samples"),
        (["a"] * 40 + ["few"], "who", 12, "who 'few', has .* tokens; 6 samples of 64 need"),
    ],
)
def test_groups_that_cannot_be_balanced(llama, tmp_path, rows, key, count, says):
    file = people(tmp_path / "t.jsonl", rows)
    with pytest.raises(GreenError, match=says):
        calibration.samples(open_checkpoint(llama), file, count, 64, 0, balance=key)


def test_a_balance_of_what_has_no_groups_is_refused_before_the_work(llama, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("the quick brown fox " * 100)
    for origin in (str(text), "self"):
        with pytest.raises(GreenError, match=r"Balance the texts of a \.jsonl"):
            calibration.check_balance(origin, "who", open_checkpoint(llama))


def test_calibration_is_the_same_for_the_same_seed(llama, tmp_path):
    checkpoint = open_checkpoint(llama)
    (tmp_path / "t.txt").write_text("the quick brown fox " * 100)
    for origin in ("self", str(tmp_path / "t.txt")):
        a, b, c = (calibration.samples(checkpoint, origin, 4, 16, seed) for seed in (0, 0, 1))
        assert a.shape == (4, 16)
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@pytest.mark.parametrize("same", [True, False])
def test_a_head_that_is_said_to_be_the_embedding_and_is_not(tmp_path, same):
    """Transformers takes both as they lie there; so do we, or what was trained apart would be lost without a word."""
    from transformers import AutoModelForCausalLM

    path = make_llama(tmp_path / "m")
    weights = load_file(path / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = embedding.clone() if same else embedding.flip(0).contiguous()
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    found = open_checkpoint(path)
    assert found.tied is same
    assert ("lm_head.weight" in found.names()) is not same
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        want = AutoModelForCausalLM.from_pretrained(path)(ids).logits
        torch.testing.assert_close(found.load_model()(ids).logits, want, rtol=0, atol=0)
    found.write_dense(tmp_path / "copy")
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")(ids).logits
    torch.testing.assert_close(again, want, rtol=0, atol=0)

"""GGUF out: llama.cpp and transformers read back the model that went in, and what does not fit is refused by name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import make_llama
from transformers import AutoModelForCausalLM

import greenllm
from greenllm import artifact, pipeline, recipe
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.export import export, gguf_blocks
from greenllm.export.gguf_tokenizer import rule_of

PROMPT = [40, 5, 77, 130, 9, 61, 200, 33]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny Llama with grouped-query attention, more rows than tokens, and a merge, which llama.cpp insists on."""
    path = make_llama(tmp_path_factory.mktemp("gguf") / "source", vocab=300)
    file = path / "tokenizer.json"
    held = json.loads(file.read_text(encoding="utf-8"))
    held["model"]["vocab"]["zz"] = len(held["model"]["vocab"])
    held["model"]["merges"] = [["z", "z"]]
    file.write_text(json.dumps(held), encoding="utf-8")
    return path


def logits(path):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(path)(torch.tensor([PROMPT])).logits[0].numpy()


@pytest.mark.parametrize(("kind", "tolerance"), [("f32", 1e-6), ("f16", 2e-3), ("q8_0", 2e-2), ("q4_0", 0.4)])
def test_what_transformers_reads_back_is_what_went_in(source, tmp_path, kind, tolerance):
    made = export(source, tmp_path / kind, to="gguf", precision=kind)
    artifact.open_verified(made.path)
    back = open_checkpoint(made.path / "model.gguf").path  # transformers' reader of GGUF
    want, got = logits(source), logits(back)
    error = np.abs(got - want).max() / np.abs(want).max()
    assert error <= tolerance
    assert kind == "f32" or error > 0


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_llamacpp_says_what_torch_says_of_the_same_weights(source, tmp_path, kind):
    pytest.importorskip("llama_cpp", reason='pip install "greenllm[peers]"')
    from greenllm.bench.models import find
    from greenllm.bench.runners import loader

    made = export(source, tmp_path / kind, to="gguf", precision=kind)
    target = find(made)
    assert target.runner == "llamacpp"
    runner = loader(target.runner).load(target.path, 1)
    want = logits(open_checkpoint(made.path / "model.gguf").path)
    got = runner.logits(PROMPT)
    # llama.cpp rounds a quantized matrix's inputs to 8 bits on the way
    np.testing.assert_allclose(got, want, atol=(5e-3 if kind == "f16" else 4e-2) * np.abs(want).max())


def test_packed_codes_go_into_blocks_as_they_are(source, tmp_path):
    file = tmp_path / "rtn.yaml"
    file.write_text("steps: [{quantize: {method: rtn}}]\n", encoding="utf-8")
    packed = pipeline.run_steps(source, tmp_path / "packed", recipe.load(file))
    made = export(packed, tmp_path / "out", to="gguf")
    checked = made.manifest.details
    assert "Q4_0" in checked["types"]
    assert checked["verified"]["max_relative_error"]["Q4_0"] == 0
    with pytest.raises(GreenError, match="quantized already"):
        export(packed, tmp_path / "no", to="gguf", precision="q8_0")
    assert not (tmp_path / "no").exists()


def test_one_command_from_a_checkpoint(source, tmp_path):
    made = greenllm.compress(source, tmp_path / "out", recipe="int8", to="gguf", bench=False)
    deployed = artifact.open_verified(made.path).deployable
    assert (deployed.kind, deployed.manifest.details["verified"]["max_relative_error"]["Q8_0"]) == ("gguf", 0)
    error = np.abs(logits(open_checkpoint(deployed.path / "model.gguf").path) - logits(source)).max()
    assert 0 < error <= 2e-2 * np.abs(logits(source)).max()


def test_what_is_not_written_is_refused_by_name(source, bert, tmp_path):
    with pytest.raises(GreenError, match="BertModel is not written as GGUF here"):
        export(bert, tmp_path / "out", to="gguf")
    with pytest.raises(GreenError, match="No GGUF type is called 'q5_1'"):
        export(source, tmp_path / "out", to="gguf", precision="q5_1")
    with pytest.raises(GreenError, match="says nothing to onnx"):
        export(source, tmp_path / "out", to="onnx", precision="q8_0")
    partial = shutil.copytree(source, tmp_path / "partial")
    config = json.loads((partial / "config.json").read_text(encoding="utf-8"))
    (partial / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}), encoding="utf-8")
    with pytest.raises(GreenError, match="the activation gelu"):
        export(partial, tmp_path / "out", to="gguf")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_llamacpp_does_not_have(tmp_path):
    held = {"model": {"type": "WordPiece"}, "pre_tokenizer": {"type": "BertPreTokenizer"}, "normalizer": None}
    with pytest.raises(GreenError, match=r"WordPiece \+ BertPreTokenizer"):
        rule_of(held, tmp_path)


def test_an_error_beyond_a_type_is_seen():
    want = np.full((1, 32), 0.5, np.float32)
    assert gguf_blocks.error(want, want) == 0
    assert gguf_blocks.error(want * 1.01, want) > gguf_blocks.BOUNDS[gguf_blocks.TYPES["q8_0"]]
    assert not gguf_blocks.error(want * np.float32("nan"), want) <= 1

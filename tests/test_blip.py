"""BLIP's captioner: loaded, quantized, exported, benched and asked as transformers' own class and processor do."""

from __future__ import annotations

import json

import captioners
import numpy as np
import pytest
import torch
from conftest import edit, ran
from PIL import Image
from safetensors.torch import load_file, save_file
from test_captions import TINY
from transformers import (
    AutoTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    BlipModel,
    BlipProcessor,
    BlipTextConfig,
)

import greenllm
from greenllm import captions, images, pipeline, recipe
from greenllm.bench.results import Results
from greenllm.bench.runners import loader
from greenllm.bench.tensors import bytes_by_kind, bytes_by_part
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.tokens import Tokenizer
from greenllm.walk import Walk

LAYERS = 2 * 4 + 2 * 10  # linears of two blocks each: qkv, projection, MLP; both attentions 4 each, MLP


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return captioners.home(tmp_path_factory.mktemp("blip"), captioners.build_blip(), captioners.save_blip)


@pytest.fixture(scope="module")
def int8(home):
    """The whole command: quantized, exported, verified, and measured beside its source."""
    run = {"tasks": [home / "see/captions.jsonl"], "effort": TINY, "threads": 1, "energy": False}
    return greenllm.compress(home / "taught", home / "int8", "int8", bench_options=run)


def theirs(path, files, most):
    """Pixels of ``BlipProcessor``, and the tokens that transformers' own ``generate`` writes after the first."""
    model = BlipForConditionalGeneration.from_pretrained(path).eval()
    processor = BlipProcessor(BlipImageProcessorPil.from_pretrained(path), AutoTokenizer.from_pretrained(path))
    for file in files:
        given = processor(images=Image.open(file), return_tensors="pt")
        ids = model.generate(**given, max_new_tokens=most, do_sample=False, num_beams=1)[0].tolist()
        yield given["pixel_values"][0].numpy(), ids[1:]


def check_same(source, want, dense):
    """A checkpoint says what transformers' model does, and what is written of it too."""
    source.write_dense(dense)
    pixels, ids = torch.randn(2, 3, 32, 32), torch.randint(3, 128, (2, 6))
    logits = want(pixel_values=pixels, input_ids=ids).logits
    assert torch.equal(source.load_model()(pixel_values=pixels, decoder_input_ids=ids).logits, logits)
    again = BlipForConditionalGeneration.from_pretrained(dense).eval()
    assert torch.equal(again(pixel_values=pixels, input_ids=ids).logits, logits)


@torch.no_grad()
@pytest.mark.parametrize(("outer", "inner"), [(True, True), (False, False), (True, False), (False, True)])
def test_a_checkpoint_is_what_transformers_reads_and_comes_back_as_one(tmp_path, outer, inner):
    """Head and embedding are one matrix where either part of the configuration says so."""
    captioners.save_blip(captioners.build_blip(tied=outer or inner), tmp_path / "it")
    words = json.loads((tmp_path / "it/config.json").read_text())["text_config"]
    edit(tmp_path / "it/config.json", tie_word_embeddings=outer, text_config=words | {"tie_word_embeddings": inner})
    want = BlipForConditionalGeneration.from_pretrained(tmp_path / "it").eval()
    source = open_checkpoint(tmp_path / "it")
    assert (source.task, source.tied, source.image_shape) == ("image-to-text", outer or inner, (3, 32, 32))
    assert source.parameters == sum(p.numel() for p in want.parameters())
    check_same(source, want, tmp_path / "dense")


@torch.no_grad()
@pytest.mark.parametrize(("tied", "lost"), [(False, None), (False, "decoder.bias"), (True, "bias")])
def test_heads_that_transformers_4_trained_are_read_as_transformers_5_reads_them(tmp_path, tied, lost):
    """Its files say that head and embedding are one, hold both unlike, and keep the head's bias once."""
    captioners.save_blip(captioners.build_blip(tied=tied), tmp_path / "it")
    words = json.loads((tmp_path / "it/config.json").read_text())["text_config"]
    edit(tmp_path / "it/config.json", tie_word_embeddings=True, text_config=words | {"tie_word_embeddings": True})
    held, head = load_file(tmp_path / "it/model.safetensors"), "text_decoder.cls.predictions."
    if tied:
        held[f"{head}decoder.bias"] = held[f"{head}bias"]
    if lost:
        del held[head + lost]
    save_file(held, tmp_path / "it/model.safetensors", {"format": "pt"})
    want = BlipForConditionalGeneration.from_pretrained(tmp_path / "it").eval()
    source = open_checkpoint(tmp_path / "it")
    assert source.tied == tied
    check_same(source, want, tmp_path / "dense")


@torch.no_grad()
def test_a_decoder_sees_what_the_changed_encoder_says(tmp_path):
    """The walk through both ends where transformers' model, changed alike, ends."""
    want = captioners.build_blip()
    captioners.save_blip(want, tmp_path / "it")
    told = [([1, 5, 9, 3], torch.randn(1, 3, 32, 32)), ([1, 7], torch.randn(1, 3, 32, 32))]
    batches = [{"pixel_values": x, "decoder_input_ids": torch.tensor([ids])} for ids, x in told]

    def louder(name, block, forward):
        if name.startswith("vision_model"):
            block.mlp.fc2.weight.mul_(3)
        forward()  # looked at twice, as quantizers do: no cache may grow
        return {}

    walk = Walk(open_checkpoint(tmp_path / "it"), batches, tmp_path / "walk")
    walk.run(louder)
    for block in want.vision_model.encoder.layers:
        block.mlp.fc2.weight.mul_(3)
    head = want.text_decoder.get_output_embeddings()
    for (ids, x), found in zip(told, walk.head_inputs(walk.model.get_output_embeddings()), strict=True):
        logits = want(pixel_values=x, input_ids=torch.tensor([ids])).logits[0]
        torch.testing.assert_close(head(found), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_both_runners_see_and_write_what_transformers_does(home, tmp_path, seed):
    """The token that ends a caption is ``sep_token_id``, whatever others the files name."""
    files = [home / f"see/{i}.png" for i in range(4)]
    path = tmp_path / "it"
    captioners.save_blip(captioners.build_blip(seed=seed, sep_token_id=127, eos_token_id=9), path)
    wrote = [ids for _, ids in theirs(path, files, 12)]
    assert len({tuple(ids) for ids in wrote}) > 1  # it does look
    words, end = json.loads((path / "config.json").read_text())["text_config"], wrote[0][5]
    edit(path / "config.json", text_config=words | {"sep_token_id": end, "eos_token_id": wrote[0][0]})
    assert captions.script(path) == captions.Script((captioners.START,), (end,))
    want = list(theirs(path, files, 12))
    assert want[0][1][-1] == end
    done = greenllm.export(path, tmp_path / "onnx")
    assert captions.script(done.path) == captions.script(path)
    for name, where in (("torch", path), ("onnxruntime", done.path)):
        runner = loader(name).load(str(where), 1)
        for file, (pixels, ids) in zip(files, want, strict=True):
            np.testing.assert_allclose(runner.view(str(file)), pixels, rtol=0, atol=1e-6)
            assert list(runner.stream(runner.view(str(file)), 12))[: len(ids)] == ids


@torch.no_grad()
def test_quantized_checkpoints_write_and_calibration_brings_them_nearer(home, tmp_path):
    words = torch.tensor([[captioners.START, *Tokenizer(home / "taught").plain("this one is blue all over")]])
    batch = {"pixel_values": torch.from_numpy(images.read([home / "see/2.png"], images.Processor(home / "taught"))),
             "input_ids": words}  # fmt: skip
    want = BlipForConditionalGeneration.from_pretrained(home / "taught").eval()(**batch).logits
    errors = {}
    for method in ("rtn", "hqq", "gptq"):
        step = {"method": method, "bits": 4, "head_bits": 4}
        made = recipe.Recipe(
            name="q", steps=[recipe.make_step("quantize", step, "test")],
            calibration={"source": str(home / "learn/captions.jsonl"), "samples": 24},
        )  # fmt: skip
        done = pipeline.run_steps(home / "taught", tmp_path / method, made)
        packed = {name for name, _ in open_checkpoint(done.path).packed()}
        assert len(packed) == LAYERS + 1
        assert "vision_model.encoder.layers.1.self_attn.qkv" in packed
        assert "text_decoder.bert.encoder.layer.0.crossattention.self.key" in packed
        assert "text_decoder.cls.predictions.decoder" in packed
        open_checkpoint(done.path).write_dense(tmp_path / f"{method}-dense")
        stock = BlipForConditionalGeneration.from_pretrained(tmp_path / f"{method}-dense").eval()
        errors[method] = float((stock(**batch).logits - want).norm() / want.norm())
    assert 0 < errors["gptq"] < errors["rtn"] < 0.5
    assert 0 < errors["hqq"] < 0.5


def test_both_graphs_hold_integers_and_write_what_transformers_does(int8, home, capsys):
    found = int8.deployable.manifest.details
    assert (found["task"], found["stored_bits"]) == ("image-to-text", [8])
    assert (found["operators"]["MatMulNBits"], found["operators"]["GatherBlockQuantized"]) == (LAYERS + 1, 1)
    assert 0 < found["verified"]["kl_divergence"] < 1e-3
    assert found["verified"]["max_relative_error"] < 0.05
    dense, small = Results.from_json((int8.path / "report.json").read_text()).rows
    (told,), (kept,) = dense.tasks.values(), small.tasks.values()
    tokenizer, files = Tokenizer(home / "taught"), [home / f"see/{i}.png" for i in range(12)]
    assert told.written == [tokenizer.words(ids[:-1]) for _, ids in theirs(home / "taught", files, 40)]
    assert told.scores["bleu"].measured.value > 60
    assert abs(kept.scores["bleu"].against.difference.value) < 1
    assert small["caption"].unit == "ms"
    sees = BlipForConditionalGeneration.from_pretrained(home / "taught").vision_model
    assert bytes_by_part(home / "taught", "torch", home, "image-to-text")["encoder"] == 4 * sees.num_parameters()
    assert not {"vision", "projector"} & set(bytes_by_kind(int8.deployable.path, "onnxruntime", home))
    for i, colour in enumerate(captioners.COLOURS):
        code, out, _ = ran(capsys, int8.path, "--image", home / f"see/{i}.png")
        assert (code, out.strip()) == (0, f"this one is {colour} all over")
    code, _, said = ran(capsys, int8.path, "what is it?", "--image", home / "see/0.png")
    assert (code, "takes an image alone" in said) == (1, True)


def test_what_a_configuration_leaves_out_is_transformers_own(tmp_path):
    words = BlipTextConfig()
    for text in ({}, {"num_hidden_layers": 2}, None):
        (tmp_path / "config.json").write_text(
            json.dumps({"architectures": ["BlipForConditionalGeneration"], "model_type": "blip", "text_config": text})
        )
        captioners.make_tokenizer(tmp_path)
        assert captions.script(tmp_path) == captions.Script((words.bos_token_id,), (words.sep_token_id,))
        assert Tokenizer(tmp_path).context == words.max_position_embeddings


@pytest.mark.parametrize(("changed", "says"), [
    ({"sep_token_id": None}, "sep_token_id of text_config is None"),
    ({"bos_token_id": 128}, "bos_token_id of text_config is 128"),
    ({"is_decoder": False}, "its decoder, BlipTextLMHeadModel, has no cross attention"),
    ({"vocab_size": 120}, r"is \(128, 64\), but config.json says \(120, 64\)"),
])  # fmt: skip
def test_a_damaged_configuration_is_named(tmp_path, changed, says):
    captioners.save_blip(captioners.build_blip(), tmp_path / "it")
    words = json.loads((tmp_path / "it/config.json").read_text())["text_config"]
    edit(tmp_path / "it/config.json", text_config=words | changed)
    for do in (greenllm.export, lambda path, out: greenllm.compress(path, out, "int8", bench=False)):
        with pytest.raises(GreenError, match=says):
            do(tmp_path / "it", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_models_of_its_kind_are_refused_by_name(tmp_path):
    config = captioners.build_blip().config
    for kind in (BlipForQuestionAnswering, BlipForImageTextRetrieval):
        kind(BlipConfig.from_dict(config.to_dict())).save_pretrained(tmp_path / kind.__name__)
        with pytest.raises(GreenError, match=f"{kind.__name__!r} is not supported"):
            open_checkpoint(tmp_path / kind.__name__)
    BlipModel(BlipConfig.from_dict(config.to_dict())).save_pretrained(tmp_path / "pair")
    assert open_checkpoint(tmp_path / "pair").task == "zero-shot-image-classification"

"""bitsandbytes: its own bytes in and out, the same bytes in ONNX Runtime, dense before any forward."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
from conftest import FUSED, damaged_copy, first_blocks
from safetensors.torch import load_file
from test_export_quantized import Source, X, Y, write_graph, x
from test_export_quantized import run as run_graph

import greenllm
from greenllm import pipeline, recipe
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.export.graph import Weights
from greenllm.export.quantized import quantize_graph
from greenllm.quantize.bnb import BLOCKS, Blockwise, unpack
from greenllm.quantize.bnb_step import pack

bnb = pytest.importorskip("bitsandbytes")
functional = bnb.functional

PROMPT = torch.tensor([[5, 17, 33, 21, 64, 9, 80]])
KINDS = [{"kind": "nf4"}, {"kind": "fp4", "block": 32}, {"kind": "nf4", "double_quant": True}, {"kind": "int8"}]
Q_PROJ = "model.layers.1.self_attn.q_proj"


def convert(model, out, **options):
    step = recipe.make_step("bitsandbytes", options, "bitsandbytes")
    return pipeline.run_steps(model, out, recipe.Recipe(name="t", steps=[step])).path


def logits(model):
    with torch.no_grad():
        return model(input_ids=PROMPT).logits[0]


def stock(path):
    """The checkpoint as transformers and bitsandbytes load it."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


@pytest.fixture(scope="module")
def made(llama, tmp_path_factory):
    """Checkpoints of the tiny Llama by their options, made once."""
    home, found = tmp_path_factory.mktemp("bnb"), {}

    def make(**options):
        key = json.dumps(options)
        if key not in found:
            found[key] = convert(llama, home / str(len(found)), **options)
        return found[key]

    return make


@pytest.fixture
def damaged(made, tmp_path):
    """Copies a checkpoint with some tensors changed, and opens it."""

    def damage(change, **options):
        return damaged_copy(made(**options), tmp_path, change)

    return damage


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("double_quant", [False, True])
def test_weights_are_dequantized_bit_for_bit_as_bitsandbytes_does(kind, block, double_quant):
    W = torch.randn(24, 2 * block, generator=torch.Generator().manual_seed(block))
    W[3] = 0
    octets, state = functional.quantize_4bit(W, blocksize=block, quant_type=kind, compress_statistics=double_quant)
    found = unpack(pack(W, kind, block, double_quant=double_quant))
    assert isinstance(found, Blockwise)
    assert torch.equal(found.octets.flatten(), octets.flatten())
    assert torch.equal(found.dequantize(), functional.dequantize_4bit(octets, state))


def test_int8_is_what_bitsandbytes_stands_for():
    W = torch.randn(24, 96, generator=torch.Generator().manual_seed(0))
    W[3] = 0
    module = bnb.nn.Int8Params(W.clone(), requires_grad=False).to("cpu")
    parts = pack(W, "int8", 64, double_quant=False)
    assert torch.equal(parts["weight"], module.CB)
    assert torch.equal(parts["SCB"], module.SCB)
    want = functional.int8_vectorwise_dequant(module.CB, module.SCB)
    torch.testing.assert_close(unpack(parts).dequantize(), want, rtol=2e-7, atol=0)


@pytest.mark.parametrize("options", KINDS[:3], ids=str)
def test_stock_transformers_loads_4_bits_and_says_the_same(made, options):
    path = made(**options)
    model = stock(path)
    assert sum(isinstance(m, bnb.nn.Linear4bit) for m in model.modules()) == 2 * 7
    for m in model.modules():
        m.support_avx512bf16_for_cpu = False  # compare weights, not its bf16 kernel
    torch.testing.assert_close(logits(open_checkpoint(path).load_model()), logits(model), rtol=1e-5, atol=1e-5)


def test_stock_transformers_loads_int8(made):
    """Its forward rounds activations too, so weights are compared."""
    path = made(kind="int8")
    model, ours = stock(path), open_checkpoint(path)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, bnb.nn.Linear8bitLt)}
    assert len(layers) == 2 * 7
    for name, m in layers.items():
        want = functional.int8_vectorwise_dequant(m.weight.data, m.weight.SCB)
        torch.testing.assert_close(ours.tensor(f"{name}.weight"), want, rtol=2e-7, atol=0)
    assert (logits(model).argmax(-1) == logits(ours.load_model()).argmax(-1)).float().mean() > 0.5


@pytest.mark.parametrize("options", [{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_8bit": True}])
def test_it_reads_and_equals_what_stock_transformers_saves(llama, made, tmp_path, options):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(**options)
    AutoModelForCausalLM.from_pretrained(llama, quantization_config=config, dtype=torch.float32).save_pretrained(
        tmp_path
    )
    theirs = open_checkpoint(tmp_path)
    own_path = made(kind="nf4" if config.load_in_4bit else "int8")
    own, saved = load_file(own_path / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert own.keys() == saved.keys()
    assert all(torch.equal(own[n], saved[n]) for n in own)
    assert torch.equal(logits(theirs.load_model()), logits(open_checkpoint(own_path).load_model()))
    said = [json.loads((p / "config.json").read_text())["quantization_config"] for p in (own_path, tmp_path)]
    assert said[0].keys() == said[1].keys()
    differ = {k for k in said[0] if said[0][k] != said[1][k]}
    assert differ <= {"llm_int8_skip_modules"}  # we name what they find out


def test_linears_outside_the_blocks_stay_as_they_are(bert, tmp_path):
    """BERT's pooler: transformers would make it 4-bit, and fail, if it were not named."""
    from transformers import AutoModel

    path = convert(bert, tmp_path / "q")
    model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    assert type(model.pooler.dense) is torch.nn.Linear
    assert sum(isinstance(m, bnb.nn.Linear4bit) for m in model.modules()) == 2 * 6
    for m in model.modules():
        m.support_avx512bf16_for_cpu = False
    with torch.no_grad():
        want, got = (m(input_ids=PROMPT)[0] for m in (model, open_checkpoint(path).load_model()))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_conv1d_weights_lie_as_bitsandbytes_wants_them(tmp_path):
    from conftest import make_tokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=128, n_embd=64, n_layer=1, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    ).save_pretrained(tmp_path / "m")
    make_tokenizer(tmp_path / "m")
    path = convert(tmp_path / "m", tmp_path / "q")
    model = stock(path)
    for m in model.modules():
        m.support_avx512bf16_for_cpu = False
    torch.testing.assert_close(logits(open_checkpoint(path).load_model()), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("block", [32, 64, 512])
def test_onnx_runtime_multiplies_by_the_same_bytes(tmp_path, kind, block):
    """Blocks past the kernel's 256 are cut; their absmax is repeated."""
    from onnx import TensorProto, helper

    k = max(64, block)
    weight = unpack(pack(torch.randn(48, k), kind, block, double_quant=False))
    dense = weight.dequantize().numpy()
    graph = write_graph(
        tmp_path / "d" / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": dense.T},
        [("x", TensorProto.FLOAT, ["b", "s", k])], [Y],
    )  # fmt: skip
    for form in ("nbits", "qdq"):
        out = tmp_path / f"{form}.onnx"
        done = quantize_graph(graph, out, Source(a=weight), form=form, accuracy_level=4)
        assert done.ops == {"MatMulBnb4": 1}
        stored = Weights(out)
        assert np.array_equal(stored.array("w.qweight"), weight.octets.numpy().flatten())
        repeats = len(stored.array("w.absmax")) // weight.absmax.numel()
        assert np.array_equal(stored.array("w.absmax")[::repeats], weight.absmax.numpy().flatten())
        eye = np.eye(k, dtype=np.float32)[None]
        assert np.array_equal(run_graph(out, {"x": eye})[0][0].T, dense)
        np.testing.assert_allclose(run_graph(out, {"x": x(k=k)})[0], x(k=k) @ dense.T, rtol=1e-4, atol=1e-4)


def test_fused_shuffled_and_mixed_rows(tmp_path):
    """Rows of two NF4 weights in any order, and beside them those of an int8 one, which is another operator."""
    from onnx import helper

    a, b = (unpack(pack(torch.randn(n, 64), "nf4", 64, double_quant=False)) for n in (32, 16))
    c = unpack(pack(torch.randn(16, 64), "int8", 64, double_quant=False))
    order = np.random.default_rng(0).permutation(48)
    rows = np.concatenate([w.dequantize().numpy() for w in (a, b)])[order]
    whole = np.concatenate([rows, c.dequantize().numpy()])
    graph = write_graph(
        tmp_path / "d" / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": whole.T}, [X], [Y]
    )
    done = quantize_graph(graph, tmp_path / "m.onnx", Source(a=a, b=b, c=c), form="nbits", accuracy_level=0)
    assert (done.ops["MatMulBnb4"], done.ops["MatMulNBits"], done.bits) == (1, 1, [4, 8])
    np.testing.assert_allclose(run_graph(tmp_path / "m.onnx", {"x": x()})[0], x() @ whole.T, rtol=1e-4, atol=1e-4)


def test_an_embedding_of_4_bits_is_refused(tmp_path):
    from onnx import TensorProto, helper

    w = unpack(pack(torch.randn(96, 64), "nf4", 64, double_quant=False))
    graph = write_graph(
        tmp_path / "d" / "m.onnx", [helper.make_node("Gather", ["w", "i"], ["y"])], {"w": w.dequantize().numpy()},
        [("i", TensorProto.INT64, ["b", "s"])], [Y],
    )  # fmt: skip
    with pytest.raises(GreenError, match="no runtime looks rows"):
        quantize_graph(graph, tmp_path / "m.onnx", Source(a=w), form="nbits", accuracy_level=0)


@pytest.mark.parametrize("to", ["genai", "onnx"])
@pytest.mark.parametrize("options", KINDS[1:], ids=str)
def test_exports_say_what_torch_says(made, tmp_path, to, options):
    done = greenllm.export(made(**options), tmp_path / "o", to=to)
    details = done.manifest.details
    int8 = options["kind"] == "int8"
    fused = FUSED if to == "genai" else 7
    assert details["operators"].get("MatMulBnb4", 0) == (0 if int8 else 2 * fused)
    assert details["stored_bits"] == [8 if int8 else 4]
    # NF4 and FP4 are multiplied in float32: no noise is excused
    assert details["verified"]["kl_divergence"] < (0.05 if int8 else 1e-6)
    held = {bytes(t) for t in _octets(done.path / "model.onnx")}
    stored = {n: t for n, t in load_file(made(**options) / "model.safetensors").items() if t.dtype == torch.uint8}
    theirs = [t.numpy().tobytes() for n, t in stored.items() if n.endswith("_proj.weight")]
    if not int8:
        assert len(theirs) == 14
        assert all(any(t in whole for whole in held) for t in theirs)  # the checkpoint's bytes, fused or not


def _octets(graph):
    weights = Weights(graph)
    return [weights.array(n).tobytes() for n in weights.by_name if n.endswith(".qweight")]


def test_no_module_of_bitsandbytes_runs_or_is_made(llama, tmp_path, monkeypatch):
    """Its Linear4bit repacks its bytes at a forward on some CPUs; we make none, from the first to the last step."""

    def never(*_, **__):
        raise AssertionError("a module of bitsandbytes was made")

    for cls in (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt):
        monkeypatch.setattr(cls, "__init__", never)
    for kind in ("nf4", "int8"):
        done = convert(llama, tmp_path / kind, kind=kind)
        greenllm.export(done, tmp_path / f"{kind}-onnx", to="onnx")
    with pytest.raises(AssertionError):
        bnb.nn.Linear4bit(64, 64)


@pytest.mark.parametrize("real", [False, True], ids=["forced", "this CPU"])
def test_the_trap_is_real_and_the_file_is_out_of_its_reach(made, monkeypatch, real):
    """After the repacking that AVX512-BF16 brings, bitsandbytes dequantizes nonsense without a word; we do not."""
    if real and not functional.has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16")
    path = made(kind="nf4")
    model = stock(path)
    layer = model.get_submodule(Q_PROJ)
    want = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    ours = open_checkpoint(path)
    assert torch.equal(ours.tensor(f"{Q_PROJ}.weight"), want)
    layer.support_avx512bf16_for_cpu = True
    if not real:  # stop behind the repacking, which is plain torch: this CPU has no kernel for what comes next
        monkeypatch.setattr(bnb, "matmul_4bit", lambda x, *_, **__: torch.zeros(*x.shape[:-1], 64))
    with torch.no_grad():
        layer(torch.randn(1, 3, 64))
    state = layer.weight.quant_state
    assert state.packing_format_for_cpu
    state.absmax = state.absmax.float()  # as its kernel would
    after = functional.dequantize_4bit(layer.weight.data, state).float()
    assert (after.flatten() - want.flatten()).norm() > 0.5 * want.norm()
    assert torch.equal(ours.tensor(f"{Q_PROJ}.weight"), want)
    assert torch.equal(ours.load_model().get_submodule(Q_PROJ).weight, want)


def test_what_was_saved_after_the_repacking_is_refused(damaged):
    """Its absmax is [K / block, N] in bf16 then."""

    def repack(t):
        octets, state = t[f"{Q_PROJ}.weight"], functional.QuantState(t[f"{Q_PROJ}.weight.absmax"])
        state.shape, state.blocksize, state.dtype = (64, 64), 64, torch.float32
        t[f"{Q_PROJ}.weight"], state = functional._convert_weight_packed_for_cpu(octets, state)
        t[f"{Q_PROJ}.weight.absmax"] = state.absmax

    with pytest.raises(GreenError, match=rf"{Q_PROJ} is not valid.*do not fit"):
        damaged(repack, kind="nf4").load_model()


def _say(**changes):
    """Change what quant_state says."""

    def change(t):
        key = f"{Q_PROJ}.weight.quant_state.bitsandbytes__nf4"
        said = json.loads(t[key].numpy().tobytes()) | changes
        t[key] = torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8)

    return change


def _cut(part, rows):
    return lambda t: t.update({f"{Q_PROJ}.{part}": t[f"{Q_PROJ}.{part}"][:rows].clone()})


def _put(part, index, value):
    return lambda t: t[f"{Q_PROJ}.{part}"].__setitem__(index, value)


NF4, NESTED, INT8 = {"kind": "nf4"}, {"kind": "nf4", "double_quant": True}, {"kind": "int8"}


@pytest.mark.parametrize(
    ("options", "change", "says"),
    [
        (NF4, _cut("weight.quant_state.bitsandbytes__nf4", 20), "not valid.*JSON"),
        (NF4, _say(quant_type="nf3"), "quant_type"),
        (NF4, _say(quant_type="fp4"), "says fp4"),
        (NF4, _say(blocksize=48), "Blocks of 48"),
        (NF4, _say(blocksize=128), "Blocks of 128 do not divide"),
        (NF4, _say(blocksize=32), "do not fit"),
        (NF4, _say(shape=[64, 128]), "do not fit"),
        (NF4, _say(shape=[-64, -64]), "not valid"),
        (NF4, _say(shape=[4096]), "shape"),
        (NF4, _cut("weight.absmax", 63), "do not fit"),
        (NF4, _cut("weight", 2000), "do not fit"),
        (NF4, _cut("weight.quant_map", 15), "not valid"),
        (NF4, _put("weight.quant_map", 3, 0.5), "not the table of nf4"),
        (NF4, _put("weight.absmax", 5, float("nan")), "NaN"),
        (NF4, lambda t: t.pop(f"{Q_PROJ}.weight.quant_map"), "quant_map' is missing"),
        (NF4, lambda t: t.pop(f"{Q_PROJ}.weight.absmax"), "uint8 without its scales"),
        (NF4, lambda t: t.pop(f"{Q_PROJ}.weight.quant_state.bitsandbytes__nf4"), "0 entries quant_state"),
        (NESTED, _cut("weight.nested_absmax", 0), "serve 0 of 64"),
        (NESTED, _cut("weight.nested_quant_map", 200), "200 values"),
        (NESTED, _say(nested_blocksize=10**12), "nested_blocksize"),
        (NESTED, _say(nested_offset=float("inf")), "not valid"),
        (INT8, lambda t: t.pop(f"{Q_PROJ}.SCB"), "int8 without its scales"),
        (INT8, _cut("SCB", 63), "does not fit"),
        (INT8, _put("SCB", 5, float("inf")), "infinity"),
        (
            INT8,
            lambda t: t.update({f"{Q_PROJ}.weight_format": torch.tensor(2, dtype=torch.uint8)}),
            "order of some GPU",
        ),
    ],
)
def test_damaged_weights_are_named(damaged, options, change, says):
    checkpoint = damaged(change, **options)
    with pytest.raises(GreenError, match=says) as told:
        checkpoint.load_model()
    assert Q_PROJ in told.value.what


@pytest.mark.parametrize(
    ("options", "says"),
    [({"block": 128}, r"q_proj: blocks of 128 do not divide 64"), ({"kind": "nf5"}, "kind"), ({"block": 48}, "block")],
)
def test_options_that_cannot_be(llama, tmp_path, options, says):
    with pytest.raises(GreenError, match=says):
        convert(llama, tmp_path / "q", **options)
    assert not (tmp_path / "q").exists()


def test_quantized_weights_are_not_quantized_again(made, tmp_path):
    for step in ("bitsandbytes", "quantize"):
        with pytest.raises(GreenError, match="quantized already"):
            pipeline.run_steps(
                made(kind="nf4"), tmp_path / "q", recipe.Recipe(steps=[recipe.make_step(step, {}, step)])
            )


def test_weights_past_fp16_are_refused_for_int8():
    with pytest.raises(GreenError, match="past its range"):
        pack(torch.full((4, 64), 1e6), "int8", 64, double_quant=False)


def test_without_bitsandbytes_one_can_read_but_not_write(llama, made, tmp_path, monkeypatch):
    path = made(kind="nf4")
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    assert open_checkpoint(path).tensor(f"{Q_PROJ}.weight").shape == (64, 64)
    with pytest.raises(GreenError, match="not installed") as told:
        convert(llama, tmp_path / "q")
    assert "greenllm[bnb]" in told.value.fix


def test_a_real_model(smollm2, tmp_path):
    """The first blocks of SmolLM2: written, loaded by transformers, exported."""
    path = convert(first_blocks(smollm2, tmp_path / "m", 2), tmp_path / "q")
    model = stock(path)
    for m in model.modules():
        m.support_avx512bf16_for_cpu = False
    torch.testing.assert_close(logits(open_checkpoint(path).load_model()), logits(model), rtol=1e-4, atol=1e-3)
    done = greenllm.export(path, tmp_path / "o", to="onnx")
    assert done.manifest.details["operators"]["MatMulBnb4"] == 14
    assert done.manifest.details["verified"]["kl_divergence"] < 1e-6

"""8-bit floats: the numbers of the paper, the format of compressed-tensors, read by transformers and back."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import damaged_copy, first_blocks, make_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_cli import run

import greenllm
from greenllm import pipeline, recipe
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.quantize import fp8

PROMPT = torch.tensor([[5, 17, 33, 21, 64, 9, 80]])
Q_PROJ = "model.layers.1.self_attn.q_proj"


def made_of(step, model, out):
    return pipeline.run_steps(model, out, recipe.Recipe(name="t", steps=[recipe.make_step(step, {}, step)])).path


@pytest.fixture(scope="module")
def small(llama, tmp_path_factory):
    return made_of("fp8", llama, tmp_path_factory.mktemp("fp8") / "q")


def value(octet):
    """Of a byte, by table 1 of the paper: bias 7, no infinities, one NaN a sign."""
    sign, exponent, mantissa = octet >> 7, (octet >> 3) & 15, octet & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    size = (1 + mantissa / 8) * 2.0 ** (exponent - 7) if exponent else mantissa / 8 * 2.0**-6
    return -size if sign else size


NUMBERS = torch.tensor([value(b) for b in range(256)])


def test_every_byte_is_the_number_of_the_paper():
    found = fp8.Float8(torch.arange(256, dtype=torch.uint8)[None], torch.ones(1)).dequantize()[0]
    torch.testing.assert_close(found, NUMBERS, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1e-30, 1e-6, 1e-2, 1.0, 1e3]))
def test_each_weight_goes_to_the_nearest_number(seed, size):
    W = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed)) * size
    found = fp8.round_to_float8(W)
    every = NUMBERS[~NUMBERS.isnan()] * found.scales[:, None]
    least = (every[:, None] - W[..., None]).abs().amin(-1)
    torch.testing.assert_close((found.dequantize() - W).abs(), least, rtol=1e-5, atol=1e-38)


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1e30))
def test_a_scale_is_exact_in_half_precision_and_reaches_the_largest(largest):
    scale = fp8.scale_of(torch.tensor(largest))
    assert scale == scale.bfloat16().float()
    assert largest / float(scale) <= 448 * (1 + 1e-6)
    assert float(scale) >= 2.0**-14
    assert float(scale) <= max(2.0**-14, largest / 448 * (1 + 2.0**-6))
    if float(scale) < 65504:
        assert scale == scale.half().float()


def test_inputs_are_rounded_to_the_grid_and_never_past_it():
    x = torch.tensor([[0.0, 0.3, -1.0, 1e6, -1e6]])
    assert fp8.Float8Grid(0.5).round(x).tolist() == [[0.0, 0.3125, -1.0, 224.0, -224.0]]
    each = fp8.Float8Grid(None).round(torch.tensor([[1.0, 0.5], [448.0, 3.0]]))
    torch.testing.assert_close(each, torch.tensor([[1.0, 0.5], [448.0, 3.0]]), rtol=0.07, atol=0)


def test_transformers_reads_it_and_says_the_same(llama, small):
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    theirs, info = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ours = open_checkpoint(small)
    model = ours.load_model()
    for name, grid in ours.inputs.items():
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, g=grid: (g.round(args[0]),))
    with torch.no_grad():
        want, got = (m.eval()(input_ids=PROMPT).logits for m in (theirs, model))
        dense = open_checkpoint(llama).load_model()(input_ids=PROMPT).logits
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    assert 0 < (got - dense).square().mean() / dense.square().mean() < 0.05


def test_what_is_stored(small):
    tensors = load_file(small / "model.safetensors")
    assert tensors[f"{Q_PROJ}.weight"].dtype == torch.float8_e4m3fn
    assert tensors[f"{Q_PROJ}.weight_scale"].shape == (64, 1)
    assert tensors[f"{Q_PROJ}.input_scale"].shape == (1,)
    assert tensors["model.embed_tokens.weight"].dtype == torch.float32
    same = {float(tensors[f"model.layers.1.self_attn.{n}_proj.input_scale"]) for n in "qkv"}
    assert len(same) == 1
    said = json.loads((small / "config.json").read_text())["quantization_config"]
    assert said["quant_method"] == "compressed-tensors"
    assert said["ignore"] == ["lm_head"]
    assert len(open_checkpoint(small).inputs) == 2 * 7


def test_the_same_again(llama, small, tmp_path):
    again = made_of("fp8", llama, tmp_path / "q")
    assert (again / "model.safetensors").read_bytes() == (small / "model.safetensors").read_bytes()


def test_a_real_model_loses_little(smollm2, tmp_path):
    """The first blocks of SmolLM2, weights and inputs rounded."""
    done = open_checkpoint(made_of("fp8", first_blocks(smollm2, tmp_path / "m", 3), tmp_path / "q"))
    model, dense = done.load_model(), open_checkpoint(tmp_path / "m").load_model()
    for name, grid in done.inputs.items():
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, g=grid: (g.round(args[0]),))
    ids = torch.arange(300, 364)[None]
    with torch.no_grad():
        p, q = (torch.log_softmax(m(input_ids=ids).logits.double(), -1) for m in (dense, model))
    assert float((p.exp() * (p - q)).sum(-1).mean()) < 0.02


@pytest.fixture
def damaged(small, tmp_path):
    return lambda change: damaged_copy(small, tmp_path, change)


def _set(part, tensor):
    return lambda tensors: tensors.update({f"{Q_PROJ}.{part}": tensor})


def _nan(tensors):
    octets = tensors[f"{Q_PROJ}.weight"].view(torch.uint8).clone()
    octets[3, 5] = 0xFF
    tensors[f"{Q_PROJ}.weight"] = octets.view(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(f"{Q_PROJ}.weight_scale"), "float8_e4m3fn without its scales"),
        (lambda t: t.pop(f"{Q_PROJ}.weight"), "weight is missing"),
        (_set("weight", torch.zeros(64, 64)), "not E4M3"),
        (_set("weight", torch.zeros(64, dtype=torch.float8_e4m3fn)), "not E4M3"),
        (_set("weight", torch.zeros(64, 32, dtype=torch.float8_e4m3fn)), "config.json says"),
        (_set("weight_scale", torch.ones(63, 1)), "one an output"),
        (_set("weight_scale", torch.ones(1, 64)), "one an output"),
        (_set("weight_scale", torch.ones(64, 2)), "one an output"),
        (_set("weight_scale", torch.full((64, 1), math.inf)), "NaN or infinity"),
        (_nan, "NaN or infinity"),
    ],
)
def test_damaged_weights_are_named(damaged, change, says):
    with pytest.raises(GreenError, match=says) as told:
        damaged(change).load_model()
    assert Q_PROJ in told.value.what


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_scales_of_inputs_that_are_none(damaged, scale):
    with pytest.raises(GreenError, match="is no scale"):
        _ = damaged(_set("input_scale", torch.tensor([scale]))).inputs


def test_one_scale_for_all_outputs(damaged):
    found = damaged(_set("weight_scale", torch.tensor([0.25])))
    octets = found.read_packed(Q_PROJ).octets
    torch.testing.assert_close(found.tensor(f"{Q_PROJ}.weight"), NUMBERS[octets.long()] * 0.25)


def test_inputs_with_a_scale_a_token_are_read_but_no_engine_runs_them(damaged, tmp_path):
    """As llm-compressor's FP8_DYNAMIC writes it."""
    found = damaged(lambda t: [t.pop(k) for k in list(t) if k.endswith("input_scale")])
    assert set(found.inputs.values()) == {fp8.Float8Grid(None)}
    with pytest.raises(GreenError, match="while the model runs"):
        greenllm.export(found.path, tmp_path / "o", target="jetson-agx-thor")


@pytest.mark.parametrize("words", [{"format": "pack-quantized"}, {"config_groups": {}}, {"config_groups": 3}])
def test_other_formats_of_compressed_tensors_are_refused(small, tmp_path, words):
    config = json.loads((small / "config.json").read_text())
    config["quantization_config"] |= words
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((small / "model.safetensors").read_bytes())
    with pytest.raises(GreenError, match="only float-quantized with one group is read"):
        open_checkpoint(tmp_path)


def test_what_cannot_be_is_refused(small, tmp_path):
    for step in ("fp8", "quantize"):
        with pytest.raises(GreenError, match="quantized already"):
            made_of(step, small, tmp_path / "q")
    for to in ("onnx", "genai", "gguf"):
        with pytest.raises(GreenError):
            greenllm.export(small, tmp_path / "o", to=to)
    assert not (tmp_path / "q").exists()
    assert not (tmp_path / "o").exists()


def test_gpt2s_layers_have_no_place_in_the_format(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=128)).save_pretrained(tmp_path / "m")
    with pytest.raises(GreenError, match="Conv1D"):
        made_of("fp8", tmp_path / "m", tmp_path / "q")


def test_inputs_that_are_no_numbers_are_named(tmp_path):
    model = make_llama(tmp_path / "m", tied=False)
    tensors = load_file(model / "model.safetensors")
    for name in ("gate", "up"):
        tensors[f"model.layers.0.mlp.{name}_proj.weight"] *= 1e30
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(GreenError, match=r"layers\.0\.mlp\.down_proj: .*NaN or infinity"):
        made_of("fp8", model, tmp_path / "q")


def test_from_the_command_line(llama, tmp_path, capsys):
    code, out, err = run(capsys, "fp8", llama, "-o", tmp_path / "q", "--samples", "4", "--length", "32")
    assert code == 0, err
    assert "MB" in out
    assert open_checkpoint(tmp_path / "q").quantized

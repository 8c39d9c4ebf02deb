"""Activation-aware scales: the search against oracles, and folds that leave a block's function as it was."""

from __future__ import annotations

import pytest
import torch
from conftest import FUSED, make_bert, make_llama
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

import greenllm
from greenllm import pipeline, recipe
from greenllm.blocks import blocks_of
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.quantize.awq import scale_block, scaled_error, search_scales
from greenllm.quantize.fold import Fold, find_folds, first_call, fold_in
from greenllm.quantize.gptq import error_in
from greenllm.quantize.grid import Grid
from greenllm.quantize.linear import linears
from greenllm.quantize.rtn import round_to_nearest

GRID = Grid(4, 32, symmetric=True)
SHAPE = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "num_hidden_layers": 2,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip


def outliers(n=32, k=64, seed=0):
    """A weight, and H of inputs of which some are much larger than the others."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(256, k, generator=g)
    X[:, torch.randperm(k, generator=g)[:4]] *= 30
    return torch.randn(n, k, generator=g), X.T @ X


@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_make_the_output_error_smaller(symmetric):
    W, H = outliers()
    grid = Grid(4, 32, symmetric)
    s = search_scales([W], H, grid)
    plain = error_in(H, W, round_to_nearest(W, grid, H.diagonal())).sum()
    assert scaled_error(W, H, s, grid) < 0.8 * plain
    assert (s > 0).all()


def test_the_error_is_that_of_the_outputs():
    """tr(D H D^T) against the products themselves."""
    W, _ = outliers()
    X = torch.randn(100, 64, generator=torch.Generator().manual_seed(1))
    s = torch.rand(64, generator=torch.Generator().manual_seed(2)) + 0.5
    H = X.T @ X
    Q = round_to_nearest(W * s, GRID, H.diagonal() / s**2).dequantize()
    want = ((X / s) @ Q.T - X @ W.T).square().sum().item()
    assert scaled_error(W, H, s, GRID) == pytest.approx(want, rel=1e-3)


def test_scales_are_never_worse_than_none_on_the_rows_searched():
    for seed in range(5):
        W, H = outliers(seed=seed)
        H = H if seed % 2 else torch.eye(64)  # also inputs that are all alike
        assert scaled_error(W, H, search_scales([W], H, GRID), GRID) <= scaled_error(W, H, torch.ones(64), GRID)


def test_weights_that_share_inputs_share_scales():
    W, H = outliers(64)
    assert torch.equal(search_scales([W[:24], W[24:]], H, GRID), search_scales([W], H, GRID))


def test_dead_inputs_keep_scales_in_bounds():
    W, H = outliers()
    H[5], H[:, 5] = 0, 0
    W[:, 7] = 0
    for h in (H, torch.zeros(64, 64)):
        s = search_scales([W], h, GRID)
        assert torch.isfinite(s).all()
        assert s.min() > 1e-3
        assert s.max() < 1e3


def test_inputs_with_nan_are_refused():
    W, H = outliers()
    H[0, 0] = torch.nan
    with pytest.raises(GreenError, match="NaN"):
        search_scales([W], H, GRID)


def model_of(kind):
    torch.manual_seed(0)
    model = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=4)),
        "grouped": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2)),
        "gemma": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, num_key_value_heads=2, head_dim=16)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=64)),
        "opt": lambda: OPTForCausalLM(OPTConfig(**SHAPE, ffn_dim=128, word_embed_proj_dim=64)),
        "bert": lambda: BertModel(BertConfig(**SHAPE)),
    }[kind]()
    for p in model.parameters():  # fresh norms are all ones and biases zero: then half of it could go wrong unseen
        p.data += 0.1 * torch.randn_like(p)
    return model.eval()


def call_of(model):
    _, blocks = blocks_of(model)
    with first_call(blocks[0]) as call:
        model(torch.arange(3, 35)[None], **({} if isinstance(model, BertModel) else {"use_cache": False}))
    return blocks[0], call


LLAMA = {
    "input_layernorm": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "self_attn.v_proj": "self_attn.o_proj",
    "post_attention_layernorm": "mlp.gate_proj mlp.up_proj",
    "mlp.up_proj": "mlp.down_proj",
}
FOLDS = {
    "llama": LLAMA,
    "grouped": {k: v for k, v in LLAMA.items() if k != "self_attn.v_proj"},  # several heads read one value
    "gemma": {"mlp.up_proj": "mlp.down_proj"},  # its norms multiply by one plus their weight
    "gpt2": {"ln_1": "attn.c_attn", "ln_2": "mlp.c_fc"},  # GELU is no factor
    "opt": {
        "self_attn_layer_norm": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
        "self_attn.v_proj": "self_attn.out_proj",
        "final_layer_norm": "fc1",
        "fc1": "fc2",  # ReLU lets a positive factor through
    },
    "bert": {"attention.self.value": "attention.output.dense"},  # its norms are read by the residual stream too
}


@torch.no_grad()
@pytest.mark.parametrize("kind", FOLDS)
def test_folds_are_found_and_nothing_else(kind):
    block, call = call_of(model_of(kind))
    before = {n: p.clone() for n, p in block.named_parameters()}
    assert {f.writer: " ".join(f.readers) for f in find_folds(block, call)} == FOLDS[kind]
    assert all(torch.equal(p, before[n]) for n, p in block.named_parameters())  # trying out leaves no trace


@torch.no_grad()
@pytest.mark.parametrize("kind", FOLDS)
def test_a_scaled_block_computes_what_it_did(kind):
    block, call = call_of(model_of(kind))
    before, want = {n: p.clone() for n, p in block.named_parameters()}, call.run(block)
    changed = scale_block("b", block, lambda: call.run(block), GRID)
    torch.testing.assert_close(call.run(block), want, rtol=1e-4, atol=1e-4)
    moved = {n for n, p in block.named_parameters() if not torch.equal(p, before[n])}
    packed = {f"{n}.weight" for n in linears(block)}
    assert moved & packed
    assert {f"b.{n}" for n in moved - packed} <= changed.keys()  # whatever is not packed must be saved as it is now
    assert all(torch.equal(t, block.get_parameter(n.removeprefix("b."))) for n, t in changed.items())


@torch.no_grad()
def test_folding_multiplies_readers_and_divides_the_writer_with_its_bias():
    block = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))
    block[0].weight.data, block[0].bias.data = torch.tensor([1.0, 2, 3, 4]), torch.ones(4)
    W, s = block[1].weight.clone(), torch.tensor([1.0, 2, 4, 8])
    changed = fold_in(block, Fold("0", ("1",)), s)
    assert torch.equal(block[1].weight, W * s)
    assert changed["0.weight"].tolist() == [1, 1, 0.75, 0.5]
    assert changed["0.bias"].tolist() == [1, 0.5, 0.25, 0.125]


class _Weak(nn.Module):
    """A branch that adds a millionth to the stream: a wrong fold does not show in its output."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return x + 1e-6 * self.b(torch.tanh(self.a(x)))


@torch.no_grad()
def test_a_wrong_fold_on_a_weak_branch_is_noticed():
    block = _Weak()
    with first_call(block) as call:
        block(torch.randn(4, 8))
    assert find_folds(block, call) == []
    with pytest.raises(GreenError, match=r"layers\.0: no norm"):
        scale_block("layers.0", block, lambda: block(*call.args), Grid(4, 8, symmetric=True))


def quantize(path, out, **fields):
    given = {"awq": True, "head_bits": 8} | fields
    made = recipe.Recipe(name="q", steps=[recipe.make_step("quantize", given, "q")])
    made.calibration.samples, made.calibration.length = 4, 32
    return pipeline.run_steps(path, out, made)


@pytest.mark.parametrize("method", ["rtn", "gptq", "hqq"])
@torch.no_grad()
def test_the_checkpoint_is_whole_and_loads_in_stock_transformers(tmp_path, method):
    path = make_llama(tmp_path / "m", vocab=300)
    checkpoint = open_checkpoint(quantize(path, tmp_path / "q", method=method, bits=8).path)
    source, norm = open_checkpoint(path), "model.layers.1.post_attention_layernorm.weight"
    assert not torch.equal(checkpoint.tensor(norm), source.tensor(norm))
    checkpoint.write_dense(tmp_path / "dense")
    ids = torch.arange(3, 67).view(2, 32)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32).eval()
    torch.testing.assert_close(stock(ids).logits, checkpoint.load_model()(ids).logits, rtol=1e-4, atol=1e-4)
    want = source.load_model()(ids).logits
    assert (stock(ids).logits - want).norm() < 0.02 * want.norm()  # a norm left unfolded would show: scales are not 1


def test_it_is_exported_and_verified(tmp_path):
    found = quantize(make_llama(tmp_path / "m", vocab=300), tmp_path / "q", method="rtn")
    done = greenllm.export(found.path, tmp_path / "g")
    assert done.kind == "genai"
    assert done.manifest.details["operators"]["MatMulNBits"] == 2 * FUSED + 1
    assert done.manifest.details["verified"]["top1_agreement"] > 0.5


def test_an_encoder_with_biases(tmp_path):
    found = quantize(make_bert(tmp_path / "m"), tmp_path / "q", method="rtn")
    checkpoint = open_checkpoint(found.path)
    assert len(list(checkpoint.packed())) == 2 * 6 + 1
    assert greenllm.export(found.path, tmp_path / "o").manifest.details["verified"]

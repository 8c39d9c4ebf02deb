"""The walk equals the whole model, block by block, and a killed walk goes on bit for bit."""

from __future__ import annotations

import pytest
import torch
from conftest import make_llama

from greenllm import artifact, recipe
from greenllm.artifact import Manifest
from greenllm.checkpoint import Checkpoint, open_checkpoint
from greenllm.quantize.linear import Moments, linears
from greenllm.step import Context
from greenllm.walk import Walk


def batches(n=4, length=16, vocab=128):
    ids = torch.randint(3, vocab, (n, length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": b} for b in ids.split(2)]


def nothing(name, block, forward):
    return {}


@torch.no_grad()
def test_walk_ends_where_the_whole_model_ends(llama, tmp_path):
    checkpoint = open_checkpoint(llama)
    walk = Walk(checkpoint, batches(), tmp_path)
    walk.run(nothing)
    model = checkpoint.load_model()
    for batch, x in zip(walk.batches, walk.head_inputs(walk.model.get_output_embeddings()), strict=True):
        want = model.model(**batch).last_hidden_state.flatten(0, 1)
        torch.testing.assert_close(x, want)


@torch.no_grad()
def test_walk_of_an_encoder(bert, tmp_path):
    checkpoint = open_checkpoint(bert)
    walk = Walk(checkpoint, batches(), tmp_path)
    walk.run(nothing)
    want = checkpoint.load_model()(**walk.batches[1]).last_hidden_state
    torch.testing.assert_close(walk.hidden[1], want)


@torch.no_grad()
def test_walk_of_blocks_called_with_positional_arguments(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=64)).save_pretrained(
        tmp_path / "m"
    )
    checkpoint = open_checkpoint(tmp_path / "m")
    walk = Walk(checkpoint, batches(), tmp_path / "state")
    walk.run(nothing)
    model = checkpoint.load_model()
    (x, _) = walk.head_inputs(walk.model.get_output_embeddings())
    torch.testing.assert_close(x, model.transformer(**walk.batches[0]).last_hidden_state.flatten(0, 1))


@torch.no_grad()
def test_only_one_block_is_in_memory(llama, tmp_path):
    walk = Walk(open_checkpoint(llama), batches(), tmp_path)

    def visit(name, block, forward):
        real = [i for i, b in enumerate(walk.blocks) if not next(b.parameters()).is_meta]
        assert [walk.names[i] for i in real] == [name]
        return {}

    walk.run(visit)
    assert all(p.is_meta for p in walk.blocks.parameters())


@torch.no_grad()
def test_second_moments_are_those_of_the_inputs(llama, tmp_path):
    walk = Walk(open_checkpoint(llama), batches(), tmp_path)

    def visit(name, block, forward):
        seen = []
        handle = block.self_attn.v_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
        moments = Moments(linears(block))
        with moments.watching():
            forward()
        handle.remove()
        X = torch.cat(seen)
        torch.testing.assert_close(moments.of("self_attn.v_proj"), X.T @ X, rtol=1e-4, atol=1e-4)
        assert moments.of("self_attn.q_proj") is moments.of("self_attn.k_proj")
        assert moments.of("mlp.gate_proj") is moments.of("mlp.up_proj")
        assert len({id(moments.of(n)) for n in linears(block)}) == 4
        return {}

    walk.run(visit)


class _Killed(BaseException):
    pass


class _KillAt:
    """Progress that ends the run after some blocks."""

    def __init__(self, blocks):
        self.left = blocks

    def stage(self, name, total):
        pass

    def note(self, text):
        pass

    def advance(self, amount=1):
        self.left -= amount
        if self.left <= 0:
            raise _Killed


@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_a_resumed_quantization_is_bit_for_bit_an_uninterrupted_one(tmp_path, killed_after, monkeypatch):
    monkeypatch.setattr("greenllm.quantize.run._BATCH_TOKENS", 64)  # several batches: their order must be kept
    path = make_llama(tmp_path / "m", layers=3)
    step = recipe.make_step("quantize", {"head_group": 32}, "test")
    samples = torch.randint(3, 128, (8, 32), generator=torch.Generator().manual_seed(1))

    def run(name, *, kill=False):
        (tmp_path / name).mkdir(exist_ok=True)
        context = Context(tmp_path / f"{name}-work", lambda: samples)
        if kill:
            context.progress = _KillAt(killed_after)
        step.run(open_checkpoint(path), tmp_path / name, context)
        return artifact.seal(tmp_path / name, Manifest(kind="checkpoint")).manifest.files

    want = run("whole")
    with pytest.raises(_Killed):
        run("killed", kill=True)
    assert run("killed") == want


def test_quantized_checkpoint_reads_back_as_what_the_walk_left(llama, tmp_path):
    step = recipe.make_step("quantize", {"head_group": 32}, "test")
    samples = torch.randint(3, 128, (8, 32), generator=torch.Generator().manual_seed(1))
    out = tmp_path / "q"
    out.mkdir()
    result = step.run(open_checkpoint(llama), out, Context(tmp_path / "work", lambda: samples))
    artifact.seal(out, Manifest(kind="checkpoint", details={"tied": result["tied"]}))
    back = open_checkpoint(out)
    assert isinstance(back, Checkpoint)
    assert back.tied
    packed = dict(back.packed())
    assert set(packed) == {"lm_head"} | {
        f"model.layers.{i}.{n}" for i in range(2) for n in linears(back.skeleton().model.layers[0])
    }
    model = back.load_model()
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, packed["model.layers.1.mlp.up_proj"].dequantize())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, packed["lm_head"].dequantize())

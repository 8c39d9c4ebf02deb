"""Blocks, heads, channels that go: what is left computes what the whole model computes without them."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from conftest import make_bert, make_llama
from safetensors import safe_open
from torch import nn

import greenllm
from greenllm import artifact, pipeline
from greenllm.answer import stream
from greenllm.blocks import blocks_of
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.progress import Silent
from greenllm.prune import depth, width
from greenllm.prune.axes import HEADS, HIDDEN, MLP, Anatomy
from greenllm.prune.cut import write_cut
from greenllm.quantize.fold import channels
from greenllm.quantize.linear import set_weight, weight_of
from greenllm.recipe import Calibration, Recipe, make_step

SMALL = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
GROUPED = SMALL | {"num_key_value_heads": 2, "num_hidden_layers": 3}


def recipe(*steps, samples=8):
    made = [make_step(name, options, name) for name, options in steps]
    return Recipe(name="t", calibration=Calibration(samples=samples, length=32), steps=made)


def pruned(model, out, samples=8, **options):
    return pipeline.run_steps(model, out, recipe(("prune", options), samples=samples))


def result(found):
    return found.manifest.steps[-1].result


def ids(n=2, length=16, vocab=128, seed=0):
    return torch.randint(3, vocab, (n, length), generator=torch.Generator().manual_seed(seed))


def save(kind, path):
    """A random model of another architecture; biases and norms are not what they begin as."""
    import transformers as t

    torch.manual_seed(1)
    made = {
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**GROUPED)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**GROUPED, head_dim=24)),
        "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**GROUPED, pad_token_id=0)),
        "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**GROUPED, head_dim=16)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=128, n_embd=64, n_layer=3, n_head=4, n_positions=64)),
        "neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**SMALL, num_hidden_layers=2)),
        "roberta": lambda: t.RobertaForSequenceClassification(t.RobertaConfig(**SMALL, num_hidden_layers=2)),
        "opt": lambda: t.OPTForCausalLM(t.OPTConfig(vocab_size=128, hidden_size=64, ffn_dim=96, num_hidden_layers=2,
                                                    num_attention_heads=4, word_embed_proj_dim=64)),
    }[kind]()  # fmt: skip
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn(p.shape), alpha=0.1 if p.dim() == 1 else 0.05)
    made.save_pretrained(path)
    return path


def stock(path):
    """As anybody loads it."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    name = json.loads((path / "config.json").read_text())["architectures"][0]
    kind = {"CausalLM": AutoModelForCausalLM, "LMHeadModel": AutoModelForCausalLM,
            "Classification": AutoModelForSequenceClassification}  # fmt: skip
    auto = next((c for end, c in kind.items() if name.endswith(end)), AutoModel)
    model, info = auto.from_pretrained(path, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def random_units(anatomy, sizes):
    """So many units of each kind, others in each block."""
    g = torch.Generator().manual_seed(3)
    return {
        (f"{i}.{k}" if k != HIDDEN else k): torch.randperm(anatomy.sizes[k], generator=g)[:n].sort().values
        for k, n in sizes.items()
        for i in range(anatomy.blocks if k != HIDDEN else 1)
    }


@torch.no_grad()
def masked(anatomy, kept):
    """The whole model, blind to what goes: readers do not read it, norms do not see it."""
    model = anatomy.checkpoint.load_model()
    _, blocks = blocks_of(model)
    for key, units in kept.items():
        if key == HIDDEN:
            for name, module in list(model.named_modules()):
                if channels(module) == anatomy.sizes[HIDDEN]:
                    owner, _, leaf = name.rpartition(".")
                    setattr(model.get_submodule(owner), leaf, Narrow(module, units))
            for name, p in model.named_parameters():  # what writes the first states
                if ("embed" in name and p.dim() > 1) or name.endswith(("wte.weight", "wpe.weight")):
                    p.mul_(torch.zeros(p.shape[1]).index_fill(0, units, 1))
            continue
        block, kind = key.split(".")
        for layer in anatomy.readers(blocks[int(block)], int(block), kind).values():
            W = weight_of(layer)
            stay = torch.zeros(anatomy.sizes[kind]).index_fill(0, units, 1)
            set_weight(layer, (W * stay.repeat_interleave(W.shape[1] // len(stay))).contiguous())
    return model


class Narrow(nn.Module):
    """A norm over some channels; the others come out as zeros."""

    def __init__(self, norm, units):
        super().__init__()
        self.norm, self.units = copy.deepcopy(norm), units
        for p in self.norm.parameters():
            p.data = p.data[units]
        if hasattr(norm, "normalized_shape"):
            self.norm.normalized_shape = (len(units),)

    def forward(self, x):
        return torch.zeros_like(x).index_copy(-1, self.units, self.norm(x[..., self.units]))


DECODERS = ("llama", "qwen2", "qwen3", "phi3", "gemma2")
CUTS = [
    *((k, {HEADS: 1}) for k in DECODERS),
    *((k, {MLP: 32}) for k in (*DECODERS, "gpt2", "bert", "roberta", "opt")),
    *((k, {HEADS: 1, MLP: 64, HIDDEN: 32}) for k in ("llama", "qwen2", "qwen3", "phi3")),
    *((k, {HEADS: 2, HIDDEN: 32}) for k in ("gpt2", "bert")),
]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "sizes"), CUTS, ids=lambda x: str(x).replace(" ", ""))
def test_a_narrower_model_is_the_masked_one(kind, sizes, tmp_path):
    make = {"llama": make_llama, "bert": make_bert}.get(kind, lambda path: save(kind, path))
    checkpoint = open_checkpoint(make(tmp_path / "m"))
    anatomy = Anatomy(checkpoint, tuple(sizes))
    anatomy.prove()
    kept = random_units(anatomy, sizes)
    (tmp_path / "out").mkdir()
    found = write_cut(anatomy, tmp_path / "out", kept)
    small = stock(tmp_path / "out")
    assert sum(p.numel() for p in small.parameters()) == found["after"] < found["before"]
    assert found["after"] == anatomy.parameters(sizes)
    want, got = masked(anatomy, kept)(ids())[0], small(ids())[0]
    if want.shape != got.shape:  # an encoder's states are hidden channels themselves
        want = want[..., kept[HIDDEN]]
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_a_shallower_model_is_the_one_whose_blocks_add_nothing(tied, tmp_path):
    path = make_llama(tmp_path / "m", layers=4, tied=tied)
    found = pruned(path, tmp_path / "out", layers="0,2")
    assert result(found)["cut"] == [0, 2]
    model = open_checkpoint(path).load_model()
    for i in (0, 2):
        for layer in (model.model.layers[i].self_attn.o_proj, model.model.layers[i].mlp.down_proj):
            layer.weight.zero_()
    torch.testing.assert_close(stock(found.path)(ids()).logits, model(ids()).logits)


def test_lists_by_block_are_cut_with_the_blocks(tmp_path):
    path = save("gemma2", tmp_path / "m")
    kinds = json.loads((path / "config.json").read_text())["layer_types"]
    found = pruned(path, tmp_path / "out", layers="1")
    assert kinds[0] != kinds[1]
    assert stock(found.path).config.layer_types == [kinds[0], kinds[2]]
    assert stock(found.path).model.layers[1].self_attn.layer_idx == 1


@torch.no_grad()
def test_block_influence(llama, tmp_path):
    """Against the hidden states that transformers itself gives out."""
    checkpoint = open_checkpoint(llama)
    model, states = checkpoint.load_model(), []
    for block in model.model.layers:
        block.register_forward_hook(lambda _, args, out: states.append((args[0], out)))
    model(ids(4))
    want = []
    for x, y in states:
        pairs = list(zip(x.flatten(0, 1), y.flatten(0, 1), strict=True))
        want.append(sum(1 - float(a @ b / (a.norm() * b.norm())) for a, b in pairs) / len(pairs))
    got = depth.influence(checkpoint, list(ids(4).split(2)), tmp_path, Silent())
    assert got == pytest.approx(want, rel=1e-4)


@torch.no_grad()
def test_perplexity_drop_is_that_of_the_cut_model(tmp_path):
    path = make_llama(tmp_path / "m", layers=3, initializer_range=0.15)
    checkpoint, sample = open_checkpoint(path), ids(48)
    got = depth.perplexity_drop(checkpoint, [sample], tmp_path / "work", Silent())
    assert depth.perplexity_drop(checkpoint, [sample], tmp_path / "work", Silent()) == got  # from what is committed

    def nats(model):
        return float(model(sample, labels=sample).loss)

    for i in range(3):
        cut = pruned(path, tmp_path / f"cut-{i}", layers=str(i))
        assert got[i] == pytest.approx(nats(stock(cut.path)) - nats(stock(path)), abs=1e-4)


@torch.no_grad()
def test_importance_is_the_activations(llama, tmp_path):
    checkpoint = open_checkpoint(llama)
    anatomy = Anatomy(checkpoint, (HEADS, HIDDEN, MLP))
    sizes = {HEADS: 1, HIDDEN: 32, MLP: 96}
    got, fitted = width.Narrowing(checkpoint, anatomy, sizes, damp=None).run([ids(4)], tmp_path, Silent())
    assert not fitted
    model, seen = checkpoint.load_model(), {}
    for name, m in model.named_modules():
        m.register_forward_hook(lambda _, args, out, name=name: seen.update({name: (args, out)}))
    model(ids(4))
    x = seen["model.layers.1.mlp.down_proj"][0][0]
    assert got["1.mlp"][5] == pytest.approx(float(x[..., 5].abs().mean(1).square().sum().sqrt()), rel=1e-4)
    x = seen["model.layers.0.self_attn.o_proj"][0][0]
    assert got["0.heads"][1] == pytest.approx(float(x[..., 32:].norm(dim=-1).mean(1).square().sum().sqrt()), rel=1e-4)
    norms = [seen[f"model.layers.{i}.{n}"][1] for i in (0, 1) for n in ("input_layernorm", "post_attention_layernorm")]
    per_block = [norms[i][..., 7].abs().mean(1).square().sum() + norms[i + 1][..., 7].abs().mean(1).square().sum()
                 for i in (0, 2)]  # fmt: skip
    assert got["hidden"][7] == pytest.approx(float(sum(p.sqrt() for p in per_block)), rel=1e-4)
    kept = width.choose(got, {MLP: 3})["1.mlp"]
    assert set(kept.tolist()) == set(got["1.mlp"].argsort(descending=True)[:3].tolist())


@pytest.mark.parametrize("how", [{"ratio": 0.2}, {"to": "150K"}])
@pytest.mark.parametrize("method", ["depth", "width"])
def test_a_size_is_met(method, how, tmp_path):
    path = make_llama(tmp_path / "m", layers=5, vocab=300)
    found = pruned(path, tmp_path / "out", method=method, **how)
    before, after = (result(found)["parameters"][k] for k in ("before", "after"))
    target = before * 0.8 if "ratio" in how else 150_000
    step = (before - 300 * 64) / 5 if method == "depth" else 5 * 3 * 64 * 32
    assert target - step <= after <= target
    with safe_open(found.path / "model.safetensors", "pt") as f:
        assert after == sum(f.get_tensor(k).numel() for k in f.keys())  # noqa: SIM118 - a reader
    assert found.manifest.details["tied"]


@torch.no_grad()
def test_readers_make_up_for_what_went(tmp_path):
    """The cut model is the whole one with the fitted weights in it, and they are least squares of its inputs."""
    path = make_llama(tmp_path / "m", initializer_range=0.15)
    checkpoint, sample = open_checkpoint(path), ids(64, 32)
    anatomy = Anatomy(checkpoint, (HEADS, MLP))
    sizes = {HEADS: 1, MLP: 128}
    scores, fitted = width.Narrowing(checkpoint, anatomy, sizes, damp=0.0).run([sample], tmp_path / "w", Silent())
    kept = width.choose(scores, sizes)
    assert len(fitted) == 4
    (tmp_path / "out").mkdir()
    write_cut(anatomy, tmp_path / "out", kept, fitted=fitted)
    model = checkpoint.load_model()
    model.load_state_dict(fitted, strict=False)
    torch.testing.assert_close(stock(tmp_path / "out")(ids()).logits, model(ids()).logits, rtol=1e-3, atol=1e-4)
    whole, x = checkpoint.load_model(), {}
    down = whole.model.layers[0].mlp.down_proj
    down.register_forward_pre_hook(lambda _, args: x.update(x=args[0].flatten(0, 1).double()))
    whole(sample)
    stay = kept["0.mlp"]
    want = torch.linalg.lstsq(x["x"][:, stay], x["x"] @ down.weight.T.double()).solution.T
    torch.testing.assert_close(
        fitted["model.layers.0.mlp.down_proj.weight"][:, stay].double(), want, rtol=0.01, atol=0.01
    )


@torch.no_grad()
def test_fitting_keeps_more_of_the_model(tmp_path):
    path = make_llama(tmp_path / "m", initializer_range=0.15)
    model = stock(path)
    loss = []
    for solve in (0, 20):
        found = pruned(path, tmp_path / f"{solve}", mlp=96, solve=solve, samples=64)
        loss.append(float((stock(found.path)(ids(8)).logits - model(ids(8)).logits).square().mean()))
    assert loss[1] < 0.9 * loss[0]


@torch.no_grad()
def test_what_is_important_stays(tmp_path):
    """A model with dead channels loses these, and nothing else is noticed."""
    path = make_llama(tmp_path / "m", layers=2, initializer_range=0.1)
    model = stock(path)
    for block in model.model.layers:
        block.mlp.up_proj.weight[50:150] = 0
        block.self_attn.v_proj.weight[:16] = 0
    model.save_pretrained(path)
    found = pruned(path, tmp_path / "out", mlp=96, heads=2, multiple=32, damp=1e-6)
    torch.testing.assert_close(stock(found.path)(ids()).logits, model(ids()).logits)
    assert result(found)["cut"] == {"heads": [2, 1], "mlp": [192, 96]}
    assert all(share == pytest.approx(1, abs=0.01) for _, share in result(found)["parts"].values())


def test_pruned_then_quantized_then_exported_runs(tmp_path):
    path = make_llama(tmp_path / "m", layers=3, vocab=300)
    steps = ("prune", {"layers": "1"}), ("prune", {"heads": 2, "mlp": 128}), ("quantize", {"method": "rtn"})
    done = pipeline.run_steps(path, tmp_path / "q", recipe(*steps))
    assert [s.step for s in done.manifest.steps] == ["prune", "prune", "quantize"]
    out = greenllm.export(done.path, tmp_path / "genai", to="genai")
    assert out.manifest.details["verified"]
    assert "".join(stream(out.path, "hello", max_tokens=4, raw=True)) is not None


def test_an_encoder_goes_through_too(tmp_path):
    path = make_bert(tmp_path / "m")
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 64}')
    steps = ("prune", {"hidden": 32, "mlp": 64}), ("prune", {"method": "depth", "ratio": 0.2}), ("quantize", {})
    done = pipeline.run_steps(path, tmp_path / "q", recipe(*steps))
    assert json.loads((done.path / "1_Pooling" / "config.json").read_text())["word_embedding_dimension"] == 32
    config = json.loads((done.path / "config.json").read_text())
    assert [config[k] for k in ("hidden_size", "num_attention_heads", "num_hidden_layers")] == [32, 2, 1]
    assert greenllm.export(done.path, tmp_path / "onnx", to="onnx").manifest.details["verified"]


def test_a_killed_run_ends_as_one_that_was_not(tmp_path, monkeypatch):
    path = make_llama(tmp_path / "m", layers=4)
    whole = pruned(path, tmp_path / "whole", ratio=0.2).path
    real, count = width.removal_costs, [0]

    def failing(*of):
        count[0] += 1
        if count[0] == 6:
            raise KeyboardInterrupt
        return real(*of)

    monkeypatch.setattr(width, "removal_costs", failing)
    with pytest.raises(KeyboardInterrupt):
        pruned(path, tmp_path / "cut", ratio=0.2)
    assert not (tmp_path / "cut").exists()
    cut = pruned(path, tmp_path / "cut", ratio=0.2).path
    assert count[0] == 6 + 4  # two blocks were done
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "How much"),
        ({"method": "depth", "ratio": 0.99}, "no block would be left"),
        ({"method": "width", "ratio": 0.99}, "at the least"),
        ({"ratio": 0.2, "to": "1K"}, "both say how much"),
        ({"to": "lots"}, "no number"),
        ({"to": "5B"}, "no more than 5B"),
        ({"layers": "7"}, "blocks 0 to 1"),
        ({"layers": "0-1"}, "no block would be left"),
        ({"layers": "a"}, "no block"),
        ({"layers": "1-0"}, "blocks 0 to 1"),
        ({"layers": "1", "ratio": 0.1}, "says what goes"),
        ({"layers": "1", "method": "width"}, "--layers says nothing to width"),
        ({"mlp": 100}, "no multiple of 32"),
        ({"mlp": 500}, "there are 192"),
        ({"mlp": 192}, "nothing would be cut"),
        ({"heads": 3}, "no multiple of 2"),
        ({"hidden": 40, "multiple": 3}, "no multiple of 3"),
        ({"method": "vocabulary", "ratio": 0.1}, "learned from text"),
        ({"corpus": "no/such.txt"}, "no such calibration file"),
        ({"method": "wanda", "to": "1K"}, "--to says nothing to wanda"),
        ({"method": "wanda", "ratio": 0.3, "pattern": "2:4"}, "half"),
    ],
)
def test_mistakes_are_told(llama, tmp_path, options, says):
    with pytest.raises(GreenError, match=says):
        pruned(llama, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_what_an_architecture_cannot_is_said_by_name(bert, tmp_path):
    with pytest.raises(GreenError, match=r"BertConfig cannot say how wide a head is[^$]*--hidden 32"):
        pruned(bert, tmp_path / "a", heads=2)
    with pytest.raises(GreenError, match="not 2 heads of 16"):
        pruned(bert, tmp_path / "b", heads=2, hidden=48, multiple=16)
    with pytest.raises(GreenError, match="perplexity is measured on text generators"):
        pruned(bert, tmp_path / "c", method="depth", rank="perplexity", ratio=0.2)
    neox = save("neox", tmp_path / "neox")  # its q, k and v take turns head by head
    with pytest.raises(GreenError, match=r"GPTNeoXConfig cannot be pruned in this way.*order"):
        pruned(neox, tmp_path / "d", hidden=32)
    Anatomy(open_checkpoint(neox), (MLP,)).prove()  # these can go


def test_transformers_own_limits_are_told(tmp_path):
    """Llama's configuration wants hidden channels that the number of heads divides."""
    path = make_llama(tmp_path / "m", num_attention_heads=8, num_key_value_heads=8)
    with pytest.raises(GreenError, match=r"LlamaConfig takes no such sizes.*64.*7"):
        pruned(path, tmp_path / "out", heads=7)


def test_a_quantized_checkpoint_is_refused(llama, tmp_path):
    done = pipeline.run_steps(llama, tmp_path / "q", recipe(("quantize", {"method": "rtn"})))
    with pytest.raises(GreenError, match="quantized already"):
        pruned(done.path, tmp_path / "out", ratio=0.2)
    assert artifact.is_artifact(done.path)


def test_a_target_takes_mlp_channels_before_heads(tmp_path):
    """Groups of heads are few and dear; they go when half of the MLP channels have gone."""
    checkpoint = open_checkpoint(make_llama(tmp_path / "m", layers=4, num_attention_heads=8, num_key_value_heads=4))
    anatomy = Anatomy(checkpoint, (HEADS, MLP))
    sizes = [width.fit(anatomy, checkpoint.parameters * (1 - r), {}, 32) for r in (0.1, 0.3, 0.5, 0.6)]
    assert [s[HEADS] for s in sizes[:2]] == [4, 4]
    assert sizes[-1][HEADS] < 4
    counts = [anatomy.parameters(s) for s in sizes]
    assert counts == sorted(counts, reverse=True)
    assert all(s[MLP] % 32 == 0 and s[HEADS] >= 1 for s in sizes)

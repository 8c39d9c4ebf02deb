"""Export: what comes out runs, says what torch says, and is refused when it does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import FUSED, make_llama
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import greenllm
from greenllm import artifact, pipeline, recipe
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.export import builder, rotary, verify
from greenllm.export.graph import Weights
from greenllm.export.last_position import FIRST
from greenllm.export.targets import load_target, target_names
from greenllm.export.tokenizer import departing_texts
from greenllm.older import cannot_run, older

PROMPT = [5, 17, 33, 21, 64, 9, 80]


def quantized(model, out, **fields):
    """A packed checkpoint by rounding to nearest."""
    given = {"method": "rtn", "bits": 4, "group": 32, "symmetric": True, "head_bits": 8, "head_group": 32} | fields
    made = recipe.Recipe(name="test", seed=0, steps=[recipe.make_step("quantize", given, "quantize")])
    return pipeline.run_steps(model, out, made)


@pytest.fixture
def exact(tmp_path):
    """A target that multiplies in float32, so that torch and the runtime agree to the last digits."""
    file = tmp_path / "exact.yaml"
    file.write_text("description: float32\nformats: {text-generation: genai}\naccuracy_level: 0\n")
    return str(file)


def torch_greedy(model, ids, steps):
    ids = list(ids)
    with torch.no_grad():
        for _ in range(steps):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids


def genai_greedy(path, ids, steps):
    import onnxruntime_genai as og

    model = og.Model(str(path))
    search = og.GeneratorParams(model)
    search.set_search_options(max_length=len(ids) + steps, min_length=len(ids) + steps, do_sample=False)
    generator = og.Generator(model, search)
    generator.append_tokens(np.array(ids, dtype=np.int32))
    for _ in range(steps):
        generator.generate_next_token()
    return [int(t) for t in generator.get_sequence(0)]


def unended(path):
    """Without an end token: a random model may say it, and ORT-GenAI then forbids it until min_length."""
    for name in ("config.json", "generation_config.json"):
        file = path / name
        if file.is_file():
            data = json.loads(file.read_text())
            data["eos_token_id"] = 127
            file.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_genai_streams_what_torch_says(tmp_path, exact, packed, tied):
    # not 128 wide: the builder takes every linear with as many outputs as the vocabulary for the head
    model = unended(make_llama(tmp_path / "m", tied=tied, intermediate_size=192))
    if packed:
        model = quantized(model, tmp_path / "q").path
    done = greenllm.export(model, tmp_path / "g", to="genai", target=exact)
    assert done.kind == "genai"
    done.verify()
    assert (done.path / "tokenizer.json").is_file()
    want = torch_greedy(open_checkpoint(model).load_model(), PROMPT, 12)
    assert genai_greedy(done.path, PROMPT, 12) == want
    details = done.manifest.details
    assert details["verified"]["kl_divergence"] < 1e-6
    assert details["inputs"][0] == "input_ids"
    assert details["outputs"][0] == "logits"
    if packed:
        assert details["operators"]["MatMulNBits"] == 2 * FUSED + 1
        assert details["operators"]["GatherBlockQuantized"] == 1
        assert details["tied"] is tied


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize("rope", [{"rope_type": "default"}, LLAMA3 | {"original_max_position_embeddings": 64}])
def test_the_builder_gets_the_rotary_embedding_right(tmp_path, rope):
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    model = make_llama(tmp_path / "m", rope_parameters=rope | {"rope_theta": 5e5})
    done = greenllm.export(model, tmp_path / "g", to="genai")
    table = Weights(done.path / "model.onnx").array("cos_cache")
    cos, _ = LlamaRotaryEmbedding(open_checkpoint(model).config)(torch.zeros(1), torch.arange(len(table))[None])
    np.testing.assert_allclose(table, cos[0, :, : table.shape[1]], atol=1e-4)


@pytest.mark.parametrize("rope", [{"rope_type": "linear"}, {"full_attention": {"rope_type": "default"}}])
def test_a_rotary_embedding_that_an_old_builder_gets_wrong_is_refused(rope):
    builder.refuse(rope, "0.18.0")
    builder.refuse({}, "0.11.4")
    with pytest.raises(SystemExit, match=r"needs onnxruntime-genai 0\.18"):
        builder.refuse(rope, "0.11.4")


def test_a_byte_level_tokenizer_from_a_gguf_is_not_taken_for_sentencepiece(tmp_path):
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    steps = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, level]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"pre_tokenizer": {"type": "ByteLevel"}, "decoder": steps}))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    builder.plain_tokenizer(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["decoder"] == level
    assert "PreTrainedTokenizerFast" in (tmp_path / "tokenizer_config.json").read_text()


def test_a_checkpoints_own_code_is_not_run(tmp_path):
    model = make_llama(tmp_path / "m", intermediate_size=192)
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": {"AutoConfig": "evil.Config"}}))
    seen = tmp_path / "seen"
    (model / "evil.py").write_text(
        f"open({str(seen)!r}, 'w').close()\nfrom transformers import LlamaConfig as Config\n"
    )
    assert greenllm.export(model, tmp_path / "g", to="genai").kind == "genai"
    assert not seen.exists()


class Words:
    """A runtime's tokenizer that is the checkpoint's but for what ``change`` does."""

    def __init__(self, path, change):
        self.theirs, self.change = AutoTokenizer.from_pretrained(path), change

    def encode(self, text):
        return self.change(text, self.theirs(text)["input_ids"])


def test_a_tokenizer_that_splits_otherwise_is_found(tmp_path):
    path = make_llama(tmp_path / "m")
    source = open_checkpoint(path)
    assert departing_texts(source, Words(path, lambda _, ids: ids)) == []
    (found,) = departing_texts(source, Words(path, lambda text, ids: ids[:-1] if "don't" in text else ids))
    assert "don't" in found
    with pytest.raises(GreenError, match="splits English text otherwise"):
        departing_texts(source, Words(path, lambda _, ids: ids[1:]))


def test_a_target_names_the_oldest_runtime_that_must_run_it(tmp_path):
    model = make_llama(tmp_path / "m", intermediate_size=192)
    target = tmp_path / "old.yaml"
    target.write_text('description: d\nformats: {text-generation: genai}\ngenai: "0.11"\n')
    names = greenllm.export(model, tmp_path / "g", target=str(target)).manifest.details["inputs"]
    graph = onnx.load(tmp_path / "g/model.onnx", load_external_data=False).graph
    assert FIRST not in [i.name for i in graph.input]
    assert names == [i.name for i in graph.input]


@pytest.mark.parametrize(("installed", "hint"), [("0.11.4", "target file"), ("0.18.0", "")])
def test_a_graph_that_the_runtime_refuses_is_told_in_words(installed, hint):
    told = cannot_run(Path("m"), installed, RuntimeError("shape\nmore"))
    assert told.what == f"m cannot be run by onnxruntime-genai {installed}: shape"
    assert hint in told.fix
    assert bool(told.fix) is bool(hint)


def run_onnx(session, ids, past=None, offset=0):
    ids = np.array(ids)
    names = [i.name for i in session.get_inputs()]
    shapes = {i.name: i.shape for i in session.get_inputs()}
    feed = {
        "input_ids": ids,
        "attention_mask": np.ones((len(ids), offset + ids.shape[1]), np.int64),
        "position_ids": np.arange(offset, offset + ids.shape[1])[None].repeat(len(ids), 0),
    }
    for name in names:
        if name.startswith("past"):
            empty = np.zeros((len(ids), shapes[name][1], 0, 16), np.float32)
            feed[name] = empty if past is None else past[name.replace("past_key_values", "present")]
    outputs = [o.name for o in session.get_outputs()]
    return dict(zip(outputs, session.run(None, {n: feed[n] for n in names}), strict=True))


def session_of(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # float32
    return onnxruntime.InferenceSession(str(path / "model.onnx"), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module", params=["llama", "qwen2", "gpt2"])
def decoder(request, tmp_path_factory):
    """Tiny decoders: with grouped queries; with biases; with Conv1D and learned positions."""
    from conftest import make_tokenizer
    from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config

    path = tmp_path_factory.mktemp(request.param) / "model"
    torch.manual_seed(0)
    if request.param == "llama":
        return make_llama(path)
    config = {
        "qwen2": Qwen2Config(
            vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
        ),
        "gpt2": GPT2Config(
            vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2
        ),
    }[request.param]  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(p, std=0.1)
    model.save_pretrained(path)
    make_tokenizer(path)
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_onnx_decoders_at_any_batch_and_length_with_and_without_past(decoder, tmp_path, packed):
    model = quantized(decoder, tmp_path / "q", bits=8).path if packed else decoder
    done = greenllm.export(model, tmp_path / "o", to="onnx")
    session = session_of(done.path)
    source = open_checkpoint(model).load_model()
    for batch, length in ((1, 1), (1, 9), (3, 4)):
        ids = torch.randint(128, (batch, length + 3), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            want = source(input_ids=ids).logits.numpy()
        first = run_onnx(session, ids[:, :length])
        second = run_onnx(session, ids[:, length:], first, length)
        got = np.concatenate([first["logits"], second["logits"]], 1)
        np.testing.assert_allclose(got, want, atol=2e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_onnx_encoders_at_any_batch_and_length(bert, tmp_path, packed):
    model = quantized(bert, tmp_path / "q").path if packed else bert
    done = greenllm.export(model, tmp_path / "o")
    assert done.kind == "onnx"
    session = session_of(done.path)
    source = open_checkpoint(model).load_model()
    for batch, length in ((1, 1), (3, 9)):
        ids = torch.randint(128, (batch, length), generator=torch.Generator().manual_seed(length))
        mask = torch.ones_like(ids)
        mask[0, length // 2 + 1 :] = 0
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
        with torch.no_grad():
            want = source(**feed).last_hidden_state.numpy()
        got = session.run(["last_hidden_state"], {k: v.numpy() for k, v in feed.items()})[0]
        kept = mask.numpy().astype(bool)
        # a packed encoder's inputs are 8-bit integers on this target
        np.testing.assert_allclose(got[kept], want[kept], atol=1e-2 if packed else 1e-4)


def test_quantized_onnx_is_plain_and_the_runtime_fuses_it(llama, tmp_path):
    import onnx

    done = greenllm.export(quantized(llama, tmp_path / "q").path, tmp_path / "o", to="onnx")
    graph = onnx.load(str(done.path / "model.onnx"), load_external_data=False)
    assert {n.domain for n in graph.graph.node} == {""}
    assert next(o.version for o in graph.opset_import if o.domain in ("", "ai.onnx")) == 21
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(done.path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    fused = onnx.load(str(tmp_path / "optimized.onnx"), load_external_data=False)
    head = not older(onnxruntime.__version__, 1, 25)  # they fuse 4 bits, not its 8
    assert sum(n.op_type == "MatMulNBits" for n in fused.graph.node) == 2 * 7 + head


def test_an_export_that_departs_from_its_source_is_refused(llama, tmp_path, monkeypatch):
    whole = verify._torch
    monkeypatch.setattr(verify, "_torch", lambda *a: np.flip(whole(*a), 0).copy())
    with pytest.raises(GreenError, match="departs from its source"):
        greenllm.export(llama, tmp_path / "o", to="onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_zero_point_is_noticed(llama, tmp_path):
    """Stored weights that were changed after the manifest was written."""
    packed = quantized(llama, tmp_path / "q")
    file = packed.path / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("qzeros"))
    tensors[name] += 1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(GreenError, match="not what"):
        greenllm.export(packed, tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_families_that_the_builder_does_not_know_are_sent_to_onnx(tmp_path):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "m")
    with pytest.raises(GreenError, match=r"GPTNeoXForCausalLM[\s\S]*--to onnx"):
        greenllm.export(tmp_path / "m", tmp_path / "o", to="genai")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("to", "says"), [("genai", "runs decoders"), ("coreml", "genai, onnx, tensorrt, edge-llm, gguf")]
)
def test_formats_that_do_not_fit(bert, tmp_path, to, says):
    with pytest.raises(GreenError, match=says):
        greenllm.export(bert, tmp_path / "o", to=to)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_kept(bert, tmp_path):
    (tmp_path / "o").mkdir()
    with pytest.raises(GreenError, match="exists"):
        greenllm.export(bert, tmp_path / "o")


def test_provenance_goes_back_to_the_source(bert, tmp_path):
    packed = quantized(bert, tmp_path / "q")
    done = greenllm.export(packed, tmp_path / "o")
    assert done.manifest.parents[0].id == "q"
    assert done.manifest.parents[-1].id == packed.manifest.parents[-1].id
    assert [s.step for s in done.manifest.steps] == ["quantize"]
    assert artifact.open_verified(done.path).manifest == done.manifest


@pytest.mark.parametrize("name", target_names())
def test_targets_that_come_with_greenllm(name):
    assert load_target(name).description


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("description: x\nformats: {}\nspeed: 3\n", "speed"),
        ("description: x\nformats: {text-generation: coreml}\n", "formats.text-generation"),
        ("description: x\nformats: {}\naccuracy_level: 9\n", "accuracy_level"),
        ("- a list\n", "mapping"),
        ("a: [\n", "mapping"),
    ],
)
def test_targets_with_mistakes_name_the_key(tmp_path, text, says):
    file = tmp_path / "t.yaml"
    file.write_text(text)
    with pytest.raises(GreenError, match=says):
        load_target(file)


def test_a_misspelt_target_gets_a_suggestion():
    with pytest.raises(GreenError, match="Did you mean aarch64"):
        load_target("aarch46")


@pytest.mark.parametrize("base", [1e4, 5e5])
def test_rotary_frequencies_are_found(base):
    f = (1 / base ** (torch.arange(0, 64, 2) / 64)).float()
    angles = torch.arange(4096).float()[:, None] * f
    found = rotary.frequencies(angles.cos().numpy(), angles.sin().numpy())
    assert found is not None
    np.testing.assert_allclose(found * 4096, f.numpy() * 4096, rtol=0, atol=1e-6)  # in radians at the last position


def test_tables_that_are_no_rotation_are_left_alone():
    angles = torch.arange(512).float()[:, None] * torch.rand(16)
    assert rotary.frequencies((1.2 * angles.cos()).numpy(), (1.2 * angles.sin()).numpy()) is None
    assert rotary.frequencies(torch.rand(512, 16).numpy(), torch.rand(512, 16).numpy()) is None


def test_minilm_keeps_its_meaning(minilm, tmp_path):
    packed = quantized(minilm, tmp_path / "q", bits=8, group=64)
    done = greenllm.export(packed, tmp_path / "o")
    assert done.manifest.details["verified"]["max_relative_error"] < 0.1
    assert done.manifest.details["bits_per_weight"] < 10
    assert (done.path / "1_Pooling" / "config.json").is_file()


def test_smollm2_streams_and_stays_small(smollm2, tmp_path):
    import onnxruntime_genai as og
    from tokenizers import Tokenizer

    packed = quantized(smollm2, tmp_path / "q")
    done = greenllm.export(packed, tmp_path / "g")
    details = done.manifest.details
    assert details["bits_per_weight"] < 5.45
    assert details["operators"]["MatMulNBits"] == 30 * FUSED + 1
    assert details["verified"]["kl_divergence"] < 0.02
    assert len(genai_greedy(done.path, [1, 504, 3575], 4)) == 7
    text = "The quick brown fox's 12345\n\tnaïve 東京 😀"
    runtime = og.Tokenizer(og.Model(str(done.path)))
    ids = [int(i) for i in runtime.encode(text)]
    assert ids == Tokenizer.from_file(str(smollm2 / "tokenizer.json")).encode(text).ids
    assert runtime.decode(ids) == text

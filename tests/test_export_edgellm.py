"""Edge-LLM: what is refused before the work, what is looked at after it, and the scripts for the device."""

from __future__ import annotations

import json
import os
import random
import re
import stat
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from conftest import make_llama
from safetensors.torch import load_file, save_file
from transformers import GemmaConfig, LlamaConfig, MistralConfig, Qwen2Config

import greenllm
from greenllm import artifact
from greenllm.bench.models import find
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.export import edgellm, environment
from greenllm.export.bundle import bundle
from greenllm.export.edgellm_checks import LINEARS, Shape, fitting, misfits, refuse_dense, refuse_misfit, refuse_unknown
from greenllm.export.edgellm_device import board, memory, refuse_too_large, write_steps
from greenllm.export.edgellm_fidelity import dequantized, fidelity
from greenllm.export.edgellm_tools import drop_dead_bytes, export_arguments, quantize_arguments, run_module, strip_code
from greenllm.export.targets import load_target
from greenllm.progress import Silent
from greenllm.prune.step import Prune

NANO = load_target("jetson-orin-nano")
FITS = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
REAL = "GREENLLM_TEST_EDGELLM"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache directory."""
    monkeypatch.setenv("GREENLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# -- before the work


@pytest.mark.parametrize(
    ("shape", "says", "options"),
    [
        (Shape(256, 512, 4, 2, 64, False), [], ""),
        (Shape(576, 1536, 9, 3, 64, False), ["hidden size 576", "9 heads of 64"], "--hidden 384 --heads 6"),
        (Shape(256, 600, 4, 2, 64, False), ["MLP size 600"], "--mlp 512"),
        (Shape(384, 512, 3, 3, 64, False), ["3 heads of 64, 192 channels"], "--heads 2"),
        (Shape(320, 700, 5, 5, 64, True), ["hidden size 320", "MLP size 700", "5 heads"], "--hidden 256 --mlp 640"),
        (Shape(100, 512, 4, 2, 64, False), ["hidden size 100"], None),  # nothing below fits
        (Shape(256, 512, 5, 1, 64, False), ["5 heads of 64"], None),  # they share one key head
    ],
)
def test_sizes_that_do_not_fit_are_named_with_the_way_out(shape, says, options):
    found = misfits(shape)
    assert len(found) == len(says)
    assert all(s in f for s, f in zip(says, found, strict=True))
    if options == "":
        refuse_misfit("model", shape)
        return
    assert fitting(shape) == (f"{options} --multiple 128" if options else "")
    with pytest.raises(GreenError) as e:
        refuse_misfit("some/model", shape)
    assert all(s in e.value.what for s in says)
    assert (f"greenllm prune some/model -o model-128 {options}" if options else "No smaller") in e.value.fix
    assert "--precision int8" in e.value.fix


def test_what_is_advised_fits():
    draw = random.Random(0)  # noqa: S311 - sizes, no secrets
    advised = 0
    for _ in range(2000):
        groups, each, width = draw.randint(1, 12), draw.randint(1, 4), draw.choice((64, 128))
        coupled = draw.random() < 0.3
        hidden = groups * each * width if coupled else draw.randint(1, 40) * 32
        shape = Shape(hidden, draw.randint(1, 60) * 32, groups * each, groups, width, coupled)
        options = dict(re.findall(r"--(\w+) (\d+)", fitting(shape)))
        if not options:
            continue
        advised += 1
        hidden = int(options.get("hidden", shape.hidden))
        heads = hidden // width if coupled else int(options.get("heads", shape.heads))
        after = Shape(hidden, int(options.get("mlp", shape.mlp)), heads, heads // each, width, coupled)
        assert heads % each == 0
        if (hidden, heads) != (shape.hidden, shape.heads):
            assert hidden % heads == 0  # transformers refuses it else
        assert misfits(after) == []
    assert advised > 500


def test_prune_takes_the_advice(tmp_path):
    sizes = {"hidden_size": 384, "intermediate_size": 192, "num_attention_heads": 3, "num_key_value_heads": 3}
    checkpoint = open_checkpoint(make_llama(tmp_path / "m", head_dim=64, **sizes))
    options = {k: int(v) for k, v in re.findall(r"--(\w+) (\d+)", fitting(Shape.of(checkpoint.config)))}
    assert options == {"heads": 2, "mlp": 128, "multiple": 128}
    Prune(**options).check(checkpoint)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (GemmaConfig(), "gemma would be written as if it were a Llama"),
        (LlamaConfig(mlp_bias=True), "biases in its MLP"),
        (LlamaConfig(attention_bias=True), "bias in its attention's output"),
        (LlamaConfig(hidden_act="gelu"), "gelu in its MLP"),
        (MistralConfig(sliding_window=64), "sliding window"),
        (LlamaConfig(rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}), "yarn position scaling"),
        (LlamaConfig(hidden_size=256, num_attention_heads=8), "heads of 32 channels"),
    ],
)
def test_what_a_llama_lacks_is_refused(config, says):
    with pytest.raises(GreenError, match=says):
        refuse_unknown(config)


@pytest.mark.parametrize(
    "config",
    [LlamaConfig(), MistralConfig(sliding_window=None), Qwen2Config(hidden_size=896, num_attention_heads=14)],
)
def test_dense_families_are_taken(config):
    refuse_unknown(config)


@pytest.mark.parametrize(
    ("target", "sizes", "options", "says"),
    [
        ("x86-64", FITS, {}, "Jetson Orin and Thor, not on x86-64"),
        ("jetson-orin-nano", {**FITS, "hidden_size": 192}, {}, "hidden size 192 is no multiple of 128"),
        ("jetson-orin-nano", FITS, {"precision": "fp8"}, "no precision 'fp8'"),
        ("jetson-orin-nano", FITS, {"calibration": "no-such.txt"}, "no such calibration file"),
    ],
)
def test_refused_before_anything_is_made(tmp_path, cache, target, sizes, options, says):
    model = make_llama(tmp_path / "m", head_dim=64, **sizes)
    with pytest.raises(GreenError, match=says):
        greenllm.export(model, tmp_path / "out", to="edge-llm", target=target, **options)
    assert not cache.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_an_encoder_and_a_model_without_tokenizer_are_refused(tmp_path, bert, cache):
    with pytest.raises(GreenError, match="runs decoders"):
        greenllm.export(bert, tmp_path / "out", to="edge-llm", target="jetson-orin-nano")
    model = make_llama(tmp_path / "m", head_dim=64, **FITS)
    (model / "tokenizer.json").unlink()
    with pytest.raises(GreenError, match=r"no tokenizer\.json"):
        greenllm.export(model, tmp_path / "out", to="edge-llm", target="jetson-orin-nano")
    assert not cache.exists()


def test_options_of_another_format_are_refused(tmp_path, llama):
    with pytest.raises(GreenError, match="says nothing to genai"):
        greenllm.export(llama, tmp_path / "out", to="genai", precision="int4")


@pytest.mark.parametrize(("group", "head", "taken"), [(128, False, True), (32, False, False), (128, True, False)])
def test_packed_weights_are_taken_in_its_layout_only(tmp_path, group, head, taken):
    model = make_llama(tmp_path / "m", head_dim=64, **FITS)
    config = json.loads((model / "config.json").read_text())
    packing = {"quant_method": "gptq", "bits": 4, "group_size": group, "sym": True, "lm_head": head}
    (model / "config.json").write_text(json.dumps(config | {"quantization_config": packing}))
    checkpoint = open_checkpoint(model)
    if taken:
        assert edgellm.refuse(checkpoint, NANO, "int4").hidden == 256
        with pytest.raises(GreenError, match="packed in a way"):
            edgellm.refuse(checkpoint, NANO, "int8")
    else:
        with pytest.raises(GreenError, match="packed in a way") as e:
            edgellm.refuse(checkpoint, NANO, "int4")
        assert "--group 128 --head-bits 0" in e.value.fix


def test_memory_adds_up_and_is_refused_with_its_arithmetic():
    config = LlamaConfig(vocab_size=1000, num_hidden_layers=3, **FITS)
    parts = memory(Shape.of(config), config, 4.125, 2048)
    assert parts["linears"] == int(3 * (2 * 256 * 6 * 64 + 3 * 256 * 512) * 4.125 / 8)
    assert parts["cache"] == 2 * 2 * 3 * 2 * 64 * 2048
    with pytest.raises(GreenError, match=r"1\.0 GB for a model; this one takes linears 0\.00 \+ .* = 1\.\d+ GB"):
        refuse_too_large(parts, NANO.model_copy(update={"memory": 3, "reserved": 2}), 2048)


# -- the tools


def test_arguments():
    quantize = quantize_arguments(Path("/m"), Path("/q"), "int4", 32)
    assert quantize[:2] == ["tensorrt_edgellm.scripts.quantize", "llm"]
    assert quantize[quantize.index("--quantization") + 1] == "int4_awq"
    assert quantize[quantize.index("--device") + 1] == "cpu"
    assert export_arguments(Path("/q"), Path("/o"), "int4")[-2:] == ["--externalize-weights", "int4_ffn"]
    assert export_arguments(Path("/q"), Path("/o"), "fp16") == ["tensorrt_edgellm.scripts.export", "/q", "/o"]


def test_tools_run_offline_and_their_last_words_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    tell = "import json, os; open('told.json', 'w').write(json.dumps(dict(os.environ)))"
    (tmp_path / "tell.py").write_text(tell)
    run_module(Path(sys.executable), ["tell"], tmp_path, EDGELLM_QUANT_DATASET_WIKITEXT="/text")
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["HF_HUB_OFFLINE"] == told["HF_DATASETS_OFFLINE"] == "1"
    assert told["HF_HOME"].startswith(str(tmp_path))
    assert told["EDGELLM_QUANT_DATASET_WIKITEXT"] == "/text"
    assert "PYTHONPATH" not in told
    (tmp_path / "fail.py").write_text("print('much'); raise ValueError('not 64-aligned')")
    with pytest.raises(GreenError, match=r"fail of TensorRT Edge-LLM .* failed: ValueError: not 64-aligned"):
        run_module(Path(sys.executable), ["fail"], tmp_path)


def test_a_checkpoints_own_code_is_not_handed_on(tmp_path):
    model = make_llama(tmp_path / "m", head_dim=64, **FITS)
    for name in ("config.json", "tokenizer_config.json"):
        data = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(data | {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    (model / "evil.py").write_text("raise SystemExit('ran')")
    plain = edgellm._plain(open_checkpoint(model), tmp_path / "plain")
    assert not list(plain.rglob("*.py"))
    assert not [f.name for f in plain.glob("*.json") if "auto_map" in f.read_text()]
    (plain / "processor_config.json").write_text("{no json")
    with pytest.raises(GreenError, match="is not JSON"):
        strip_code(plain)


# -- after the work


def make_graph(path, operators, size):
    """A graph with so many nodes of each operator, and external data of ``size`` bytes."""
    path.mkdir()
    nodes = [onnx.helper.make_node(op, ["x", w], [f"{op}{i}"]) for (op, w), n in operators.items() for i in range(n)]
    kinds = {"codes": onnx.TensorProto.INT8, "floats": onnx.TensorProto.FLOAT16}
    weights = [onnx.helper.make_tensor(name, kind, [1], [0]) for name, kind in kinds.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], weights)), path / "model.onnx")
    (path / "model.onnx.data").write_bytes(bytes(size))
    return path / "model.onnx"


SHAPE, HEAD = Shape(256, 512, 4, 2, 64, False), 1000
FULL = 2 * SHAPE.linears  # bytes of a block in fp16


INT4, INT8 = ("Int4GroupwiseGemmPluginV2", "codes"), ("DequantizeLinear", "codes")


@pytest.mark.parametrize(
    ("precision", "operators", "size", "says"),
    [
        ("int4", {INT4: LINEARS}, FULL // 4 + HEAD, None),
        ("int8", {INT8: LINEARS}, FULL // 2 + HEAD, None),
        ("fp16", {("MatMul", "floats"): LINEARS}, FULL + HEAD, None),
        ("int4", {("MatMul", "floats"): LINEARS}, FULL // 4 + HEAD, "0 of 7 linears"),
        ("int4", {INT4: LINEARS - 1, ("MatMul", "floats"): 1}, FULL // 4 + HEAD, "6 of 7 linears"),
        ("int8", {INT8: LINEARS - 1, ("DequantizeLinear", "x"): 4}, FULL // 2 + HEAD, "6 of 7 linears"),
        ("int4", {INT4: LINEARS}, FULL + HEAD, "100% of fp16's bytes"),
        ("int8", {INT8: LINEARS}, FULL + HEAD, "100% of fp16's bytes"),
    ],
)
def test_an_export_that_is_not_quantized_is_refused(tmp_path, precision, operators, size, says):
    graph = make_graph(tmp_path / "llm", operators, size)
    if says:
        with pytest.raises(GreenError, match=says):
            refuse_dense(graph, SHAPE, 1, HEAD, precision)
    else:
        found = refuse_dense(graph, SHAPE, 1, HEAD, precision)
        assert sum(found["operators"].values()) == LINEARS
        assert found["linears_of_fp16"] == round((size - HEAD) / FULL, 4)


def test_weights_beside_the_graph_count(tmp_path):
    graph = make_graph(tmp_path / "llm", {INT4: LINEARS}, HEAD)
    (graph.parent / "external_int4_ffn_weights.safetensors").write_bytes(bytes(FULL))
    (graph.parent / "embedding.safetensors").write_bytes(bytes(FULL))
    with pytest.raises(GreenError, match="100% of fp16's bytes"):
        refuse_dense(graph, SHAPE, 1, HEAD, "int4")


def external(name, offset, length, location="model.onnx.data"):
    """A tensor of bytes in another file."""
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.INT8, dims=[length])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def test_bytes_that_nobody_reads_go(tmp_path):
    data = bytes(range(256)) * 4
    (tmp_path / "model.onnx.data").write_bytes(data)
    tensors = [external("a", 10, 100), external("b", 900, 50)]
    graph = onnx.helper.make_graph([], "g", [], [], initializer=tensors)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    assert drop_dead_bytes(tmp_path / "model.onnx") == 1024 - 178
    a, b = onnx.load(tmp_path / "model.onnx").graph.initializer
    assert a.raw_data == data[10:110]
    assert b.raw_data == data[900:950]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]


@pytest.mark.parametrize("tensor", [external("a", 0, 9, "../x"), external("a", 1000, 9)])
def test_data_elsewhere_is_refused(tmp_path, tensor):
    (tmp_path / "model.onnx.data").write_bytes(bytes(100))
    graph = onnx.helper.make_graph([], "g", [], [], initializer=[tensor])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(GreenError, match="a is not in"):
        drop_dead_bytes(tmp_path / "model.onnx")


def pack(codes):
    """Int4 codes [N, K] as ModelOpt keeps them: two rows in a byte, the even one in the low half."""
    two = (codes & 15).to(torch.uint8).view(-1, 2, codes.shape[1])
    return two[:, 0] | (two[:, 1] << 4)


def quantized_copy(model, out, *, damage=None):
    """The checkpoint with its linears as ModelOpt writes them, rounded to nearest in groups of 128."""
    out.mkdir()
    tensors = {}
    for name, value in load_file(model / "model.safetensors").items():
        if not name.endswith("proj.weight"):
            tensors[name] = value.half()
            continue
        inputs = 1 + torch.arange(value.shape[1]) / value.shape[1]  # AWQ's scales of the inputs
        scaled = value / inputs
        scale = scaled.view(len(value), -1, 128).abs().amax(-1) / 7
        codes = (scaled / scale.repeat_interleave(128, 1)).round().clamp(-8, 7).to(torch.int8)
        base = name.removesuffix(".weight")
        tensors |= {name: pack(codes), f"{base}.weight_scale": scale, f"{base}.pre_quant_scale": inputs.half()}
    if damage == "missing":
        del tensors["model.norm.weight"]
    if damage == "nan":
        tensors["model.layers.0.mlp.up_proj.weight_scale"] *= torch.nan
    save_file(tensors, out / "model.safetensors")
    return out


def test_the_quantizers_weights_are_read_back(tmp_path):
    model = make_llama(tmp_path / "m", head_dim=64, **FITS)
    checkpoint = open_checkpoint(model)
    copy = quantized_copy(model, tmp_path / "q")
    for name, value in dequantized(copy):
        want = checkpoint.tensor(name)
        error = float((value - want).norm() / want.norm())
        assert error < (0.15 if name.endswith("proj.weight") else 1e-3), name
    found = fidelity(checkpoint, copy)
    assert 0 < found["kl_divergence"] < 0.05
    assert 0 < found["top1_agreement"] <= 1


@pytest.mark.parametrize(("damage", "says"), [("missing", r"lacks model\.norm\.weight"), ("nan", "not numbers")])
def test_a_damaged_quantized_checkpoint_is_refused(tmp_path, damage, says):
    model = make_llama(tmp_path / "m", head_dim=64, **FITS)
    with pytest.raises(GreenError, match=says):
        fidelity(open_checkpoint(model), quantized_copy(model, tmp_path / "q", damage=damage))


def test_int8_is_read_back(tmp_path):
    codes, scale = torch.tensor([[1, -2], [127, -127]], dtype=torch.int8), torch.tensor([0.5, 2.0])
    save_file({"a.weight": codes, "a.weight_scale": scale}, tmp_path / "model.safetensors")
    ((name, value),) = dequantized(tmp_path)
    assert name == "a.weight"
    assert value.tolist() == [[0.5, -1.0], [254.0, -254.0]]


# -- the device


def steps(out, target=NANO, *, megabytes=1):
    out.mkdir()
    (out / "llm").mkdir()
    return write_steps(out, target, {"all": megabytes * 2**20}, 2048)


def stub(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def on_device(tmp_path, *command, machine="aarch64"):
    """Run a script where ``uname -m`` says that it is the device, and Edge-LLM is there."""
    stub(tmp_path / "bin" / "uname", f"echo {machine}")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environment = {"PATH": path, "EDGELLM": str(tmp_path / "tools"), "HOME": str(tmp_path)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_scripts_give_edge_llm_its_exact_arguments(tmp_path):
    made = steps(tmp_path / "out")
    assert made["board"] == "jetson-orin"
    tools = tmp_path / "tools" / "build" / "examples" / "llm"
    keep = f'printf "%s\\n" "$EDGELLM_PLUGIN_PATH" "$@" > {tmp_path}'
    stub(tools / "llm_build", f"{keep}/build.args; mkdir {tmp_path}/out/engine.part")
    stub(tools / "llm_inference", f'{keep}/run.args; echo answer > "$6"')
    out = tmp_path / "out"
    done = on_device(tmp_path, out / "build.sh")
    assert done.returncode == 0, done.stderr
    plugin, *arguments = (tmp_path / "build.args").read_text().split()
    assert plugin == f"{tmp_path}/tools/build/libNvInfer_edgellm_plugin.so"
    assert arguments == [
        "--onnxDir", f"{out}/llm", "--engineDir", f"{out}/engine.part", "--maxBatchSize", "1",
        "--maxInputLen", "1024", "--maxKVCacheCapacity", "2048",
    ]  # fmt: skip
    assert (out / "engine").is_dir()
    done = on_device(tmp_path, out / "run.sh")
    assert done.stdout == "answer\n", done.stderr
    assert (tmp_path / "run.args").read_text().split()[1:5] == [
        "--engineDir", f"{out}/engine", "--inputFile", f"{out}/prompts.json",
    ]  # fmt: skip
    asked = json.loads((out / "prompts.json").read_text())
    assert asked["apply_chat_template"] is False  # this model has none
    assert asked["requests"][0]["messages"][0]["role"] == "user"
    assert "is there. Delete it" in on_device(tmp_path, out / "build.sh").stderr


def test_the_scripts_refuse_what_cannot_be(tmp_path):
    out = tmp_path / "out"
    steps(out, megabytes=10**9)
    assert "free; the model needs about 1000000000" in on_device(tmp_path, out / "build.sh").stderr
    elsewhere = on_device(tmp_path, out / "build.sh", machine="x86_64")
    assert elsewhere.returncode == 1
    assert "this is x86_64. Run it on the jetson-orin-nano" in elsewhere.stderr
    assert "Run ./build.sh first" in on_device(tmp_path, out / "run.sh").stderr


def test_a_failed_build_leaves_no_engine(tmp_path):
    out = tmp_path / "out"
    steps(out)
    stub(tmp_path / "tools" / "build" / "examples" / "llm" / "llm_build", f"mkdir {out}/engine.part; exit 3")
    assert on_device(tmp_path, out / "build.sh").returncode == 3
    assert not (out / "engine").exists()


def test_a_targets_name_is_no_code(tmp_path):
    evil = NANO.model_copy(update={"name": f"x-orin'; touch {tmp_path}/pwned; $(touch {tmp_path}/pwned)"})
    steps(tmp_path / "out", evil)
    on_device(tmp_path, tmp_path / "out" / "build.sh", machine="x86_64")
    on_device(tmp_path, tmp_path / "out" / "run.sh")
    assert not (tmp_path / "pwned").exists()


def test_other_devices_are_refused():
    with pytest.raises(GreenError, match="not on cpu"):
        board(load_target("cpu"))


def test_the_bench_says_that_it_runs_elsewhere(tmp_path):
    artifact.seal(tmp_path, artifact.Manifest(kind="edge-llm"))
    with pytest.raises(GreenError, match="runs on its device only"):
        find(tmp_path)


def test_it_is_its_own_bundle(tmp_path):
    (tmp_path / "out").mkdir()
    artifact.seal(tmp_path / "out", artifact.Manifest(kind="edge-llm"))
    with pytest.raises(GreenError, match="its own bundle") as e:
        bundle(tmp_path / "out", tmp_path / "bundle")
    assert "./build.sh" in e.value.fix
    assert not (tmp_path / "bundle").exists()


# -- its environment


def test_an_environment_is_made_once_and_whole(tmp_path, cache, monkeypatch):
    pins = tmp_path / "pins.txt"
    pins.write_text("# nothing\n")
    home = environment.place("tool-1", pins)
    half = home.with_name(f".{home.name}.partial")
    (half / "bin").mkdir(parents=True)
    (half / "bin" / "python").symlink_to(sys.executable)  # a creation that was killed
    python = environment.own_environment("tool-1", pins, "json", 0.1, Silent())
    assert python == home / "bin" / "python"
    assert subprocess.run([python, "-c", "import json"], check=True).returncode == 0
    assert [p.name for p in cache.iterdir()] == [home.name]
    monkeypatch.setattr(subprocess, "run", lambda *_a, **_k: pytest.fail("it was there"))
    assert environment.own_environment("tool-1", pins, "json", 0.1, Silent()) == python
    pins.write_text("# something else\n")
    assert environment.place("tool-1", pins) != home


def test_an_environment_that_cannot_be_made_leaves_nothing(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    pins = tmp_path / "pins.txt"
    pins.write_text("no-such-package-of-greenllm==1\n")
    with pytest.raises(GreenError, match="cannot be made: ERROR: .*no-such-package"):
        environment.own_environment("tool-1", pins, "json", 0.1, Silent())
    assert list(cache.iterdir()) == []
    with pytest.raises(GreenError, match="takes up to 1e\\+09 GB"):
        environment.own_environment("tool-1", pins, "json", 1e9, Silent())


def test_pins_are_exact_and_without_torchvision():
    lines = [x for x in edgellm.REQUIREMENTS.read_text().splitlines() if x and not x.startswith("#")]
    assert all(re.match(r"[\w-]+==[\w.]+(; python_version >= \"3\.11\")?$", x) for x in lines)
    assert not [x for x in lines if x.startswith("torchvision")]
    assert f"tensorrt-edgellm=={edgellm.VERSION}" in lines
    assert edgellm._tools()["nvidia-modelopt"] == "0.45.0"
    assert len(edgellm._tools()) == len(edgellm._SHAPING)


@pytest.mark.skipif(not os.environ.get(REAL), reason=f"{REAL}=1 runs NVIDIA's tools: 2 GB and minutes the first time")
def test_the_real_tools_quantize_and_export_on_a_cpu(tmp_path):
    model = make_llama(tmp_path / "m", head_dim=64, **FITS)
    done = greenllm.export(model, tmp_path / "out", to="edge-llm", target="jetson-orin-nano")
    done.verify()
    assert done.kind == "edge-llm"
    verified = done.manifest.details["verified"]
    assert verified["operators"]["Int4GroupwiseGemmPluginV2"] == 2 * LINEARS
    assert verified["linears_of_fp16"] < 0.3
    assert verified["quantized"]["kl_divergence"] < 0.1
    assert "CACHE=256\n" in (done.path / "build.sh").read_text()  # this model has room for no more
    assert (done.path / "build.sh").stat().st_mode & stat.S_IXUSR

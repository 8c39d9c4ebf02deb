"""Transcribers from checkpoint to what runs: two graphs that hear and write as torch does, measured and asked."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from conftest import make_llama, ran

import greenllm
from greenllm import artifact, audio
from greenllm.bench import Effort
from greenllm.bench.runners import loader
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.export.quantized import Quantized, join
from greenllm.generate import load
from greenllm.recipe import make_step

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("jiwer")
TINY = Effort(windows=2, sittings=2, width=0.5, seconds=0.2, turn=0.02, energy=0.1)


def noise(seconds=1.0, seed=1):
    return 0.1 * np.random.default_rng(seed).normal(size=int(seconds * audio.RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for i in range(3):
        soundfile.write(folder / f"{i}.wav", noise(0.5 + 0.1 * i, i), audio.RATE)
    file = folder / "speech.jsonl"
    file.write_text("\n".join(json.dumps({"audio": f"{i}.wav", "text": "one noise"}) for i in range(3)))
    return file


@pytest.fixture(scope="module")
def int8(tiny_moonshine, clips, tmp_path_factory):
    """The whole command: quantized, exported, verified, and measured beside its source."""
    out = tmp_path_factory.mktemp("made") / "int8"
    run = {"tasks": [clips], "effort": TINY, "threads": 1, "energy": False}
    return greenllm.compress(tiny_moonshine, out, "int8", bench_options=run)


def test_both_graphs_hold_integers_and_were_compared(int8, tiny_moonshine):
    deploy = int8.deployable
    found = deploy.manifest.details
    assert found["task"] == "automatic-speech-recognition"
    assert found["stored_bits"] == [8]
    # of two layers: six matrices hear, two make keys and values of a clip, eight write; embedding and head are one,
    # and shared, which ONNX Runtime reads in its own operators only without unpacking all of it at each token
    assert found["operators"]["MatMulNBits"] == 2 * 6 + 2 * 10 + 1
    assert found["operators"]["GatherBlockQuantized"] == 1
    assert "DequantizeLinear" not in found["operators"]
    assert 0 < found["verified"]["kl_divergence"] < 1e-3
    assert found["verified"]["max_relative_error"] < 0.02
    stored = sum(f.stat().st_size for f in deploy.path.glob("*.data"))
    packed = sum(w.codes.numel() for _, w in open_checkpoint(int8.path / "checkpoint").packed())
    dense = open_checkpoint(tiny_moonshine).parameters - packed
    assert stored < 1.1 * packed + 4.1 * dense + 50_000


def test_a_clip_is_written_as_torch_writes_it(int8):
    ours = loader("onnxruntime").load(str(int8.deployable.path), 1)
    theirs = loader("torch").load(str(int8.path / "checkpoint"), 1)
    for seconds in (0.3, 1.7):  # other lengths than any before
        clip = noise(seconds)
        assert list(ours.stream(clip, 12)) == list(theirs.stream(clip, 12))
    assert ours.info.vocabulary == 128


def test_words_are_counted_beside_the_source_s(int8):
    report = json.loads((int8.path / "report.json").read_text())
    (task,) = (after := report["rows"][1])["tasks"].values()
    assert task["scores"]["wer"]["against"]["difference"]["unit"] == "points"
    assert after["measurements"]["real_time"]["value"] > 0


def test_run_writes_what_is_said(int8, clips, capsys):
    code, out, told = ran(capsys, int8.path, "--audio", clips.with_name("0.wav"), "--max-tokens", 5)
    assert code == 0
    assert out.endswith("\n")
    assert "0.5 s heard" in told
    assert "5 tokens written; cut there." in told


def test_what_is_asked_of_the_wrong_model_is_told(int8, clips, tmp_path, capsys):
    clip = str(clips.with_name("0.wav"))
    text = tmp_path / "text"
    text.mkdir()
    (text / "genai_config.json").write_text("{}")
    (tmp_path / "noise.wav").write_bytes(b"RIFF" + bytes(99))
    soundfile.write(tmp_path / "long.wav", np.zeros(4000 * 121), 4000)
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    for arguments, says in [
        ([int8.path, "what is said?"], "takes a clip alone"), ([int8.path], "nothing for"),
        ([int8.path, "--audio", clip, "--system", "be brief"], "takes a clip alone"),
        ([int8.path, "--audio", tmp_path / "no.wav"], "no such audio"),
        ([int8.path, "--audio", tmp_path / "noise.wav"], "cannot be read as audio"),
        ([int8.path, "--audio", tmp_path / "long.wav"], "lasts 121.00 s"),
        ([int8.path, "--audio", tmp_path / "none.wav"], "lasts 0.00 s"),
        ([text, "--audio", clip], "does not hear"), ([text], "nothing for"),
    ]:  # fmt: skip
        code, _, told = ran(capsys, *arguments)
        assert code == 1
        assert says in told
    with pytest.raises(GreenError, match="writes what it hears"):
        load(int8.path)


def test_files_of_others_are_refused(int8, tmp_path):
    deploy = int8.deployable.path
    for name in ("no-start", "other-rate", "swapped"):
        shutil.copytree(deploy, tmp_path / name)
        (tmp_path / name / artifact.MANIFEST).unlink()
    for file in ("config.json", "generation_config.json"):
        (tmp_path / "no-start" / file).write_text("{}")
    (tmp_path / "other-rate" / "preprocessor_config.json").write_text('{"sampling_rate": 8000}')
    shutil.copy(deploy / "model.onnx", tmp_path / "swapped" / "encoder.onnx")
    for name, says in [("no-start", "where does an answer begin"), ("other-rate", "hears 8000"),
                       ("swapped", "is not known")]:  # fmt: skip
        with pytest.raises(GreenError, match=says):
            loader("onnxruntime").load(str(tmp_path / name), 1)


def test_a_weight_in_neither_graph_is_missed():
    one = Quantized({"MatMul": 1}, ["a", "b", "c"], [8], missing=["b", "c"])
    other = Quantized({"MatMul": 2}, ["a", "b", "c"], [4], missing=["a"])
    assert join([one, other]) == Quantized({"MatMul": 3}, ["a", "b", "c"], [4, 8])
    with pytest.raises(GreenError, match="1 quantized weights .* b"):
        join([one, Quantized({}, ["a", "b", "c"], missing=["a", "b"])])


def test_what_compress_needs_is_told_before_any_work(tiny_moonshine, clips, tmp_path):
    with pytest.raises(GreenError, match="nothing else to ask"):
        greenllm.compress(tiny_moonshine, tmp_path / "x", "int8")
    with pytest.raises(GreenError, match="has to hear some"):
        greenllm.compress(tiny_moonshine, tmp_path / "x", "int4", bench_options={"tasks": [clips]})
    for to in ("genai", "tensorrt", "gguf"):
        with pytest.raises(GreenError, match="transcriber|not run tensorrt"):
            greenllm.compress(tiny_moonshine, tmp_path / "x", "int8", to=to, bench=False)
    assert not list(tmp_path.iterdir())


def test_a_group_that_does_not_fit_is_halved_where_that_is_asked(tmp_path):
    odd = open_checkpoint(make_llama(tmp_path / "odd", hidden_size=96))
    fields = {"method": "rtn", "bits": 8, "group": 64, "head_bits": 8, "head_group": 64}
    with pytest.raises(GreenError, match="do not divide"):
        make_step("quantize", fields, "test").check(odd)
    step = make_step("quantize", fields | {"fit": True}, "test")
    step.check(odd)
    groups = {name.rpartition(".")[2]: g.group for name, g in step.grids(odd).items()}
    assert (groups["q_proj"], groups["down_proj"], groups["lm_head"]) == (32, 64, 32)

"""Transcribers: the walk goes through encoder and decoder, and what is packed reads back and writes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from greenllm import artifact, calibration, hearing, pipeline, recipe
from greenllm.artifact import Manifest
from greenllm.bench.runners import loader
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.step import Context
from greenllm.walk import Walk

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("jiwer")


def batches():
    random = torch.Generator().manual_seed(0)
    return [
        {"input_values": 0.1 * torch.randn(1, n, generator=random), "decoder_input_ids": torch.tensor([[1, *ids]])}
        for n, ids in ((16000, [5, 9, 3]), (9000, [7]), (12000, [4, 4, 8, 100, 6]))
    ]


def nothing(name, block, forward):
    return {}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    random = np.random.default_rng(0)
    for i in range(3):
        soundfile.write(folder / f"{i}.wav", 0.1 * random.normal(size=8000 + 2000 * i), 16000)
    file = folder / "speech.jsonl"
    file.write_text("\n".join(json.dumps({"audio": f"{i}.wav", "text": "noise"}) for i in range(3)))
    return file


@torch.no_grad()
def test_clips_of_any_length_end_where_the_whole_model_ends(tiny_moonshine, tmp_path):
    checkpoint = open_checkpoint(tiny_moonshine)
    walk = Walk(checkpoint, batches(), tmp_path)
    walk.run(nothing)
    model = checkpoint.load_model()
    for batch, x in zip(batches(), walk.head_inputs(walk.model.get_output_embeddings()), strict=True):
        want = model.model(**batch).last_hidden_state.flatten(0, 1)
        torch.testing.assert_close(x, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_decoder_hears_what_the_changed_encoder_says(tiny_moonshine, tmp_path):
    checkpoint = open_checkpoint(tiny_moonshine)
    walk = Walk(checkpoint, batches(), tmp_path)

    def louder(name, block, forward):
        if name.startswith("model.encoder"):
            block.mlp.fc2.weight.mul_(3)
        return {}

    walk.run(louder)
    model = checkpoint.load_model()
    for block in model.model.encoder.layers:
        block.mlp.fc2.weight.mul_(3)
    (*_, x) = walk.head_inputs(walk.model.get_output_embeddings())
    want = model.model(**batches()[-1]).last_hidden_state.flatten(0, 1)
    torch.testing.assert_close(x, want, rtol=1e-4, atol=1e-5)


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_killed_run_goes_on_bit_for_bit(tiny_moonshine, tmp_path, after):
    step = recipe.make_step("quantize", {}, "test")
    left = [after]

    class Killer:
        def stage(self, name, total):
            pass

        def note(self, text):
            pass

        def advance(self, amount=1):
            left[0] -= amount
            if not left[0]:
                raise _Killed

    def run(name, progress=None):
        (tmp_path / name).mkdir(exist_ok=True)
        context = Context(tmp_path / f"{name}-work", batches)
        context.progress = progress or context.progress
        step.run(open_checkpoint(tiny_moonshine), tmp_path / name, context)
        return artifact.seal(tmp_path / name, Manifest(kind="checkpoint")).manifest.files

    want = run("whole")
    with pytest.raises(_Killed):
        run("killed", Killer())
    assert run("killed") == want


def stream(path, n=12):
    clip = 0.1 * np.random.default_rng(1).normal(size=16000).astype(np.float32)
    return list(loader("torch").load(str(path), 1).stream(clip, n))


@pytest.mark.parametrize(("method", "clipped"), [("rtn", False), ("gptq", True)])
def test_a_packed_transcriber_writes(tiny_moonshine, clips, tmp_path, method, clipped):
    made = recipe.Recipe(
        name="q", steps=[recipe.make_step("quantize", {"method": method, "bits": 8, "head_bits": 8}, "test")],
        calibration=recipe.Calibration(source=str(clips) if clipped else "self"),
    )  # fmt: skip
    done = pipeline.run_steps(tiny_moonshine, tmp_path / "out", made)
    packed = {name for name, _ in open_checkpoint(done.path).packed()}
    for name in (
        "encoder.layers.1.self_attn.q_proj",
        "decoder.layers.0.encoder_attn.k_proj",
        "decoder.layers.1.mlp.fc2",
    ):
        assert f"model.{name}" in packed
    assert "proj_out" in packed
    assert len(packed) == 2 * 6 + 2 * 10 + 1
    if clipped:
        assert done.manifest.calibration["samples"] == 3
    before = open_checkpoint(tiny_moonshine).load_model()
    after = open_checkpoint(done.path).load_model()
    batch = batches()[0]
    with torch.no_grad():
        a, b = before(**batch).logits, after(**batch).logits
    assert 0 < (a - b).norm() / a.norm() < 0.05
    assert len(stream(done.path)) == 12


def test_what_is_not_done_with_transcribers_is_told_at_once(tiny_moonshine, llama, clips, tmp_path):
    for fields, source, says in [
        ({"awq": True, "method": "rtn"}, str(clips), "weights alone"),
        ({"activations": "dynamic", "method": "rtn"}, str(clips), "weights alone"),
        ({}, "self", "has to hear some"),
    ]:
        made = recipe.Recipe(
            name="q", steps=[recipe.make_step("quantize", fields, "test")],
            calibration=recipe.Calibration(source=source),
        )  # fmt: skip
        with pytest.raises(GreenError, match=says):
            pipeline.run_steps(tiny_moonshine, tmp_path / "out", made)
    made = recipe.Recipe(name="p", steps=[recipe.make_step("prune", {"ratio": 0.2}, "test")])
    with pytest.raises(GreenError, match="takes models of text"):
        pipeline.run_steps(tiny_moonshine, tmp_path / "out", made)
    assert not (tmp_path / "out").exists()


def test_calibration_is_kept_as_it_was(tiny_moonshine, clips, tmp_path):
    from greenllm.progress import Silent

    found = hearing.samples(open_checkpoint(tiny_moonshine), str(clips), 2, Silent())
    assert [b["input_values"].shape[1] for b in found] == [8000, 10000]
    calibration.save(found, tmp_path / "c.safetensors", {})
    back = calibration.load(tmp_path / "c.safetensors")
    assert calibration.describe("x", back, 0) == calibration.describe("x", found, 0)
    assert all(torch.equal(a[k], b[k]) for a, b in zip(found, back, strict=True) for k in a)


def test_a_model_of_another_rate_is_refused(tiny_moonshine, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_moonshine, other)
    (other / "preprocessor_config.json").write_text('{"sampling_rate": 8000}')
    with pytest.raises(GreenError, match="hears 8000 samples"):
        loader("torch").load(str(other), 1)

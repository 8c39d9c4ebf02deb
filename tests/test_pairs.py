"""CLIP and SigLIP: two towers quantized, exported, benched and asked as torch computes them; and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import edit, ran
from pairs import KINDS, LAYERS, coloured, make_pairs
from transformers import LlavaNextConfig, Siglip2Config

import greenllm
from greenllm import artifact, images, pairing, pairs, pipeline, recipe
from greenllm.bench import Effort
from greenllm.bench.runners import loader
from greenllm.bench.tasks import read, retrieval, zeroshot
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.export import dual
from greenllm.export.bundle import bundle
from greenllm.export.verify import verify
from greenllm.generate import load

BRIEF = Effort(windows=1, sentences=8, seconds=0.3, turn=0.01)
TEXTS = ["a photo of a red.", "a photo of a green.", "a photo of a blue."]


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A CLIP and a SigLIP, and pictures."""
    path = tmp_path_factory.mktemp("pairs")
    for name in KINDS:
        make_pairs(path / name, name)
    coloured(path / "see", 12)
    return path


@pytest.fixture(scope="module")
def int8(home):
    return greenllm.compress(home / "clip", home / "int8", "int8", bench=False)


def quantized(home, kind, method):
    """A checkpoint of 4 bits everywhere, calibrated on all pictures and their captions."""
    step = {"method": method, "bits": 4, "group": 32, "head_bits": 4, "head_group": 32}
    made = recipe.Recipe(
        name="int4", calibration={"source": str(home / "see/captions.jsonl"), "samples": 12},
        steps=[recipe.make_step("quantize", step, "test")],
    )  # fmt: skip
    return pipeline.run_steps(home / kind, home / f"{kind}-{method}", made)


@pytest.fixture(scope="module")
def int4(home):
    return {name: quantized(home, name, "gptq") for name in KINDS}


def theirs(path, kind, texts):
    """(image vectors, text vectors, logits) by transformers, of the pictures 0 to 11."""
    from transformers import AutoTokenizer

    model = KINDS[kind][0].from_pretrained(path).eval()
    whole = {"padding": "max_length", "max_length": 64} if kind == "siglip" else {"padding": True}  # as their pipeline
    fed = dict(AutoTokenizer.from_pretrained(path)(texts, return_tensors="pt", **whole))
    fed = {k: v for k, v in fed.items() if k == "input_ids" or (kind == "clip" and k == "attention_mask")}
    files = [path.parent / "see" / f"{i}.png" for i in range(12)]
    x = torch.from_numpy(images.read(files, images.Processor(path)))
    with torch.no_grad():
        out = model(pixel_values=x, **fed)
    return out.image_embeds.numpy(), out.text_embeds.numpy(), out.logits_per_image.numpy()


def test_both_runners_give_the_vectors_of_transformers(home, kind):
    done = greenllm.export(home / kind, home / f"{kind}-fp32")
    assert {"model.onnx", "model.onnx.data", "text.onnx", "text.onnx.data"} <= set(done.manifest.files)
    texts = ["red", "a much longer text of blue"]  # of two lengths in a batch
    seen, told, logits = theirs(home / kind, kind, texts)
    files = [str(home / "see" / f"{i}.png") for i in range(12)]
    for name, path in (("torch", home / kind), ("onnxruntime", done.path)):
        runner = loader(name).load(str(path), 1)
        ours = pairs.unit(runner.encode(list(runner.pixels(files))))
        read_ = pairs.unit(runner.encode(runner.tokens(texts)))
        np.testing.assert_allclose(ours, seen, atol=2e-5)
        np.testing.assert_allclose(read_, told, atol=2e-5)
    facts = pairs.facts_of(done.path)
    want = torch.from_numpy(logits).double()
    want = want.sigmoid() if kind == "siglip" else want.softmax(1)
    for row, theirs_ in zip(ours, want, strict=True):
        np.testing.assert_allclose(pairs.probabilities(read_ @ row, facts), theirs_, atol=1e-3)


def test_integers_in_both_towers_their_ends_and_the_embedding(home, int8, int4):
    """Of a CLIP in 8 bits, and of a SigLIP in 4."""
    four = greenllm.export(int4["siglip"], home / "siglip-int4-onnx").manifest
    for kind, bits, ends, made in (("clip", 8, 2, int8.deployable.manifest), ("siglip", 4, 3, four)):
        details = made.details
        assert details["operators"]["MatMulInteger"] == 2 * LAYERS[kind] * 6 + ends
        assert details["operators"]["GatherBlockQuantized"] == 1
        assert details["stored_bits"] == [bits]
        for tower in ("images", "texts"):
            assert 0 < details["verified"][tower]["error"] < 0.1
        assert details["pairs"]["bias"] == (-3.0 if kind == "siglip" else None)
    assert four.calibration["samples"] == 12


def test_calibration_brings_each_tower_nearer_to_its_source(home, int4, kind):
    (batch,) = pairing.samples(open_checkpoint(home / kind), str(home / "see/captions.jsonl"), 12)
    plain = quantized(home, kind, "rtn")
    with torch.no_grad():
        want, near, far = (open_checkpoint(p).load_model()(**batch) for p in (home / kind, int4[kind].path, plain.path))
    for tower in ("image_embeds", "text_embeds"):
        assert (near[tower] - want[tower]).norm() < (far[tower] - want[tower]).norm()


def test_bench_scores_are_those_of_torch(home, int8, tmp_path):
    tasks = [home / "see/labels.jsonl", home / "see/captions.jsonl"]
    done = greenllm.bench([home / "clip", int8], tasks=tasks, effort=BRIEF, energy=False, report=tmp_path / "r")
    dense, small = done.rows
    assert [row.error for row in done.rows] == [None, None]
    zero, pair = (dense.tasks[t] for t in dense.tasks)
    rows = [json.loads(line) for line in tasks[0].read_text().splitlines()]
    names = sorted({r["label"] for r in rows})
    _, _, logits = theirs(home / "clip", "clip", [f"a photo of a {n}." for n in names])
    want = [float(names[a] == r["label"]) for a, r in zip(logits.argmax(1), rows, strict=True)]
    assert zero.main.values == want
    assert zero.chance == pytest.approx(1 / 3)
    captions = [json.loads(line)["caption"] for line in tasks[1].read_text().splitlines()]
    _, _, logits = theirs(home / "clip", "clip", captions)
    for way, near in (("caption", logits), ("image", logits.T)):
        order = (-near).argsort(1)
        for k in (1, 5, 10):
            assert pair.scores[f"{way}_r{k}"].values == [float(i in row[:k]) for i, row in enumerate(order)]
    for i, group in enumerate(("even", "odd")):
        assert pair.scores[f"caption_r1: {group}"].values == pair.scores["caption_r1"].values[i::2]
    assert small.tasks[next(iter(small.tasks))].main.against is not None
    assert small["cosine"].value > 0.99
    assert small["cosine_text"].value > 0.99
    assert dense["encode"].unit == "images/s"
    assert dense["encode_text"].unit == "texts/s"
    assert small.ratios["encode_text"].value > 0
    text = (tmp_path / "r/report.md").read_text()
    assert "a photo of a …." in text
    assert "caption of an image, recall@1 (chance 8 %)" in text


def test_recall_counts_any_caption_of_an_image_and_no_luck():
    near = np.array([[0.9, 0.1, 0.5], [0.2, 0.2, 0.2]], np.float32)
    belongs = np.array([[False, True, True], [True, False, False]])
    assert retrieval.ranks(near, belongs).tolist() == [1, 2]  # its better caption is second; what is alike is last
    assert retrieval.ranks(near.T, belongs.T).tolist() == [1, 1, 0]


def test_run_says_how_likely_each_label_is(home, int8, capsys):
    image = home / "see/0.png"
    code, out, _ = ran(capsys, int8.path, "--image", image, "--labels", "red, green,blue")
    assert code == 0
    shares = {line.split("%")[1].strip(): float(line.split("%")[0]) for line in out.splitlines()}
    assert set(shares) == {"red", "green", "blue"}
    assert sum(shares.values()) == pytest.approx(100, abs=0.2)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    code, other, _ = ran(capsys, int8.path, "the colour {}", "--image", image, "--labels", "red,green,blue")
    assert code == 0
    assert other != out


def test_what_is_asked_amiss_is_told(home, int8, tmp_path, capsys):
    image, text = home / "see/0.png", tmp_path / "text"
    text.mkdir()
    (text / "genai_config.json").write_text("{}")
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:100])
    for arguments, says in [
        ([int8.path, "--image", image], "needs labels to choose from"),
        ([int8.path, "--labels", "a,b"], "needs an image"), ([int8.path, "hello"], "needs an image"),
        ([int8.path, "--image", image, "--labels", "cat"], "no labels to choose from"),
        ([int8.path, "--image", image, "--labels", "cat,,dog"], "no labels to choose from"),
        ([int8.path, "--image", image, "--labels", "cat,cat"], "no labels to choose from"),
        ([int8.path, "", "--image", image, "--labels", "cat,dog"], "no place for a label"),
        ([int8.path, "no place", "--image", image, "--labels", "cat,dog"], "no place for a label"),
        ([int8.path, "--image", image, "--labels", f"cat,{'dog' * 30}"], "this model reads 64"),
        ([int8.path, "--image", tmp_path / "cut.png", "--labels", "cat,dog"], "cannot be read as an image"),
        ([int8.path, "--image", tmp_path / "no.png", "--labels", "cat,dog"], "cannot be read as an image"),
        ([int8.path, "--image", image, "--labels", "cat,dog", "--system", "x"], "and nothing else"),
        ([text, "--image", image, "--labels", "cat,dog"], "does not compare images with texts"),
    ]:  # fmt: skip
        code, _, told = ran(capsys, *arguments)
        assert code == 1
        assert says in told
    with pytest.raises(GreenError, match="compares images with texts"):
        load(int8.path)
    with pytest.raises(GreenError, match="bundles are made of models of text"):
        bundle(int8, tmp_path / "bundle")


def test_texts_that_transformers_splits_otherwise_are_no_export(home, tmp_path):
    """A ``tokenizer.json`` that keeps capitals, under the name of a tokenizer that does not."""
    shutil.copytree(home / "clip", tmp_path / "clip")
    edit(tmp_path / "clip/tokenizer_config.json", tokenizer_class="CLIPTokenizer")
    with pytest.raises(GreenError, match="splits English text otherwise"):
        verify(open_checkpoint(tmp_path / "clip"), tmp_path / "clip", "onnx", arithmetic="fp32")


def test_a_model_that_says_too_little_is_refused(home, tmp_path):
    for kind in KINDS:
        shutil.copytree(home / kind, tmp_path / kind)
    edit(tmp_path / "siglip/tokenizer_config.json", pad_token=None)
    config = json.loads((tmp_path / "siglip/config.json").read_text())
    edit(tmp_path / "siglip/config.json", text_config=config["text_config"] | {"pad_token_id": None})
    source = open_checkpoint(tmp_path / "siglip")
    with pytest.raises(GreenError, match="no file says with which token"):
        dual.facts(source, source.load_model())
    source = open_checkpoint(tmp_path / "clip")
    source.config = Siglip2Config()  # of images of any size
    with pytest.raises(GreenError, match="no image_size"):
        source.image_shape  # noqa: B018
    LlavaNextConfig(architectures=["LlavaNextForConditionalGeneration"]).save_pretrained(tmp_path / "clip")
    with pytest.raises(GreenError, match="'LlavaNextForConditionalGeneration' is not supported yet"):
        open_checkpoint(tmp_path / "clip")


def test_a_model_that_only_sees_reads_no_labels(home, int8, tmp_path, capsys):
    """An export of images alone: the manifest of a vision encoder, as the bench's own tests make it."""
    seeing = tmp_path / "seeing"
    shutil.copytree(int8.deployable.path, seeing)
    (seeing / "text.onnx").unlink()
    manifest = artifact.read(seeing).manifest
    manifest.details |= {"task": "image-feature-extraction"}
    artifact.relist(seeing, manifest)
    code, _, told = ran(capsys, seeing, "--image", home / "see/0.png", "--labels", "cat,dog")
    assert (code, "sees images but reads no labels" in told) == (1, True)


def test_files_of_others_are_refused(home, int8, tmp_path):
    deploy = int8.deployable.path
    for name in ("swapped", "none", "wild", "bare"):
        shutil.copytree(deploy, tmp_path / name)
    shutil.copy(deploy / "model.onnx", tmp_path / "swapped/text.onnx")
    for name, pairs_ in (("none", None), ("wild", {"length": 64, "whole": False, "pad": 0, "scale": "inf"})):
        manifest = artifact.read(deploy).manifest
        manifest.details["pairs"] = pairs_
        artifact.relist(tmp_path / name, manifest)
    (tmp_path / "bare/tokenizer.json").unlink()
    for name, says in [("swapped", "is not known"), ("none", "does not say how texts are read"),
                       ("wild", "finite number"), ("bare", "no tokenizer.json")]:  # fmt: skip
        with pytest.raises(GreenError, match=says):
            loader("onnxruntime").load(str(tmp_path / name), 1)


def test_tasks_that_cannot_be_asked_are_refused_before_any_work(home, int8, tmp_path):
    for name in ("0.png", "1.png"):
        shutil.copy(home / "see" / name, tmp_path / name)

    def task(*rows):
        file = tmp_path / "t.jsonl"
        file.write_text("\n".join(json.dumps({"image": f"{i % 2}.png"} | r) for i, r in enumerate(rows)))
        return file

    for rows, says in [
        (({"label": "cat"}, {"label": "cat"}), "no labels to choose from"),
        (({"label": 0}, {"label": 1}), "is an index"),
        (({"caption": "one"}, {"caption": "one"}), "one caption"),
        (({"caption": "  "},), "its caption is empty"),
        (({"caption": 3},), "is no text"),
    ]:
        with pytest.raises(GreenError, match=says):
            zeroshot.texts(read(task(*rows)))
    long = task({"caption": "word " * 30}, {"caption": "short"})
    with pytest.raises(GreenError, match="int8: The text 'word word .*' has 151 tokens; this model reads 64"):
        greenllm.bench([int8], tasks=[long], effort=BRIEF, energy=False)
    with pytest.raises(GreenError, match="reads 64"):
        pairing.samples(open_checkpoint(home / "clip"), str(long), 2)
    one = task({"label": "cat"}, {"label": "cat"})
    for options, says in [
        ({"recipe": "int4", "bench": False}, "makes none of its own"),
        ({"recipe": "int8", "bench_options": {"tasks": [one]}}, "no labels to choose from"),
        ({"recipe": "small", "bench": False}, "takes models of text"),
        ({"recipe": "int8", "to": "genai", "bench": False}, "ORT-GenAI runs decoders"),
    ]:
        with pytest.raises(GreenError, match=says):
            greenllm.compress(home / "clip", tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()

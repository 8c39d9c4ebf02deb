"""Models that see images in tiles: pixels, prompts, numbers and answers as transformers has them; what is refused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from conftest import edit, ran
from llavas import asked
from PIL import Image
from smolvlms import EACH, KINDS, QUESTION, SIDE, drawn, make_smolvlm, teach, their_inputs, theirs
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings

import greenllm
from greenllm import looking, merge, pipeline, recipe, tiles, vlm
from greenllm.bench import Effort, tensors
from greenllm.bench.runners import loader
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.tokens import Tokenizer
from greenllm.walk import Walk

BRIEF = Effort(windows=1, sentences=8, seconds=0.3, turn=0.01, items=0)
SHAPES = [(80, 80), (120, 37), (31, 90), (300, 9), (17, 20), (32, 32)]  # the last but one is smaller than a tile


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    path = tmp_path_factory.mktemp("smolvlm")
    for name in KINDS:
        make_smolvlm(path / name, name)
    (path / "see").mkdir()
    rows = [
        f'{{"image": "{drawn(path / "see", *shape, i).name}", "question": "{QUESTION}", "answer": "red"}}'
        for i, shape in enumerate(SHAPES[:3])
    ]
    (path / "see/asked.jsonl").write_text("\n".join(rows))
    return path


@pytest.fixture(scope="module")
def dense(home):
    return {name: greenllm.export(home / name, home / f"{name}-onnx") for name in KINDS}


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Both kinds, which know three colours, and pictures that they have not seen."""
    path = tmp_path_factory.mktemp("taught")
    asked(path / "learn", 24)
    asked(path / "see", 12, seed=1)
    for name in KINDS:
        teach(make_smolvlm(path / name, name, std=0.05), name, path / "learn", 40)
    return path


def quantized(taught, name, method, **calibration):
    step = recipe.make_step("quantize", {"bits": 4, "group": 32, "head_bits": 4, "method": method}, "test")
    made = recipe.Recipe(name="x", steps=[step], **calibration)
    return pipeline.run_steps(taught / name, taught / f"{name}-{method}", made)


@pytest.fixture(scope="module")
def int4(taught):
    """Rounded to 4 bits, and exported."""
    made = {name: quantized(taught, name, "rtn") for name in KINDS}
    return {name: (done.path, greenllm.export(done, taught / f"{name}-onnx")) for name, done in made.items()}


def unsplit(path, out):
    shutil.copytree(path, out)
    edit(out / "preprocessor_config.json", do_image_splitting=False)
    return out


@pytest.mark.parametrize(
    "told",
    [
        {}, {"do_image_splitting": False}, {"do_resize": False}, {"resample": 3, "do_normalize": False},
        {"size": {"longest_edge": SIDE}}, {"size": {"height": 50, "width": 70}},
        {"size": {"longest_edge": 4200}, "max_image_size": {"longest_edge": 700}},
    ],
    ids=["split", "whole", "as it is", "bicubic", "one tile", "of one size", "huge"],
)  # fmt: skip
def test_tiles_are_those_of_transformers(home, kind, tmp_path, told):
    shutil.copytree(home / kind, tmp_path / "m")
    edit(tmp_path / "m/preprocessor_config.json", **told)
    tiler, processor = tiles.eye(tmp_path / "m"), KINDS[kind][2].from_pretrained(tmp_path / "m")
    for shape in SHAPES[3:4] if "max_image_size" in told else SHAPES:
        image = Image.open(drawn(tmp_path, *shape))
        want, got = processor(image, return_tensors="np", return_row_col_info=True), tiler(image)
        assert ([[got.rows]], [[got.columns]]) == (want["rows"], want["cols"])
        assert got.pixels.shape == want["pixel_values"][0].shape
        np.testing.assert_allclose(got.pixels, want["pixel_values"][0], atol=1e-6)  # a step of colour is 4e-3 or more
        assert want["pixel_attention_mask"].all()


@pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])
def test_prompts_logits_and_answers_are_those_of_transformers(home, dense, kind, split, tmp_path):
    assert {"model.onnx", "vision.onnx"} <= set(dense[kind].manifest.files)
    source, graphs = home / kind, dense[kind].path
    if not split:
        source, graphs = unsplit(source, tmp_path / "torch"), unsplit(graphs, tmp_path / "onnx")
    tokenizer = Tokenizer(source)
    runners = [loader(n).load(str(p), 1) for n, p in (("torch", source), ("onnxruntime", graphs))]
    said_of = set()
    for shape in [*SHAPES, None]:
        file = shape and drawn(tmp_path, *shape)
        fed, logits, written = theirs(source, kind, file)
        said_of.add(tuple(written))
        for runner in runners:
            said = vlm.question(tokenizer, QUESTION, seen=file is not None)
            prompt = runner.see(str(file), said) if file else vlm.read(tokenizer, said, None, 0)
            assert list(prompt) == fed["input_ids"][0].tolist()
            if file:
                np.testing.assert_allclose(prompt.pixels, fed["pixel_values"][0].numpy(), atol=1e-6)
                assert prompt.count(vlm.token_of(source)) == EACH * len(prompt.pixels)
            np.testing.assert_allclose(runner.logits(prompt), logits, atol=1e-3, rtol=1e-4)
            assert list(runner.stream(prompt, len(written))) == written
    assert len(said_of) > 3  # what is seen makes the difference


def test_quantized_graphs_say_what_torch_says_of_the_packed_checkpoint(taught, int4, kind, tmp_path):
    packed, done = int4[kind]
    open_checkpoint(packed).write_dense(tmp_path / "dense")
    details = done.manifest.details
    assert details["operators"]["MatMulNBits"] == 2 * 6 + 2 * 7 + 2  # both towers, the connector and the head
    assert details["verified"]["tokens_of_an_image"] == 2 * EACH  # of two tiles
    runner = loader("onnxruntime").load(str(done.path), 1)
    said = vlm.question(Tokenizer(done.path), QUESTION, seen=True)
    answers = []
    for i in range(6):
        _, logits, written = theirs(tmp_path / "dense", kind, taught / f"see/{i}.png")
        prompt = runner.see(str(taught / f"see/{i}.png"), said)
        assert np.abs(runner.logits(prompt) - logits).max() < 0.1 * np.abs(logits).max()  # it rounds inputs to 8 bits
        assert list(runner.stream(prompt, len(written))) == written
        answers.append(Tokenizer(done.path).words(written))
    assert answers == ["red", "green", "blue"] * 2


def test_a_walk_goes_through_every_tile(home, kind, tmp_path):
    source = open_checkpoint(home / kind)
    given = looking.samples(source, str(home / "see/asked.jsonl"), 3)
    assert [len(b["pixel_values"]) for b in given] == [10, 4, 7]
    walk = Walk(source, given, tmp_path)
    walk.run(lambda *_: {})
    assert walk.names[0].startswith("model.vision_model.")
    assert walk.names[-1].startswith("model.text_model.")
    model = KINDS[kind][1].from_pretrained(home / kind).eval()
    for batch, ours in zip(given, walk.head_inputs(walk.model.lm_head), strict=True):
        with torch.no_grad():
            want = model.model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"][None])
        torch.testing.assert_close(ours, want.last_hidden_state[0], atol=1e-4, rtol=1e-4)


def test_calibrated_by_questions_it_is_nearer_to_its_source(taught, int4, kind):
    source = {"source": str(taught / "learn/asked.jsonl"), "samples": 8}
    done = quantized(taught, kind, "gptq", calibration=source)
    fed = their_inputs(taught / kind, kind, taught / "see/0.png")
    with torch.no_grad():
        want, near, far = (
            open_checkpoint(p).load_model()(**fed).logits for p in (taught / kind, done.path, int4[kind][0])
        )
    assert (near - want).norm() < (far - want).norm()


def test_places_of_patches_are_those_of_transformers_where_they_are_taken():
    for side in range(2, 65):
        config = Idefics3VisionConfig(image_size=2 * side, patch_size=2, hidden_size=8)
        embeddings = Idefics3VisionEmbeddings(config)
        with torch.no_grad():
            embeddings.position_embedding.weight.copy_(torch.arange(side * side)[:, None].expand(-1, 8))
            pixels = torch.zeros(1, 3, 2 * side, 2 * side)
            mask = torch.ones(1, side, side, dtype=torch.bool)
            found = embeddings(pixels, mask)[0, :, 0] - embeddings.patch_embedding.bias[0]
        assert merge.in_order(side) == torch.equal(found.round(), torch.arange(side * side).float()), side
    assert all(map(merge.in_order, (26, 27, 32)))


def test_run_answers_with_an_image_and_without(home, dense, kind, capsys):
    tokenizer = Tokenizer(home / kind)
    for file in (home / "see/80x80-0.png", None):
        _, _, written = theirs(home / kind, kind, file)
        code, out, _ = ran(capsys, dense[kind].path, *(["--image", file] if file else []), QUESTION, "--max-tokens", 12)
        assert code == 0
        assert out.strip() == tokenizer.words(written).strip()


def test_bench_asks_about_images(taught, int4, tmp_path):
    done = greenllm.bench(
        [taught / "idefics3", int4["idefics3"][1]], tasks=[taught / "see/asked.jsonl"], chat=True, effort=BRIEF,
        energy=False, report=tmp_path / "r",
    )  # fmt: skip
    before, after = done.rows
    assert [row.error for row in done.rows] == [None, None]
    for row in done.rows:
        (task,) = row.tasks.values()
        assert (task.main.measured.n, task.main.measured.value) == (12, 100)
        assert {"vision", "projector", "attention", "MLP", "head", "embedding"} <= set(row.sizes)
    for part in ("vision", "projector", "attention", "MLP"):
        assert after.sizes[part] < 0.5 * before.sizes[part]
    model = KINDS["idefics3"][1].from_pretrained(taught / "idefics3").model
    for name, part in (("vision", model.vision_model), ("projector", model.connector)):  # MB
        assert before.sizes[name] == pytest.approx(4e-6 * sum(p.numel() for p in part.parameters()))


def test_a_tower_beside_a_tower_for_texts_is_counted_by_its_parts():
    assert tensors.kind("vision_model.encoder.layers.0.mlp.fc1.weight") == "MLP"  # CLIP


def test_what_is_asked_amiss_is_told(home, dense, tmp_path, capsys):
    image, path = home / "see/80x80-0.png", dense["idefics3"].path
    large = shutil.copytree(path, tmp_path / "large")
    edit(large / "preprocessor_config.json", size={"longest_edge": 6 * SIDE})
    mute = shutil.copytree(path, tmp_path / "mute")
    (mute / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}")
    other = shutil.copytree(path, tmp_path / "other")
    edit(other / "preprocessor_config.json", max_image_size={"longest_edge": 64})
    crop = shutil.copytree(path, tmp_path / "crop")
    edit(crop / "preprocessor_config.json", do_center_crop=True)
    for model, arguments, says in [
        (path, [f"{QUESTION} <image>"], "none is given"),
        (path, ["--image", image, "<image> or <image>?"], "marks 2 images"),
        (mute, ["--image", image, "x"], "leaves it out"),
        (large, ["--image", image, "x"], "592 of them of its image; this model's context is 512"),
        (large, ["--image", image, "x"], "do_image_splitting false"),
        (path, ["--image", image, "word " * 90], "context is 512"),
        (other, ["--image", image, "x"], "makes pixels of (3, 64, 64); the model takes (3, 32, 32)"),
        (crop, ["--image", image, "x"], "asks for do_center_crop"),
    ]:
        if model != path:
            (model / "greenllm.json").unlink(missing_ok=True)  # it would say that they were changed
        code, _, told = ran(capsys, model, *arguments)
        assert (code, says in told) == (1, True), told


def test_models_that_fit_ill_are_refused_by_name(home, tmp_path):
    def changed(name, file="config.json", **values):
        shutil.copytree(home / "smolvlm", tmp_path / name)
        edit(tmp_path / name / file, **values)
        return tmp_path / name

    unmarked = shutil.copytree(home / "smolvlm", tmp_path / "unmarked")
    text = (unmarked / "tokenizer.json").read_text().replace("<fake_token_around_image>", "<other>")
    (unmarked / "tokenizer.json").write_text(text)
    for path, says in [
        (make_smolvlm(tmp_path / "side", "smolvlm", vision={"image_size": 200}), "26, 27 or 32"),
        (changed("scale", scale_factor=3), "3 x 3 become a vector"),
        (changed("token", image_token_id=99_999), "no token of its own"),
        (unmarked, "no token of its own for <fake_token_around_image>"),
        (changed("count", "processor_config.json", image_seq_len=64), "makes 64 tokens of a tile, and the model 16"),
        (changed("tile", "preprocessor_config.json", max_image_size={"longest_edge": 64}), "the model takes"),
    ]:
        with pytest.raises(GreenError, match=says):
            greenllm.export(path, tmp_path / "out")

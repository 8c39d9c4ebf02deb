"""Vision encoders: quantized, exported, asked what is in a picture; and what must not be read as one."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from transformers import DeiTConfig, DeiTForImageClassification, ViTConfig, ViTForImageClassification, ViTModel

import greenllm
from greenllm import artifact, images, pipeline, recipe
from greenllm.bench import Effort, Row, cifar, vision
from greenllm.bench.models import Target
from greenllm.bench.runners import Info, loader
from greenllm.bench.session import Contender
from greenllm.bench.tasks import picture, read, read_all
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.export.vision import their_processor

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
BRIEF = Effort(windows=1, sentences=8, sittings=2, seconds=0.5, turn=0.01)


def make(kind, config, path, **options):
    """A random encoder of 32 x 32 pixels, and how it wants them."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    model = kind(config(image_size=32, patch_size=8, **shape, **options))
    model.save_pretrained(path)
    (path / images.PROCESSOR).write_text(json.dumps(cifar.PREPROCESSING))
    return model.eval()


def coloured(folder, count, *, seed=0):
    """Noisy pictures of three colours, and a file that names them."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        label = list(COLOURS)[i % 3]
        noise = rng.normal(COLOURS[label], 60, (20 + i, 31, 3)).clip(0, 255).astype(np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "label": label})
    return write(folder / "images.jsonl", *rows)


def write(path, *rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A classifier of three colours, taught for a second, with pictures that it has not seen."""
    home = tmp_path_factory.mktemp("vit")
    names = dict(enumerate(COLOURS))
    labels = {"id2label": names, "label2id": {v: k for k, v in names.items()}}
    model = make(ViTForImageClassification, ViTConfig, home / "vit", **labels)
    coloured(home / "learn", 48)
    coloured(home / "see", 30, seed=1)
    rows = [json.loads(line) for line in (home / "learn/images.jsonl").read_text().splitlines()]
    x = images.read([home / "learn" / r["image"] for r in rows], images.Processor(home / "vit"))
    y = torch.tensor([list(COLOURS).index(r["label"]) for r in rows])

    def loss_of(seen, at):
        return torch.nn.functional.cross_entropy(model(pixel_values=seen).logits, y[at])

    cifar.train(model, torch.from_numpy(x), loss_of, 12, batch=24)
    model.save_pretrained(home / "vit")
    return home


@pytest.fixture(scope="module")
def int8(vit):
    """The same by the recipe int8, checkpoint and export."""
    return greenllm.compress(vit / "vit", vit / "int8", "int8", bench=False).path


def test_a_checkpoint_in_old_names_is_what_transformers_reads(tmp_path):
    x = torch.from_numpy(images.pictures(2, (3, 32, 32)))
    for kind, config in (
        (ViTForImageClassification, ViTConfig),
        (ViTModel, ViTConfig),
        (DeiTForImageClassification, DeiTConfig),
    ):
        path = tmp_path / kind.__name__
        want = make(kind, config, path)
        with torch.no_grad():
            assert torch.equal(open_checkpoint(path).load_model()(pixel_values=x)[0], want(pixel_values=x)[0])


def test_export_says_what_torch_says_for_any_batch(tmp_path):
    for kind, config, output in (
        (ViTModel, ViTConfig, "pooler_output"),
        (DeiTForImageClassification, DeiTConfig, "logits"),
    ):
        model = make(kind, config, tmp_path / output)
        done = greenllm.export(tmp_path / output, tmp_path / f"{output}-onnx")
        session = onnxruntime.InferenceSession(str(done.path / "model.onnx"))
        assert [o.name for o in session.get_outputs()] == [output]
        for batch in (1, 5):
            x = images.pictures(batch, (3, 32, 32), seed=batch)
            with torch.no_grad():
                want = model(pixel_values=torch.from_numpy(x))[output].numpy()
            np.testing.assert_allclose(session.run(None, {"pixel_values": x})[0], want, atol=1e-5)


def test_int8_export_multiplies_integers_and_keeps_the_rest(int8):
    details = artifact.read(int8).manifest.details
    assert details["task"] == "image-classification"
    assert details["operators"]["MatMulInteger"] == 2 * 6
    assert details["verified"]["error"] < 0.05


def test_pixels_without_transformers_are_those_with_it(tmp_path):
    rng = np.random.default_rng(0)
    crop = {"do_center_crop": True, "crop_size": {"height": 33, "width": 40}}
    for i, other in enumerate(({}, crop, crop | {"size": {"shortest_edge": 37}, "resample": 3}, {"do_resize": False})):
        (tmp_path / str(i)).mkdir()
        config = cifar.PREPROCESSING | {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False} | other
        (tmp_path / str(i) / images.PROCESSOR).write_text(json.dumps(config))
        theirs, ours = their_processor(tmp_path / str(i)), images.Processor(tmp_path / str(i))
        for shape in ((50, 31), (31, 50), (20, 20)):
            picture = Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8))
            want = theirs(picture, return_tensors="np")["pixel_values"][0]
            np.testing.assert_allclose(ours(picture), want, atol=1e-6)


def test_bench_counts_right_answers_and_flips(vit, int8, tmp_path):
    done = greenllm.bench(
        [vit / "vit", int8], tasks=[vit / "see/images.jsonl"], suites=["robustness"], effort=BRIEF, energy=False,
        report=tmp_path / "r",
    )  # fmt: skip
    dense, small = done.rows
    (task,) = dense.tasks
    for row in done.rows:
        assert row.error is None
        assert row.tasks[task].main.measured.value > 80
        assert row.tasks[task].chance == pytest.approx(1 / 3)
        assert row["encode"].unit == "images/s"
        assert "image_p50" in row
    score = small.tasks[task].main
    assert (score.against.won, score.against.lost) == (
        sum(a > b for a, b in zip(score.values, dense.tasks[task].main.values, strict=True)),
        sum(a < b for a, b in zip(score.values, dense.tasks[task].main.values, strict=True)),
    )
    noise = small.tasks[task].curves["noise"]
    assert (noise.strengths, noise.scores[0].values) == ([0, 8, 18, 38], score.values)
    assert 60 < noise.kept.measured.value <= 100  # colours are seen through noise
    assert noise.kept.against.verdict == "undecided"
    assert small["cosine"].value > 0.99
    assert small["top1"].value > 80
    text = (tmp_path / "r/report.md").read_text()
    assert "chance 33 %" in text
    assert "elsewhere by numpy and Pillow" in text


def test_both_runners_see_the_same_answers(vit, int8, tmp_path):
    greenllm.export(vit / "vit", tmp_path / "dense")
    files = [str(f) for f in sorted((vit / "see").glob("*.png"))[:5]]
    said = []
    for name, path in (("torch", vit / "vit"), ("onnxruntime", tmp_path / "dense")):
        runner = loader(name).load(str(path), 1)
        said.append(runner.encode(list(runner.pixels(files))))
    np.testing.assert_allclose(said[0], said[1], atol=1e-4)


def test_int4_is_calibrated_by_pictures(vit):
    given = {"method": "gptq", "bits": 4, "group": 32, "head_bits": 0}
    found = {}
    for method in ("gptq", "rtn"):
        made = recipe.Recipe(
            name="int4", calibration={"source": str(vit / "learn/images.jsonl"), "samples": 32},
            steps=[recipe.make_step("quantize", given | {"method": method}, "quantize")],
        )  # fmt: skip
        done = pipeline.run_steps(vit / "vit", vit / method, made)
        found[method] = done.manifest
    assert found["gptq"].calibration["shape"] == [3, 32, 32]
    x = torch.from_numpy(images.read(sorted((vit / "see").glob("*.png")), images.Processor(vit / "vit")))
    with torch.no_grad():
        want, gptq, rtn = (open_checkpoint(vit / p).load_model()(pixel_values=x).logits for p in ("vit", "gptq", "rtn"))
    assert (gptq - want).norm() < (rtn - want).norm()


def test_what_a_vision_encoder_cannot_is_refused_before_any_work(vit, tmp_path):
    for recipe_name, says in (("int4", "makes no images of its own"), ("small", "models of text")):
        with pytest.raises(GreenError, match=says):
            greenllm.compress(vit / "vit", tmp_path / "x", recipe_name)
    assert not (tmp_path / "x").exists()


def loaded(directory, task, **info):
    """A session whose one model is loaded, without a process."""
    row = Row(name="m", path=str(directory), runner="torch")
    who = Contender(Target("m", str(directory), "torch"), row, None, Info(task, directory, **info))
    return SimpleNamespace(live=[who])


def test_the_bench_refuses_text_for_images_and_images_for_text(vit):
    pictures, words = [read(vit / "see/images.jsonl")], read_all(["suite"])[:1]
    seeing = loaded(vit / "vit", "image-classification", vocabulary=3, image=(3, 32, 32))
    vision.check(seeing, pictures, others=False)
    for session, tasks, others, says in (
        (seeing, words, False, "take images"),
        (seeing, pictures, True, "take images"),
        (loaded(vit, "text-generation"), pictures, False, "see nothing"),
        (loaded(vit, "image-feature-extraction", image=(3, 32, 32)), pictures, False, "no classes"),
    ):
        with pytest.raises(GreenError, match=says):
            vision.check(session, tasks, others=others)


def test_batch_normalization_is_refused(tmp_path):
    from transformers import MobileViTConfig, MobileViTForImageClassification

    MobileViTForImageClassification(MobileViTConfig(image_size=64)).save_pretrained(tmp_path)
    with pytest.raises(GreenError, match="batch normalization"):
        open_checkpoint(tmp_path).load_model()


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ("../secret.png", "no path below"),
        ("/etc/passwd", "no path below"),
        ("link.png", "no path below"),
        ("", "no path below"),
        ("a\0b.png", "no path below"),
        ("gone.png", "there is no image"),
        ("cut.png", "cannot be read as an image"),
        ("words.png", "cannot be read as an image"),
        ("drawing.eps", "cannot be read as an image"),
        ("bomb.png", "million pixels"),
        (3, "is no text"),
    ],
)
def test_images_of_others(tmp_path, image, says):
    home = tmp_path / "task"
    coloured(home, 2)
    shutil.copy(home / "0.png", tmp_path / "secret.png")
    (home / "link.png").symlink_to(tmp_path / "secret.png")
    whole = (home / "0.png").read_bytes()
    (home / "cut.png").write_bytes(whole[: len(whole) // 2])
    (home / "words.png").write_text("words")
    (home / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    if image == "bomb.png":
        Image.new("1", (20_000, 20_000)).save(home / image)
    task = write(home / "images.jsonl", {"image": "0.png", "label": "red"}, {"image": image, "label": "red"})
    with pytest.raises(GreenError, match=f"line 2: .*{says}"):
        read(task)


def test_a_class_that_a_model_does_not_have(vit):
    (who,) = loaded(vit / "vit", "image-classification", vocabulary=3, image=(3, 32, 32)).live
    known = {"image": "0.png", "label": "blue"}, {"image": "1.png", "label": 1}
    assert picture.labels(who, read(write(vit / "see/known.jsonl", *known))) == [2, 1]
    for label in ("mauve", 3, -1, "1"):
        task = read(write(vit / "see/other.jsonl", known[0], known[1] | {"label": label}))
        with pytest.raises(GreenError, match=f"line 2: .*no class {label!r}"):
            picture.labels(who, task)

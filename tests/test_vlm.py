"""Models that answer about images: prompts, numbers and answers as transformers has them; what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import edit, ran
from llavas import KINDS, QUESTION, asked, make_llava, noise, said_to, teach
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PaliGemmaConfig

import greenllm
from greenllm import artifact, looking, merge, pipeline, recipe, template, vlm
from greenllm.bench import Effort
from greenllm.bench.runners import loader
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.export.last_position import FIRST
from greenllm.tokens import Tokenizer
from greenllm.walk import Walk

BRIEF = Effort(windows=1, sentences=8, seconds=0.3, turn=0.01, items=0)


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Both models, taught three colours, and pictures that they have not seen."""
    path = tmp_path_factory.mktemp("vlm")
    asked(path / "learn", 48)
    asked(path / "see", 30, seed=1)
    for name in KINDS:
        teach(make_llava(path / name, name), name, path / "learn", 40)
    return path


@pytest.fixture(scope="module")
def dense(home):
    return {name: greenllm.export(home / name, home / f"{name}-onnx") for name in KINDS}


@pytest.fixture(scope="module")
def int8(home):
    return greenllm.compress(home / "clip", home / "int8", "int8", bench=False)


def quantized(home, kind, out, **options):
    """A checkpoint of 4 bits, calibrated on questions and answers about pictures."""
    step = recipe.make_step("quantize", {"bits": 4, "group": 32, "head_bits": 4} | options, "test")
    source = {"source": str(home / "learn/asked.jsonl"), "samples": 16}
    return pipeline.run_steps(home / kind, home / out, recipe.Recipe(name="x", calibration=source, steps=[step]))


@pytest.fixture(scope="module")
def int4(home):
    return {name: quantized(home, name, f"{name}-gptq", method="gptq") for name in KINDS}


def theirs(path, kind, file, text=QUESTION):
    """Transformers' inputs, logits and greedy answer to a question about a picture, or to a text alone."""
    processor = LlavaProcessor.from_pretrained(path, backend="pil")
    model = LlavaForConditionalGeneration.from_pretrained(path).eval()
    said = said_to(processor, kind, text, image=file is not None)
    fed = processor(images=Image.open(file) if file else None, text=said, return_tensors="pt")
    with torch.no_grad():
        logits = model(**fed).logits[0].numpy()
        written = model.generate(**fed, max_new_tokens=8, do_sample=False)[0, fed["input_ids"].shape[1] :]
    return fed, logits, written.tolist()


def test_prompts_logits_and_answers_are_those_of_transformers(home, dense, kind):
    assert {"model.onnx", "vision.onnx"} <= set(dense[kind].manifest.files)
    tokenizer = Tokenizer(home / kind)
    for file, text in ((home / "see/1.png", QUESTION), (noise(home / "noise.png"), "Say it."), (None, "Hello?")):
        fed, logits, written = theirs(home / kind, kind, file, text)
        for name, path in (("torch", home / kind), ("onnxruntime", dense[kind].path)):
            runner = loader(name).load(str(path), 1)
            said = vlm.question(tokenizer, text, seen=file is not None)
            prompt = runner.see(str(file), said) if file else vlm.read(tokenizer, said, None, 0)
            assert list(prompt) == fed["input_ids"][0].tolist()
            if file:
                np.testing.assert_allclose(prompt.pixels, fed["pixel_values"].numpy(), atol=1e-5)
            np.testing.assert_allclose(runner.logits(prompt), logits, atol=1e-4)
            assert list(runner.stream(prompt, len(written))) == written


def test_what_is_seen_makes_the_difference(home, dense):
    runner = loader("onnxruntime").load(str(dense["clip"].path), 1)
    said = vlm.question(Tokenizer(home / "clip"), QUESTION, seen=True)
    prompts = [runner.see(str(home / f"see/{i}.png"), said) for i in (0, 1)]
    assert np.abs(runner.logits(prompts[0])[-1] - runner.logits(prompts[1])[-1]).max() > 0.1
    assert FIRST in {i.name for i in runner.session.get_overridable_initializers()}


def test_vectors_take_the_places_of_marks_as_in_transformers():
    draw = torch.Generator().manual_seed(0)
    words, seen = torch.randn(2, 9, 4, generator=draw), torch.randn(2, 3, 4, generator=draw)
    marks = torch.zeros(2, 9, dtype=torch.bool)
    marks[0, [1, 2, 5]] = marks[1, [0, 7, 8]] = True
    want = words.masked_scatter(marks.unsqueeze(-1), seen)
    assert torch.equal(merge.place(words, marks, seen), want)
    assert torch.equal(merge.place(words, marks, seen[:, :0]), words)  # marks that the model wrote itself
    marks[0, 8] = True
    assert torch.equal(merge.place(words, marks, seen)[0, 8], words[0, 8])


def test_blocks_that_are_not_read_are_left_out_and_transformers_reads_the_rest(home, tmp_path):
    source = open_checkpoint(home / "clip")
    assert not [n for n in source.names() if "vision_tower.encoder.layers.2" in n]
    source.write_dense(tmp_path / "dense")
    config = json.loads((tmp_path / "dense/config.json").read_text())
    assert (config["vision_config"]["num_hidden_layers"], config["vision_feature_layer"]) == (2, -1)
    _, want, _ = theirs(home / "clip", "clip", home / "see/0.png")
    _, got, _ = theirs(tmp_path / "dense", "clip", home / "see/0.png")
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_checkpoint_in_old_names_is_what_transformers_reads(home, kind, tmp_path):
    """As llava-hf's are on the hub."""
    shutil.copytree(home / kind, tmp_path / "old")
    stored = load_file(tmp_path / "old/model.safetensors")
    old = {name.replace("vision_tower.", "vision_tower.vision_model."): t for name, t in stored.items()}
    save_file(old, tmp_path / "old/model.safetensors", {"format": "pt"})
    fed, want, _ = theirs(tmp_path / "old", kind, home / "see/0.png")
    with torch.no_grad():
        got = open_checkpoint(tmp_path / "old").load_model()(**fed).logits[0].numpy()
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_walk_ends_where_the_model_does(home, kind, tmp_path):
    source = open_checkpoint(home / kind)
    given = looking.samples(source, str(home / "learn/asked.jsonl"), 3)
    walk = Walk(source, given, tmp_path)
    walk.run(lambda *_: {})
    assert walk.names[0].startswith("model.vision_tower.")
    assert walk.names[-1].startswith("model.language_model.")
    model = LlavaForConditionalGeneration.from_pretrained(home / kind).eval()
    for batch, ours in zip(given, walk.head_inputs(walk.model.lm_head), strict=True):
        with torch.no_grad():
            want = model.model(**batch).last_hidden_state[0]
        torch.testing.assert_close(ours, want, atol=1e-5, rtol=1e-4)


def test_quantized_transformers_reads_it_dense_and_graphs_agree(home, int4, kind, tmp_path):
    open_checkpoint(int4[kind].path).write_dense(tmp_path / "dense")
    fed, want, _ = theirs(tmp_path / "dense", kind, home / "see/2.png")
    done = greenllm.export(int4[kind], tmp_path / "onnx")
    details = done.manifest.details
    layers = 2 * 6 + 2 * 7  # of both towers
    assert details["operators"]["MatMulNBits"] == layers + 2 + 1  # the projector and the head
    assert details["operators"]["GatherBlockQuantized"] == 1
    assert details["stored_bits"] == [4]
    assert details["verified"]["tokens_of_an_image"] == 16
    assert done.manifest.calibration["samples"] == 16
    runner = loader("onnxruntime").load(str(done.path), 1)
    got = runner.logits(vlm.Prompt(fed["input_ids"][0].tolist(), fed["pixel_values"].numpy()))
    assert np.abs(got - want).max() < 0.1 * np.abs(want).max()  # the runtime rounds what it multiplies to 8 bits


def test_calibration_brings_it_nearer_to_its_source(home, int4, kind):
    plain = quantized(home, kind, f"{kind}-rtn", method="rtn")
    (batch,) = looking.samples(open_checkpoint(home / kind), str(home / "see/asked.jsonl"), 1)
    with torch.no_grad():
        want, near, far = (
            open_checkpoint(p).load_model()(**batch).logits for p in (home / kind, int4[kind].path, plain.path)
        )
    assert (near - want).norm() < (far - want).norm()


def test_parts_have_bits_of_their_own(home):
    rules = "model.vision_tower=8 model.multi_modal_projector=0 model.vision_tower.encoder.layers.0.mlp=0"
    stored = load_file(quantized(home, "clip", "parts", method="hqq", parts=rules).path / "model.safetensors")
    of = {name: t.shape for name, t in stored.items() if "q_proj" in name or "linear_1" in name or "mlp.fc1" in name}
    words = {n: s[0] for n, s in of.items() if n.endswith("qweight")}
    assert words["model.vision_tower.encoder.layers.0.self_attn.q_proj.qweight"] == 64 * 8 // 32
    assert words["model.language_model.layers.0.self_attn.q_proj.qweight"] == 64 * 4 // 32
    assert "model.multi_modal_projector.linear_1.weight" in of
    assert "model.vision_tower.encoder.layers.0.mlp.fc1.weight" in of
    for wrong, says in (("model.nothing=8", "nothing that is quantized"), ("lm_head=5", "does not say whose bits"),
                        ("model=0 lm_head=0", "leaves everything")):  # fmt: skip
        with pytest.raises(GreenError, match=says):
            quantized(home, "clip", "wrong", method="rtn", parts=wrong)


def test_bench_counts_right_answers_about_images(home, int8, tmp_path):
    done = greenllm.bench(
        [home / "clip", int8], tasks=[home / "see/asked.jsonl"], chat=True, effort=BRIEF, energy=False,
        report=tmp_path / "r",
    )  # fmt: skip
    before, after = done.rows
    assert [row.error for row in done.rows] == [None, None]
    for row in done.rows:
        (task,) = row.tasks.values()
        assert task.main.measured.n == 30
        assert task.main.measured.value > 80
    assert next(iter(after.tasks.values())).main.against is not None
    assert after["kl"].value < 0.05  # of text alone
    assert before["decode"].unit == "tokens/s"
    for row, share in ((before, 1), (after, 0.4)):
        assert {"vision", "projector", "attention", "MLP"} <= set(row.sizes)
        for kind in ("projector", "attention", "MLP"):
            assert row.sizes[kind] < 1.1 * share * before.sizes[kind]
    assert after.sizes["MLP"] > 2 * after.sizes["other"]
    text = (tmp_path / "r/report.md").read_text()
    assert "An image and a prompt of" in text


def test_run_answers_with_an_image_and_without(home, int8, capsys):
    for i, colour in enumerate(("red", "green", "blue")):
        code, out, _ = ran(capsys, int8.path, "--image", home / f"see/{i}.png", QUESTION, "--max-tokens", 8)
        assert (code, out.strip()) == (0, colour)
    code, out, _ = ran(capsys, int8.path, "Hello?", "--max-tokens", 4)
    assert code == 0
    code, other, _ = ran(capsys, int8.path, "--image", home / "see/0.png", "--raw", "<image> It is", "--max-tokens", 2)
    assert code == 0
    assert other != out


def test_what_is_asked_amiss_is_told(home, int8, tmp_path, capsys):
    image = home / "see/0.png"
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:100])
    for arguments, says in [
        (["--image", image, "--image", image, "x"], "2 images are given"),
        (["--image", image, "<image> or <image>?"], "marks 2 images"),
        (["What is <image>?"], "none is given"),
        (["--image", image, "--labels", "a,b", "x"], "chooses from no labels"),
        (["--image", image, "--audio", image, "x"], "does not hear"),
        (["--image", image], "nothing for"),
        (["--image", tmp_path / "cut.png", "x"], "cannot be read as an image"),
        (["--image", tmp_path / "no.png", "x"], "cannot be read as an image"),
        (["--image", image, "word " * 50], "context is 256"),
        (["--image", image, "x", "--raw", "--system", "y"], "leaves it out"),
        (["--image", image, "x", "--temperature", "1"], "likeliest token only"),
    ]:
        code, _, told = ran(capsys, int8.path, *arguments)
        assert (code, says in told) == (1, True), told


def test_what_the_bench_cannot_ask_is_refused(home, int8, tmp_path, llama):
    see = home / "see"
    for models, options, says in [
        ([int8], {"tasks": [see / "labels.jsonl"]}, "answer questions"),
        ([int8], {"tasks": [see / "captions.jsonl"]}, "answer questions"),
        ([int8], {"tasks": [see / "asked.jsonl"], "batches": [2]}, "one query at a time"),
        ([llama], {"tasks": [see / "asked.jsonl"]}, "none of these models sees"),
    ]:
        with pytest.raises(GreenError, match=says):
            greenllm.bench(models, effort=BRIEF, energy=False, **options)
    shutil.copy(see / "0.png", tmp_path)
    for row, says in (
        ({"question": " ", "answer": "x"}, "an empty question"),
        ({"question": "x", "answers": []}, "no list of one or more"),
        ({"question": 3, "answer": "x"}, "is no text"),
        ({"question": "x", "answer": "x", "image": "../0.png"}, "0.png"),
    ):
        (tmp_path / "t.jsonl").write_text(json.dumps({"image": "0.png"} | row))
        with pytest.raises(GreenError, match=says):
            greenllm.bench([int8], tasks=[tmp_path / "t.jsonl"], effort=BRIEF, energy=False)


def test_what_cannot_be_made_is_refused_before_any_work(home, tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "no image"}')
    for options, says in [
        ({"recipe": "int4"}, "has no images with answers"),
        ({"recipe": "int4", "calibration": str(home / "see/labels.jsonl")}, "has no images with answers"),
        ({"recipe": "int4", "calibration": str(tmp_path / "text.jsonl")}, "no keys of a known kind"),
        ({"recipe": "small"}, "takes models of text"),
        ({"recipe": "int8", "to": "genai"}, "ORT-GenAI runs decoders"),
        ({"recipe": "int8", "to": "tensorrt"}, "models of text"),
    ]:
        with pytest.raises(GreenError, match=says):
            greenllm.compress(home / "clip", tmp_path / "x", bench=False, **options)
    for wrong in ({"awq": True}, {"smooth": 0.5}, {"activations": "dynamic"}):
        with pytest.raises(GreenError, match="weights alone become integers"):
            quantized(home, "clip", "wrong", method="gptq", **wrong)
    assert not (tmp_path / "x").exists()


def test_models_that_fit_ill_are_refused_by_name(home, tmp_path):
    def changed(name, file="config.json", **values):
        shutil.copytree(home / "clip", tmp_path / name)
        edit(tmp_path / name / file, **values)
        return tmp_path / name

    vision = json.loads((home / "clip/config.json").read_text())["vision_config"]
    for path, says in [
        (changed("deep", vision_feature_layer=[-2, -1]), "states of one block"),
        (changed("none", vision_feature_layer=-4), "states of one block"),
        (changed("tower", vision_config=vision | {"model_type": "vit"}), "a vision tower of the kind vit"),
        (changed("token", image_token_index=99_999), "no token of its own"),
        (changed("patch", "processor_config.json", patch_size=4), "makes 64 tokens of an image, and the model 16"),
        (changed("class", "processor_config.json", num_additional_image_tokens=0), "makes 15 tokens of an image"),
    ]:
        with pytest.raises(GreenError, match=says):
            greenllm.export(path, tmp_path / "out")
    PaliGemmaConfig(architectures=["PaliGemmaForConditionalGeneration"]).save_pretrained(tmp_path / "deep")
    with pytest.raises(GreenError, match="'PaliGemmaForConditionalGeneration' is not supported yet"):
        open_checkpoint(tmp_path / "deep")


def test_files_of_others_are_refused(home, dense, tmp_path):
    for name in ("swapped", "blind", "mute"):
        shutil.copytree(dense["clip"].path, tmp_path / name)
    shutil.copy(tmp_path / "swapped/model.onnx", tmp_path / "swapped/vision.onnx")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (tmp_path / "blind" / name).unlink()
    config = json.loads((tmp_path / "mute/config.json").read_text())
    (tmp_path / "mute/config.json").write_text(json.dumps({k: v for k, v in config.items() if "image" not in k}))
    with pytest.raises(GreenError, match="do not belong together"):
        loader("onnxruntime").load(str(tmp_path / "swapped"), 1)
    with pytest.raises(GreenError, match="no description of how images become pixels"):
        loader("onnxruntime").load(str(tmp_path / "blind"), 1).see(str(home / "see/0.png"), "<image>")
    with pytest.raises(GreenError, match="which token is an image"):
        loader("onnxruntime").load(str(tmp_path / "mute"), 1).see(str(home / "see/0.png"), "<image>")


def test_templates_are_told_parts_or_texts_as_they_want_them(tmp_path):
    talk = [{"role": "user", "content": "<image>\nWhat?"}]
    for text, want in [
        ("{% for c in messages[0]['content'] %}{{ '[I]' if c.type == 'image' else c.text }}{% endfor %}", "[I]What?"),
        ("{{ '# ' + messages[0]['content'] }}", "# <image>\nWhat?"),
        ("{{ messages[0]['content'] }}", "<image>\nWhat?"),  # writes a list as it is
        ("{% set c = messages[0]['content'] %}{{ c if c is string else '<image>' + c[1]['text'] }}", "<image>What?"),
    ]:  # fmt: skip
        (tmp_path / "chat_template.jinja").write_text(text)
        assert template.render(tmp_path, talk, "<image>") == want
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0].content[0].text }}!"}))
    assert template.render(tmp_path, [{"role": "user", "content": "alone"}]) == "alone!"


def test_manifest_says_what_was_made(int8):
    details = artifact.read(int8.path).manifest.details
    assert details["task"] == "image-text-to-text"
    assert details["inputs"][3] == "image_embeds"
    assert details["verified"]["kl_divergence"] < 1e-3

"""Image to text: encoder and decoder loaded, quantized, exported, benched and asked as transformers computes them."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import captioners
import numpy as np
import pytest
import sacrebleu
import torch
from conftest import edit, ran
from PIL import Image
from transformers import LlamaConfig, SwinConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel

import greenllm
from greenllm import artifact, captions, images, pipeline, recipe
from greenllm.bench import Effort, cifar_captions
from greenllm.bench.require import decide, parse
from greenllm.bench.results import Results
from greenllm.bench.runners import loader
from greenllm.bench.tasks import _ASK, read, zeroshot
from greenllm.bench.tasks import captions as scoring
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.export.bundle import bundle
from greenllm.generate import load
from greenllm.pairing import pairs
from greenllm.quality import loss_of
from greenllm.serve import open_model
from greenllm.tokens import Tokenizer
from greenllm.walk import Walk

TINY = Effort(windows=1, sentences=8, sittings=2, width=0.5, seconds=0.3, turn=0.02, energy=0.1)
KINDS = [("vit", d) for d in captioners.DECODERS] + [("deit", "gpt2"), ("beit", "gpt2")]


def write(path, *rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return captioners.home(tmp_path_factory.mktemp("captions"), captioners.build(), captioners.save)


@pytest.fixture(scope="module")
def int8(home):
    """The whole command: quantized, exported, verified, and measured beside its source."""
    run = {"tasks": [home / "see/captions.jsonl"], "effort": TINY, "threads": 1, "energy": False}
    return greenllm.compress(home / "taught", home / "int8", "int8", bench_options=run)


def theirs(path, files, most=40):
    """What transformers itself generates, greedy: tokens, one list an image."""
    model = VisionEncoderDecoderModel.from_pretrained(path).eval()
    x = torch.from_numpy(images.read(files, images.Processor(path)))
    return [model.generate(one[None], max_new_tokens=most, do_sample=False, num_beams=1)[0, 1:].tolist() for one in x]


def seen(home):
    return [home / "see" / f"{i}.png" for i in range(12)]


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("encoder", "decoder"), KINDS)
def test_a_checkpoint_is_what_transformers_reads_and_comes_back_as_one(tmp_path, encoder, decoder, tied):
    want = captioners.build(encoder, decoder, tied=tied)
    source = open_checkpoint(captioners.save(want, tmp_path / "it"))
    assert (source.task, source.tied, source.image_shape) == ("image-to-text", tied, (3, 32, 32))
    source.write_dense(tmp_path / "dense")
    asked_ = {"pixel_values": torch.randn(2, 3, 32, 32), "decoder_input_ids": torch.randint(3, 128, (2, 6))}
    logits = want(**asked_).logits
    assert torch.equal(source.load_model()(**asked_).logits, logits)
    assert torch.equal(VisionEncoderDecoderModel.from_pretrained(tmp_path / "dense").eval()(**asked_).logits, logits)


@torch.no_grad()
@pytest.mark.parametrize("decoder", ["narrow", "bert", "trocr"])
def test_a_decoder_sees_what_the_changed_encoder_says(tmp_path, decoder):
    """The walk through both, with captions of any length, ends where the whole model ends."""
    source = open_checkpoint(captioners.make(tmp_path / "it", "vit", decoder))
    batches = [
        {"pixel_values": torch.randn(1, 3, 32, 32), "decoder_input_ids": torch.tensor([[1, *ids]])}
        for ids in ([5, 9, 3], [7], [4, 4, 8, 100, 6])
    ]

    def louder(name, block, forward):
        if name.startswith("encoder"):
            block.mlp.fc2.weight.mul_(3)
        forward()  # looked at twice, as quantizers do: no cache may grow
        return {}

    walk = Walk(source, batches, tmp_path / "walk")
    walk.run(louder)
    model = source.load_model()
    for block in model.encoder.layers:
        block.mlp.fc2.weight.mul_(3)
    head = model.get_output_embeddings()
    for batch, x in zip(batches, walk.head_inputs(walk.model.get_output_embeddings()), strict=True):
        torch.testing.assert_close(head(x), model(**batch).logits[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_quantized_checkpoints_write_and_calibration_brings_them_nearer(home, tmp_path):
    errors, batch = {}, None
    for method in ("rtn", "hqq", "gptq"):
        step = {"method": method, "bits": 4, "head_bits": 4}
        made = recipe.Recipe(
            name="q", steps=[recipe.make_step("quantize", step, "test")],
            calibration={"source": str(home / "learn/captions.jsonl"), "samples": 24},
        )  # fmt: skip
        done = pipeline.run_steps(home / "taught", tmp_path / method, made)
        packed = {name for name, _ in open_checkpoint(done.path).packed()}
        for name in (
            "encoder.layers.1.attention.q_proj",
            "decoder.transformer.h.0.crossattention.c_attn",
            "decoder.lm_head",
        ):
            assert name in packed
        assert len(packed) == 2 * 6 + 2 * 7 + 1  # Conv1D: attention 2, cross attention 3, MLP 2
        open_checkpoint(done.path).write_dense(tmp_path / f"{method}-dense")
        stock = VisionEncoderDecoderModel.from_pretrained(tmp_path / f"{method}-dense").eval()
        if batch is None:
            words = Tokenizer(home / "taught").plain("this one is blue all over")
            x = torch.from_numpy(images.read(seen(home)[2:3], images.Processor(home / "taught")))
            batch = {"pixel_values": x, "decoder_input_ids": torch.tensor([[captioners.START, *words]])}
            want = open_checkpoint(home / "taught").load_model()(**batch).logits
        errors[method] = float((stock(**batch).logits - want).norm() / want.norm())
    assert 0 < errors["gptq"] < errors["rtn"] < 0.5
    assert 0 < errors["hqq"] < 0.5
    assert artifact.read(tmp_path / "gptq").manifest.calibration["samples"] == 24


@pytest.mark.parametrize(("encoder", "decoder"), [("vit", "narrow"), ("deit", "bert"), ("beit", "trocr")])
def test_both_runners_write_what_transformers_generates(home, tmp_path, encoder, decoder):
    path = captioners.make(tmp_path / "it", encoder, decoder)
    done = greenllm.export(path, tmp_path / "onnx")
    want = theirs(path, seen(home)[:4], 12)
    for name, where in (("torch", path), ("onnxruntime", done.path)):
        runner = loader(name).load(str(where), 1)
        for file, tokens in zip(seen(home), want, strict=False):
            assert list(runner.stream(runner.view(str(file)), 12))[: len(tokens)] == tokens


def test_both_graphs_hold_integers_and_were_compared(int8, home):
    found = int8.deployable.manifest.details
    assert (found["task"], found["stored_bits"]) == ("image-to-text", [8])
    assert found["operators"]["MatMulNBits"] == 2 * 6 + 2 * 7 + 1
    assert found["operators"]["GatherBlockQuantized"] == 1
    assert 0 < found["verified"]["kl_divergence"] < 1e-3
    assert found["verified"]["max_relative_error"] < 0.05
    stored = sum(f.stat().st_size for f in int8.deployable.path.glob("*.data"))
    packed = sum(w.codes.numel() for _, w in open_checkpoint(int8.path / "checkpoint").packed())
    dense = open_checkpoint(home / "taught").parameters - packed
    assert stored < 1.15 * packed + 4.1 * dense + 50_000


def test_scores_are_sacrebleu_s_of_what_transformers_writes(int8, home):
    results = Results.from_json((int8.path / "report.json").read_text())
    (dense,), (small,) = (list(row.tasks.values()) for row in results.rows)
    tokenizer = Tokenizer(home / "taught")
    wrote = [tokenizer.words([t for t in ids if t != captioners.END]) for ids in theirs(home / "taught", seen(home))]
    assert dense.written == wrote
    assert len(set(wrote)) >= 3  # it does look
    rows = [json.loads(line)["captions"] for line in (home / "see/captions.jsonl").read_text().splitlines()]
    streams = [list(s) for s in zip(*rows, strict=True)]
    want = sacrebleu.corpus_bleu(wrote, streams, lowercase=True).score
    assert dense.scores["bleu"].measured.value == pytest.approx(want)
    assert want > 60
    for score in ("bleu", "chrf"):
        assert abs(small.scores[score].against.difference.value) < 1
        assert small.scores[score].against.difference.unit == "points"
    assert loss_of(int8) == pytest.approx(want / small.scores["bleu"].measured.value)
    assert results.rows[1]["caption"].unit == "ms"
    assert results.rows[1].ratios["caption"].value > 0
    text = (int8.path / "report.md").read_text()
    assert ", BLEU" in text
    assert "Time to a whole caption" in text
    assert "sacrebleu" in text
    met = decide(results, [parse("bleu>=-5%"), parse("bleu>=101"), parse("accuracy>=-1%")])
    assert [r.outcome for r in met] == ["met", "failed", "failed"]


def test_bleu_of_all_together_is_sacrebleu_s_own():
    wrote = ["A red ship on the sea", "two dogs", "", "the cat sat on the mat today"]
    told = [["a red ship at sea", "a ship on the sea"], ["two dogs run"], ["nothing here"], ["the cat sat on a mat"]]
    streams = [[t[0] for t in told], [t[1] if len(t) > 1 else None for t in told]]
    found = scoring.judge(wrote, told)
    assert found["bleu"].measured.value == pytest.approx(sacrebleu.corpus_bleu(wrote, streams, lowercase=True).score)
    alone = [sacrebleu.CHRF(lowercase=True).sentence_score(w, t).score for w, t in zip(wrote, told, strict=True)]
    assert found["chrf"].values == pytest.approx(alone)
    low, high = found["bleu"].measured.ci95
    assert low < found["bleu"].measured.value < high
    assert scoring.judge(["red ship"], [["red ship"]])["bleu"].measured.value == pytest.approx(100)  # of two words


def test_a_difference_is_of_the_same_images():
    told = [[f"a photo of a {c} thing number {i}"] for i, c in enumerate(["red", "blue", "green", "grey"] * 5)]
    right, wrong = [t[0] for t in told], [t[0].replace("photo of a", "kind of the") for t in told]
    same = scoring.judge(wrong, told, before=wrong)["bleu"]
    assert (same.against.difference.value, same.against.verdict) == (0, "same")
    worse = scoring.judge(wrong, told, before=right)["bleu"]
    assert worse.against.difference.value == pytest.approx(worse.measured.value - 100)
    assert worse.against.verdict == "worse"
    assert scoring.judge(wrong[:1], told[:1])["bleu"].measured.ci95 is None


def test_run_writes_what_an_image_shows(int8, home, tmp_path, capsys):
    for i, colour in enumerate(captioners.COLOURS):
        code, out, told = ran(capsys, int8.path, "--image", home / f"see/{i}.png")
        assert (code, out.strip()) == (0, f"this one is {colour} all over")
        assert "tokens written." in told
    whole = Image.open(home / "see/0.png")
    for mode, size, name in [("RGBA", (300, 7), "a.png"), ("L", (33, 33), "b.jpg"), ("P", (1, 1), "c.png"),
                             ("CMYK", (64, 64), "d.jpg"), ("I;16", (40, 40), "e.png")]:  # fmt: skip
        made = whole.convert("L").convert("I").point(lambda v: v * 255) if mode == "I;16" else whole.convert(mode)
        (made.convert(mode) if mode == "I;16" else made).resize(size).save(tmp_path / name)
        assert ran(capsys, int8.path, "--image", tmp_path / name)[0] == 0
    code, out, told = ran(capsys, int8.path, "--image", home / "see/0.png", "--max-tokens", 3)
    assert (code, out, "3 tokens written; cut there." in told) == (0, "thi\n", True)


def test_what_is_asked_amiss_is_told(int8, home, tmp_path, capsys):
    image, text = home / "see/0.png", tmp_path / "text"
    text.mkdir()
    (text / "genai_config.json").write_text("{}")
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:100])
    Image.open(image).save(tmp_path / "moving.gif")
    for arguments, says in [
        ([int8.path, "what is it?"], "takes an image alone"), ([int8.path], "nothing for"),
        ([int8.path, "what is it?", "--image", image], "takes an image alone"),
        ([int8.path, "--image", image, "--labels", "red,blue"], "takes an image alone"),
        ([int8.path, "--image", image, "--temperature", "1"], "takes an image alone"),
        ([int8.path, "--audio", image], "takes an image alone"),
        ([int8.path, "--image", tmp_path / "cut.png"], "cannot be read as an image"),
        ([int8.path, "--image", tmp_path / "no.png"], "cannot be read as an image"),
        ([int8.path, "--image", tmp_path / "moving.gif"], "cannot be read as an image"),
        ([text, "--image", image], "does not compare images"),
    ]:  # fmt: skip
        code, _, told = ran(capsys, *arguments)
        assert code == 1
        assert says in told
    for opens in (load, lambda path: open_model(path, 1)):
        with pytest.raises(GreenError, match="writes what an image shows"):
            opens(int8.path)
    with pytest.raises(GreenError, match="bundles are made of models of text"):
        bundle(int8, tmp_path / "bundle")


def test_files_of_others_are_refused(int8, home, tmp_path, capsys):
    deploy = int8.deployable.path
    for name in ("no-start", "no-pixels", "other-size", "swapped"):
        shutil.copytree(deploy, tmp_path / name)
        (tmp_path / name / artifact.MANIFEST).unlink()
    config = json.loads((deploy / "config.json").read_text())
    config.pop("decoder_start_token_id")
    write(tmp_path / "no-start/config.json", config)
    write(tmp_path / "no-start/generation_config.json", {})
    (tmp_path / "no-pixels" / images.PROCESSOR).unlink()
    edit(tmp_path / "other-size" / images.PROCESSOR, size={"height": 48, "width": 48})
    shutil.copy(deploy / "model.onnx", tmp_path / "swapped" / "encoder.onnx")
    for name, says in [("no-start", "where does an answer begin"), ("swapped", "is not known"),
                       ("no-pixels", "no description of how images become pixels"),
                       ("other-size", "makes pixels of (3, 48, 48); the model takes (3, 32, 32)")]:  # fmt: skip
        code, _, told = ran(capsys, tmp_path / name, "--image", home / "see/0.png")
        assert code == 1
        assert says in told


def test_a_caption_is_as_long_as_the_files_say(home, tmp_path):
    shutil.copytree(home / "taught", tmp_path / "it")
    assert captions.most_tokens(tmp_path / "it") == 64
    for told, most in [({"max_length": 16}, 15), ({"max_new_tokens": 9}, 9), ({"max_length": 500}, 79)]:
        write(tmp_path / "it/generation_config.json", told)
        assert captions.most_tokens(tmp_path / "it") == most


def test_encoders_and_decoders_that_do_not_work_are_named(home, tmp_path):
    captioners.make(tmp_path / "blind")
    config = json.loads((tmp_path / "blind/config.json").read_text())
    edit(tmp_path / "blind/config.json", decoder=config["decoder"] | {"add_cross_attention": False})
    swin = SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[1, 2], window_size=4)
    llama = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, is_decoder=True,
                        num_attention_heads=2, add_cross_attention=True)  # fmt: skip
    for name, part in (("swin", {"encoder": swin.to_dict()}), ("llama", {"decoder": llama.to_dict()})):
        shutil.copytree(tmp_path / "blind", tmp_path / name)
        whole = VisionEncoderDecoderConfig(**{"encoder": config["encoder"], "decoder": config["decoder"]} | part)
        whole.architectures = ["VisionEncoderDecoderModel"]
        whole.save_pretrained(tmp_path / name)
    for name, says in [("blind", "its decoder, GPT2LMHeadModel, has no cross attention"),
                       ("llama", "its decoder, LlamaForCausalLM, has no cross attention"),
                       ("swin", "its encoder, SwinModel, are not alike")]:  # fmt: skip
        for do in (greenllm.export, lambda path, out: greenllm.compress(path, out, "int8", bench=False)):
            with pytest.raises(GreenError, match=says):
                do(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_compress_needs_is_told_before_any_work(home, llama, tmp_path):
    shutil.copy(home / "see/0.png", tmp_path / "0.png")
    text = write(tmp_path / "text.txt", "some words")
    bad = write(tmp_path / "bad.jsonl", {"image": "no.png"})
    labelled = write(tmp_path / "labels.jsonl", {"image": "0.png", "label": "a"}, {"image": "0.png", "label": "b"})
    captioned = write(tmp_path / "captions.jsonl", {"image": "0.png", "caption": "a red one"})
    for options, says in [
        ({"recipe": "int8"}, "nothing else to ask"),
        ({"recipe": "int8", "bench_options": {"tasks": [labelled]}}, "nothing else to ask"),
        ({"recipe": "int4", "bench": False}, "makes no images of its own"),
        ({"recipe": "int4", "calibration": str(text), "bench": False}, "makes no images of its own"),
        ({"recipe": "int4", "calibration": str(bad), "bench": False}, "no image"),
        ({"recipe": "small", "bench": False}, "takes models of text"),
        ({"recipe": "int8", "to": "genai", "bench": False}, "captioner"),
        ({"recipe": "int8", "to": "gguf", "bench": False}, "captioner"),
    ]:
        with pytest.raises(GreenError, match=says):
            greenllm.compress(home / "taught", tmp_path / "x", **options)
    awq = recipe.Recipe(name="q", steps=[recipe.make_step("quantize", {"method": "rtn", "awq": True}, "test")],
                        calibration={"source": str(captioned), "samples": 1})  # fmt: skip
    with pytest.raises(GreenError, match="weights alone"):
        pipeline.run_steps(home / "taught", tmp_path / "x", awq)
    for row, says in [({"captions": []}, "no list of one or more"), ({"captions": ["a", " "]}, "caption is empty"),
                      ({"captions": "a"}, "no list"), ({"captions": ["a", 3]}, "3 is no text")]:  # fmt: skip
        with pytest.raises(GreenError, match=says):
            read(write(tmp_path / "row.jsonl", {"image": "0.png"} | row))
    run = {"effort": TINY, "threads": 1, "energy": False}
    with pytest.raises(GreenError, match="images alone"):
        greenllm.bench([home / "taught"], tasks=[captioned], lengths=[8], **run)
    with pytest.raises(GreenError, match="these models see nothing"):
        greenllm.bench([llama], tasks=[captioned], **run)
    assert not (tmp_path / "x").exists()


def test_a_checkpoint_without_a_preprocessor_is_told(home, tmp_path):
    shutil.copytree(home / "taught", tmp_path / "bare")
    (tmp_path / "bare" / images.PROCESSOR).unlink()
    file = home / "see/captions.jsonl"
    found = greenllm.bench([tmp_path / "bare"], tasks=[file], effort=TINY, threads=1, energy=False)
    assert f"has no {images.PROCESSOR}" in found.rows[0].error
    made = recipe.Recipe(name="q", steps=[recipe.make_step("quantize", {}, "test")],
                         calibration={"source": str(file), "samples": 2})  # fmt: skip
    with pytest.raises(GreenError, match=f"has no {images.PROCESSOR}"):
        pipeline.run_steps(tmp_path / "bare", tmp_path / "x", made)
    shutil.copy(home / "taught" / images.PROCESSOR, tmp_path / "bare")
    edit(tmp_path / "bare" / images.PROCESSOR, size={"height": 48, "width": 48})
    with pytest.raises(GreenError, match="makes pixels of"):
        pipeline.run_steps(tmp_path / "bare", tmp_path / "x", made)


def test_several_captions_of_an_image_are_one_to_find(home):
    """The same rows mean retrieval for a model that compares."""
    task = read(home / "see/captions.jsonl")
    told = zeroshot.texts(task)
    assert len(told) == 6  # two a colour
    assert pairs(str(home / "see/captions.jsonl"), 3)[0][1] == "this one is red all over"
    vectors = {"look": lambda files: np.eye(3, dtype=np.float32)[[int(f.rsplit("/")[-1][:-4]) % 3 for f in files]],
               "tokens": lambda texts: texts,
               "encode": lambda texts: np.eye(3, dtype=np.float32)[[told.index(t) // 2 for t in texts]]}  # fmt: skip
    model = SimpleNamespace(call=lambda name, arg: vectors[name](arg))
    who = SimpleNamespace(model=model, row=SimpleNamespace(tasks={}), info=SimpleNamespace(task="zero-shot"))
    session = SimpleNamespace(progress=SimpleNamespace(advance=lambda _: None), rows=[SimpleNamespace(tasks={})])
    _ASK[type(task.items[0])](session, who, task, chat=False)
    assert who.row.tasks[task.name].scores["caption_r1"].measured.value == 100
    assert who.row.tasks[task.name].chance == pytest.approx(2 / 6)


def test_pictures_of_ten_kinds_are_learnt_and_said(data, tmp_path):
    """What makes the small model of the README, on less of CIFAR-10; its tokenizer and captions are as it says."""
    archives = tuple(data / "vision" / f"cifar10_{n}.zip" for n in ("train_10000", "test_2000"))
    path = cifar_captions.make(archives, tmp_path, passes=1, most=256)
    task = read(tmp_path / "test.jsonl", limit=20)
    said = [cifar_captions.captions(i.file, i.file.parent.name) for i in task.items]
    assert [list(i.captions) for i in task.items] == said
    tokenizer = Tokenizer(path)
    assert tokenizer.words(tokenizer.plain(said[0][0])) == said[0][0]
    runner = loader("torch").load(str(path), 1)
    assert len(list(runner.stream(runner.view(str(task.items[0].file)), 5))) == 5

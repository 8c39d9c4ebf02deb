"""Transcribers learn from clips: as the whole model in torch says, in files that peft reads, on real digits too."""

from __future__ import annotations

import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from conftest import make_moonshine, make_whisper

from greenllm import audio, script
from greenllm.adapt import adapters, spoken
from greenllm.adapt.meta import meta_train
from greenllm.adapt.run import adapt
from greenllm.adapt.shots import draw
from greenllm.bench import answers
from greenllm.bench.adapted import ADAPTED, Subject
from greenllm.bench.runners import loader
from greenllm.bench.runners.torch import TorchListener
from greenllm.bench.tasks import read, speech
from greenllm.bench.texts import Tokens
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.features import Features
from greenllm.pipeline import run_steps
from greenllm.recipe import Recipe, make_step

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("jiwer")
pytest.importorskip("peft")
WORDS = ["low", "high tone", "hiss", "hush"]
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LANGUAGES = {"<|en|>": 129, "<|de|>": 130, "<|fr|>": 131}
MANY = {"is_multilingual": True, "lang_to_id": LANGUAGES, "task_to_id": {"transcribe": 132, "translate": 133}}


def make_clips(folder, words=WORDS, each=2):
    """Tones of a pitch for each text, of lengths of their own."""
    rng = np.random.default_rng(0)
    rows = []
    for i, text in enumerate(words * each):
        t = np.arange(int(audio.RATE * rng.uniform(0.3, 0.9))) / audio.RATE
        tone = np.sin(2 * np.pi * 300 * (1 + i % len(words)) * t) + 0.1 * rng.normal(size=len(t))
        soundfile.write(folder / f"{i}.wav", 0.3 * tone, audio.RATE)
        rows.append({"audio": f"{i}.wav", "text": text})
    return rows


def save(file, rows):
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return save(folder / "speech.jsonl", make_clips(folder))


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    """A random Moonshine whose logits are far apart, so that what its frozen head says can change."""
    from transformers import MoonshineForConditionalGeneration

    path = make_moonshine(tmp_path_factory.mktemp("sharp") / "moonshine")
    model = MoonshineForConditionalGeneration.from_pretrained(path)
    model.get_input_embeddings().weight.data *= 20
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return make_whisper(tmp_path_factory.mktemp("many") / "tiny-whisper", told=MANY)


@pytest.fixture(scope="module")
def learned(sharp, clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("learned") / "adapter"
    return adapt(sharp, clips, out, shots=8, blocks=2, rank=16, rate=0.01, steps=120)


def heard(path, clip, most=12, engine="torch"):
    return answers.write(loader(engine).load(str(path), 1), Tokens(open_base(path)), clip, most, [])


def open_base(path):
    return adapters.open_base(path).path if adapters.is_adapter(path) else path


def logits(model, shot, checkpoint, clip):
    with torch.no_grad():
        return model(**Features(checkpoint)(clip), decoder_input_ids=torch.tensor(shot.texts)).logits[0]


@pytest.mark.parametrize("name", ["tiny_moonshine", "tiny_whisper", "many"])
@pytest.mark.parametrize("first", [0, 1])
def test_kept_states_change_nothing(request, clips, name, first):
    """What is kept of encoder and lower blocks: each clip alone through the whole model says the same."""
    checkpoint = open_checkpoint(request.getfixturevalue(name))
    items, model = read(clips).items[:3], checkpoint.load_model()
    upper = spoken.Spoken(model, first, spoken.encode(items, checkpoint))
    asked = script.of(checkpoint.path)
    for i, item in enumerate(items):
        (scores, _), shot = upper.scores([i]), upper.shots[i]
        said = logits(model, shot, checkpoint, audio.read(item.file)).log_softmax(-1)
        (choice,) = shot.choices
        want = sum(said[choice.start - 1 + k, t] for k, t in enumerate(choice.tokens))
        torch.testing.assert_close(scores[0, 0], want, rtol=1e-4, atol=1e-4)
        assert choice.tokens[-1] in asked.ends
        assert Tokens(checkpoint.path).words(list(choice.tokens[:-1])).strip() == item.text


def test_the_language_is_the_one_that_is_heard(many, clips):
    checkpoint, items = open_checkpoint(many), read(clips).items
    model = checkpoint.load_model()
    upper, listener = spoken.Spoken(model, 0, spoken.encode(items, checkpoint)), TorchListener(checkpoint, model)
    found = set()
    for item, shot in zip(items, upper.shots, strict=True):
        listener.begin(audio.read(item.file))
        assert list(shot.texts[0][: len(listener.prompt)]) == listener.prompt
        found.add(listener.language)
    assert found <= set(LANGUAGES.values())


def test_it_writes_what_it_learned_and_hears_as_before(learned, sharp, clips):
    loss = learned.manifest.steps[-1].result["loss"]
    assert loss[-1] < 0.1 * loss[0]
    items = read(clips).items
    right = [heard(learned.path, audio.read(i.file)) == i.text for i in items]
    assert sum(right) >= 0.7 * len(items)
    assert not any(heard(sharp, audio.read(i.file)) == i.text for i in items)
    state = adapters.read(learned.path)[1].path / adapters.WEIGHTS
    assert b"decoder" in state.read_bytes()
    assert b"encoder.layers" not in state.read_bytes()


@pytest.mark.parametrize("name", ["tiny_moonshine", "tiny_whisper"])
@pytest.mark.parametrize("method", ["lora", "adalora", "ia3"])
def test_stock_peft_and_a_merge_say_the_same(request, clips, tmp_path, name, method):
    from peft import PeftModel

    path = request.getfixturevalue(name)
    given = {"shots": 2, "steps": 3, "method": method, "rate": 0.05}
    done = adapt(path, clips, tmp_path / "adapter", **given)
    merged = adapt(path, clips, tmp_path / "merged", merge=True, **given)
    checkpoint = open_checkpoint(path)
    ours, theirs, plain = (checkpoint.load_model() for _ in range(3))
    adapters.load(ours, done.path)
    theirs = PeftModel.from_pretrained(theirs, done.path)
    dense = open_checkpoint(merged.path).load_model()
    item = read(clips).items[0]
    (shot,), clip = spoken.encode([item], checkpoint), audio.read(item.file)
    want = logits(ours, shot, checkpoint, clip)
    assert not torch.allclose(want, logits(plain, shot, checkpoint, clip), atol=1e-3)
    torch.testing.assert_close(logits(theirs, shot, checkpoint, clip), want, rtol=0, atol=0)
    torch.testing.assert_close(logits(dense, shot, checkpoint, clip), want, rtol=1e-4, atol=1e-4)


def test_on_packed_weights_and_on_to_a_graph(sharp, clips, tmp_path):
    """Quantized, adapted, merged, exported: what runs without torch writes what the adapter learned."""
    from greenllm.export import export

    step = make_step("quantize", {"method": "rtn", "bits": 8, "group": 32}, "quantize")
    packed = run_steps(sharp, tmp_path / "int8", Recipe(name="int8", steps=[step]))
    given = {"shots": 4, "blocks": 2, "rank": 8, "steps": 30, "rate": 0.01}
    merged = adapt(packed.path, clips, tmp_path / "merged", merge=True, **given)
    adapted = adapt(packed.path, clips, tmp_path / "adapter", **given)
    out = export(merged.path, tmp_path / "graph")
    clip = audio.read(read(clips).items[0].file)
    assert heard(out.path, clip, 6, "onnxruntime") == heard(adapted.path, clip, 6) != heard(packed.path, clip, 6)


def test_shots_are_counted_by_clips_without_a_wrong_word(learned, sharp, clips):
    subject = Subject(str(sharp), "lora", read(clips).items, [])
    assert subject.as_it_is().right == 0
    assert subject.prompted(draw(clips, 2, 0), 2, 0) is None
    made = subject.adapted(draw(clips, 4, 1), ADAPTED, 4, 1)
    assert made.steps > 0
    adapters.load(subject.model, learned.path)
    assert subject.as_it_is().right >= 0.7


def test_a_start_is_learned_over_tasks_of_clips(tiny_moonshine, clips, tmp_path):
    shutil.copytree(clips.parent, tmp_path, dirs_exist_ok=True)
    rows = [{"audio": i.file.name, "text": i.text} for i in read(clips).items]
    tasks = [save(tmp_path / f"{n}.jsonl", [r | {"text": r["text"] + " " + n} for r in rows]) for n in "xy"]
    start = meta_train(tiny_moonshine, tasks, tmp_path / "start", shots=8, rounds=8, steps=4, rate=0.02)
    (record,) = start.manifest.steps
    assert record.result["loss"][-1] < record.result["loss"][0]
    plain = adapt(tiny_moonshine, clips, tmp_path / "plain", shots=4, steps=2)
    begun = adapt(tiny_moonshine, clips, tmp_path / "begun", shots=4, steps=2, meta=start.path)
    assert begun.manifest.steps[-1].result["loss"][0] < plain.manifest.steps[-1].result["loss"][0]


def test_bad_input_is_told_and_leaves_nothing(tiny_moonshine, tiny_whisper, tmp_path):
    make_clips(tmp_path)
    soundfile.write(tmp_path / "long.wav", np.zeros(3 * audio.RATE), audio.RATE)
    texts = save(tmp_path / "texts.jsonl", [{"text": str(i), "label": "xy"[i % 2]} for i in range(8)])
    long = save(tmp_path / "long.jsonl", [{"audio": "long.wav", "text": "a"}] * 2)
    wordy = save(tmp_path / "wordy.jsonl", [{"audio": "0.wav", "text": "a" * 3000}] * 2)
    good = save(tmp_path / "good.jsonl", [{"audio": "0.wav", "text": "a"}] * 2)
    before = sorted(p.name for p in tmp_path.iterdir())
    for model, task, method, says in [
        (tiny_moonshine, texts, "lora", "are no clips"), (tiny_whisper, long, "lora", "lasts 3 s; the model hears 2"),
        (tiny_whisper, wordy, "lora", "the model writes"), (tiny_moonshine, wordy, "lora", "the model writes"),
        (tiny_moonshine, good, "prefix", "a transcriber hears"),
    ]:  # fmt: skip
        with pytest.raises(GreenError, match=says):
            adapt(model, task, tmp_path / "out", shots=2, method=method)
    with pytest.raises(GreenError, match="3 are asked for"):
        adapt(tiny_moonshine, good, tmp_path / "out", shots=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_model_of_texts_refuses_clips(four_blocks, clips, tmp_path):
    with pytest.raises(GreenError, match="reads texts"):
        adapt(four_blocks, clips, tmp_path / "out", shots=2)


@pytest.fixture
def four_blocks(tmp_path):
    from conftest import make_llama

    return make_llama(tmp_path / "base", layers=4)


def test_moonshine_learns_digits_of_other_speakers(moonshine, data, tmp_path):
    """Real weights, real voices: 16 clips of three people, and 30 of three others are asked."""
    with zipfile.ZipFile(data / "audio" / "fsdd_digits_600.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(("_0.wav", "_1.wav")))
        archive.extractall(tmp_path, names)
    rows = [{"audio": n, "text": NAMES[int(n[0])]} for n in names]
    known = ("george", "jackson", "lucas")
    few = save(tmp_path / "few.jsonl", [r for r in rows if r["audio"].split("_")[1] in known])
    test = save(tmp_path / "test.jsonl", [r for r in rows if r["audio"].split("_")[1] not in known][::2])
    done = adapt(moonshine, few, tmp_path / "adapter", shots=16, steps=20)
    errors = {}
    for path in (moonshine, done.path):
        said = [(heard(path, audio.read(i.file), 8), i.text) for i in read(test).items]
        errors[path] = sum(min(1, speech.errors(found, text)) for found, text in said) / len(said)
    assert errors[moonshine] > 0.6  # single words of eight thousand samples a second are not what it was trained on
    assert errors[done.path] < 0.8 * errors[moonshine]
    assert done.manifest.steps[-1].result["bytes"] < 0.02 * (moonshine / "model.safetensors").stat().st_size

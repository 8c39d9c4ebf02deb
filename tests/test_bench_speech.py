"""Transcription: clips are checked before anything runs, and errors are counted over words."""

from __future__ import annotations

import json

import numpy as np
import pytest

import greenllm
from greenllm import audio
from greenllm.bench import Effort
from greenllm.bench.require import decide, parse
from greenllm.bench.results import Row, TaskResult
from greenllm.bench.runners import loader
from greenllm.bench.tasks import read, speech
from greenllm.errors import GreenError

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("jiwer")
TINY = Effort(windows=2, sittings=2, width=0.5, seconds=0.2, turn=0.02, energy=0.1)


def tone(path, seconds=1.0, rate=16000, channels=1, hertz=440):
    wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    soundfile.write(path, np.stack([wave] * channels, 1), rate)
    return path


def task(folder, *rows):
    file = folder / "speech.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in rows))
    return file


def test_a_clip_is_one_channel_at_the_models_rate(tmp_path):
    want = audio.read(tone(tmp_path / "a.wav"))
    assert (want.dtype, want.shape) == (np.float32, (16000,))
    got = audio.read(tone(tmp_path / "b.flac", rate=48000, channels=2))
    assert got.shape == want.shape
    assert np.abs(got - want)[500:-500].max() < 1e-3


def test_a_stream_that_does_not_know_its_length_is_read(tmp_path):
    raw = bytearray(tone(tmp_path / "a.wav").read_bytes())
    raw[4:8] = raw[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "b.wav").write_bytes(raw)
    assert np.array_equal(audio.read(tmp_path / "b.wav"), audio.read(tmp_path / "a.wav"))


def test_bad_clips_are_told_with_their_line(tmp_path):
    good = {"audio": "a.wav", "text": "a tone"}
    tone(tmp_path / "a.wav")
    inner = tmp_path / "in"
    inner.mkdir()
    tone(inner / "a.wav")
    (inner / "noise.wav").write_bytes(b"RIFF" + bytes(100))
    (inner / "cut.flac").write_bytes(tone(tmp_path / "c.flac").read_bytes()[:4000])
    (inner / "cut.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:20000])
    (inner / "link.wav").symlink_to(tmp_path / "a.wav")
    soundfile.write(inner / "nan.wav", np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    tone(inner / "short.wav", 0.01)
    tone(inner / "long.wav", 121, rate=4000)
    for name, says in [
        ("../a.wav", "line 2: .*no path below"), (str(inner / "a.wav"), "no path below"), ("link.wav", "no path below"),
        ("no.wav", "line 2: there is no audio"), ("noise.wav", "line 2: .*cannot be read as audio"),
        ("cut.flac", "line 2: "), ("cut.wav", "20,000 of its 32,044 bytes"),
        ("nan.wav", "line 2: .*NaN"), ("short.wav", "lasts 0.01 s"),
        ("long.wav", "lasts 121.00 s"), (".", "no path below"),
    ]:  # fmt: skip
        with pytest.raises(GreenError, match=says):
            read(task(inner, good, {"audio": name, "text": "a"}))
    for row, says in [({"audio": "a.wav", "text": " ?! "}, "no words"), ({"audio": 1, "text": "a"}, "1 is no text")]:
        with pytest.raises(GreenError, match=f"line 2: .*{says}"):
            read(task(inner, good, row))
    with pytest.raises(GreenError, match="mixes"):
        read(task(inner, good, {"question": "q", "answer": "a"}))


def test_word_errors_by_hand():
    assert speech.errors("The cat sat.", "the cat sat") == 0
    assert speech.errors("a cat sat down", "The cat sat") == 2  # one replaced, one added
    assert speech.errors("", "the cat sat") == 3


def test_a_rate_is_of_all_words_and_one_clip_has_no_interval():
    one = speech.judge([1], [4])
    assert (one.measured.value, one.measured.ci95) == (25, None)
    many = speech.judge([2, 0, 1], [2, 10, 8], before=[0, 0, 1])
    assert many.measured.value == pytest.approx(15)
    assert many.against.difference.value == pytest.approx(10)
    low, high = many.against.difference.ci95
    assert low == 0 < high
    assert many.against.verdict == "undecided"
    assert speech.judge([3, 4, 3], [9, 9, 9], before=[0, 1, 0]).against.verdict == "worse"


def test_a_word_error_rate_is_no_accuracy():
    score = speech.judge([3, 4, 3], [9, 9, 9], before=[0, 1, 0])
    row = Row(name="b", path="b", runner="torch", tasks={"t": TaskResult(total=3, chance=None, scores={"wer": score})})
    from types import SimpleNamespace

    found = decide(SimpleNamespace(rows=[row, row]), [parse("wer<=2%"), parse("wer<=50"), parse("accuracy>=-1%")])
    assert [r.outcome for r in found] == ["failed", "met", "failed"]
    assert "nothing to compare" in found[2].found


def test_the_runner_writes_what_transformers_generates(tiny_moonshine):
    import torch
    from transformers import MoonshineForConditionalGeneration

    runner = loader("torch").load(str(tiny_moonshine), 1)
    clip = np.random.default_rng(0).normal(size=16000).astype(np.float32) * 0.1
    got = list(runner.stream(clip, 8))
    model = MoonshineForConditionalGeneration.from_pretrained(tiny_moonshine).eval()
    want = model.generate(torch.from_numpy(clip)[None], max_new_tokens=8, do_sample=False)[0, 1:].tolist()
    assert got[: len(want)] == want


def test_a_bench_of_transcribers(tiny_moonshine, tmp_path):
    for i in range(3):
        tone(tmp_path / f"{i}.wav", 0.5, hertz=300 * (i + 1))
    file = task(tmp_path, *({"audio": f"{i}.wav", "text": "one tone"} for i in range(3)))
    found = greenllm.bench([tiny_moonshine, tiny_moonshine], tasks=[file], suites=["robustness:noise=10,100"],
                           effort=TINY, threads=1, energy=False, report=tmp_path / "r")  # fmt: skip
    a, b = found.rows
    assert not a.error
    assert not b.error
    wer = b.tasks[f"{tmp_path.name}/speech"].main
    assert wer.against.verdict == "same"
    noise = b.tasks[f"{tmp_path.name}/speech"].curves["noise"]
    assert (noise.labels, noise.scores[0].values) == (["as it is", "20 dB", "0 dB"], wer.values)
    assert noise.kept is None  # it hears no word as it is
    assert "real_time" in b.ratios
    assert found.settings["clip_s"] == 0.5
    assert "word errors" in found.methods["Tasks"]
    assert "word error rate" in (tmp_path / "r" / "report.md").read_text()


def test_what_transcribers_are_not_asked(tiny_moonshine, llama, tmp_path):
    tone(tmp_path / "a.wav", 0.5)
    file = task(tmp_path, {"audio": "a.wav", "text": "a tone"})
    run = {"effort": TINY, "threads": 1, "energy": False}
    with pytest.raises(GreenError, match="nothing else to ask"):
        greenllm.bench([tiny_moonshine], **run)
    with pytest.raises(GreenError, match="clips alone"):
        greenllm.bench([tiny_moonshine], tasks=[file], lengths=[8], **run)
    with pytest.raises(GreenError, match="none of these models hears"):
        greenllm.bench([llama], tasks=[file], **run)


def test_real_speech(moonshine, data):
    from greenllm.bench import answers
    from greenllm.bench.texts import Tokens

    runner = loader("torch").load(str(moonshine), 1)
    clip = audio.read(data / "audio" / "beckett.wav")
    said = answers.write(runner, Tokens(moonshine), clip, runner.script.most(clip), [])
    assert speech.errors(said, "ever tried ever failed no matter try again fail again fail better") <= 1

"""A transcriber's bundle: hears alone as it does here, and refuses what it cannot hear and what was done to it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import wave

import numpy as np
import pytest
from test_bundle import ALONE

from greenllm import artifact, audio
from greenllm.errors import GreenError
from greenllm.export import export
from greenllm.export.bundle import bundle, check
from greenllm.export.device import run
from greenllm.generate import Settings, find
from greenllm.transcribe import Transcriber

pytest.importorskip("soundfile")
ALONE = ALONE.replace('"onnx")', '"onnx", "soundfile", "soxr")')


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """A machine on which nothing has passed its self-test yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(tiny_moonshine, tiny_whisper, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    found = {}
    for name, source in (("moonshine", tiny_moonshine), ("whisper", tiny_whisper)):
        found[name] = bundle(export(source, folder / f"{name}-onnx"), folder / name)
    return found


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made["whisper"], tmp_path / "copy")


def noise(path, seconds=1.0, rate=16000, channels=1, width=2):
    """A .wav of noise; ``width`` in bytes."""
    sound = np.random.default_rng(1).normal(size=(int(seconds * rate), channels)) * 0.1
    whole = np.clip(np.round(sound * 32767), -32768, 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(whole.tobytes() if width == 2 else (whole >> 8).astype(np.uint8).tobytes())
    return path


def alone(path, *arguments):
    """run.py with nothing but the runtimes to import."""
    command = [sys.executable, "-I", "-c", ALONE, path / "run.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def here(path, clip, most=None):
    """What greenllm writes of a clip."""
    model = Transcriber(find(path), threads=1)
    ids = [t for t in model.answer(audio.read(clip, 3600), Settings(most)) if t is not None]
    return model.tokenizer.words(ids)


@pytest.mark.parametrize(("name", "seconds"), [("moonshine", 1.3), ("whisper", 0.7), ("whisper", 5.2)])
def test_a_bundle_writes_alone_what_it_writes_here(made, tmp_path, name, seconds):
    path, clip = made[name], noise(tmp_path / "clip.wav", seconds)
    found, needs = check(path)
    assert (found.kind, needs.target) == ("onnx", "cpu")
    assert needs.weight_bytes == sum(f.stat().st_size for f in path.glob("*.onnx*"))
    said = alone(path, "--audio", clip, "--threads", 1)
    assert said.returncode == 0, said.stderr
    assert "self-test: 3 of 3" in said.stderr
    assert said.stdout.strip() == here(path, clip).strip() != ""
    again = alone(path, "--audio", clip, "--max-tokens", 3, "--threads", 1)
    assert (again.stderr, again.stdout.strip()) == ("", here(path, clip, 3).strip())
    pins = (path / "requirements.txt").read_text()
    assert {p.partition("==")[0] for p in pins.splitlines()} == {"numpy", "onnxruntime", "tokenizers"}


def test_what_cannot_be_heard_is_named(made, bert, tmp_path):
    whole = noise(tmp_path / "whole.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:9000])
    (tmp_path / "no.wav").write_bytes(b"RIFF" + bytes(99))
    (tmp_path / "empty.wav").write_bytes(b"")
    long = noise(tmp_path / "long.wav", 121)
    for name, file, says in [
        ("whisper", noise(tmp_path / "rate.wav", rate=8000), "at 8000 Hz"),
        ("whisper", noise(tmp_path / "stereo.wav", channels=2), "has 2 channels"),
        ("whisper", noise(tmp_path / "eight.wav", width=1), "of 8 bits"),
        ("whisper", noise(tmp_path / "short.wav", 0.05), "lasts 0.05 s"), ("moonshine", long, "lasts 121.00 s"),
        ("whisper", tmp_path / "cut.wav", "is damaged: 8,956 of its 32,000 bytes"),
        ("whisper", tmp_path / "no.wav", "cannot be read as .wav"),
        ("whisper", tmp_path / "empty.wav", "cannot be read as .wav"),
        ("whisper", tmp_path / "none.wav", "cannot be read as .wav"),
    ]:  # fmt: skip
        said = alone(made[name], "--audio", file)
        assert (said.returncode, said.stdout) == (1, "")
        assert says in said.stderr
        assert "Traceback" not in said.stderr
    said = alone(made["whisper"], "what is said?")
    assert (said.returncode, "run.py --audio clip.wav" in said.stderr) == (1, True)
    text = bundle(export(bert, tmp_path / "bert"), tmp_path / "text")
    said = alone(text, "--audio", long)
    assert (said.returncode, "does not hear" in said.stderr) == (1, True)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["encoder.onnx", "encoder.onnx.data", "script.json", "selftest.json"])
def test_whatever_was_changed_is_named_and_nothing_is_loaded(copy, tmp_path, name):
    flip(copy / name)
    with pytest.raises(GreenError, match=name):
        check(copy)
    said = alone(copy, "--audio", noise(tmp_path / "clip.wav"))
    assert (said.returncode, said.stdout) == (1, "")
    assert name in said.stderr


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"never": list(range(3, 130))}, "is .*, not .*, by"),
        ({"start": [128]}, r"begins with .128., not .128, 135."),
        ({"more": 1}, "cannot be loaded"),
    ],
)
def test_another_script_under_the_same_golden_answers_fails_its_self_test(copy, changed, says):
    file = copy / "script.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    artifact.relist(copy, artifact.read(copy).manifest)
    said = alone(copy, "--self-test")
    assert (said.returncode, said.stdout) == (1, "")
    assert re.search(says, said.stderr)
    assert "Traceback" not in said.stderr


def test_the_same_model_gives_the_same_bytes(made, tmp_path):
    again = bundle(made["whisper"], tmp_path / "again")
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {
        p.name: p.read_bytes() for p in made["whisper"].iterdir()
    }
    assert all(np.array_equal(run.voice(v), run.voice(v)) for v in ("110 Hz, 0.7 s", "220 Hz, 3 s"))


def test_a_real_one_hears_alone(moonshine, data, tmp_path):
    made = bundle(export(moonshine, tmp_path / "onnx"), tmp_path / "bundle")
    said = alone(made, "--audio", data / "audio" / "beckett.wav")
    assert said.returncode == 0, said.stderr
    assert "fail better" in said.stdout.lower()
    said = alone(made, "--audio", data / "audio" / "two_cities.wav")
    assert (said.returncode, "48000 Hz" in said.stderr) == (1, True)

"""Whisper: a graph that takes samples hears and writes as transformers does, window by window, in few bits too."""

from __future__ import annotations

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from conftest import MODELS, WHISPER, make_whisper, ran
from hypothesis import given, settings
from hypothesis import strategies as st

import greenllm
from greenllm import artifact, audio, hearing, script
from greenllm.bench import Effort, answers
from greenllm.bench.runners import loader
from greenllm.bench.tasks import speech
from greenllm.bench.texts import Tokens
from greenllm.checkpoint import open_checkpoint
from greenllm.cli import main
from greenllm.errors import GreenError
from greenllm.export import export
from greenllm.export.device.run import pieces
from greenllm.export.log_mel import LogMel
from greenllm.walk import Walk

soundfile = pytest.importorskip("soundfile")
soxr = pytest.importorskip("soxr")
pytest.importorskip("jiwer")
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LANGUAGES = {"<|en|>": 129, "<|de|>": 130, "<|fr|>": 131}
TASKS = {"transcribe": 132, "translate": 133}
MANY = {"is_multilingual": True, "lang_to_id": LANGUAGES, "task_to_id": TASKS}


def noise(seconds=1.0, seed=1):
    return 0.1 * np.random.default_rng(seed).normal(size=int(seconds * audio.RATE)).astype(np.float32)


def generated(path, clip, count=None, **options):
    """What transformers' own generate writes of a clip, and nothing of what it begins with."""
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(path).eval()
    heard = WhisperFeatureExtractor.from_pretrained(path)(clip, sampling_rate=16000, return_tensors="pt")
    more = {"max_new_tokens": count} if count else {}
    return model.generate(heard.input_features, do_sample=False, num_beams=1, **more, **options)[0].tolist()


def written(runner, clip, count):
    """The tokens of a runner before the one that ends them."""
    found = []
    for token in runner.stream(clip, count):
        if token == runner.script.ends[0]:
            break
        found.append(token)
    return found


@pytest.mark.parametrize(("mels", "seconds"), [(80, 30), (128, 3), (80, 1)])
def test_a_spectrogram_is_transformers_own(mels, seconds):
    from transformers import WhisperFeatureExtractor

    theirs = WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds)
    ours, window = LogMel(theirs), seconds * audio.RATE
    rising = np.sin(np.linspace(0, 3000, window) ** 1.2).astype(np.float32)
    for clip in (noise(seconds), noise(0.4)[:-7], np.zeros(window, np.float32), rising, np.ones(1601, np.float32)):
        whole = np.pad(clip, (0, window - len(clip)))
        got = ours(torch.from_numpy(whole)[None]).numpy()
        exact = theirs._np_extract_fbank_features(whole[None].astype(np.float64), "cpu")
        in_torch = theirs(clip, sampling_rate=16000, return_tensors="np").input_features
        # beside a pure tone, eight decades below it, float32 itself is off by more, theirs too
        assert np.abs(got - exact).max() < 1e-5 + 3 * np.abs(in_torch - exact).max()
        assert np.abs(got - exact).mean() < 1e-6


@pytest.mark.parametrize(
    "told",
    [
        {"is_multilingual": False, "begin_suppress_tokens": [2]},
        {"is_multilingual": False, "forced_decoder_ids": [[1, 135]], "suppress_tokens": [*range(3, 60), 9999]},
        MANY | {"forced_decoder_ids": [[1, None], [2, 132]], "begin_suppress_tokens": [2, 70, 71, 72]},
        MANY | {"suppress_tokens": [*range(3, 128, 2), 2]},
        MANY | {"language": "german", "task": "translate"},
        MANY | {"language": "<|fr|>"},
        MANY | {"task": "transcribe"},
    ],
)
def test_the_same_tokens_as_transformers_generate(tmp_path, told):
    for seed in range(3):
        path = make_whisper(tmp_path / str(seed), seed=seed, told=told)
        runner = loader("torch").load(str(path), 1)
        for clip in (noise(0.7, seed), np.zeros(audio.RATE, np.float32)):
            assert written(runner, clip, 12) == generated(path, clip, 12)


def test_a_language_that_is_told_is_begun_with(tmp_path):
    path = make_whisper(tmp_path / "many", told=MANY)
    runner = loader("torch").load(str(path), 1)
    for words in ("de", "<|de|>", "German"):
        runner.script = script.of(path, words)
        assert runner.script.start == (128, 130, 132, 135)
        assert written(runner, noise(), 9) == generated(path, noise(), 9, language="de")
    with pytest.raises(GreenError, match=r"no language 'tlh'.*\n.*de, en, fr"):
        script.of(path, "tlh")


def test_no_transcript_is_longer_than_its_positions(tmp_path):
    never = {"is_multilingual": False, "suppress_tokens": [2]}  # never ends
    path = make_whisper(tmp_path / "endless", told=never, max_target_positions=16)
    runner = loader("torch").load(str(path), 1)
    found = list(runner.stream(noise(), 999))
    assert len(found) == 14  # two begin it
    assert found[: len(want := generated(path, noise()))] == want
    assert runner.script.most(noise()) == 14
    assert runner.script.most(noise(3.9)) >= 28  # of two windows or more


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 90000), st.integers(16000, 40000), st.integers(0, 9))
def test_pieces_are_the_clip_and_none_is_longer_than_a_window(samples, window, seed):
    clip = np.random.default_rng(seed).normal(size=samples).astype(np.float32)
    found = list(pieces(clip, window))
    assert np.array_equal(np.concatenate(found), clip)
    assert max(map(len, found)) <= window
    assert min(map(len, found[:-1]), default=window) >= window // 2
    assert [len(p) for p in pieces(clip, 0)] == [samples]


def test_a_clip_is_cut_where_it_is_silent():
    clip = noise(7)
    clip[30000:33000] = 0  # in the last third of the first window
    first, *_ = pieces(clip, 40000)
    assert 30000 < len(first) < 33000


@pytest.fixture(scope="module")
def graphs(tiny_whisper, tmp_path_factory):
    return export(tiny_whisper, tmp_path_factory.mktemp("graphs") / "onnx")


def test_graphs_take_samples_and_write_as_torch_does(graphs, tiny_whisper):
    assert graphs.manifest.details["verified"]["max_relative_error"] < 1e-3
    ours, theirs = loader("onnxruntime").load(str(graphs.path), 1), loader("torch").load(str(tiny_whisper), 1)
    for seconds in (0.3, 2.0, 5.1):  # a part of a window, one, three
        clip = noise(seconds)
        most = ours.script.most(clip)
        found = list(ours.stream(clip, most))
        assert found == list(theirs.stream(clip, most))
        assert len(set(found)) > 5
    apart = [t for p in pieces(clip, 2 * audio.RATE) for t in written(ours, p, most)]
    assert len(apart) > 6
    assert [t for t in found if t != 2][: len(apart)] == apart
    assert list(ours.stream(clip, 40)) == found[:40]
    assert ours.info.vocabulary == 136


def test_a_language_is_named_by_its_token_on_a_device(tmp_path):
    path = make_whisper(tmp_path / "german", told=MANY | {"language": "German", "task": "transcribe"})
    made = export(path, tmp_path / "onnx").path
    assert json.loads((made / "generation_config.json").read_text())["language"] == "<|de|>"
    assert script.of(made) == script.of(path)
    ours, theirs = loader("onnxruntime").load(str(made), 1), loader("torch").load(str(path), 1)
    assert list(ours.stream(noise(), 9)) == list(theirs.stream(noise(), 9))


def test_graphs_beside_the_files_of_others_are_refused(graphs, tmp_path):
    other = shutil.copytree(graphs.path, tmp_path / "other")
    (other / artifact.MANIFEST).unlink()
    said = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps(said | {"chunk_length": 3}))
    with pytest.raises(GreenError, match="is not known"):
        loader("onnxruntime").load(str(other), 1)
    (other / "preprocessor_config.json").write_text(json.dumps(said | {"chunk_length": "long"}))
    with pytest.raises(GreenError, match="damaged"):
        loader("onnxruntime").load(str(other), 1)


@torch.no_grad()
def test_the_walk_ends_where_the_whole_model_ends(tiny_whisper, tmp_path):
    checkpoint = open_checkpoint(tiny_whisper)
    heard = [hearing.Features(checkpoint)(noise(s)) for s in (0.4, 1.5)]
    batches = [
        b | {"decoder_input_ids": torch.tensor([ids])} for b, ids in zip(heard, ([128, 135, 9, 7], [128]), strict=True)
    ]
    walk = Walk(checkpoint, batches, tmp_path)
    walk.run(lambda *_: {})
    model = checkpoint.load_model()
    for batch, x in zip(batches, walk.head_inputs(walk.model.get_output_embeddings()), strict=True):
        want = model.model(**batch).last_hidden_state.flatten(0, 1)
        torch.testing.assert_close(x, want, rtol=1e-4, atol=1e-5)


def test_what_it_needs_to_hear_is_missed_by_name(tiny_whisper, tmp_path, capsys):
    def other(name, **changed):
        path = shutil.copytree(tiny_whisper, tmp_path / name)
        file = path / "preprocessor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))
        return path

    (nothing := other("nothing")).joinpath("preprocessor_config.json").unlink()
    damaged, beyond = other("damaged"), other("beyond")
    (damaged / "generation_config.json").write_text('{"decoder_start_token_id": 128, ')
    (beyond / "generation_config.json").write_text('{"decoder_start_token_id": 999}')
    for path, says in [
        (nothing, "no preprocessor_config.json"), (other("mels", feature_size=128), "feature_size 128"),
        (other("rate", sampling_rate=8000), "hears 8000"), (other("long", chunk_length=30), "nb_max_frames 3000"),
        (damaged, "generation_config.json is damaged"), (beyond, "no tokens .999"),
    ]:  # fmt: skip
        with pytest.raises(GreenError, match=says):
            greenllm.compress(path, tmp_path / "x", "int8", bench=False)
        with pytest.raises(GreenError, match=says):
            loader("torch").load(str(path), 1)
    assert not (tmp_path / "x").exists()


def test_processors_of_newer_transformers_are_read(tiny_whisper, tmp_path):
    path = shutil.copytree(tiny_whisper, tmp_path / "newer")
    told = json.loads((path / "preprocessor_config.json").read_text())
    (path / "preprocessor_config.json").unlink()
    (path / "processor_config.json").write_text(json.dumps({"feature_extractor": told}))
    assert script.of(path).window == 2 * audio.RATE
    want = list(loader("torch").load(str(tiny_whisper), 1).stream(noise(), 9))
    assert list(loader("torch").load(str(path), 1).stream(noise(), 9)) == want


def test_other_models_of_spectra_are_refused(tmp_path):
    from transformers import Speech2TextConfig, Speech2TextForConditionalGeneration

    shape = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 32, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 64}  # fmt: skip
    Speech2TextForConditionalGeneration(Speech2TextConfig(**shape)).save_pretrained(tmp_path / "other")
    with pytest.raises(GreenError, match=r"hears input_features of its own kind"):
        loader("torch").load(str(tmp_path / "other"), 1)


def digits(data):
    """Clips, float32 at 16 kHz, of at most a second, and the digits that are said in them, in any order."""
    found = []
    with zipfile.ZipFile(data / "audio" / "fsdd_digits_600.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".wav"))
        np.random.default_rng(0).shuffle(names)
        for name in names:
            sound, rate = soundfile.read(io.BytesIO(archive.read(name)), dtype="float32")
            clip = soxr.resample(sound, rate, audio.RATE).astype(np.float32)
            found.append((clip[: audio.RATE], int(name.rpartition("/")[2][0])))
    return found


def train(path, said, steps=600):
    """Teach a Whisper of random weights to write the digits that it hears."""
    from transformers import WhisperForConditionalGeneration

    make_whisper(path, seconds=1, init_std=0.05)
    tokens, features = Tokens(path), hearing.Features(open_checkpoint(path))
    heard = torch.cat([features(clip)["input_features"] for clip, _ in said])
    rows = [[WHISPER["<|sot|>"], WHISPER["<|notimestamps|>"], *tokens.plain(NAMES[d]), 2] for _, d in said]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [2] * (longest - len(row)) for row in rows])
    wanted = torch.tensor([row[1:] + [-100] * (longest - len(row)) for row in rows])
    model = WhisperForConditionalGeneration.from_pretrained(path).train()
    best = torch.optim.AdamW(model.parameters(), 1e-3)
    plan = torch.optim.lr_scheduler.OneCycleLR(best, 2e-3, total_steps=steps)
    drawn = torch.Generator().manual_seed(0)
    for _ in range(steps):
        at = torch.randint(len(said), (32,), generator=drawn)
        later, band = torch.randint(20, (1,), generator=drawn).item(), torch.randint(70, (1,), generator=drawn).item()
        seen = heard[at].roll(later, 2)
        seen[:, band : band + 8] = seen.mean()
        logits = model(input_features=seen, decoder_input_ids=ids[at, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits[:, 1:].flatten(0, 1), wanted[at, 1:].flatten())
        best.zero_grad()
        loss.backward()
        best.step()
        plan.step()
    model.eval().save_pretrained(path)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A Whisper that knows digits, 120 clips that it was not taught with, and 24 that it was."""
    torch.manual_seed(0)
    said, folder = digits(data), tmp_path_factory.mktemp("digits")
    train(folder / "whisper", said[:480])
    for name, chosen in (("asked", said[480:]), ("known", said[:24])):
        rows = [{"audio": f"{name}-{i}.wav", "text": NAMES[d]} for i, (_, d) in enumerate(chosen)]
        for row, (clip, _) in zip(rows, chosen, strict=True):
            soundfile.write(folder / row["audio"], clip, audio.RATE)
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def packed(trained):
    """The whole command: its directories in int8, and in int4 by what is heard in clips."""
    for bits in ("int8", "int4"):
        more = ["--calibration", trained / "known.jsonl"] if bits == "int4" else []
        command = ["compress", trained / "whisper", "-o", trained / bits, "--recipe", bits, *more, "--no-bench"]
        with pytest.raises(SystemExit) as e:
            main([str(c) for c in command])
        assert not e.value.code
    return trained


def test_a_trained_one_loses_little_in_few_bits(packed):
    rates = {}
    for bits in ("int8", "int4"):
        names = {name for name, _ in open_checkpoint(packed / bits / "checkpoint").packed()}
        assert len(names) == 2 * 6 + 2 * 10 + 1  # convolutions and positions stay
        assert {"proj_out", "model.encoder.layers.0.fc1", "model.decoder.layers.1.encoder_attn.out_proj"} <= names
        ops = artifact.read(packed / bits).deployable.manifest.details["operators"]
        assert (ops["MatMulNBits"], ops["GatherBlockQuantized"]) == (2 * 6 + 2 * 10 + 1, 1)
    effort = Effort(windows=2, sittings=2, width=0.5, seconds=0.2, turn=0.02, energy=0.1)
    greenllm.bench([packed / "whisper", packed / "int8", packed / "int4"], tasks=[packed / "asked.jsonl"],
                   effort=effort, threads=1, energy=False, report=packed / "r")  # fmt: skip
    for row in json.loads((packed / "r" / "report.json").read_text())["rows"]:
        (task,) = row["tasks"].values()
        rates[row["name"]] = task["scores"]["wer"]["measured"]["value"]
    base, *others = rates.values()
    assert base < 30
    assert len(others) == 2
    assert all(other < base + 2 for other in others), rates


def test_run_writes_what_is_said(packed, capsys):
    right = 0
    for row in map(json.loads, (packed / "asked.jsonl").read_text().splitlines()[:6]):
        code, out, told = ran(capsys, packed / "int8", "--audio", packed / row["audio"])
        assert code == 0, told
        right += out.strip() == row["text"]
    assert right >= 3
    code, _, told = ran(capsys, packed / "int8", "--audio", packed / row["audio"], "--language", "de")
    assert (code, "no language 'de'" in told) == (1, True)
    soundfile.write(packed / "long.wav", np.zeros(4000 * 121), 4000)
    code, _, told = ran(capsys, packed / "int8", "--audio", packed / "long.wav", "--max-tokens", 3)
    assert (code, "121.0 s heard" in told) == (0, True)  # window by window


@pytest.mark.parametrize("name", ["whisper-tiny.en", "whisper-base"])
def test_real_speech(data, name):
    if not (MODELS / name).is_dir():
        pytest.skip(f"{name} is not in {MODELS}")
    runner = loader("torch").load(str(MODELS / name), 1)
    clip = audio.read(data / "audio" / "beckett.wav")
    assert written(runner, clip, 99) == generated(MODELS / name, clip)
    said = answers.write(runner, Tokens(MODELS / name), clip, 99, [])
    assert speech.errors(said, "ever tried ever failed no matter try again fail again fail better") <= 1

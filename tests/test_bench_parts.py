"""What each part of a model takes: by a clock that goes on only when a part computes, the shares are known."""

from __future__ import annotations

import csv
import io
import json

import captioners
import numpy as np
import pytest
from llavas import make_llava, noise
from pairs import coloured, make_pairs
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForSpeechSeq2Seq

import greenllm
from greenllm.bench import Effort, latency, parts, tensors
from greenllm.bench.measurement import Measurement
from greenllm.bench.report import render, sizes
from greenllm.bench.report.lines import to_csv
from greenllm.bench.results import Machine, Results, Row
from greenllm.bench.runners import Decoder, Info, loader
from greenllm.bench.runners.clock import Clock

BRIEF = Effort(windows=1, sentences=8, sittings=2, width=0.5, seconds=0.3, turn=0.02, energy=0.1, items=6)
SEES, READS, WRITES = 7.0, 2.0, 1.0  # seconds of a stand-in's calls


class Watch:
    """A clock that somebody moves."""

    def __init__(self):
        self.now = 0.0

    def pass_by(self, seconds):
        self.now += seconds


@pytest.fixture
def watch(monkeypatch):
    made = Watch()
    monkeypatch.setattr("time.perf_counter", lambda: made.now)
    return made


class Two(Decoder):
    """Sees for 3 s, writes a token in 0.5 s, and takes 0.25 s a token to choose it; a third part sleeps."""

    def __init__(self, watch):
        self.watch, self.clock, self.info = watch, Clock("sees", "writes", "sleeps"), Info("x", None)

    def prefill(self, tokens, answer):
        del tokens, answer
        with self.clock.of("sees"):
            self.watch.pass_by(3)
        return self.step(0)

    def step(self, token):
        with self.clock.of("writes"):
            self.watch.pass_by(0.5)
        self.watch.pass_by(0.25)
        return token

    def logits(self, tokens):
        raise NotImplementedError

    def close(self):
        pass


def rounds_of(*queries):
    """A sitting for each."""
    found = latency.Rounds(1)
    for sitting, query in enumerate(queries, 1):
        found.add([query], sitting)
    return found


def test_shares_are_those_of_the_clock(watch):
    runner = Two(watch)
    with runner.clock.of("sleeps"):
        watch.pass_by(9)  # before the query: nobody's
    query = latency.ask(runner, [0], 4)
    assert query.seconds == 6
    assert query.parts == {"sees": 3, "writes": 2, "sleeps": 0}
    found = parts.times(rounds_of(query, query))
    assert list(found) == ["sees", "writes", "rest"]
    assert [f["time"].value for f in found.values()] == [3000, 2000, 1000]
    assert [f["time_share"].value for f in found.values()] == pytest.approx([50, 100 / 3, 100 / 6])
    assert {f["time"].unit for f in found.values()} == {"ms"}


def test_a_mean_is_of_sittings_and_no_share_lies_beyond_all():
    queries = [latency.Query(1.0, [], {"a": a}) for a in (0.99, 0.999, 0.95)]
    share = parts.times(rounds_of(*queries))["a"]["time_share"]
    assert (share.n, share.value) == (3, pytest.approx(100 * (0.99 + 0.999 + 0.95) / 3))
    assert share.ci95[1] == 100
    half = 4.302653 * np.std([99, 99.9, 95], ddof=1) * (2 / 3) ** 0.5  # of a repeat, two degrees of freedom
    assert share.ci95[0] == pytest.approx(share.value - half)
    assert parts.times(rounds_of(queries[0]))["a"]["time_share"].ci95 is None


def test_energy_is_by_time_and_never_measured_of_a_part():
    share = Measurement(value=40, unit="%", n=5, ci95=(37, 43), method="measured:clock")
    gross = Measurement(value=10, unit="J", n=9, ci95=(9, 11), method="measured:rapl")
    found = parts.energies({"a": {"time_share": share}, "unused": {"size": share}}, gross)
    assert list(found) == ["a"]
    joules, of = found["a"]["energy"], found["a"]["energy_share"]
    assert (joules.value, joules.unit, joules.n, of.value) == (4, "J", 5, 40)
    reach = (0.4**2 + 0.3**2) ** 0.5  # 0.4 of one joule, and 0.03 of ten
    assert joules.ci95 == pytest.approx((4 - reach, 4 + reach))
    assert joules.method == of.method == "computed: by its time, of measured:rapl"
    guess = gross.model_copy(update={"method": "estimated:tdp"})
    assert parts.energies({"a": {"time_share": share}}, guess)["a"]["energy"].estimated


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_moonshine):
    """A model of each kind, in torch and as graphs."""
    path = tmp_path_factory.mktemp("parts")
    noise(path / "noise.png")
    makers = {"speech": tiny_moonshine, "captions": captioners.make(path / "captions"),
              "vlm": make_llava(path / "vlm"), "pairs": make_pairs(path / "pairs")}  # fmt: skip
    return {
        name: {"torch": source, "onnxruntime": greenllm.export(source, path / f"{name}-onnx").path, "noise": path}
        for name, source in makers.items()
    }


def asked(runner, name, folder):
    """A prompt for a model, and how many tokens it is to write."""
    if name == "speech":
        return np.random.default_rng(0).normal(size=16000).astype(np.float32) * 0.1, 4
    if name == "captions":
        return runner.view(str(folder / "noise.png")), 4
    if name == "pairs":
        return np.zeros(runner.info.image, np.float32), 0
    return runner.see(str(folder / "noise.png"), "<image> What?"), 4


class Slow:
    """A session whose runs take a known time."""

    def __init__(self, session, watch, seconds):
        self.session, self.watch, self.seconds = session, watch, seconds

    def __getattr__(self, name):
        found = getattr(self.session, name)
        if not name.startswith("run"):
            return found

        def run(*given, **named):
            self.watch.pass_by(self.seconds)
            return found(*given, **named)

        return run


def slow_graphs(runner, name, watch):
    for attribute, seconds in {
        "speech": {"_encoder": SEES, "_decoder": WRITES}, "captions": {"_encoder": SEES, "_decoder": WRITES},
        "vlm": {"sight": SEES, "session": WRITES}, "pairs": {"session": SEES, "text": READS},
    }[name].items():  # fmt: skip
        setattr(runner, attribute, Slow(getattr(runner, attribute), watch, seconds))


def slow_modules(runner, name, watch):
    model = runner.model
    for module, seconds in {
        "speech": lambda: [(model.model.encoder, SEES), (model.model.decoder, WRITES)],
        "captions": lambda: [(model.encoder, SEES), (model.decoder, WRITES)],
        "vlm": lambda: [(model.model.vision_tower, SEES), (model.model.multi_modal_projector, READS),
                        (model.model.language_model, 0.75 * WRITES), (model.lm_head, 0.25 * WRITES)],
        "pairs": lambda: [(model.vision_model, SEES), (model.text_model, READS)],
    }[name]():  # fmt: skip
        module.register_forward_pre_hook(lambda *_, seconds=seconds: watch.pass_by(seconds))


WANTED = {
    "speech": {"encoder": SEES, "decoder": 4 * WRITES},
    "captions": {"encoder": SEES, "decoder": 4 * WRITES},
    "vlm": {"vision": SEES, "projector": READS, "decoder": 4 * WRITES},
    "pairs": {"vision": SEES, "text": 0},
}


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
@pytest.mark.parametrize("name", list(WANTED))
def test_every_part_has_its_own_time(home, name, engine, watch):
    runner = loader(engine).load(str(home[name][engine]), 1)
    prompt, answer = asked(runner, name, home[name]["noise"])
    latency.ask(runner, prompt, answer)
    (slow_modules if engine == "torch" else slow_graphs)(runner, name, watch)
    wanted = WANTED[name]
    if (name, engine) == ("vlm", "onnxruntime"):
        wanted = {"vision and projector": SEES, "decoder": 4 * WRITES}
    query = latency.ask(runner, prompt, answer)
    assert query.parts == wanted
    assert query.seconds == sum(wanted.values())
    if name == "pairs":
        assert latency.ask(runner, runner.tokens(["a cat"])[0], 0).parts == {"vision": 0, "text": READS}


def modules_of(model, name):
    """What each part is made of in transformers; a shared matrix is the decoder's."""
    return {
        "speech": lambda: {"encoder": [model.model.encoder], "decoder": [model.model.decoder]},
        "captions": lambda: {"encoder": [model.encoder], "decoder": [model.decoder]},
        "vlm": lambda: {"vision": [model.model.vision_tower], "projector": [model.model.multi_modal_projector],
                        "decoder": [model.model.language_model]},
        "pairs": lambda: {"text": [model.text_model, model.text_projection],
                          "vision": [model.vision_model, model.visual_projection]},
    }[name]()  # fmt: skip


@pytest.mark.parametrize(
    ("name", "auto"),
    [("speech", AutoModelForSpeechSeq2Seq), ("captions", AutoModelForImageTextToText),
     ("vlm", AutoModelForImageTextToText), ("pairs", AutoModel)],
)  # fmt: skip
def test_sizes_are_those_of_modules_and_have_the_names_of_times(home, name, auto):
    path = home[name]["torch"]
    runner = loader("torch").load(str(path), 1)
    want = {
        part: sum(p.nbytes for module in modules for p in module.parameters())
        for part, modules in modules_of(auto.from_pretrained(path), name).items()
    }
    assert tensors.bytes_by_part(path, "torch", path, runner.info.task) == want
    assert set(want) == set(runner.clock.take())


@pytest.mark.parametrize("name", list(WANTED))
def test_sizes_of_graphs_are_those_of_their_files(home, name):
    directory = home[name]["onnxruntime"]
    runner = loader("onnxruntime").load(str(directory), 1)
    found = tensors.bytes_by_part(directory, "onnxruntime", directory, runner.info.task)
    assert set(found) == set(runner.clock.take())
    files = {"vlm": ("vision.onnx", "model.onnx"), "pairs": ("model.onnx", "text.onnx")}
    for size, file in zip(found.values(), files.get(name, ("encoder.onnx", "model.onnx")), strict=True):
        whole = sum(p.stat().st_size for p in directory.glob(f"{file}*"))
        assert 0.5 * whole < size < whole  # small models: the graph itself takes its share


def test_text_models_are_one_part(llama, tmp_path):
    runner = loader("torch").load(str(llama), 1)
    query = latency.ask(runner, [1, 2, 3], 4)
    assert query.parts == {}
    assert parts.times(rounds_of(query)) == {}
    assert tensors.bytes_by_part(llama, "torch", llama, runner.info.task) == {}


# --- the report -------------------------------------------------------------------------------------------------------


class Constant:
    """A meter of 20 W."""

    method, covers, leaves_out, resolution, period, lag = "measured:test", "all", "nothing", "none", 0.0, 0.0

    def joules(self):
        import time

        return 20 * time.perf_counter()

    def close(self):
        pass


def test_a_bench_tells_size_time_and_energy(home, tmp_path):
    task = coloured(tmp_path / "see", 6) / "captions.jsonl"
    rows = [json.loads(line) for line in task.read_text().splitlines()]
    task.write_text("\n".join(json.dumps({"image": r["image"], "captions": [r["caption"]]}) for r in rows))
    models = [home["captions"]["torch"], home["captions"]["onnxruntime"]]
    found = greenllm.bench(models, tasks=[task], effort=BRIEF, threads=1, meter=Constant(), report=tmp_path / "r")
    assert [row.error for row in found.rows] == [None, None]
    for row in found.rows:
        assert list(row.parts) == ["encoder", "decoder", "rest"]
        for share in ("size_share", "time_share", "energy_share"):
            assert sum(f[share].value for f in row.parts.values() if share in f) == pytest.approx(100)
        energy = [f["energy"].value for f in row.parts.values()]
        assert sum(energy) == pytest.approx(row["energy_gross"].value)
        assert row.parts["rest"]["time"].value > 0
        assert row.parts["encoder"]["time"].n == 2
    assert "as if every part drew the same power" in found.methods["Parts"]
    assert Results.from_json((tmp_path / "r/report.json").read_text()) == found
    for file in ("report.html", "report.md"):
        text = (tmp_path / "r" / file).read_text()
        for line in ("By part", "Encoder, size", "Decoder, time of a query", "Rest, energy of a query, by its time"):
            assert line in text
        assert "% of all" in text
    lines = {r["metric"]: r for r in csv.DictReader(io.StringIO(to_csv(found))) if r["model"] == found.rows[0].name}
    told = lines["time_share, part encoder"]
    assert float(told["value"]) == found.rows[0].parts["encoder"]["time_share"].value
    assert (told["unit"], told["n"], told["method"]) == ("%", "2", "measured:clock")


@pytest.mark.parametrize("name", ["vlm", "pairs"])
def test_a_bench_of_models_that_see(home, name):
    models = [home[name]["torch"], home[name]["onnxruntime"]]
    found = greenllm.bench(models, effort=BRIEF, threads=1, energy=False)
    assert [row.error for row in found.rows] == [None, None]
    dense, graphs = ([part for part, f in row.parts.items() if "time" in f] for row in found.rows)
    assert dense == (["vision", "projector", "decoder", "rest"] if name == "vlm" else ["vision", "rest"])
    assert graphs == (["vision and projector", "decoder", "rest"] if name == "vlm" else ["vision", "rest"])
    for row in found.rows:
        assert all("size" in figures for part, figures in row.parts.items() if part != "rest")
        assert "text" in row.parts or name == "vlm"  # which a query of one image does not need
        assert not any("energy" in figures for figures in row.parts.values())
        assert row.parts["rest"]["time_share"].value > 0
    assert "same power" not in found.methods["Parts"]


def test_names_of_others_are_escaped_and_old_reports_have_no_parts():
    figures = {k: Measurement(value=50, unit=u, n=2, ci95=(49, 51), method="measured:clock")
               for k, u in (("time", "ms"), ("time_share", "%"))}  # fmt: skip
    bad = "<b>x</b>|[y](z)"
    row = Row(name="m", path="/m", runner="torch", parts={"rest": figures, bad: figures})
    found = results_of([row])
    html, plain = render(found, "report.html.jinja"), render(found, "report.md.jinja")
    assert "&lt;b&gt;x&lt;/b&gt;" in html
    for text in (html, plain):
        assert "<b>x" not in text
        assert text.index("x") < text.index("Rest, time of a query")
    assert "|[y](z)" not in plain
    old = json.loads(found.to_json())
    del old["rows"][0]["parts"]
    assert "By part" not in render(Results.from_json(json.dumps(old)), "report.html.jinja")


def results_of(rows):
    return Results(created="2026", baseline="m", rows=rows, versions={}, settings={"threads": 1, "query": "q"},
                   machine=Machine(cpu="c", cores=1, memory_bytes=1))  # fmt: skip


def test_the_picture_is_of_parts_where_names_of_tensors_do_not_tell():
    def row(name, kinds, by_part):
        return Row(name=name, path=f"/{name}", runner="torch", sizes=kinds, parts=parts.sizes(by_part))

    told = row("a", {"MLP": 3.0, "other": 1.0}, {"encoder": 10**6, "decoder": 3 * 10**6})
    untold = row("b", {"other": 2.0}, {"encoder": 10**6, "decoder": 10**6})
    results = results_of([told, told])
    assert "by kind of tensor" in sizes.pieces(results).caption
    results = results_of([told, untold])
    picture = sizes.pieces(results)
    assert "by part; from left to right encoder, decoder" in picture.caption
    assert [m.title for m in picture.marks if m.series][-2:] == ["b: encoder 1.00 MB, 50%", "b: decoder 1.00 MB, 50%"]
    alone = untold.model_copy(update={"parts": {}})
    assert "by kind of tensor" in sizes.pieces(results_of([told, alone])).caption

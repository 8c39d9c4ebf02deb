"""Adapters in ORT-GenAI: one graph says what the base says and what each adapted model says, switched while it runs."""

from __future__ import annotations

import numpy as np
import onnx
import openai
import pytest
import torch
from conftest import make_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from test_adapt import packed, samples, write  # noqa: F401 - packed is a fixture
from test_serve import serving

import greenllm
from greenllm import switch
from greenllm.adapt import adapters
from greenllm.adapt.run import adapt
from greenllm.bench import Effort
from greenllm.bench.runners import genai
from greenllm.checkpoint import open_checkpoint
from greenllm.cli import main
from greenllm.errors import GreenError
from greenllm.export import lora
from greenllm.generate import Settings, load

PROMPT = [5, 9, 40, 77, 23]
LONG = 8


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("four") / "base", layers=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory, four):
    """Two adapters of different kinds, ranks and blocks that say quite another thing than the base."""
    folder = tmp_path_factory.mktemp("adapters")
    few = write(folder / "few.jsonl", samples(8))
    one = adapt(four, few, folder / "one", shots=4, blocks=2, rank=3, steps=20, rate=3e-2)
    two = adapt(four, few, folder / "two", shots=4, blocks=1, steps=20, rate=5e-2, method="adalora", seed=1)
    return [one.path, two.path]


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    file = tmp_path_factory.mktemp("target") / "exact.yaml"
    file.write_text("description: float32\nformats: {text-generation: genai}\naccuracy_level: 0\n")
    return str(file)


@pytest.fixture(scope="module")
def out(tmp_path_factory, four, made, exact):
    return greenllm.export(four, tmp_path_factory.mktemp("out") / "out", target=exact, adapters=made)


def command(words):
    with pytest.raises(SystemExit) as e:
        main(words)
    return e.value.code


def torch_says(model):
    with torch.no_grad():
        return model.generate(torch.tensor([PROMPT]), max_new_tokens=LONG, do_sample=False)[0, len(PROMPT) :].tolist()


def says(model, adapter=""):
    return [t for t in model.answer(PROMPT, Settings(LONG, adapter=adapter)) if t is not None]


def test_one_graph_says_what_each_of_them_says(out, four, made):
    want = {"": torch_says(open_checkpoint(four).load_model())}
    for path in made:
        want[path.name] = torch_says(adapters.load(open_checkpoint(four).load_model(), path).base_model.model)
    assert len({tuple(w) for w in want.values()}) == 3
    model = load(out.path, keep=True)
    for name in ("", "one", "two", "one", ""):
        assert says(model, name) == want[name][: len(says(model, name))]


def test_the_manifest_tells_of_each(out, made):
    told = out.manifest.details["adapters"]
    assert list(told) == ["one", "two"]
    assert {f"adapters/{n}.onnx_adapter" for n in told} <= set(out.manifest.files)
    assert (told["one"]["method"], told["one"]["rank"], told["two"]["method"]) == ("lora", 3, "adalora")
    assert told["one"]["verified"]["kl_divergence"] < 1e-6
    assert told["one"]["sha256"] == adapters.read(made[0])[1].manifest.files[adapters.WEIGHTS].sha256


def test_without_one_the_places_are_empty(out):
    graph = onnx.load(str(out.path / "model.onnx"), load_external_data=False).graph
    places = [t for t in graph.initializer if "lora" in t.name]
    assert len(places) == 2 * 2 * 4  # A and B, of two blocks' qkv, o, gate and up, down
    assert all(0 in t.dims for t in places)


def test_packed_weights_have_places_too(tmp_path, packed):  # noqa: F811
    few = write(tmp_path / "few.jsonl", samples(8))
    base = packed.path / "checkpoint" if (packed.path / "checkpoint").is_dir() else packed.path
    one = adapt(base, few, tmp_path / "one", shots=4, blocks=2, steps=20, rate=3e-2)
    done = greenllm.export(base, tmp_path / "out", to="genai", adapters=[one.path])
    assert done.manifest.details["adapters"]["one"]["verified"]["top1_agreement"] > 0.9
    assert done.manifest.details["operators"]["MatMulNBits"] > 0


def test_the_bench_measures_an_adapter_by_its_file(out, made, tmp_path):
    test = write(tmp_path / "test.jsonl", samples(6))
    effort = Effort(windows=1, items=0, sittings=1, seconds=1.0)
    file = out.path / "adapters" / "one.onnx_adapter"
    found = greenllm.bench([out.path, made[0], file], tasks=[test], energy=False, effort=effort)
    assert not any(r.error for r in found.rows)
    base, torch_one, one = (next(iter(r.tasks.values())).scores["acc"].values for r in found.rows)
    assert found.rows[2].name == "out one"
    assert one == torch_one
    assert one != base


def test_the_runner_generates_with_it(out, made, four):
    runner = genai.load(str(out.path / "adapters" / "one.onnx_adapter"), 1)
    want = torch_says(adapters.load(open_checkpoint(four).load_model(), made[0]).base_model.model)
    assert list(runner.stream(PROMPT, len(want))) == want
    runner.close()


def test_run_takes_its_file_and_serve_its_name(out, made, four, capsys):
    file = str(out.path / "adapters" / "two.onnx_adapter")
    assert command(["run", file, "ab", "--raw", "--max-tokens", "4"]) == 0
    worn = capsys.readouterr().out
    assert command(["run", str(out.path), "ab", "--raw", "--max-tokens", "4"]) == 0
    assert worn != capsys.readouterr().out
    with serving(out.path) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        assert [m.id for m in client.models.list()] == ["out", "out:one", "out:two"]
        said = [client.completions.create(model=m, prompt="ab", max_tokens=4, temperature=0)
                for m in ("out", "out:two", "out")]  # fmt: skip
        assert said[0].choices[0].text == said[2].choices[0].text != said[1].choices[0].text
        assert said[1].model == "out:two"
        with pytest.raises(openai.NotFoundError, match="out:one"):
            client.completions.create(model="out:three", prompt="ab")


def test_what_is_refused(out, four, made, tmp_path, capsys):
    other = make_llama(tmp_path / "other", layers=4, seed=7)
    with pytest.raises(GreenError, match="another model"):
        greenllm.export(other, tmp_path / "x", to="genai", adapters=made)
    with pytest.raises(GreenError, match="no place for adapters"):
        greenllm.export(four, tmp_path / "x", to="onnx", adapters=made)
    few = write(tmp_path / "few.jsonl", samples(8))
    ia3 = adapt(four, few, tmp_path / "ia3", shots=4, steps=1, method="ia3")
    with pytest.raises(GreenError, match="ia3 has no place"):
        greenllm.export(four, tmp_path / "x", to="genai", adapters=[ia3.path])
    with pytest.raises(GreenError, match="or two have it"):
        greenllm.export(four, tmp_path / "x", to="genai", adapters=[made[0], made[0]])
    assert not (tmp_path / "x").exists()
    assert command(["run", str(out.path / "adapters" / "three.onnx_adapter"), "ab"]) == 1
    assert "There are: one, two" in " ".join(capsys.readouterr().err.split())
    assert command(["bench", str(out.path / "adapters" / "three.onnx_adapter")]) == 1


def test_a_file_that_was_changed_is_refused(four, made, exact, tmp_path, capsys):
    done = greenllm.export(four, tmp_path / "out", target=exact, adapters=made[:1])
    file = done.path / "adapters" / "one.onnx_adapter"
    file.write_bytes(file.read_bytes()[:-8] + b"tampered")
    assert command(["run", str(file), "ab"]) == 1
    assert "one.onnx_adapter" in "".join(capsys.readouterr().err.split())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=3), st.integers(0, 99))
def test_modules_side_by_side_keep_their_products(parts, seed):
    """x A B of the place is what the modules' own products are, side by side; rank 0 stands for a module without."""
    rng = np.random.default_rng(seed)
    names = tuple(f"m{i}" for i in range(len(parts)))
    place = lora.Place("x", "y", names, tuple(w for _, w in parts), 5)
    draw = {n: (rng.standard_normal((5, r)).astype(np.float32), rng.standard_normal((r, w)).astype(np.float32))
            for n, (r, w) in zip(names, parts, strict=True) if r}  # fmt: skip
    a, b = place.join(draw)
    x = rng.standard_normal((2, 5)).astype(np.float32)
    want = [
        x @ draw[n][0] @ draw[n][1] if n in draw else np.zeros((2, w)) for n, (_, w) in zip(names, parts, strict=True)
    ]
    np.testing.assert_allclose(x @ a @ b, np.concatenate(want, 1), rtol=1e-5, atol=1e-5)


def test_split():
    assert switch.split("out/adapters/a.b.onnx_adapter")[1] == "a.b"
    assert switch.split("out/model.onnx")[1] == ""

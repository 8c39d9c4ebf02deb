"""Adapters: what is learned from a few samples, how long, their files, and who may load them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import make_llama

import greenllm
from greenllm import artifact
from greenllm.adapt import adapters, methods
from greenllm.adapt.learn import MOST, Curve, Learner
from greenllm.adapt.run import adapt
from greenllm.adapt.shots import Choice, deal, draw, encode
from greenllm.adapt.upper import Upper
from greenllm.bench import Effort
from greenllm.bench.runners import Where
from greenllm.bench.runners import torch as runner
from greenllm.bench.texts import Tokens
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.progress import Silent

IDS = torch.tensor([[5, 9, 40, 77, 23]])


def write(path, rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


def samples(n):
    """Texts whose label is the letter that they are full of."""
    return [{"text": f"{'ab'[i % 2] * 6} {i}", "label": "xy"[i % 2]} for i in range(2 * n)]


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("four") / "four-blocks", layers=4)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return write(tmp_path_factory.mktemp("few") / "few.jsonl", samples(8))


@pytest.fixture(scope="module")
def made(tmp_path_factory, four, few):
    return adapt(four, few, tmp_path_factory.mktemp("made") / "adapter", shots=4, blocks=2)


@pytest.fixture(scope="module")
def packed(tmp_path_factory, four):
    from greenllm.pipeline import run_steps
    from greenllm.recipe import Recipe, make_step

    step = make_step("quantize", {"method": "rtn", "bits": 4, "group": 32}, "quantize")
    return run_steps(four, tmp_path_factory.mktemp("packed") / "int4", Recipe(name="int4", steps=[step]))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def written(model, tokens, count):
    """What it writes, token by token."""
    said = [model.prefill(tokens, count)]
    while len(said) < count:
        said.append(model.step(said[-1]))
    return said


def weights(path):
    return (path / adapters.WEIGHTS).read_bytes()


def test_it_learns_for_as_long_as_held_out_samples_say(made):
    (record,) = made.manifest.steps
    held_out, loss = record.result["held_out"], record.result["loss"]
    assert 0 < record.result["steps"] <= MOST
    assert record.result["steps"] == held_out["loss"].index(min(held_out["loss"]))
    assert len(loss) == record.result["steps"] + 1
    assert loss[-1] < loss[0]
    assert made.manifest.energy.seconds > 0
    assert record.result["bytes"] == (made.path / adapters.WEIGHTS).stat().st_size
    assert (record.parameters["shots"], made.manifest.seed) == (4, 0)


def test_one_seed_is_one_adapter(made, four, few, tmp_path):
    again = adapt(four, few, tmp_path / "again", shots=4, blocks=2)
    other = adapt(four, few, tmp_path / "other", shots=4, blocks=2, seed=1)
    assert weights(again.path) == weights(made.path)
    assert (again.path / adapters.CONFIG).read_text() == (made.path / adapters.CONFIG).read_text()
    assert weights(other.path) != weights(made.path)


@pytest.mark.parametrize("method", methods.KINDS)
def test_a_method_learns_on_packed_weights_and_stock_peft_says_the_same(packed, few, tmp_path, method):
    from peft import PeftModel

    rate = 0.05 if method in ("prefix", "ia3") else 0.02
    done = adapt(packed.path, few, tmp_path / "adapter", shots=2, steps=12, method=method, rate=rate)
    loss = done.manifest.steps[-1].result["loss"]
    assert loss[-1] < 0.9 * loss[0]
    ours, base, plain = (open_checkpoint(packed.path).load_model() for _ in range(3))
    adapters.load(ours, done.path)
    theirs = PeftModel.from_pretrained(base, done.path)
    assert not torch.allclose(logits(ours), logits(plain), atol=1e-3)
    torch.testing.assert_close(logits(theirs), logits(ours), rtol=0, atol=0)
    running = runner.load(str(done.path), 1)
    said = written(running, IDS[0].tolist(), 4)
    if method == "prefix":
        with pytest.raises(GreenError, match="on the CPU alone"):
            runner.load(str(done.path), 1, Where(gpu=True))
    whole = torch.tensor(running.logits([*IDS[0].tolist(), *said]))
    assert whole.argmax(-1)[IDS.shape[1] - 1 : -1].tolist() == said


@pytest.mark.parametrize("method", [m for m, kind in methods.KINDS.items() if kind.merges])
def test_stock_peft_and_a_merge_say_the_same(four, few, tmp_path, method):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    given = {"shots": 2, "blocks": 1, "steps": 3, "method": method, "rate": 0.05}
    done = adapt(four, few, tmp_path / "adapter", **given)
    ours = open_checkpoint(four).load_model()
    adapters.load(ours, done.path)
    theirs = AutoPeftModelForCausalLM.from_pretrained(done.path)  # finds the base by itself
    merged = adapt(four, few, tmp_path / "merged", merge=True, **given)
    torch.testing.assert_close(logits(theirs), logits(ours), rtol=0, atol=0)
    for dense in (open_checkpoint(merged.path).load_model(), AutoModelForCausalLM.from_pretrained(merged.path)):
        torch.testing.assert_close(logits(dense), logits(ours), rtol=1e-4, atol=1e-5)


def test_on_packed_weights(packed, few, tmp_path):
    done = adapt(packed.path, few, tmp_path / "adapter", shots=2, steps=2, blocks=1)
    loaded = runner.load(str(done.path), 1)
    plain = runner.load(str(packed.path), 1)
    assert not (loaded.logits(IDS[0].tolist()) == plain.logits(IDS[0].tolist())).all()
    merged = adapt(packed.path, few, tmp_path / "merged", shots=2, steps=2, blocks=1, merge=True)
    assert [s.step for s in merged.manifest.steps] == ["quantize", "adapt"]
    assert merged.manifest.energy.kwh > packed.manifest.energy.kwh
    torch.testing.assert_close(
        logits(open_checkpoint(merged.path).load_model()), logits(loaded.model), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("prefix", [False, True])
def test_kept_states_and_padding_change_nothing(four, few, prefix):
    """Shots of several lengths at once, from what the lower blocks said: as each alone through the whole model."""
    shots = encode([*draw(few, 3, 0)], four)
    model = open_checkpoint(four).load_model()
    if prefix:
        made = methods.Adapter(method="prefix", first=0, rank=8, base=str(four), sha256="0" * 64)
        methods.put_on(model, made)
    want = []
    with torch.no_grad():
        for shot in shots:
            said = [model(input_ids=torch.tensor([t])).logits[0].log_softmax(-1) for t in shot.texts]
            want.append([sum(said[c.text][c.start - 1 + i, t] for i, t in enumerate(c.tokens)) for c in shot.choices])
        for first in (0,) if prefix else (0, 1, 3):
            got, _ = Upper(model, first, shots).scores(range(len(shots)))
            torch.testing.assert_close(got, torch.tensor(want), rtol=1e-4, atol=1e-4)
    assert "forward" not in vars(model.model.layers[0])


@pytest.mark.parametrize("method", ["lora", "adalora", "prefix"])
def test_learners_share_a_model_and_not_their_values(four, few, method):
    shots = encode(draw(few, 2, 0), four)
    model = open_checkpoint(four).load_model()
    first = 0 if method == "prefix" else 3
    upper = Upper(model, first, shots)
    made = methods.Adapter(method=method, first=first, rank=2, base=str(four), sha256="0" * 64)
    adapted = methods.put_on(model, made, steps=6)
    busy, idle, alone = (Learner(upper, adapted, 0.05) for _ in range(3))
    start = idle.judge(range(4))[0]
    for _ in range(3):
        busy.step(range(4))
    assert float(busy.judge(range(4))[0].mean()) < float(start.mean())
    assert torch.equal(idle.judge(range(4))[0], start)
    for _ in range(3):
        alone.step(range(4))
    assert torch.equal(alone.judge(range(4))[0], busy.judge(range(4))[0])


def test_folds_hold_every_sample_once_and_every_class(few):
    labels = [i.label for i in draw(few, 6, 0)]
    folds = deal(labels, 3)
    assert sorted(i for f in folds for i in f) == list(range(12))
    assert all(sorted(labels[i] for i in f) == [0, 0, 1, 1] for f in folds)


@pytest.mark.parametrize("labels", [[0, 1, 1, 2], [2, 0], [0] * 5, [0, 1, 2] * 2, [1, 0, 0, 0, 0, 0, 0]])
def test_folds_are_even_and_leave_something_of_every_class(labels):
    folds = deal(labels, min(3, len(labels)))
    sizes = [len(f) for f in folds]
    assert sorted(i for f in folds for i in f) == list(range(len(labels)))
    assert min(sizes) >= max(sizes) - 1 > -1
    for label in (x for x in set(labels) if labels.count(x) > 1):
        assert all(any(labels[i] == label for i in range(len(labels)) if i not in f) for f in folds)


def test_questions_with_choices_of_their_own(four, tmp_path):
    """Multiple choice: so many of all, and the likeliest of a row's own choices is its answer."""
    rows = [
        {"context": f"which? {a} {b}", "choices": [a, b], "label": i % 2}
        for i, (a, b) in enumerate(["ab", "cd", "ef", "gh"] * 2)
    ]
    task = write(tmp_path / "t.jsonl", rows)
    assert len(draw(task, 5, 0)) == 5
    done = adapt(four, task, tmp_path / "out", shots=6, blocks=4)
    result = done.manifest.steps[-1].result
    assert result["samples"] == 6
    assert result["loss"][-1] <= result["loss"][0]


def test_labels_of_several_tokens(four, tmp_path):
    file = write(tmp_path / "t.jsonl", [{"text": t, "label": label} for t, label in (("a", "no"), ("b", "nay"))])
    (shot, _) = encode(draw(file, 1, 0), four)
    assert len(shot.texts) == 2
    spelt = {tuple(chr(t) for t in ()) or len(c.tokens) for c in shot.choices}
    assert spelt == {3, 4}  # a byte a token, with the blank
    assert all(isinstance(c, Choice) for c in shot.choices)


def test_free_answers_are_learned_with_their_ends_and_nothing_else(tmp_path):
    base = make_llama(tmp_path / "base", layers=4, tied=False, initializer_range=0.1)
    rows = [{"prompt": f"{'ab'[i % 2] * 4} {i} =", "answer": ("xy", "z")[i % 2]} for i in range(6)]
    task = write(tmp_path / "few.jsonl", rows)
    done = adapt(base, task, tmp_path / "adapter", shots=6, rate=0.02, blocks=4)
    result = done.manifest.steps[-1].result
    plain, tokens, losses = open_checkpoint(base).load_model(), Tokens(base), []
    adapted = runner.load(str(done.path), 1)
    for row in rows:
        before = tokens.text(row["prompt"])
        whole = torch.tensor([[*tokens.text(f"{row['prompt']} {row['answer']}"), 2]])  # </s>
        want = whole[0, len(before) :]
        with torch.no_grad():
            likes = plain(input_ids=whole).logits[0, len(before) - 1 : -1].log_softmax(-1)
        losses.append(-float(likes.gather(1, want[:, None]).mean()))
        assert written(adapted, before, len(want)) == want.tolist()
    assert result["loss"][0] == pytest.approx(sum(losses) / 6, abs=1e-4)
    held_out = result["held_out"]
    assert result["steps"] == held_out["loss"].index(min(held_out["loss"])) > 0
    assert held_out["accuracy"][0] == 0
    assert held_out["accuracy"][result["steps"]] > 0.5


def test_what_does_no_good_is_told(four, few, tmp_path):
    class Heard(Silent):
        said = ""

        def note(self, text):
            self.said += text

    heard = Heard()
    done = adapt(four, few, tmp_path / "out", shots=2, rate=100.0, blocks=1, progress=heard)
    result = done.manifest.steps[-1].result
    assert result["steps"] == 0
    assert result["without"]["loss"] == result["loss"][0]
    assert "It does no good" in heard.said
    heard.said = ""
    adapt(four, few, tmp_path / "good", shots=4, blocks=2, progress=heard)
    assert "by cross-validation" in heard.said
    assert "no good" not in heard.said


def test_the_curve_may_say_that_nothing_helps():
    assert Curve([0.5, 0.6, 0.7], [1.0, 1.0, 1.0]).best == 0


def test_bench_takes_the_adapter_beside_its_base(made, four, few, tmp_path):
    brief = Effort(windows=1, sentences=2, sittings=2, seconds=0.5, turn=0.01)
    results = greenllm.bench(
        [four, made.path], effort=brief, tasks=[few], energy=False, window=64, prompt_tokens=8, answer_tokens=4
    )
    base, adapted = results.rows
    assert adapted.error is None
    scores = [r.tasks[f"{few.parent.name}/few"].scores["acc"] for r in (base, adapted)]
    assert scores[1].against is not None
    assert sum(scores[1].values) > sum(scores[0].values)
    more = (adapted.measurements["disk"].value - base.measurements["disk"].value) * 1e6
    assert more == pytest.approx(made.bytes_on_disk, abs=1)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"text": "a", "label": "x"}] * 4, "has the label 'x'"),
        ([{"context": "a", "choices": ["x", "y"], "label": 0}] * 4, "has the label 'x'"),
        ([*samples(4), {"text": "a", "label": "z"}], "1 samples labelled 'z'; 4 of each"),
        ([*samples(4), {"text": "a", "label": " "}], "empty"),
        ([*samples(4), {"text": "a"}], "line 9"),
        ([*samples(4), {"text": "a", "label": 1}], "is no text"),
        ([{"question": "a", "answer": "b"}] * 3, "has 3 samples; 4 are asked for"),
        ([{"text": "a", "label": "né"}, {"text": "b", "label": "x"}] * 4, "no token of this model"),
        ([{"prompt": "a" * 250, "answer": "b" * 9}] * 4, "the model reads 256"),
        ([{"context": "a", "choices": list("xyz"[:n]), "label": 0} for n in (2, 3, 2, 3)], "not as many in each"),
        ([{"text": "a" * 300 + str(i), "label": "xy"[i % 2]} for i in range(8)], "the model reads 256"),
        (["{"], "not JSON"),
    ],
)
def test_bad_samples_are_told_and_leave_nothing(four, tmp_path, rows, says):
    with pytest.raises(GreenError, match=says):
        adapt(four, write(tmp_path / "t.jsonl", rows), tmp_path / "out", shots=4)
    assert [p.name for p in tmp_path.iterdir()] == ["t.jsonl"]


def test_what_cannot_be_adapted(four, few, bert, tmp_path, made):
    from transformers import AutoModelForCausalLM, MambaConfig

    long = write(tmp_path / "long.jsonl", [{"text": "a" * 225 + str(i), "label": "xy"[i % 2]} for i in range(8)])
    with pytest.raises(GreenError, match="cannot be merged"):
        adapt(four, few, tmp_path / "out", shots=4, method="prefix", merge=True)
    with pytest.raises(GreenError, match="All blocks"):
        adapt(four, few, tmp_path / "out", shots=4, method="prefix", blocks=2)
    with pytest.raises(GreenError, match="too few for adalora"):
        adapt(four, few, tmp_path / "out", shots=4, method="adalora", steps=2)
    with pytest.raises(GreenError, match="the model reads 236:"):
        adapt(four, long, tmp_path / "out", shots=4, method="prefix", rank=20)
    shape = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}
    mamba = AutoModelForCausalLM.from_config(MambaConfig(**shape))
    for method in ("lora", "prefix"):
        with pytest.raises(GreenError, match=f"{method} does not fit Mamba"):
            methods.put_on(mamba, methods.Adapter(method=method, first=0, rank=2, base="here", sha256="0" * 64))
    with pytest.raises(GreenError, match="feature-extraction"):
        adapt(bert, few, tmp_path / "out", shots=4)
    with pytest.raises(GreenError, match="cross-validated"):
        adapt(four, few, tmp_path / "out", shots=1)
    with pytest.raises(GreenError, match="exists"):
        adapt(four, few, made.path, shots=4)
    with pytest.raises(GreenError, match="--merge"):
        open_checkpoint(made.path)


def test_an_adapter_of_another_model_is_refused(made, four, tmp_path):
    base = shutil.copytree(four, tmp_path / "base")
    mine = shutil.copytree(made.path, tmp_path / "adapter")
    manifest = made.manifest.model_copy(deep=True)
    manifest.details["base"] = str(base)
    artifact.relist(mine, manifest)
    runner.load(str(mine), 1).close()  # it is the same model elsewhere
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(GreenError, match="another model"):
        runner.load(str(mine), 1)
    shutil.rmtree(base)
    with pytest.raises(GreenError, match="is not there"):
        runner.load(str(mine), 1)
    manifest.details["base"] = f"/on/another/machine/{base.name}"
    artifact.relist(mine, manifest)
    shutil.copytree(made.manifest.details["base"], mine.parent / base.name)
    runner.load(str(mine), 1).close()  # beside the adapter


@pytest.mark.parametrize(
    ("details", "says"),
    [
        ({"method": "exec"}, "describes no adapter"),
        ({"first": 9}, "begins at block 9"),
        ({"first": 1}, "other weights"),
        ({"rank": 5}, "other weights"),
        ({"rank": 10**9}, "describes no adapter"),
        ({"more": 1}, "describes no adapter"),
    ],
)
def test_a_strangers_adapter(made, tmp_path, details, says):
    mine = shutil.copytree(made.path, tmp_path / "adapter")
    manifest = made.manifest.model_copy(deep=True)
    manifest.details |= details
    artifact.relist(mine, manifest)
    with pytest.raises(GreenError, match=says):
        runner.load(str(mine), 1)


def test_damaged_files_and_a_strangers_configuration(made, four, tmp_path):
    mine = shutil.copytree(made.path, tmp_path / "adapter")
    (mine / adapters.CONFIG).write_text('{"peft_type": "LORA", "auto_mapping": {"parent_library": "os"}}')
    with pytest.raises(GreenError, match="contents are not"):
        runner.load(str(mine), 1)
    artifact.relist(mine, made.manifest.model_copy(deep=True))
    want = runner.load(str(made.path), 1).logits(IDS[0].tolist())
    assert (runner.load(str(mine), 1).logits(IDS[0].tolist()) == want).all()  # peft's file is for peft alone
    (mine / adapters.WEIGHTS).write_bytes(b"x" * 64)
    artifact.relist(mine, made.manifest.model_copy(deep=True))
    with pytest.raises(GreenError, match="damaged"):
        runner.load(str(mine), 1)
    from safetensors.torch import load_file, save_file

    state = load_file(made.path / adapters.WEIGHTS)
    next(iter(state.values()))[0, 0] = float("nan")
    save_file(state, mine / adapters.WEIGHTS)
    artifact.relist(mine, made.manifest.model_copy(deep=True))
    with pytest.raises(GreenError, match="NaN"):
        runner.load(str(mine), 1)

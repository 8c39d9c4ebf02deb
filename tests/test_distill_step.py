"""The step distill as a user meets it: what it makes, what it goes on with, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import make_bert, make_llama
from safetensors.torch import load_file

from greenllm import artifact, pipeline, recipe
from greenllm.distill import recover, trainer, watch
from greenllm.distill.pupil import Pupil
from greenllm.errors import GreenError
from greenllm.plan import plan
from greenllm.progress import Silent

QUICK = {"length": 32, "steps": 6, "rate": 1e-3, "compute": "float32", "accumulate": 2}


class Told(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Tiny teachers and students, and texts."""
    path = tmp_path_factory.mktemp("distill")
    make_llama(path / "teacher", vocab=300, layers=4)
    make_llama(path / "second", vocab=300, seed=5)
    make_llama(path / "student", vocab=300, seed=1)
    make_llama(path / "narrow", vocab=300, seed=1, hidden_size=32)
    make_llama(path / "letters", vocab=128, seed=2)
    make_bert(path / "encoder", vocab=300)
    make_bert(path / "encoder2", vocab=300, seed=6)
    make_bert(path / "small", vocab=300, seed=4)
    (path / "fox.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    (path / "sun.txt").write_text("Energy and carbon are counted for every query that is asked. " * 40)
    (path / "one.tsv").write_text("a thing\tyes\nanother\tyes\n")
    rows = [(f"{'good' if i % 2 else 'bad'} thing number {i}", "yes" if i % 2 else "no") for i in range(60)]
    (path / "rows.tsv").write_text("".join(f"{t}\t{n}\n" for t, n in rows))
    (path / "rows.jsonl").write_text("".join(json.dumps({"text": t, "verdict": n}) + "\n" for t, n in rows))
    return path


def distill(home, student, out, told=None, **fields):
    """Run the step alone; paths of texts and teachers are below ``home``."""
    fields = {**QUICK, "data": "fox.txt,sun.txt", **fields}
    for key in ("teacher", "data", "held_out"):
        if fields.get(key) and fields[key] != "self":
            fields[key] = ",".join(str(home / part) for part in fields[key].split(","))
    made = recipe.Recipe(name="distill", steps=[recipe.make_step("distill", fields, "distill")])
    return pipeline.run_steps(home / student, out, made, progress=told)


def result(done):
    return done.manifest.steps[-1].result


def weights(done):
    return load_file(done.path / "model.safetensors")


def assert_same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], **(tolerance or {"rtol": 0, "atol": 0}), msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def plain(home, tmp_path_factory):
    """A run that nothing disturbed."""
    return distill(home, "student", tmp_path_factory.mktemp("plain") / "out", teacher="teacher")


def test_a_student_comes_nearer_and_stock_transformers_loads_it(home, plain):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = result(plain)
    assert found["kept"] == "after"
    assert found["loss_after"] < found["loss_before"]
    assert found["steps"] == 6
    assert found["tokens"] == 6 * 8 * 32
    assert found["tokens_per_second"] > 0
    model = AutoModelForCausalLM.from_pretrained(plain.path)
    assert model.config.tie_word_embeddings
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in weights(plain).items()}
    ids = torch.tensor([AutoTokenizer.from_pretrained(plain.path)("The quick fox")["input_ids"]])
    ours = plan(plain.path, recipe.Recipe()).checkpoint.load_model()
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, ours(input_ids=ids).logits)
    assert plain.manifest.energy.kwh > 0


@pytest.mark.parametrize(
    "fields", [{"hidden": 1, "attention": 1}, {"kind": "reverse"}, {"kind": "js", "temperature": 2}]
)
def test_every_kind_of_lesson_teaches(home, tmp_path, fields):
    student = "narrow" if "hidden" in fields else "student"
    found = result(distill(home, student, tmp_path / "out", teacher="teacher", **fields))
    assert found["loss_after"] < found["loss_before"]


def test_a_cache_of_all_tokens_teaches_the_same(home, plain, tmp_path):
    told = Told()
    cached = distill(home, "student", tmp_path / "a", told, teacher="teacher", cache=str(tmp_path / "c"), top=300)
    assert any("likeliest tokens" in n for n in told.notes)
    assert_same(weights(cached), weights(plain), rtol=1e-3, atol=2e-5)
    assert result(cached)["loss_after"] == pytest.approx(result(plain)["loss_after"], rel=1e-3)
    with pytest.MonkeyPatch.context() as patched:  # what lies there whole needs no teacher
        patched.setattr("greenllm.distill.run.School._load", lambda *_: pytest.fail("the teacher was loaded"))
        again = distill(home, "student", tmp_path / "d", teacher="teacher", cache=str(tmp_path / "c"), top=300)
    assert_same(weights(again), weights(cached))
    with pytest.raises(GreenError, match="another request: its teachers differ"):
        distill(home, "student", tmp_path / "b", teacher="second", cache=str(tmp_path / "c"), top=300)


def test_more_passes_are_the_same_update(home, plain, tmp_path):
    found = distill(home, "student", tmp_path / "out", teacher="teacher", accumulate=4)
    assert_same(weights(found), weights(plain), rtol=1e-3, atol=2e-5)


_KILL = """
import os, signal, sys
from greenllm.distill import watch
from greenllm.cli import main
watch.COMMIT_SECONDS = 0.0
before = watch.Watch.on_step_end
def step_end(self, args, state, control, **more):
    if state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return before(self, args, state, control, **more)
watch.Watch.on_step_end = step_end
main(sys.argv[1:])
"""


def _as_options(home):
    options = {**QUICK, "teacher": home / "teacher", "data": f"{home / 'fox.txt'},{home / 'sun.txt'}"}
    return [x for k, v in options.items() for x in (f"--{k}", str(v))]


def test_a_run_that_is_killed_comes_to_the_same_weights(home, plain, tmp_path):
    arguments = ["distill", str(home / "student"), "-o", str(tmp_path / "out"), *_as_options(home)]
    killed = subprocess.run([sys.executable, "-c", _KILL, *arguments], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out").exists()
    train = tmp_path / ".out.partial" / ".work-checkpoint" / "train"
    assert trainer.last_whole(train).name == "checkpoint-3"
    half = train / "checkpoint-4"  # as a kill while it is written leaves it
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    told = Told()
    again = distill(home, "student", tmp_path / "out", told, teacher="teacher")
    assert any("Going on" in n for n in told.notes)
    assert_same(weights(again), weights(plain))
    assert result(again)["loss_before"] == result(plain)["loss_before"]


class _Stopped(BaseException):
    pass


@pytest.mark.parametrize(
    ("student", "fields"),
    [
        ("student", {"teacher": "teacher", "train": "adalora", "steps": 10}),
        ("encoder", {"data": "rows.tsv", "labels": "1", "logits": 0, "task": 1}),  # with dropout
        ("narrow", {"teacher": "teacher", "hidden": 1}),  # with projections
    ],
)
def test_whatever_learns_is_resumed(home, tmp_path, monkeypatch, student, fields):
    whole = distill(home, student, tmp_path / "whole", **fields)
    monkeypatch.setattr(watch, "COMMIT_SECONDS", 0.0)
    before = watch.Watch.on_step_end

    def stop(self, args, state, control, **more):
        if state.global_step == 5:
            raise _Stopped
        return before(self, args, state, control, **more)

    with monkeypatch.context() as patched, pytest.raises(_Stopped):
        patched.setattr(watch.Watch, "on_step_end", stop)
        distill(home, student, tmp_path / "out", **fields)
    assert_same(weights(distill(home, student, tmp_path / "out", **fields)), weights(whole))


def test_blocks_learn_and_what_reads_and_writes_tokens_stays(home, tmp_path):
    before = weights(plan(home / "student", recipe.Recipe()).checkpoint)
    after = weights(distill(home, "student", tmp_path / "out", teacher="teacher", train="blocks", steps=3))
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert {n for n in before if "embed_tokens" not in n and "lm_head" not in n} == changed


@pytest.mark.parametrize("what", ["lora", "dora", "adalora"])
def test_merged_adapters_say_what_the_adapters_said(home, what):
    model = plan(home / "student", recipe.Recipe()).checkpoint.load_model()
    adapted = recover.adapt(model, what, 4, 20, classifier=False, seed=0)
    learning = [p for p in adapted.parameters() if p.requires_grad]
    assert 0 < sum(p.numel() for p in learning) < sum(p.numel() for p in adapted.parameters()) / 2
    torch.manual_seed(0)
    for parameter in learning:
        parameter.data += 0.1 * torch.randn_like(parameter)
    ids = torch.randint(300, (2, 16))
    with torch.no_grad():
        want = adapted.eval()(input_ids=ids)[0]
        names = {n for n, _ in model.named_parameters()}
        found = recover.merged(adapted)
        torch.testing.assert_close(found(input_ids=ids)[0], want, rtol=1e-3, atol=1e-4)
    assert not any("lora" in n for n, _ in found.named_parameters())
    assert names


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_and_names_the_step_and_the_state_before_it_is_kept(home, tmp_path, monkeypatch, where):
    forward, seen = Pupil.forward, []

    def spoilt(self, batch):
        loss, said = forward(self, batch)
        seen.append(self.training)
        if sum(seen) > 2 * 2:  # the third update of two passes
            loss = loss * float("nan") if where == "loss" else loss + (self.student.lm_head.weight.sum() * 0).sqrt()
        return loss, said

    monkeypatch.setattr(Pupil, "forward", spoilt)
    with pytest.raises(GreenError, match=r"Step 3: .*(nan|finite)") as e:
        distill(home, "student", tmp_path / "out", teacher="teacher")
    assert "Lower --rate" in e.value.fix
    assert "checkpoint-2" in e.value.fix
    kept = trainer.last_whole(tmp_path / ".out.partial" / ".work-checkpoint" / "train")
    assert kept.name == "checkpoint-2"
    assert all(t.isfinite().all() for t in load_file(kept / "model.safetensors").values())
    assert not (tmp_path / "out").exists()


def test_a_full_disk_at_a_commit_is_told_and_the_run_goes_on_later(home, plain, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "COMMIT_SECONDS", 0.0)
    save, calls = trainer.save_model, []

    def full(model, path):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        save(model, path)

    with monkeypatch.context() as patched, pytest.raises(GreenError, match="No space left") as e:
        patched.setattr(trainer, "save_model", full)
        distill(home, "student", tmp_path / "out", teacher="teacher")
    assert "same command again" in e.value.fix
    assert_same(weights(distill(home, "student", tmp_path / "out", teacher="teacher")), weights(plain))


def test_what_got_worse_is_not_kept_and_that_is_said(home, tmp_path):
    told = Told()
    found = distill(home, "student", tmp_path / "out", told, teacher="teacher", rate=0.9)
    assert result(found)["kept"] == "before"
    assert any(n.startswith("WARNING. It got worse on held-out rows") for n in told.notes)
    assert_same(weights(found), load_file(home / "student" / "model.safetensors"))
    last = distill(home, "student", tmp_path / "last", teacher="teacher", rate=0.9, keep="last")
    assert result(last)["kept"] == "after"


def test_one_corpus_alone_is_warned_of_and_two_are_mixed_by_weight(home, tmp_path):
    told = Told()
    distill(home, "student", tmp_path / "a", told, teacher="teacher", data="fox.txt", held_out="sun.txt", steps=1)
    assert any("WARNING. All text is from one corpus" in n for n in told.notes)
    told = Told()
    distill(home, "student", tmp_path / "b", told, teacher="teacher", data="fox.txt=1,sun.txt=3", steps=1)
    assert not any("one corpus" in n for n in told.notes)
    assert any("repeated" in n for n in told.notes)


def test_a_teacher_with_another_tokenizer_teaches_through_text_and_is_refused_by_name_where_it_cannot(home, tmp_path):
    told = Told()
    found = result(distill(home, "letters", tmp_path / "a", told, teacher="teacher", steps=1))
    assert not any("another tokenizer" in n for n in told.notes)  # its tokens are a part of the teacher's
    found = result(distill(home, "student", tmp_path / "b", told, teacher="letters,teacher"))
    assert any("another tokenizer" in n and "letters" in n for n in told.notes)
    assert found["loss_after"] < found["loss_before"]
    for fields in ({"hidden": 1}, {"cache": str(tmp_path / "c")}):
        with pytest.raises(GreenError, match="letters has another tokenizer|A cache has predictions"):
            distill(home, "student", tmp_path / "d", teacher="letters", **fields)


def test_a_classifier_is_fine_tuned_and_teaches_another(home, tmp_path):
    from transformers import AutoModelForSequenceClassification

    options = {"labels": "1", "data": "rows.tsv", "steps": 30}
    teacher = distill(home, "encoder", tmp_path / "teacher", logits=0, task=1, **options)
    assert result(teacher)["accuracy_after"] == 1
    assert AutoModelForSequenceClassification.from_pretrained(teacher.path).config.id2label == {0: "no", 1: "yes"}
    (home / "classifier").symlink_to(teacher.path)
    options |= {"labels": "verdict", "data": "rows.jsonl"}
    student = distill(home, "small", tmp_path / "out", teacher="classifier", temperature=2, **options)
    assert result(student)["accuracy_after"] == 1
    assert result(student)["teachers"] == [str(home / "classifier")]


def test_zeros_of_a_sparse_student_stay(home, tmp_path):
    from safetensors.torch import save_file

    make_llama(tmp_path / "sparse", vocab=300, seed=1)
    tensors = load_file(tmp_path / "sparse" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name][:, ::2] = 0
    save_file(tensors, tmp_path / "sparse" / "model.safetensors", {"format": "pt"})
    found = weights(distill(home, tmp_path / "sparse", tmp_path / "out", teacher="teacher"))
    assert torch.equal(found[name] == 0, tensors[name] == 0)
    assert not torch.equal(found[name], tensors[name])
    with pytest.raises(GreenError, match="would fill the zeros"):
        distill(home, tmp_path / "sparse", tmp_path / "lora", teacher="teacher", train="lora")


def test_an_encoder_without_a_head_learns_states(home, tmp_path):
    found = result(distill(home, "small", tmp_path / "out", teacher="encoder"))
    assert found["loss_after"] < found["loss_before"]
    assert "nll_after" not in found


def test_a_student_is_made_from_a_configuration(home, tmp_path, monkeypatch):
    monkeypatch.setenv("GREENLLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "config").mkdir()
    text = json.loads((home / "teacher" / "config.json").read_text()) | {"num_hidden_layers": 1}
    (tmp_path / "config" / "config.json").write_text(json.dumps(text))
    found = distill(home, tmp_path / "config", tmp_path / "out", teacher="teacher")
    assert "model.layers.1.input_layernorm.weight" not in weights(found)
    assert (found.path / "tokenizer.json").exists()
    with pytest.raises(GreenError, match=r"no model\.safetensors"):
        plan(tmp_path / "config", "int4")


def test_in_a_recipe_the_teacher_is_what_it_began_with_and_all_energy_is_counted(home, tmp_path):
    fields = {**QUICK, "data": f"{home / 'fox.txt'},{home / 'sun.txt'}"}
    steps = [
        recipe.make_step("distill", {**fields, "teacher": str(home / "second"), "keep": "last"}, "a"),
        recipe.make_step("distill", fields, "b"),
        recipe.make_step("quantize", {"method": "rtn", "bits": 8, "head_bits": 8}, "c"),
    ]
    done = pipeline.run_steps(home / "student", tmp_path / "out", recipe.Recipe(name="r", steps=steps))
    assert done.manifest.steps[1].result["teachers"] == [str(home / "student")]
    assert done.manifest.energy.seconds >= 0.9 * sum(s.seconds for s in done.manifest.steps)


def test_curves_for_tensorboard(home, tmp_path):
    pytest.importorskip("tensorboard")
    found = distill(home, "student", tmp_path / "out", teacher="teacher", report_to="tensorboard")
    assert list((found.path / "runs").rglob("events*"))
    artifact.open_verified(found.path)


@pytest.mark.parametrize(
    ("student", "fields", "says"),
    [
        ("student", {}, "There is no teacher"),
        ("student", {"teacher": "teacher", "logits": 0}, "Every weight of the loss is 0"),
        ("student", {"teacher": "teacher", "rows": 9}, "9 rows do not divide into 2 passes"),
        ("student", {"teacher": "teacher", "minutes": 1}, "Both steps and minutes"),
        ("small", {"teacher": "encoder", "task": 1}, "no task of its own"),
        ("small", {"teacher": "encoder,encoder2"}, "learns from one teacher"),
        ("small", {"teacher": "encoder", "cache": "c"}, "states are not cached"),
        ("student", {"teacher": "nowhere"}, "nowhere: no such file"),
        ("student", {"teacher": "teacher=0"}, "is not NAME or NAME=WEIGHT"),
        ("student", {"teacher": "teacher,teacher"}, "once"),
        ("student", {"teacher": "encoder"}, "encoder does feature-extraction"),
        ("student", {"teacher": "teacher", "data": "none.txt"}, "no such calibration file"),
        ("student", {"teacher": "teacher", "length": 4096}, "not one window of 4096"),
        ("student", {"teacher": "teacher", "hidden": 1, "layers": "7,7"}, "layers = '7,7'"),
        ("encoder", {"logits": 0, "task": 1, "data": "rows.jsonl", "labels": "vardict"}, "no column 'vardict'; it has"),
        ("encoder", {"logits": 0, "task": 1, "data": "rows.tsv", "labels": "7"}, "no column '7'"),
        (
            "encoder",
            {"logits": 0, "task": 1, "data": "one.tsv", "labels": "1"},
            "1 different labels",
        ),
        ("encoder", {"logits": 0, "task": 1, "data": "fox.txt", "labels": "x"}, ".tsv, .csv or .jsonl"),
        ("encoder", {"teacher": "encoder", "data": "rows.tsv", "labels": "1"}, "the student does text-classification"),
    ],
)
def test_mistakes_are_told(home, tmp_path, student, fields, says):
    with pytest.raises(GreenError, match=says):
        distill(home, student, tmp_path / "out", **fields)
    assert not (tmp_path / "out").exists()


def test_minutes_are_as_many_steps_as_fit(home, tmp_path, monkeypatch):
    monkeypatch.setattr("greenllm.distill.step.seconds_of_a_pass", lambda *_: 3.0)
    found = distill(home, "student", tmp_path / "out", teacher="teacher", steps=0, minutes=0.5)
    assert result(found)["steps"] == 4  # of two passes of 3 s and a little for the update


def test_every_field_is_an_option_and_nothing_asks_for_calibration(capsys):
    from greenllm.cli import main

    with pytest.raises(SystemExit) as e:
        main(["distill", "--help"])
    said = capsys.readouterr().out
    assert not e.value.code
    assert all(f"--{key.replace('_', '-')}" in said for key in recipe.keys_of("distill"))
    assert "--calibration" not in said


def test_other_steps_do_not_run_in_several_processes(home, tmp_path, monkeypatch):
    made = recipe.Recipe(name="q", steps=[recipe.make_step("quantize", {"method": "rtn"}, "q")])
    with pytest.raises(GreenError, match="quantize runs in one process"):
        pipeline.follow(home / "student", tmp_path / "out", made)


def test_a_quantized_student_is_sent_to_tune(home, tmp_path):
    made = recipe.Recipe(name="q", steps=[recipe.make_step("quantize", {"method": "rtn", "head_bits": 8}, "q")])
    done = pipeline.run_steps(home / "student", tmp_path / "q", made)
    with pytest.raises(GreenError, match="is quantized"):
        distill(home, done.path, tmp_path / "out", teacher="teacher")
    with pytest.raises(GreenError, match="The teacher .* is quantized"):
        distill(home, "student", tmp_path / "out", teacher=str(done.path))


def test_two_processes_come_to_what_one_does(home, plain, tmp_path):
    """``accelerate launch`` over gloo; rows an update are the same in all."""
    launch = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
        "-m", "greenllm.cli",
    ]  # fmt: skip
    arguments = ["distill", str(home / "student"), "-o", str(tmp_path / "out"), *_as_options(home)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *arguments], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = artifact.open_verified(tmp_path / "out")
    assert result(found)["loss_after"] == pytest.approx(result(plain)["loss_after"], rel=1e-3)
    assert_same(weights(found), weights(plain), rtol=1e-3, atol=2e-5)

"""A start of adapters that was learned over several tasks: Reptile itself, and what it saves."""

from __future__ import annotations

import shutil

import pytest
import torch
from conftest import make_llama
from test_adapt import write

from greenllm import artifact
from greenllm.adapt import adapters
from greenllm.adapt.meta import meta_train
from greenllm.adapt.reptile import reptile
from greenllm.adapt.run import adapt
from greenllm.errors import GreenError

CURVES, CENTRES = torch.tensor([0.5, 1.0, 1.5]), torch.tensor([-1.0, 2.0, 5.0])
RATE, STEPS = 0.1, 4


def descend(values, task):
    """Gradient descent on a (x - c)² / 2."""
    (x,) = values
    for _ in range(STEPS):
        x = x - RATE * CURVES[task] * (x - CENTRES[task])
    return [x]


def test_reptile_on_quadratics_goes_where_algebra_says():
    left = (1 - RATE * CURVES) ** STEPS  # of the way to a task's minimum after its steps
    x = want = torch.tensor([10.0])
    rounds = list(reptile([x], descend, 3, 5, pace=0.8))
    for done, found in enumerate(rounds):
        want = want + 0.8 * (1 - done / 5) * ((1 - left) * (CENTRES - want)).mean()
        torch.testing.assert_close(found[0], want)
    assert x.item() == 10.0
    (end,) = list(reptile([x], descend, 3, 200))[-1]
    torch.testing.assert_close(end, ((1 - left) @ CENTRES / (1 - left).sum())[None])


def family(path, filler):
    """Texts whose label says which of two letters they are full of, in a filler of the task's own."""
    texts = [f"{'ab'[i % 2] * 2}{filler * (1 + i // 2 % 3)}{'ab'[i % 2] * 2} {i}" for i in range(16)]
    return write(path, [{"text": t, "label": "xy"[i % 2]} for i, t in enumerate(texts)])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("base") / "base", layers=4)


@pytest.fixture(scope="module")
def meta(tmp_path_factory, base):
    folder = tmp_path_factory.mktemp("tasks")
    tasks = [family(folder / f"{f}.jsonl", f) for f in "cde"]
    return meta_train(base, tasks, folder / "meta", shots=8, rounds=4, steps=5, blocks=2)


def test_a_task_of_the_family_needs_fewer_steps_from_the_start(base, meta, tmp_path):
    task = family(tmp_path / "z.jsonl", "z")
    plain = adapt(base, task, tmp_path / "plain", shots=4, blocks=2)
    started = adapt(base, task, tmp_path / "started", shots=4, meta=meta.path)
    curves = [d.manifest.steps[-1].result["held_out"]["loss"] for d in (plain, started)]
    assert curves[1][0] < curves[0][0]
    assert curves[1][2] < curves[0][2] - 0.05
    reached = [next(i for i, loss in enumerate(c) if loss < 1.05 * min(curves[0])) for c in curves]
    assert reached[1] < reached[0]
    assert [s.step for s in meta.manifest.steps] == ["meta-train"]
    assert started.manifest.steps[-1].parameters["meta"] == "meta"
    assert meta.path.name in [p.id for p in started.manifest.parents]


def test_no_step_from_a_start_is_the_start(base, meta, tmp_path):
    task = family(tmp_path / "z.jsonl", "z")
    done = adapt(base, task, tmp_path / "none", shots=2, steps=0, meta=meta.path)
    assert (done.path / adapters.WEIGHTS).read_bytes() == (meta.path / adapters.WEIGHTS).read_bytes()


@pytest.mark.parametrize("method", ["prefix", "ia3"])
def test_other_methods_have_starts_too(base, tmp_path, method):
    tasks = [family(tmp_path / f"{f}.jsonl", f) for f in "cd"]
    start = meta_train(base, tasks, tmp_path / "meta", shots=2, rounds=1, steps=2, method=method)
    done = adapt(base, tasks[0], tmp_path / "out", shots=2, steps=0, meta=start.path)
    assert done.manifest.details["method"] == method
    assert (done.path / adapters.WEIGHTS).read_bytes() == (start.path / adapters.WEIGHTS).read_bytes()


def test_what_is_no_start(base, meta, tmp_path):
    tasks = [family(tmp_path / f"{f}.jsonl", f) for f in "cd"]
    with pytest.raises(GreenError, match="several tasks"):
        meta_train(base, tasks[:1], tmp_path / "out")
    with pytest.raises(GreenError, match="adalora"):
        meta_train(base, tasks, tmp_path / "out", method="adalora")
    with pytest.raises(GreenError, match="8 samples labelled 'x'; 9 of each"):
        meta_train(base, tasks, tmp_path / "out", shots=9)
    with pytest.raises(GreenError, match="starts lora of rank 4"):
        adapt(base, tasks[0], tmp_path / "out", shots=2, meta=meta.path, rank=5)
    with pytest.raises(GreenError, match="starts lora of rank 4"):
        adapt(base, tasks[0], tmp_path / "out", shots=2, meta=meta.path, method="prefix")
    other = make_llama(tmp_path / "other", layers=4, seed=1)
    with pytest.raises(GreenError, match="another model"):
        adapt(other, tasks[0], tmp_path / "out", shots=2, meta=meta.path)
    mine = shutil.copytree(meta.path, tmp_path / "mine")
    manifest = meta.manifest.model_copy(deep=True)
    manifest.steps[-1].step = "adapt"
    artifact.relist(mine, manifest)
    with pytest.raises(GreenError, match="no start of several"):
        adapt(base, tasks[0], tmp_path / "out", shots=2, meta=mine)
    assert not (tmp_path / "out").exists()

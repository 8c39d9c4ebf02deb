"""The picture of what was pruned."""

from __future__ import annotations

import json

import pytest
from conftest import make_llama

from greenllm import artifact, pipeline
from greenllm.artifact import StepRecord
from greenllm.bench.report import cuts, render
from greenllm.bench.results import Provenance, Results, Row, machine
from greenllm.recipe import Calibration, Recipe, make_step


def results(*steps):
    rows = [Row(name="before", path="a", runner="torch")]
    rows.append(Row(name="after <b>", path="b", runner="torch", provenance=Provenance(steps=list(steps))))
    settings = {"threads": 1, "text": "t", "grid": ""}
    return Results(created="2026-11-25T00:00:00", baseline="before", rows=rows, machine=machine(), versions={},
                   settings=settings)  # fmt: skip


def record(**result):
    return StepRecord(step="prune", parameters={}, seconds=1, result=result)


def test_blocks_that_stay_are_filled_and_those_that_went_are_hollow():
    found = results(record(parts={"0": [0.5, 1.0], "1": [0.1, 0.0], "2": [1.0, 1.0]}))
    (picture,) = cuts.pictures(found)
    filled = [m.y1 - m.y for m in picture.marks]
    outline = [m.y1 - m.y0 for m in picture.marks]
    assert filled == [outline[0], 0, outline[2]]
    assert outline[0] == pytest.approx(outline[2] / 2)
    assert [m.label for m in picture.marks] == ["0", "1", "2"]
    html = render(found, "report.html.jinja")
    assert "block 1: importance 0.100, 0% of it stayed" in html
    assert "after &lt;b&gt;: importance of the blocks" in html


def test_a_picture_for_each_kind_of_a_real_run(tmp_path):
    path = make_llama(tmp_path / "m", layers=3)
    steps = [make_step("prune", o, "prune") for o in ({"heads": 2, "mlp": 96}, {"method": "depth", "ratio": 0.2})]
    done = pipeline.run_steps(
        path, tmp_path / "out", Recipe(calibration=Calibration(samples=4, length=16), steps=steps)
    )
    records = artifact.read(done.path).manifest.steps
    found = cuts.pictures(results(*records))
    assert [p.title for p in found] == ["Pruned attention heads", "Pruned MLP channels", "Pruned blocks"]
    assert all(len(p.marks) == 3 for p in found)
    assert all(m.y0 <= m.y <= m.y1 for p in found for m in p.marks)
    json.dumps([r.model_dump() for r in records], allow_nan=False)


@pytest.mark.parametrize(
    "parts",
    [
        3,
        ["a"],
        {"0": 1, "1": [1]},
        {"0": ["x", 1], "1": [1, None]},
        {"0": [float("nan"), 1], "1": [1, 7]},
        {"0": [1, 1]},
    ],
)
def test_a_manifest_that_says_nonsense_draws_nothing(parts):
    assert cuts.pictures(results(record(parts=parts))) == []
    assert cuts.pictures(results(record())) == []

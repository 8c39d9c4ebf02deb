"""The curve and its table, from made-up results whose answer is known."""

from __future__ import annotations

import pytest

from greenllm.bench import Measurement, Results, curve
from greenllm.bench.results import Machine, Row
from greenllm.errors import GreenError


def figure(value, ci=None, unit=""):
    return Measurement(value=value, unit=unit, n=4, ci95=ci, method="counted")


def row(name, bits, perplexity, decode):
    ratio = perplexity / 20
    ratios = {} if name == "source" else {"perplexity": figure(ratio, (ratio * 0.98, ratio * 1.03))}
    measured = {"bits_per_weight": figure(bits, (bits, bits)), "perplexity": figure(perplexity),
                "decode": figure(decode, (decode * 0.9, decode * 1.1))}  # fmt: skip
    return Row(name=name, path="p", runner="genai", measurements=measured, ratios=ratios)


@pytest.fixture
def results():
    rows = [row("source", 32, 20, 10), row("ours-a", 4.6, 23, 90), row("ours-b", 6.3, 20.4, 70),
            row("peer", 6.3, 22, 50), row("bad|peer", 5.0, 20.1, 100)]  # fmt: skip
    rows.append(Row(name="broken", path="p", runner="openvino", error="load: it fell over"))
    return Results(
        created="", baseline="source", rows=rows, machine=Machine(cpu="c", cores=2, memory_bytes=1), versions={},
        settings={"threads": 2, "query": "q"}, methods={"Perplexity": "m"},
    )  # fmt: skip


def test_a_lead_is_ours_at_no_worse_perplexity(results):
    assert curve.lead(results, ["ours-a", "ours-b"], results["peer"]) == ("ours-b", pytest.approx(1.4))
    assert curve.lead(results, ["ours-a", "ours-b"], results["bad|peer"]) is None
    assert curve.lead(results, ["ours-a"], results["broken"]) is None


def test_the_table_has_a_line_for_each(results):
    lines = curve.table(results, ["ours-a", "ours-b"]).splitlines()
    body = [line for line in lines if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in body} == {9}
    assert "ours-b ×1.40" in next(line for line in body if line.startswith("| peer "))
    assert "1.15 (1.127 – 1.18" in next(line for line in body if line.startswith("| ours-a "))
    assert any("fell over" in line for line in lines)


def test_four_files(results, tmp_path):
    curve.write(results, ["ours-a", "ours-b"], tmp_path / "new")
    assert {p.name for p in (tmp_path / "new").iterdir()} == {f"curve.{x}" for x in ("png", "svg", "md", "json")}
    assert Results.from_json((tmp_path / "new" / "curve.json").read_text(encoding="utf-8")) == results
    first = (tmp_path / "new" / "curve.svg").read_bytes()
    curve.write(results, ["ours-a", "ours-b"], tmp_path / "new")
    assert (tmp_path / "new" / "curve.svg").read_bytes() == first


def test_nothing_to_draw(results, tmp_path):
    results.rows = results.rows[:1]
    with pytest.raises(GreenError, match="nothing to draw"):
        curve.write(results, [], tmp_path)

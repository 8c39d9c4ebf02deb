"""Requirements, payback and SCI: decided by intervals, told in words, never more certain than they are."""

from __future__ import annotations

import pytest

from greenllm.artifact import Energy, StepRecord
from greenllm.bench import payback
from greenllm.bench.energy import Grid, carbon, embodied
from greenllm.bench.measurement import Measurement
from greenllm.bench.report import render
from greenllm.bench.require import Unmet, decide, enforce, parse
from greenllm.bench.results import Machine, Provenance, Results, Row, Score, TaskResult
from greenllm.bench.tasks.paired import against, share
from greenllm.errors import GreenError


def measured(value, low=None, high=None, unit="", method="measured:x"):
    ci = None if low is None else (low, high)
    return Measurement(value=value, unit=unit, n=5, ci95=ci, method=method)


def results(before=10.0, after=4.0, half=1.0, **row):
    """Two models, with joules per query and their half-width."""
    rows = [
        Row(name=n, path="p", runner="torch",
            measurements={"energy_gross": measured(j, j - half, j + half, "J"), "perplexity": measured(20, 19, 21)})
        for n, j in (("base", before), ("small", after))
    ]  # fmt: skip
    rows[1].ratios["perplexity"] = measured(1.1, 1.05, 1.15, "x")
    for name, value in row.items():
        setattr(rows[1], name, value)
    return Results(
        created="2026-11-25T00:00:00", baseline="base", rows=rows, machine=Machine(cpu="c", cores=1, memory_bytes=1),
        versions={}, settings={"threads": 1, "query": "q", "text": "t"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("ppl<=1.2x", "met"), ("ppl<=1.1x", "undecided"), ("ppl<=1.03x", "failed"), ("perplexity>=1.0x", "met"),
        ("ppl<=20%", "met"), ("ppl<=3%", "failed"), ("ppl<=25", "met"), ("ppl<=18", "failed"), ("ppl>=20", "undecided"),
        ("energy<=5", "met"), (" PPL <= 1.2x ", "met"), ("decode>=2x", "failed"), ("gco2e<=0.5x", "failed"),
        ("accuracy>=-1%", "failed"),
    ],
)  # fmt: skip
def test_the_interval_decides(text, outcome):
    (found,) = decide(results(), [parse(text)])
    assert (found.model, found.outcome) == ("small", outcome)


def test_what_was_not_measured_has_failed_and_says_so():
    (found,) = decide(results(), [parse("decode>=2x")])
    assert found.found == "there is nothing to compare it with"
    (found,) = decide(results(error="it died"), [parse("ppl<=1.2x")])
    assert (found.outcome, found.found) == ("failed", "it died")


def test_accuracy_is_in_points_and_task_by_task():
    right, wrong = [1] * 90 + [0] * 10, [1] * 60 + [0] * 40

    def task(after):
        paired = against(right, after)
        score = Score(values=after, measured=share(after), against=paired)
        return TaskResult(total=100, chance=0.5, scores={"acc": score})

    found = decide(results(tasks={"a/b": task(right), "c/d": task(wrong)}), [parse("accuracy>=-5%")])
    assert [f.outcome for f in found] == ["met", "failed"]
    assert found[1].found.startswith("c/d: -30.0 points [")
    assert [f.outcome for f in decide(results(tasks={"a/b": task(right)}), [parse("accuracy>=80")])] == ["met"]


@pytest.mark.parametrize(
    ("text", "says"),
    [("ppl", "is no requirement"), ("ppl<1", "is no requirement"), ("ppl<=x", "is no requirement"),
     ("pll<=1x", "no metric is called pll"), ("accuracy>=1x", "in points")],
)  # fmt: skip
def test_requirements_that_are_none(text, says):
    with pytest.raises(GreenError, match=says):
        parse(text)
    with pytest.raises(GreenError) as e:
        parse("perplexty<=1x")
    assert "Near are perplexity" in e.value.fix


def test_what_fails_the_command():
    found = decide(results(), [parse("ppl<=1.2x"), parse("ppl<=1.1x")])
    enforce(found, strict=False)
    with pytest.raises(Unmet, match=r"small: ppl<=1.1x is undecided"):
        enforce(found, strict=True)
    with pytest.raises(Unmet, match=r"small: ppl<=1.01x failed \(and 1 more\)"):
        enforce(decide(results(), [parse("ppl<=1.01x"), parse("ppl<=1.0x")]), strict=False)


def made(kwh, grams=None):
    return Provenance(energy=Energy(kwh=kwh, seconds=1, method="estimated:y", gco2e=grams))


def test_payback_by_hand():
    r = results(provenance=made(0.001))
    payback.fill(r, 400.0)
    found = r.rows[1].payback["energy"]
    assert found.queries == pytest.approx(3600 / 6)  # 3600 J to make it, 6 J a query saved
    half = 2**0.5
    assert found.ci95 == pytest.approx((3600 / (6 + half), 3600 / (6 - half)))
    assert found.words == "after 600 queries [486 – 785]"
    assert found.method == "making: estimated:y; queries: measured:x"  # never without its mark
    assert r.rows[1].payback["carbon"].queries == pytest.approx(600)
    assert r.rows[1].payback["carbon"].made == pytest.approx(0.4)
    assert r.rows[0].payback == {}


@pytest.mark.parametrize(
    ("after", "half", "words"),
    [(12.0, 0.5, "never"), (10.0, 0.5, "undecided: 5,091 queries at the least, or never"),
     (9.9, 2.0, "undecided: 1,229 queries at the least, or never")],
)  # fmt: skip
def test_what_saves_nothing_never_pays_back(after, half, words):
    r = results(after=after, half=half, provenance=made(0.001))
    payback.fill(r, None)
    assert r.rows[1].payback["energy"].words == words
    assert "carbon" not in r.rows[1].payback


def test_what_the_baseline_took_is_not_paid_back_again():
    step = StepRecord(step="prune", parameters={}, seconds=1)
    r = results(provenance=made(0.003).model_copy(update={"steps": [step, step]}))
    r.rows[0].provenance = made(0.002).model_copy(update={"steps": [step]})
    payback.fill(r, None)
    assert r.rows[1].payback["energy"].made == pytest.approx(0.001)
    r.rows[0].provenance.steps[0] = step.model_copy(update={"seconds": 2})  # another model's
    payback.fill(r, None)
    assert r.rows[1].payback["energy"].made == pytest.approx(0.003)


def test_without_an_interval_or_a_known_making():
    r = results(provenance=made(0.001))
    for row in r.rows:
        row.measurements["energy_gross"] = measured(row["energy_gross"].value)
    payback.fill(r, None)
    assert r.rows[1].payback["energy"].words == "after 600 queries"
    r = results(provenance=made(1e-3 / 600))
    payback.fill(r, None)
    assert r.rows[1].payback["energy"].words == "after 1 query"  # an interval that rounds to it is not said
    r = results()
    payback.fill(r, None)
    assert r.rows[1].payback == {}


def test_sci_is_operation_and_share_of_making():
    share = embodied(100.0, 4.0)
    found = carbon(measured(3600, 3000, 4200, "J"), measured(1800, unit="J"), measured(2.0, 1.9, 2.1, "s"),
                   Grid(500.0, "given"), share, 50)  # fmt: skip
    assert found["carbon_gross"].value == pytest.approx(500)  # mg: a thousandth of a kWh
    part = 100e6 / (4 * 365.25 * 86400) * 2
    assert found["embodied"].value == pytest.approx(part)
    assert found["sci"].value == pytest.approx(500 + part)
    assert found["sci"].ci95 == pytest.approx((found["carbon_gross"].ci95[0] + part * 0.95,
                                               found["carbon_gross"].ci95[1] + part * 1.05))  # fmt: skip
    assert found["carbon_1000"].value == pytest.approx(10)
    assert "sci" not in carbon(
        measured(1, unit="J"), measured(1, unit="J"), measured(1, unit="s"), Grid(1, "g"), None, 1
    )


@pytest.mark.parametrize(("kg", "years", "says"), [(1, None, "lifetime"), (None, 1, "embodied"), (1, 0, "no machine"),
                                                   (-1, 1, "no machine")])  # fmt: skip
def test_an_embodied_share_takes_both_numbers(kg, years, says):
    with pytest.raises(GreenError, match=says):
        embodied(kg, years)
    assert embodied(None, None) is None


def test_they_are_in_the_reports():
    r = results(provenance=made(0.001))
    payback.fill(r, 400.0)
    r.requirements = decide(r, [parse("ppl<=1.1x")])
    for template in ("report.html.jinja", "report.md.jinja"):
        text = render(r, template)
        assert "after 600 queries" in text
        assert "undecided" in text
    assert Results.from_json(r.to_json()) == r

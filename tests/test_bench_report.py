"""Reports in other formats, and of several runs: nothing is lost, and nothing foreign is compared."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from greenllm.artifact import Artifact, Energy, Manifest, Source
from greenllm.bench.measurement import Measurement
from greenllm.bench.report import merge, render, write_report
from greenllm.bench.report.lines import HEADER, to_csv
from greenllm.bench.results import Machine, Results, Row, Score, TaskResult
from greenllm.bench.tasks.paired import against, share
from greenllm.card import model_card
from greenllm.cli import app
from greenllm.errors import GreenError


def measured(value, *ci, unit="x"):
    return Measurement(value=value, unit=unit, n=3, ci95=ci or None, method="measured:clock")


def results(cpu="EPYC", threads=2, second="small"):
    right = [1, 0, 1, 1]
    pairs = against(right, [1, 1, 1, 0])
    score = Score(values=right, measured=share(right), against=pairs)
    task = TaskResult(total=9, chance=0.25, scores={"acc": score, "acc_norm": score})
    rows = [
        Row(name="base", path="/b", runner="torch", measurements={"decode": measured(10, 9, 11, unit="tokens/s")}),
        Row(name=second, path="/s", runner="genai", tasks={"arc/test": task}, ratios={"decode": measured(2, 1.8, 2.2)},
            measurements={"decode": measured(20, 19, 21, unit="tokens/s"), "load": measured(1.5, unit="s")}),
    ]  # fmt: skip
    return Results(
        created="2026-11-25T00:00:00", baseline="base", rows=rows, machine=Machine(cpu=cpu, cores=2, memory_bytes=8),
        versions={"torch": "2.9"}, settings={"threads": threads, "query": "q", "text": "t.txt", "batch": 1},
    )  # fmt: skip


def test_csv_has_every_figure():
    rows = list(csv.DictReader(io.StringIO(to_csv(results()))))
    assert list(rows[0]) == HEADER
    decode = next(r for r in rows if (r["model"], r["metric"]) == ("small", "decode"))
    assert [float(decode[k]) for k in ("value", "ci95_low", "ci95_high", "ratio", "ratio_low")] == [20, 19, 21, 2, 1.8]
    assert (decode["verdict"], decode["baseline"], decode["threads"], decode["n"]) == ("better", "base", "2", "3")
    load = next(r for r in rows if r["metric"] == "load")
    assert (load["ci95_low"], load["ratio"], load["verdict"]) == ("", "", "")
    assert [r["value"] for r in rows if r["metric"].endswith(" of arc/test")] == ["75.0", "75.0"]


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "@x", "+1", 'a,"b"\nc'])
def test_a_hostile_name_is_no_formula(name):
    rows = list(csv.DictReader(io.StringIO(to_csv(results(second=name)))))
    found = rows[1]["model"]
    assert found.lstrip("'") == name
    assert found[0] not in "=+-@"


def test_what_is_written_follows_the_published_schema(tmp_path):
    told = CliRunner().invoke(app, ["report", "--schema"])
    schema = json.loads(told.stdout)
    write_report(results(), tmp_path)
    jsonschema.validate(json.loads((tmp_path / "report.json").read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"rows": 1}, schema)


@pytest.mark.parametrize(("grid", "says"), [({}, "Energy is"), ({"grid": "DEU"}, "Energy and carbon are")])
def test_what_is_estimated_is_said_with_or_without_a_country(grid, says):
    found = results()
    found.settings |= {"meter": "estimated:codecarbon"} | grid
    assert f"{says} <strong>estimated" in render(found, "report.html.jinja")


def test_runs_of_one_machine_and_of_another():
    found = merge.merge([results(), results(), results(cpu="Cortex", threads=4)])
    assert [r.name for r in found.rows] == ["base", "small", "base (run 2)", "small (run 2)", "base (run 3)",
                                            "small (run 3)"]  # fmt: skip
    assert found.rows[1].ratios
    assert found.rows[1].tasks["arc/test"].main.against
    assert not found.rows[3].ratios
    assert not found.rows[3].tasks["arc/test"].main.against
    assert not any("Run 2" in c for c in found.caveats)
    assert any("Run 3 was made on Cortex" in c and "not comparable" in c for c in found.caveats)
    assert any("Run 3 differs from run 1 in threads (4, not 2)" in c for c in found.caveats)
    assert "Run 3 was made on Cortex" in render(found, "report.html.jinja")


def test_one_run_is_rendered_as_it_was():
    one = results()
    assert merge.merge([one]) == one


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rows": 1}', b"\xff\xfe"])
def test_files_that_are_no_results(tmp_path, content):
    file = tmp_path / "r.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(GreenError, match=r"no report\.json of a bench"):
        merge.read(file)
    with pytest.raises(GreenError, match=r"no report\.json of a bench"):
        merge.read(tmp_path / "missing.json")


def test_the_command_writes_all_formats(tmp_path):
    write_report(results(), tmp_path / "a")
    write_report(results(cpu="Cortex"), tmp_path / "b")
    files = [str(tmp_path / x / "report.json") for x in "ab"]
    told = CliRunner().invoke(app, ["report", *files, "-o", str(tmp_path / "both")])
    assert told.exit_code == 0
    assert "Run 2 was made on Cortex" in told.stdout
    assert {p.name for p in (tmp_path / "both").iterdir()} == {"report.html", "report.md", "report.json", "report.csv"}
    assert len(merge.read(tmp_path / "both" / "report.json").rows) == 4
    assert merge.read(tmp_path / "both") == merge.read(tmp_path / "both" / "report.json")


def card(parents, energy=None):
    manifest = Manifest(kind="model", parents=parents, energy=energy, details={"task": "text-generation"})
    return model_card(Artifact(Path(), manifest), results(), "# text\n")


def test_the_hub_reads_the_card():
    from huggingface_hub import ModelCard

    energy = Energy(kwh=0.01, seconds=9, method="estimated:codecarbon", gco2e=3.5, country="DEU")
    parents = [Source(id="local", kind="directory"), Source(id="owner/model", kind="hub")]
    found = ModelCard(card(parents, energy)).data
    assert found.base_model == "owner/model"
    assert found.pipeline_tag == "text-generation"
    assert found.co2_eq_emissions["emissions"] == 3.5
    assert found.co2_eq_emissions["source"] == "estimated:codecarbon"
    by = {(e.dataset_name, e.metric_type): e.metric_value for e in found.eval_results}
    assert by == {
        ("t.txt", "decode"): 20,
        ("t.txt", "load"): 1.5,
        ("arc/test", "acc"): 75,
        ("arc/test", "acc_norm"): 75,
    }


def test_a_card_without_a_hub_or_a_grid_claims_neither():
    found = yaml.safe_load(card([Source(id="/secret/home", kind="directory")]).split("---")[1])
    assert "base_model" not in found
    assert "co2_eq_emissions" not in found
    assert "/secret/home" not in str(found)

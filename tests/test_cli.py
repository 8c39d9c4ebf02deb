"""The command line as a user meets it: what it prints, what it refuses, how it exits."""

from __future__ import annotations

import pytest
import yaml
from conftest import make_llama

from greenllm import artifact, recipe
from greenllm.cli import main


def run(capsys, *arguments):
    """(exit code, standard output, standard error)."""
    with pytest.raises(SystemExit) as e:
        main([str(a) for a in arguments])
    out = capsys.readouterr()
    return e.value.code or 0, out.out, out.err


def test_lists(capsys):
    code, out, _ = run(capsys, "recipes")
    assert code == 0
    assert all(name in out for name in recipe.builtin())
    code, out, _ = run(capsys, "targets")
    assert code == 0
    assert "cpu" in out


def test_a_printed_recipe_is_one_to_start_from(capsys, tmp_path):
    _, out, _ = run(capsys, "recipes", "int4")
    (tmp_path / "mine.yaml").write_text(out)
    assert recipe.load(tmp_path / "mine.yaml").steps == recipe.load("int4").steps


def test_doctor_names_meters_and_packages(capsys):
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert all(word in out for word in ("onnxruntime", "RAPL", "NVML", "codecarbon", "targets"))


def test_every_field_of_a_step_is_an_option(capsys):
    code, out, _ = run(capsys, "quantize", "--help")
    assert code == 0
    assert all(f"--{key.replace('_', '-')}" in out for key in recipe.keys_of("quantize"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compress", "no/such/model", "--no-bench"], "no such"),
        (["compress", "{llama}", "--recipe", "int44"], "Did you mean int4"),
        (["compress", "{llama}", "--target", "toaster"], "no such target"),
        (["compress", "{llama}", "--country", "Atlantis"], "Atlantis"),
        (["compress", "{llama}", "--calibration", "{empty}", "--no-bench"], "nothing in it"),
        (["compress", "{llama}", "-o", "{full}", "--no-bench"], "exists"),
        (["quantize", "{llama}", "-o", "{new}", "--bits", "5"], "bits = 5"),
        (["quantize", "{llama}", "-o", "{new}", "--group", "48"], "Groups of 48 do not divide"),
        (["export", "{llama}", "-o", "{new}", "--to", "exe"], "'exe'"),
        (["run", "{full}", "hello"], "no exported model"),
        (["bench", "{full}"], "holds no model"),
        (["recipes", "int5"], "no such recipe"),
    ],
)
def test_mistakes_are_told_without_a_traceback(capsys, llama, tmp_path, arguments, says):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    names = {"llama": llama, "empty": tmp_path / "empty.txt", "full": tmp_path / "full", "new": tmp_path / "new"}
    code, _, err = run(capsys, *(a.format(**names) for a in arguments))
    assert code == 1
    assert says in " ".join(err.split())
    assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.txt", "full"]


def test_wrong_options_are_usage_errors(capsys):
    assert run(capsys, "compress", "m", "--recipee", "int4")[0] == 2
    assert run(capsys, "bench", "m", "--effort", "heroic")[0] == 2


def test_the_whole_job_with_its_report(capsys, tmp_path):
    """Compress, export, bench, report and run, all by commands, on a model that is small."""
    make_llama(tmp_path / "m", vocab=300)
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump({"calibration": {"samples": 4, "length": 32}, "steps": [{"quantize": {"head_bits": 8}}]})
    )
    (tmp_path / "t.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    out = tmp_path / "out"
    code, said, err = run(
        capsys, "compress", tmp_path / "m", "-o", out, "--recipe", tmp_path / "r.yaml", "--country", "DEU",
        "--text", tmp_path / "t.txt", "--threads", "1",
    )  # fmt: skip
    assert code == 0, err
    assert "of memory at the peak" in err
    assert "Perplexity" in said
    assert f"greenllm run {out}" in said
    assert {"report.html", "report.md", "report.json", "checkpoint", "deploy"} <= {p.name for p in out.iterdir()}
    html = (out / "report.html").read_text()
    assert "m r" in html
    assert "DEU" in html
    artifact.open_verified(out)
    code, said, err = run(capsys, "run", out, "hello", "--max-tokens", "4", "--raw")
    assert code == 0, err

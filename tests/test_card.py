"""Cards: the licence is the source's, what nobody looked at is said to be so, and nothing untrusted becomes markup."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from conftest import make_llama

import greenllm
from greenllm import licence
from greenllm.artifact import Artifact, Energy, Manifest, Source, StepRecord
from greenllm.card import model_card


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def of(**given):
    return model_card(Artifact(Path(), Manifest(kind="onnx", **given)))


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("README.md", "---\nlicense: apache-2.0\n---\n# x", "apache-2.0"),
        ("README.md", "---\nlicense: other\nlicense_name: own-1\n---\n", "own-1"),
        ("README.md", "---\nlicense: [mit]\n---\n", "mit"),
        ("README.md", "---\nlicense: [mit, gpl]\n---\n", None),
        ("README.md", "---\nlicense: !!python/object:os.system [x]\n---\n", None),
        ("README.md", "---\nlicense: <script>\n---\n", None),
        ("README.md", "---\n- a list\n---\n", None),
        ("README.md", "no front matter; license: mit", None),
        ("LICENSE", "                 Apache License\n           Version 2.0, January 2004\n", "apache-2.0"),
        ("LICENSE.txt", "MIT License\n\nCopyright", "mit"),
        ("LICENCE", "All rights reserved", None),
    ],
)
def test_a_licence_as_it_is_stated(tmp_path, file, text, found):
    (tmp_path / file).write_text(text)
    assert licence.stated(tmp_path) == found


def test_a_card_goes_before_a_licence_file(tmp_path):
    (tmp_path / "LICENSE").write_text("MIT License")
    assert licence.stated(tmp_path) == "mit"
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    assert licence.stated(tmp_path) == "cc-by-nc-4.0"
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").symlink_to(tmp_path / "none")
    assert licence.stated(tmp_path) == "mit"


@pytest.mark.parametrize(
    ("name", "allowed", "words"),
    [
        ("apache-2.0", True, "allows changed versions"),
        ("cc-by-sa-4.0", True, "under the same licence"),
        ("cc-by-nc-4.0", None, "other than commercial"),
        ("cc-by-nc-nd-4.0", False, "no changed versions"),
        ("llama3.2", None, "of its own"),
        ("mine", None, "not known"),
        (None, None, "No licence is stated"),
    ],
)
def test_what_a_licence_allows(name, allowed, words):
    found = licence.terms(name)
    assert found[0] is allowed
    assert words in found[1]


def test_the_licence_is_that_of_the_source():
    parents = [Source(id="step", kind="artifact"), Source(id="owner/m", kind="hub", revision="0" * 40, licence="mit")]
    card = of(parents=parents)
    assert front(card)["license"] == "mit"
    assert front(card)["base_model"] == "owner/m"
    assert "step ← owner/m at 000000000000" in card
    assert front(of(parents=[Source(id="x", kind="directory", licence="own-1")]))["license_name"] == "own-1"
    assert "license" not in front(of(parents=[Source(id="x", kind="directory")]))


def test_what_nobody_looked_at_is_said():
    card = of(parents=[Source(id="x", kind="directory")])
    for words in ("was not benched", "Nobody looked.", "Not known.", "None was used."):
        assert words in card


def test_what_was_done_and_on_what():
    record = StepRecord(step="distill", parameters={"data": "a.txt", "teacher": "T", "rate": 0.1}, seconds=3)
    calibration = {"source": "b.jsonl", "samples": 4, "length": 8, "dropped": {"near duplicates": 3}}
    card = of(steps=[record], calibration=calibration,
              energy=Energy(kwh=0.5, seconds=7, method="measured:rapl", gco2e=150, country="DEU"))  # fmt: skip
    assert "- Calibration: b.jsonl, 4 samples of 8 tokens; dropped first: 3 near duplicates" in card
    assert "- distill, data: a.txt" in card
    assert "- distill, teacher: T" in card
    assert "0.5 kWh, 150 gCO2e (DEU), 7 s; measured:rapl" in card
    assert front(card)["co2_eq_emissions"]["emissions"] == 150


def test_names_are_no_markup():
    evil = "<script>alert(1)</script>\n---\n# [x](javascript:1)"
    card = of(parents=[Source(id=evil, kind="directory")], calibration={"source": evil, "samples": 1})
    body = card.split("---\n", 2)[2]
    assert "<script>" not in body.replace("\\<", "")
    assert "\n# [" not in body
    assert front(card)["model_name"].endswith("onnx")
    assert set(front(card)) == {"library_name", "model_name", "tags"}


def test_every_artifact_carries_one(tmp_path):
    from huggingface_hub import ModelCard

    source = make_llama(tmp_path / "m", vocab=300)
    (source / "LICENSE").write_text("MIT License")
    done = greenllm.compress(source, tmp_path / "o", recipe="int8", bench=False)
    for part in (done.path, done.path / "checkpoint", done.path / "deploy"):
        card = ModelCard.load(part / "README.md")
        assert card.data.license == "mit"
        assert "was not benched" in card.text
        manifest = json.loads((part / "greenllm.json").read_text())
        assert "README.md" in manifest["files"]
        assert manifest["parents"][-1]["licence"] == "mit"

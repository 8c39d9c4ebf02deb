"""Public sets as tasks for few samples: what is learned from is never asked."""

from __future__ import annotations

import json
import zipfile

import pytest

from greenllm.adapt.shots import draw
from greenllm.bench import fewsets
from greenllm.bench.tasks import read
from greenllm.errors import GreenError


def test_real_sets(data, tmp_path):
    for make in (fewsets.sst2, fewsets.religion, fewsets.digits):
        make(data, tmp_path)
    counts = {"sst2": (6920, 872), "religion": (720, 480), "digits": (300, 300)}
    for name, (few, test) in counts.items():
        assert read(tmp_path / f"{name}-few.jsonl", 5).total == few
        assert read(tmp_path / f"{name}-test.jsonl", 5).total == test
        assert len(draw(tmp_path / f"{name}-few.jsonl", 4, 0)) == (8 if name == "sst2" else 4)
    speakers = [
        {json.loads(line)["audio"].split("_")[1] for line in (tmp_path / f"digits-{part}.jsonl").open()}
        for part in ("few", "test")
    ]
    assert len(speakers[0]) == len(speakers[1]) == 3
    assert not speakers[0] & speakers[1]


def test_a_foreign_archive_writes_nowhere_else(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with zipfile.ZipFile(tmp_path / "fsdd_x.zip", "w") as archive:
        for speaker in ("ann", "bob"):
            archive.writestr(f"../../1_{speaker}_0.wav", b"x")
    fewsets.digits(tmp_path, out)
    assert sorted(p.name for p in out.iterdir()) == [
        "1_ann_0.wav", "1_bob_0.wav", "digits-few.jsonl", "digits-test.jsonl",
    ]  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fsdd_x.zip", "out"]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(GreenError, match=r"no sst2/train\.tsv"):
        fewsets.sst2(tmp_path, tmp_path)

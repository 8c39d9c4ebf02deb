"""A cold load is one whose files were out of the page cache, and is not measured where they were not."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest
from test_bench_session import bigram

import greenllm
from greenllm.bench import Effort, cold

onnx = pytest.importorskip("onnx")
LEAST = Effort(windows=2, sittings=2, width=0.9, seconds=0.1, turn=0.01, energy=0.1)
QUICK = {"effort": LEAST, "energy": False, "prompt_tokens": 8, "answer_tokens": 4, "window": 32, "threads": 1}


@pytest.fixture
def file(tmp_path):
    """16 MB, on the disk and in the cache."""
    found = tmp_path / "file"
    found.write_bytes(os.urandom(16 << 20))
    if reason := cold.drop([found]):
        pytest.skip(f"{tmp_path}: {reason}")
    found.read_bytes()
    return found


def test_what_is_dropped_is_out_and_what_is_read_is_in(file):
    assert cold.cached([file]) == 1
    assert cold.drop([file]) is None
    assert cold.cached([file]) < 0.01
    with file.open("rb", buffering=0) as part:
        os.posix_fadvise(part.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no more than is asked for
        part.read(8 << 20)
    assert cold.cached([file]) == pytest.approx(0.5, abs=0.05)


def test_pages_that_are_mapped_stay_and_that_is_told(file):
    with file.open("rb") as open_file, mmap.mmap(open_file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        assert sum(held[:: mmap.PAGESIZE]) > 0  # every page is touched
        assert "stayed in the page cache" in cold.drop([file])
    assert cold.drop([file]) is None


def test_where_the_cache_cannot_be_looked_into(file, monkeypatch):
    monkeypatch.setattr(cold, "cached", lambda _: None)
    assert "does not say" in cold.drop([file])
    monkeypatch.delattr(os, "posix_fadvise")
    assert "cannot drop" in cold.drop([file])


def test_loads_of_a_bench(tmp_path, monkeypatch):
    path = bigram(tmp_path / "m", np.random.default_rng(0).normal(size=(128, 128)).astype(np.float32))
    real, dropped = cold.drop, []

    def drop(files):
        files = list(files)
        dropped.append({f.name for f in files})
        return "as if another had it open" if len(dropped) % 2 == 0 else real(files)

    if reason := real([path / "model.onnx"]):
        pytest.skip(f"{tmp_path}: {reason}")
    monkeypatch.setattr(cold, "drop", drop)
    found = greenllm.bench([path, path], loads=2, report=tmp_path / "report", **QUICK)
    assert {"model.onnx", "tokenizer.json"} <= dropped[0]
    first, second = found.rows
    assert first.error is second.error is None
    for name in ("load", "load_cold"):
        assert first[name].n == 2
        assert first[name].ci95 is not None
        assert 0 < first[name].value < 60
    assert "load_cold" not in second  # refused once: not measured at all
    assert second["load"].n == 2
    assert "load" in second.ratios
    assert any("a cold load is not measured: as if another" in n for n in second.notes)
    assert "posix_fadvise" in found.methods["Loads"]
    for name in ("report.html", "report.md"):
        text = (tmp_path / "report" / name).read_text()
        assert "files not in cache" in text
        assert "a cold load is not measured" in text

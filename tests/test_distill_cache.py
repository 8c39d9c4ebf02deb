"""A teacher's likeliest tokens on disk: whole shards stay, damaged and foreign ones are seen."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from greenllm.distill import cache
from greenllm.distill.divergence import keep_top
from greenllm.errors import GreenError
from greenllm.progress import Silent

ROWS, TOKENS, VOCAB = 7, 5, 11


class Told(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def said(monkeypatch):
    monkeypatch.setattr(cache, "_SHARD", 2 * TOKENS * (8 * 4 + 4))  # two rows a shard, four shards
    torch.manual_seed(0)
    return torch.log_softmax(torch.randn(ROWS, TOKENS, VOCAB), -1)


def identity(**changes):
    plain = {
        "teachers": ["t"], "samples": "s", "rows": ROWS, "outputs": VOCAB, "places": [TOKENS], "top": 4,
        "temperature": 1.0,
    }  # fmt: skip
    return cache.Identity(**(plain | changes))


def ask(said, asked=None):
    def answer(rows):
        if asked is not None:
            asked.extend(rows)
        return said[rows.start : rows.stop]

    return answer


def test_what_was_said_is_read_back(tmp_path, said):
    told = Told()
    found = cache.fill(tmp_path / "c", identity(), ask(said), told)
    assert told.notes == [f"The teacher's 4 likeliest tokens: 1.3 kB in {tmp_path / 'c'}, 1.3 kB to make."]
    want, tokens = keep_top(said[[6, 0, 3]], 4)
    got = found.rows([6, 0, 3])
    assert torch.equal(got[0], want)
    assert torch.equal(got[1], tokens)
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [
        "cache.json", *(f"shard-0000{i}.safetensors" for i in range(4))
    ]  # fmt: skip


def test_the_size_said_before_is_the_size_on_disk(tmp_path, said):
    cache.fill(tmp_path / "c", identity(), ask(said), Silent())
    data = sum(p.stat().st_size for p in (tmp_path / "c").glob("*.safetensors"))
    headers = 4 * 200
    assert identity().row_bytes * ROWS <= data <= identity().row_bytes * ROWS + headers


def test_the_teacher_is_asked_once(tmp_path, said):
    asked = []
    cache.fill(tmp_path / "c", identity(), ask(said, asked), Silent())
    assert asked == list(range(ROWS))
    cache.fill(tmp_path / "c", identity(), ask(said, asked), Silent())
    assert asked == list(range(ROWS))


def test_classes_have_no_places(tmp_path):
    said = torch.log_softmax(torch.randn(ROWS, 3), -1)
    found = cache.fill(tmp_path / "c", identity(places=[], outputs=3, top=3), ask(said), Silent())
    assert found.rows([5])[0].shape == (1, 4)


def test_a_full_disk_keeps_whole_shards_and_the_next_run_goes_on(tmp_path, said, monkeypatch):
    written = []

    def full(tensors, path):
        if len(written) == 2:
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        written.append(path)
        save_file(tensors, path)

    monkeypatch.setattr(cache, "save_file", full)
    with pytest.raises(GreenError, match="No space left on device. 2 of 4 shards are whole") as e:
        cache.fill(tmp_path / "c", identity(), ask(said), Silent())
    assert "same command again" in e.value.fix
    assert not list((tmp_path / "c").glob("*.part"))
    monkeypatch.setattr(cache, "save_file", save_file)
    asked = []
    found = cache.fill(tmp_path / "c", identity(), ask(said, asked), Silent())
    assert asked == [4, 5, 6]
    assert torch.equal(found.rows(list(range(ROWS)))[0], keep_top(said, 4)[0])


def test_a_disk_too_small_is_said_before_anything_is_asked(tmp_path, said, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=10))
    asked = []
    with pytest.raises(GreenError, match="are needed"):
        cache.fill(tmp_path / "c", identity(), ask(said, asked), Silent())
    assert not asked


def test_a_run_killed_between_shard_and_index_makes_that_shard_again(tmp_path, said):
    cache.fill(tmp_path / "c", identity(), ask(said), Silent())
    index = json.loads((tmp_path / "c" / "cache.json").read_text())
    index["shards"] = index["shards"][:1]
    (tmp_path / "c" / "cache.json").write_text(json.dumps(index))
    asked = []
    cache.fill(tmp_path / "c", identity(), ask(said, asked), Silent())
    assert asked == [2, 3, 4, 5, 6]


def test_a_damaged_shard_is_seen_and_made_again(tmp_path, said):
    cache.fill(tmp_path / "c", identity(), ask(said), Silent())
    file = tmp_path / "c" / "shard-00002.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    told, asked = Told(), []
    found = cache.fill(tmp_path / "c", identity(), ask(said, asked), told)
    assert any("damaged" in n for n in told.notes)
    assert asked == [4, 5, 6]
    assert torch.equal(found.rows([5])[0], keep_top(said[[5]], 4)[0])


@pytest.mark.parametrize(
    "change", [{"teachers": ["u"]}, {"samples": "other"}, {"temperature": 2.0}, {"top": 3}, {"outputs": 12}]
)
def test_the_cache_of_another_teacher_or_text_is_refused(tmp_path, said, change):
    cache.fill(tmp_path / "c", identity(), ask(said), Silent())
    with pytest.raises(GreenError, match=f"its {next(iter(change))} differ"):
        cache.fill(tmp_path / "c", identity(**change), ask(said), Silent())


@pytest.mark.parametrize("text", ["", "[]", '{"identity": 3}', '{"identity": {}, "shards": "../x"}'])
def test_a_strange_index_is_refused(tmp_path, said, text):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "cache.json").write_text(text)
    with pytest.raises(GreenError, match="not the index of a cache"):
        cache.fill(tmp_path / "c", identity(), ask(said), Silent())


def test_a_directory_with_other_things_is_left_alone(tmp_path, said):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(GreenError, match="other things"):
        cache.fill(tmp_path, identity(), ask(said), Silent())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]

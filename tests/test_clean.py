"""Data are cleaned: what is dropped and why, what stays as it is, and that training text says what it holds."""

from __future__ import annotations

import json
from itertools import pairwise
from random import Random

import pytest
from conftest import make_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import run

import greenllm
from greenllm import calibration
from greenllm.clean import Filter, Rules
from greenllm.clean.duplicates import Duplicates
from greenllm.clean.files import paragraphs
from greenllm.clean.grams import grams, words
from greenllm.clean.language import Language
from greenllm.clean.overlap import Overlap
from greenllm.clean.personal import personal
from greenllm.clean.words import Words
from greenllm.errors import GreenError
from greenllm.progress import Silent

SAID = "the quick brown fox jumps over the lazy dog while seven wizards mix a potion of old copper and salt"


def made_up(seed, count=60):
    draw = Random(seed)  # noqa: S311 - no secret
    return " ".join("".join(draw.choices("abcdefgh", k=5)) for _ in range(count))


def test_words_and_grams():
    assert words("Don't STOP — 3,5 Äpfel!") == ["don", "t", "stop", "3", "5", "äpfel"]
    assert words("我喝tea。") == ["我", "喝", "tea"]
    assert grams(["a", "b", "c"], 2) == {"a b", "b c"}
    assert grams(["a"], 5) == {"a"}


def test_exact_and_near_duplicates():
    check = Duplicates()
    text = made_up(0)
    assert check(text) is None
    assert check(text.upper() + " !") == "exact duplicates"
    assert check(text + " zzzzz") == "near duplicates"
    assert check(made_up(1)) is None
    half = text.split()[:30] + made_up(2).split()[:30]  # a Jaccard similarity of a third
    assert check(" ".join(half)) is None
    assert check("A heading") is None
    assert check("A heading") is None  # too short to tell


def test_near_duplicates_are_those_of_the_exact_similarity():
    """MinHash estimates: texts far from 0.8 on either side are told apart as their true similarity says."""
    draw = Random(0)  # noqa: S311
    for cut in (1, 2, 30, 40):
        text = made_up(draw.random(), 200).split()
        other = text[:-cut] + made_up(draw.random(), cut).split()
        a, b = (grams(t, 5) for t in (text, other))
        similar = len(a & b) / len(a | b)
        check = Duplicates()
        check(" ".join(text))
        assert (check(" ".join(other)) is not None) == (similar >= 0.8), similar


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to anna.k@uni-bonn.de today", "mail"),
        ("pay to DE89 3704 0044 0532 0130 00 soon", "IBAN"),
        ("card 4111 1111 1111 1111, valid", "card"),
        ("call +49 228 731234 now", "telephone"),
        ("her number is 219-09-9999.", "social"),
        ("身份证 11010519491231002X 已登记", "Chinese"),
    ],
)
def test_personal_data(text, kind):
    assert kind in personal(text)


@pytest.mark.parametrize(
    "text",
    [
        "write to user@example.com", "pay to DE88 3704 0044 0532 0130 00", "card 4111 1111 1111 1112", "call +1 23",
        "000-12-3456 and 123-00-4567", "in 2024, 1,234,567 of 3.14159265358979", "2 + 2 = 4", "@home a@b",
        "身份证 110105194912310021", "0.1234567890123456",
    ],
)  # fmt: skip
def test_what_is_no_personal_datum(text):
    assert personal(text) is None


def test_overlap(tmp_path):
    items = tmp_path / "test.jsonl"
    short = "only nine words are in this item of test"
    items.write_text("\n".join(json.dumps(r) for r in [{"question": SAID, "choices": ["yes", "no"]}, {"q": short}]))
    check = Overlap([items])
    part = " ".join(SAID.split()[3:16]).upper()
    assert check(f"Once {part}, they said.") == "with passages of test items (test.jsonl)"
    assert check(" ".join(SAID.split()[3:15])) is None  # 12 words
    assert check(" ".join(short.split()[:8])) is None
    assert check.met == {str(items): (1, 2)}
    assert check(f"that {short}!") is not None
    assert check.met == {str(items): (2, 2)}


def test_language():
    check = Language("en")
    assert check("This is a plain sentence about dogs and cats.") is None
    assert check("Das ist ein Satz über Hunde und Katzen, die schlafen.") == "in another language (de)"
    assert check("ja") is None
    assert Language("zh")("我们今天坐飞机去北京看朋友。") is None
    with pytest.raises(GreenError, match="'english'"):
        Language("english")


def test_listed_words(tmp_path):
    listed = tmp_path / "w.txt"
    listed.write_text("# a list\nbadword\nvery bad\n")
    check = Words(listed)
    assert check("A BadWord here") == check("it is very, bad") == "with listed words"
    assert check("badwords are other words") is None
    for text, said in (("# nothing\n", "no word"), (None, "cannot be read")):
        if text is None:
            listed.unlink()
        else:
            listed.write_text(text)
        with pytest.raises(GreenError, match=said):
            Words(listed)


@given(st.text(alphabet="ab \n\t", max_size=60))
@settings(max_examples=200, deadline=None)
def test_paragraphs_are_the_text(text):
    parts = paragraphs(text)
    assert "".join(parts) == text
    assert all("\n\n" in a for a, _ in pairwise(parts)) or "\n" in text


def test_the_same_are_dropped_every_time():
    texts = [made_up(i % 7) for i in range(20)]
    runs = []
    for _ in range(2):
        sieve = Filter()
        kept = list(sieve.over(texts, str))
        runs.append((kept, sieve.log))
    assert runs[0] == runs[1]
    assert runs[0][0] == texts[:7]
    assert sieve.words == "13 of 20 texts dropped: 13 exact duplicates"


def test_the_command(tmp_path, capsys):
    data, out = tmp_path / "d.jsonl", tmp_path / "c.jsonl"
    rows = [{"text": made_up(0), "id": 1}, {"text": made_up(0)}, {"text": f"mail me: joe@gmx.de {made_up(1)}"},
            {"text": SAID, "x": "ä"}, {"instruction": made_up(3), "output": "yes"}]  # fmt: skip
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    tests = tmp_path / "t.csv"
    tests.write_text(f'label,sentence\n1,"{SAID}"\n')
    code, told, errors = run(capsys, "clean", data, "-o", out, "--against", tests)
    assert code == 0, errors
    assert [json.loads(line) for line in out.read_text().splitlines()] == [rows[0], rows[4]]
    log = json.loads((tmp_path / "c.dropped.json").read_text())
    assert [e["text"] for e in log["each"]] == [2, 3, 4]
    assert "joe" not in json.dumps(log)
    assert log["test_items"] == {str(tests): [1, 1]}
    assert "2 of 5 texts kept" in told
    code, _, errors = run(capsys, "clean", data, "-o", out)
    assert code == 1
    assert "--force" in errors


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["d.jsonl", "-o", "o.txt"], "a .jsonl file is made"),
        (["none.jsonl", "-o", "o.jsonl"], "none.jsonl"),
        (["d.jsonl", "-o", "o.jsonl", "--against", "no.jsonl"], "no.jsonl"),
        (["d.jsonl", "-o", "o.jsonl", "--language", "xx"], "'xx'"),
        (["d.jsonl", "-o", "o.jsonl", "--words", "no.txt"], "no.txt"),
        (["bad.jsonl", "-o", "o.jsonl"], "bad.jsonl, line 2"),
        (["d.jsonl", "-o", "o.jsonl", "--language", "de"], "Nothing of d.jsonl is left"),
    ],
)
def test_what_cannot_be_cleaned(tmp_path, monkeypatch, capsys, given, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": SAID}) + "\n")
    (tmp_path / "bad.jsonl").write_text(json.dumps({"text": SAID}) + "\n{\n")
    code, _, errors = run(capsys, "clean", *given)
    assert code == 1
    assert said in " ".join(errors.split())
    assert not list(tmp_path.glob("o.*"))


def test_calibration_says_what_it_dropped(tmp_path):
    model = make_llama(tmp_path / "m", vocab=300)
    data = tmp_path / "d.jsonl"
    rows = [made_up(i % 30) for i in range(40)]
    data.write_text("".join(json.dumps({"text": r}) + "\n" for r in rows))

    class Notes(Silent):
        said: list[str] = []  # noqa: RUF012

        def note(self, text):
            self.said.append(text)

    tests = tmp_path / "t.txt"
    tests.write_text("\n\n".join([rows[3], *(made_up(i, 300) for i in range(100, 112))]))
    done = greenllm.compress(
        model, tmp_path / "o", recipe=_recipe(tmp_path), calibration=str(data), progress=Notes(),
        bench_options={"text": tests}, bench=True,
    )  # fmt: skip
    assert done.manifest.calibration["dropped"] == {"exact duplicates": 10}
    assert any("10 of 40 texts dropped: 10 exact duplicates" in s for s in Notes.said)
    assert any(s.startswith("WARNING. 1 of 13 items") for s in Notes.said)


def _recipe(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "steps:\n- quantize: {method: gptq, bits: 4, group: 32, head_bits: 8, head_group: 32}\n"
        "calibration: {samples: 64, length: 64}\n"
    )
    return file


def test_a_clean_text_is_calibrated_on_as_it_is(tmp_path):
    text = "\n\n".join(made_up(i) for i in range(20))
    file = tmp_path / "t.txt"
    file.write_text(text)
    assert list(calibration.texts(str(file), Filter(Rules()))) == [text]

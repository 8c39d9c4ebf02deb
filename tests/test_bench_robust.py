"""Robustness: what is done to items, what stays as it is, and what the area under a curve says."""

from __future__ import annotations

import csv
import json
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_llama
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import greenllm.bench
from greenllm.bench import Effort
from greenllm.bench.report import merge
from greenllm.bench.require import parse
from greenllm.bench.results import Results
from greenllm.bench.tasks import robust
from greenllm.bench.tasks.items import Item, Pair, Picture, Task, Utterance
from greenllm.bench.tasks.robust import curves, noise, prompts, typos
from greenllm.bench.tasks.robust.homoglyphs import ALIKE
from greenllm.bench.tasks.robust.kinds import KINDS, trapezoids
from greenllm.bench.tasks.robust.texts import TEXTS
from greenllm.cli import app
from greenllm.errors import GreenError

TEXT_KINDS = {k.name: k for k in KINDS if Item in k.takes and k.graded}
PROSE = "The quick brown fox jumps over the lazy dog, and 12 more boxing wizards watch it quickly. " * 12
CHINESE = "今天天气很好，我们去公园散步吧。2024年的票价是50元。"


def item(text, frame=("Text: ", "\nLabel:")):
    parts = (frame[0], text, frame[1])
    return Item("".join(parts), ("bad", "good"), 1, group="g", parts=parts)


def own(copy):
    return copy.parts[1]


def edits(a, b):
    """Optimal string alignment: letters added, left out, replaced, or two neighbours swapped."""
    d = np.add.outer(np.arange(len(a) + 1), np.arange(len(b) + 1))
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            d[i, j] = min(d[i - 1, j] + 1, d[i, j - 1] + 1, d[i - 1, j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                d[i, j] = min(d[i, j], d[i - 2, j - 2] + 1)
    return int(d[-1, -1])


# --- texts


@given(text=st.text(st.characters(), max_size=60), percent=st.floats(0.1, 100), name=st.sampled_from([*TEXT_KINDS]))
def test_any_text_can_be_disturbed_and_nothing_else_is(text, percent, name):
    kind, before = TEXT_KINDS[name], item(text)
    assert kind.copy(before, 0) in (None, before)
    copy = kind.copy(before, percent)
    assert copy == kind.copy(item(text), percent)
    if copy is not None:
        assert (copy.choices, copy.label, copy.group, copy.parts[::2]) == (before.choices, 1, "g", before.parts[::2])
        assert copy.context == "".join(copy.parts)
        assert kind.copy(before, 100) != before


@pytest.mark.parametrize("name", TEXT_KINDS)
@pytest.mark.parametrize("percent", [5, 10, 20, 50])
def test_as_much_is_changed_as_was_asked(name, percent):
    text = CHINESE * 10 if name == "width" else PROSE[:300]
    kind = TEXT_KINDS[name]
    places = TEXTS[name].places(text)
    found = edits(text, own(kind.copy(item(text), percent)))
    slack = 0.15 * percent / 100 * len(places) if name in ("typos", "spaces") else 0  # of neighbours two may be one
    assert percent / 100 * len(places) - 1 - slack <= found <= percent / 100 * len(places) + 1


def test_a_stronger_copy_has_all_changes_of_a_weaker_one():
    weak, strong = (own(TEXT_KINDS["casing"].copy(item(PROSE), p)) for p in (10, 20))
    changed = [i for i, (a, b) in enumerate(zip(PROSE, weak, strict=True)) if a != b]
    assert changed
    assert all(strong[i] == weak[i] for i in changed)
    assert sum(a != b for a, b in zip(PROSE, strong, strict=True)) > 1.5 * len(changed)


def test_each_kind_does_what_it_says():
    assert set(typos.BESIDE["q"]) == {"w", "a"}
    assert all(key in typos.BESIDE[near] for key, beside in typos.BESIDE.items() for near in beside)
    assert own(TEXT_KINDS["casing"].copy(item("aBß ǅ"), 100)) == "Abß ǅ"
    assert own(TEXT_KINDS["spaces"].copy(item("a bc 好的"), 100)) == "ab c好 的"
    assert own(TEXT_KINDS["width"].copy(item("好,Ａ。"), 100)) == "好，A｡"
    for letter, doubles in ALIKE.items():
        for double in doubles:
            assert unicodedata.normalize("NFKC", double) != letter
            kind = {"CYRILLIC", "GREEK"} & set(unicodedata.name(double).split())
            assert kind, double
            assert unicodedata.name(double).split()[1] == unicodedata.name(letter).split()[1]  # small or capital


def test_what_a_script_does_not_have_is_left_out_and_said():
    task = Task("t", [item("今天天气很好。")] * 3 + [item("Good")], 4)
    wanted, _ = robust.asked(["robustness"])
    found = robust.copies([task], wanted)
    assert {c.kind.name: len(c.at) for c in found} == {
        "typos": 1, "casing": 1, "spaces": 4, "homoglyphs": 1, "width": 3, "prompts": 4
    }  # fmt: skip
    said = robust.left_out([task], wanted, found)
    assert any("(typos) can change nothing in 3 of the 4 items of t" in s for s in said)
    with pytest.raises(GreenError, match="nothing in t that casing would change"):
        robust.copies([replace(task, items=task.items[:3])], {"casing": ()})
    pairs = Task("p", [Pair("a", "b", "c")], 1)
    assert robust.left_out([pairs], wanted, []) == ["Robustness: p is of a kind that is not disturbed."]


def test_other_prompts_keep_the_text_whole():
    told = {prompts.reworded(("Text: ", "a {0} b", "\nLabel:"), n) for n in (1, 2, 3)}
    assert len(told) == 3
    assert all("a {0} b" in t for t in told)
    assert "标签" in prompts.reworded(("Text: ", "很好啊 ok", "\nLabel:"), 1)
    assert prompts.reworded(("", "P.", "\nQuestion: ", "is it", "?\nAnswer:"), 1) == "Text: P.\nQ: is it?\nA:"
    assert prompts.reworded(("other ", "a", ""), 1) is None


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("robustness:typo", "no disturbance is called 'typo'"), ("robustness:", "no disturbance is called ''"),
        ("robustness:typos=0", "are no strengths"), ("robustness:typos=101", "are no strengths"),
        ("robustness:typos=", "are no strengths"), ("robustness:typos=a", "are no strengths"),
        ("robustness:typos=nan", "are no strengths"), ("robustness:typos=-5,5", "are no strengths"),
        ("robustness:prompts=5", "prompts has no strength"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_the_command(tmp_path, spec, says):
    told = CliRunner().invoke(app, ["bench", str(make_llama(tmp_path / "m")), "--intensity", "1", "--suite", spec])
    assert says in str(told.exception)


def test_kinds_and_strengths_are_chosen():
    assert robust.asked(["robustness:typos=20,5,5", "safety"]) == ({"typos": (5, 20)}, ["safety"])
    both, _ = robust.asked(["robustness", "robustness:noise=50"])
    assert list(both) == list(robust.NAMES)
    assert (both["noise"], both["typos"]) == ((50,), ())
    with pytest.raises(GreenError, match="given twice"):
        robust.asked(["robustness:typos", "robustness:typos=5"])


def test_the_cost_is_that_of_what_is_asked():
    tasks = robust.own(3)
    assert [len(t.items) for t in tasks] == [3, 3]
    found = robust.copies(tasks, {"typos": (5, 50), "prompts": ()})
    assert "30 questions more (90 choices" in robust.cost(found)  # 3 items, 2 + 3 copies; 2 choices, and 4
    assert sum(len(t.items) for c in found for t in c.tasks) == 30


# --- noise


def test_noise_is_as_loud_as_it_says():
    clip = np.sin(np.arange(16000) / 9).astype(np.float32) * 0.2
    for decibels, percent in zip((20, 10, 5, 0), noise.CLIP, strict=True):
        added = noise.on_clip(clip, percent, "a.wav") - clip
        assert 10 * np.log10(np.mean(clip**2) / np.mean(added**2)) == pytest.approx(decibels, abs=0.01)
        assert noise.decibels(percent) == pytest.approx(decibels)
    assert np.array_equal(noise.on_clip(clip, 10, "a.wav"), noise.on_clip(clip, 10, "a.wav"))
    assert noise.on_clip(clip, 0, "a.wav") is clip
    silence = np.zeros(1600, np.float32)
    assert np.array_equal(noise.on_clip(silence, 100, "a"), silence)


def test_noise_on_images_is_at_the_models_size():
    grey = Image.new("RGB", (300, 200), (128, 128, 128))
    found = noise.on_image(grey, 8, "a.png", 50)
    assert found.size == (75, 50)
    assert np.asarray(found).std() == pytest.approx(0.08 * 255, rel=0.05)
    assert found.tobytes() == noise.on_image(grey, 8, "a.png", 50).tobytes()
    assert noise.on_image(grey, 8, "a.png", 999).size == grey.size
    assert noise.on_image(grey, 0, "a.png", 50) is grey
    assert np.asarray(noise.on_image(grey, 100, "a.png", 50)).min() == 0


def test_noise_is_for_what_is_seen_or_heard():
    picture, clip = Picture(Path("a.png"), 0, "w"), Utterance(Path("a.wav"), "a b", "w")
    for one, count in ((picture, 3), (clip, 4)):
        (c,) = robust.copies([Task("t", [one], 1)], robust.asked(["robustness"])[0])
        assert (c.kind.name, len(c.tasks)) == ("noise", count)
        assert [t.items[0].noise for t in c.tasks] == list(c.strengths)
    assert c.tasks[0].name == "t, noise, 20 dB"


# --- areas


def disturbed(count, kind="typos", strengths=(10.0, 20.0)):
    items = [item("some words")] * count
    return robust.copies([Task("t", items, count)], {kind: strengths})[0]


def test_the_area_by_hand():
    assert trapezoids((10.0, 20.0)) == pytest.approx([0.25, 0.5, 0.25])
    assert trapezoids((5.0, 10.0, 20.0)) == pytest.approx([0.125, 0.25, 0.375, 0.25])
    values = [[1] * 8 + [0] * 2, [1] * 6 + [0] * 4, [1] * 2 + [0] * 8]
    # trapezoids of 80, 60, 20 % at 0, 10, 20 %: 10 * 70 + 10 * 40 = 1100, of 80 * 20 = 1600
    found = curves.kept(curves.area(disturbed(10), values))
    assert found.measured.value == pytest.approx(100 * 1100 / 1600)
    assert found.measured.n == 10
    low, high = found.measured.ci95
    assert 30 < low < 55
    assert 75 < high < 100
    same = curves.kept(curves.area(disturbed(10), [values[0]] * 3))
    assert same.measured.value == 100
    low, high = same.measured.ci95
    assert low < 95
    assert high == 100  # ten items do not show that none ever falls
    assert curves.kept(curves.area(disturbed(10), [[0] * 10, [1] * 10, [0] * 10])) is None


def test_prompts_are_a_mean():
    (c,) = robust.copies([Task("t", [item("words")] * 4, 4)], {"prompts": ()})
    found = curves.kept(curves.area(c, [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]))
    assert found.measured.value == pytest.approx(50)


def test_what_is_kept_against_the_baseline():
    c = disturbed(60)
    clean, fall = [1] * 60, [1] * 20 + [0] * 40
    base, model = curves.area(c, [clean, clean, clean]), curves.area(c, [clean, fall, fall])
    found = curves.kept(model, base).against
    assert found.difference.value == pytest.approx(100 * (1 - (0.25 + 0.75 / 3)) * -1)
    assert found.verdict == "worse"
    assert curves.kept(base, model).against.verdict == "better"
    assert curves.kept(base, base).against.verdict == "undecided"
    assert curves.kept(base, base).against.difference.value == 0


def test_a_difference_that_is_none_is_seldom_decided():
    rng, c, wrong = np.random.default_rng(0), disturbed(60), 0
    for _ in range(25):
        a, b = ([(rng.random(60) < p).astype(int).tolist() for p in (0.9, 0.8, 0.6)] for _ in range(2))
        wrong += curves.kept(curves.area(c, a), curves.area(c, b)).against.verdict != "undecided"
    assert wrong <= 3


def test_of_speech_the_words_that_were_heard_are_kept():
    pytest.importorskip("jiwer")
    clips = [Utterance(Path("a.wav"), "one two three four", "w"), Utterance(Path("b.wav"), "five six", "w")]
    (c,) = robust.copies([Task("t", clips, 2)], {"noise": (50.0, 100.0)})
    areas = curves.area(c, [[0, 1], [2, 1], [9, 2]])  # nine words too many are none that was heard
    assert areas[:, 0].tolist() == [[0.25 * 4 + 0.5 * 2, 4], [0.25 + 0.5, 1]]
    assert curves.judged(clips, [9, 2], None).measured.value == pytest.approx(100 * 11 / 6)


# --- all of it, by the command


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Two random Llamas and two tasks, hostile texts in them, asked by the command."""
    base = tmp_path_factory.mktemp("robust")
    for name, seed in (("m", 0), ("x", 1)):
        make_llama(base / name, vocab=300, seed=seed, initializer_range=0.5)
    rows = [{"text": f"<b>Number</b> {n} | is here", "label": ("good", "bad")[n % 2]} for n in range(12)]
    rows[3]["text"] = "今天天气很好"
    (base / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (base / "q.jsonl").write_text("\n".join(json.dumps({"question": f"Who {n}?", "answer": "I"}) for n in range(3)))
    command = ["bench", str(base / "m"), str(base / "x"), "--task", str(base / "t.jsonl"), "--task",
               str(base / "q.jsonl"), "--suite", "robustness:typos=10,50", "--suite", "robustness:prompts", "--limit",
               "8", "--intensity", "1", "--report", str(base / "report"), "--require", "robustness>=-1000pt",
               "--require", "robustness_typos>=0", "--threads", "1"]  # fmt: skip
    least = Effort(windows=2, sittings=2, width=0.9, seconds=0.1, turn=0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(greenllm.bench.EFFORTS, "quick", least)
        measure = sys.modules["greenllm.bench.measure"]
        patch.setattr(measure, "_spend", lambda *_, **__: None)  # its windows take half a minute
        told = CliRunner().invoke(app, command)
    found = Results.from_json((base / "report" / "report.json").read_text())
    return told, found, base


def test_the_command_asks_all_copies(done):
    told, found, base = done
    before, after = found.rows
    assert before.error is after.error is None
    assert list(after.tasks) == [f"{base.name}/t", f"{base.name}/q"]  # copies are no tasks of their own
    task = after.tasks[f"{base.name}/t"]
    assert {k: (c.strengths, c.scores[0].measured.n) for k, c in task.curves.items()} == {
        "typos": ([0, 10, 50], 7), "prompts": ([0, 1, 2, 3], 8)
    }  # fmt: skip
    assert task.curves["prompts"].scores[0].values == task.main.values
    assert any("1 of the 8 items" in c for c in found.caveats)  # the Chinese one has no keys
    assert all(s.against for s in task.curves["typos"].scores)
    assert not any(s.against for s in before.tasks[task_name(base)].curves["typos"].scores)
    assert "asks each model 53 questions more (76 choices to be scored)" in " ".join(told.output.split())
    assert "kept" in told.output  # a narrow table breaks its lines


def task_name(base):
    return f"{base.name}/t"


def test_they_are_in_every_report_and_harmless(done):
    _, found, base = done
    html, md = ((base / "report" / f"report.{k}").read_text() for k in ("html", "md"))
    for text in (html, md):
        assert "typing errors: as it is, 10 %, 50 %" in text
        assert "<b>Number" not in text
        assert "trapezoids" in text
    assert "Typing errors: " in html
    rows = [*csv.DictReader((base / "report" / "report.csv").open())]
    assert {"kept, typos", "acc, typos 50 %"} <= {r["metric"].partition(" of ")[0] for r in rows}
    joined = merge.merge([found, found]).rows[3].tasks[task_name(base)]
    assert joined.curves["typos"].scores[1].against is None
    assert joined.kept is None or joined.kept.against is None
    assert any("not certainly better than chance" in c for c in found.caveats)


def test_it_can_be_required(done):
    told, found, _ = done
    kept = found.rows[1].tasks[task_name(done[2])].curves["typos"].kept
    assert kept
    typing = [r for r in found.requirements if r.text == "robustness_typos>=0"]
    assert typing[0].found.startswith(f"{task_name(done[2])}: {kept.measured.value:.1f} %")
    assert told.exit_code == (1 if any(r.outcome == "failed" for r in found.requirements) else 0)
    with pytest.raises(GreenError, match="no metric is called robustness_typo"):
        parse("robustness_typo>=1")
    with pytest.raises(GreenError, match="compared in points"):
        parse("robustness>=0.9x")

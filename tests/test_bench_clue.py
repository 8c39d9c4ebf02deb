"""Sets of CLUE and FewCLUE: rows as they are published, the suite by name, Chinese in reports."""

from __future__ import annotations

import json

import pytest
from conftest import make_llama

from greenllm.bench import Effort, bench
from greenllm.bench.report import write_report
from greenllm.bench.tasks import clue, public, read
from greenllm.errors import GreenError

TINY = Effort(windows=1, sentences=1, items=0, sittings=1, seconds=0.2, turn=0.02)
NEWS = {"label": 103, "label_desc": "news_sports", "sentence": "他赢得了比赛", "keywords": "", "id": 1}
ROWS = {
    "tnews": (NEWS, "新闻：他赢得了比赛\n类别：", "体育", 15),
    "eprstmt": ({"id": 2, "sentence": "屏幕很清楚", "label": "Positive"}, "评论：屏幕很清楚\n评价：", "好评", 2),
    "csl": (
        {"id": 1, "abst": "本文研究水。", "keyword": ["水", "冰"], "label": "0"},
        "摘要：本文研究水。\n关键词：水、冰\n都是这篇摘要的关键词吗？回答：", "否", 2,
    ),
    "cluewsc": (
        {"target": {"span1_text": "床", "span2_text": "它", "span1_index": 0, "span2_index": 4}, "idx": 1,
         "label": "true", "text": "床很大，它很贵"},
        "床很大，它很贵\n其中“它”指的是“床”吗？回答：", "是", 2,
    ),
    "chid": (
        {"id": 3, "candidates": ["一马当先", "画蛇添足"], "content": "他#idiom#，先到了。", "answer": 0},
        "他", "一马当先，先到了。", 2,
    ),
    "bustm": (
        {"id": 4, "sentence1": "你好吗", "sentence2": "你怎么样", "label": "1"},
        "句子一：你好吗\n句子二：你怎么样\n两句话的意思：", "相同", 2,
    ),
}  # fmt: skip


def save(file, rows):
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize("name", ROWS)
def test_a_row_as_it_is_published(tmp_path, name):
    row, context, answer, count = ROWS[name]
    (item,) = read(save(tmp_path / "dev.json", [row])).items
    assert item.context == context
    assert item.choices[item.label] == answer
    assert len(item.choices) == count
    assert item.gap == ""


def test_inference_and_classes_that_the_rows_name(tmp_path):
    row = {"sentence1": "他在跑", "sentence2": "他在动", "label": "entailment", "level": "easy", "genre": "lit"}
    (item,) = read(save(tmp_path / "ocnli.json", [row])).items
    assert (item.choices, item.label) == (("蕴含", "中立", "矛盾"), 0)
    rows = [{"sentence": "看地图", "label": str(i), "label_des": d, "id": i} for i, d in enumerate(("地图", "打车"))]
    items = read(save(tmp_path / "iflytek.json", rows)).items
    assert [i.choices[i.label] for i in items] == ["地图", "打车"]
    assert items[0].context == "应用描述：看地图\n类别："
    items = read(save(tmp_path / "csldcp.json", [{"content": c, "label": c * 2, "id": 1} for c in "史理"])).items
    assert {i.choices for i in items} == {("史史", "理理")}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (NEWS | {"label_desc": "news_cats"}, "none of TNEWS"),
        ({"sentence": "好", "label": "Good"}, "none of Negative, Positive"),
        ({"sentence1": "a", "sentence2": "b", "label": "-"}, "none of entailment"),
        (ROWS["csl"][0] | {"keyword": "水"}, "no list"), (ROWS["chid"][0] | {"answer": 2}, "not one gap"),
        (ROWS["chid"][0] | {"content": "没有"}, "not one gap"), (ROWS["cluewsc"][0] | {"target": {}}, "span1_text"),
        (NEWS | {"sentence": " "}, "is no text"),
    ],
)  # fmt: skip
def test_bad_rows_are_named_by_line(tmp_path, row, says):
    with pytest.raises(GreenError, match="line 1") as e:
        read(save(tmp_path / "dev.json", [row]))
    assert says in str(e.value)


def test_the_suite_takes_the_part_that_is_to_be_asked(tmp_path):
    for folder, name in (("tnews", "tnews"), ("csl", "csl")):
        (tmp_path / folder).mkdir()
        for part in ("train_0", "dev_0", "test_public") if folder == "tnews" else ("train_0", "dev_0"):
            save(tmp_path / folder / f"{part}.json", [ROWS[name][0]])
        (tmp_path / folder / "test.json").write_text('{"id": 1, "sentence": "a"}\n')
    assert [t.name for t in public.files(["clue"], tmp_path, 0)] == ["csl/dev_0", "tnews/test_public"]
    assert [t.name for t in public.files(["clue:tnews"], tmp_path, 0)] == ["tnews/test_public"]
    for name in ("bustm", "ocnli"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "dev.json", [ROWS["bustm"][0] | ({"label": "neutral"} if name == "ocnli" else {})])
        assert [t.name for t in public.files([f"clue:{name}"], tmp_path, 0)] == [f"{name}/dev"]
    with pytest.raises(GreenError, match="no set of the suite clue:afqmc"):
        public.files(["clue:afqmc"], tmp_path, 0)
    with pytest.raises(GreenError, match="no set of the suite clue:chid"):
        public.files(["clue:chid"], tmp_path, 0)
    with pytest.raises(GreenError, match="clue:tnews, clue:iflytek"):
        public.files(["clue:cola"], tmp_path, 0)
    with pytest.raises(GreenError, match="needs its data"):
        public.harness(["clue"], None)
    assert set(ROWS) <= set(clue.SETS)


def test_a_report_in_chinese(tmp_path):
    models = [str(make_llama(tmp_path / name, layers=1, vocab=300, seed=i)) for i, name in enumerate("ab")]
    (tmp_path / "中文").mkdir()
    rows = [ROWS["eprstmt"][0] | {"sentence": f"第{i}个很好"} for i in range(12)]
    task = save(tmp_path / "中文" / "dev.json", rows)
    results = bench(models, tasks=[task], energy=False, effort=TINY, threads=1)
    (found,) = results.rows[1].tasks.values()
    assert found.scores["acc"].measured.n == 12
    write_report(results, tmp_path / "report")
    for name in ("report.html", "report.md"):
        assert "中文/dev" in (tmp_path / "report" / name).read_text(encoding="utf-8")
    if found.flips:
        assert "个很好" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def test_real_tnews(data):
    found = public.files(["clue:tnews"], data / "chinese", 0)
    assert [(t.name, t.total) for t in found] == [("fewclue_tnews/test_public", 2010)]
    assert {i.choices[i.label] for i in found[0].items} == set(found[0].items[0].choices)

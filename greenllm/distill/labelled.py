"""Labelled texts for classifiers: tables read by ``datasets``, one column the label, one or two the text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from greenllm.distill.data import Batch
from greenllm.distill.vocabulary import Tokenizer
from greenllm.errors import GreenError

_MOST_LABELS = 1000
_HELD_OUT = 10  # one of so many rows is kept to be judged on where no other file is given


@dataclass
class Table:
    """Rows of a labelled file: a text or a pair of them, a label's name, and the group of people or things it is of."""

    name: str
    texts: list[str]
    pairs: list[str] | None
    labels: list[str]
    groups: list[str] | None = None

    def rows(self, keep: range | list[int]) -> Table:
        """Some of them."""
        pairs, groups = ([each[i] for i in keep] if each else None for each in (self.pairs, self.groups))
        return Table(self.name, [self.texts[i] for i in keep], pairs, [self.labels[i] for i in keep], groups)


def read(path: str, column: str, groups: str = "") -> Table:
    """Read a ``.tsv``, ``.csv`` or ``.jsonl`` file.

    Args:
        path: the file.
        column: the label's column: its name, or its number from 0 in a table without a header. Text is in the first
            column that holds text besides it; what the second such column holds makes it a pair.
        groups: the column that says which group a row belongs to, likewise; "" where none does.

    Raises:
        GreenError: no such file or column, no text, or rows without a label.
    """
    data = _load(Path(path).expanduser(), header=not column.isdigit())
    for name, option in ((column, "labels"), (groups, "groups")):
        if name and name not in data.column_names:
            raise GreenError(
                f"{path} has no column {name!r}; it has {', '.join(data.column_names)}.",
                f"Name it with --{option}; by its number from 0 in a table without a header.",
            )
    told = {column, groups}
    texts = [n for n, f in data.features.items() if n not in told and getattr(f, "dtype", "").endswith("string")]
    if not texts or not len(data):
        raise GreenError(f"{path} has no rows with text beside {column!r}.", "See --labels.")
    labels = data[column]
    for i, row in enumerate(zip(labels, *(data[n] for n in (*texts[:2], *([groups] if groups else []))), strict=True)):
        if any(v is None for v in row):
            lacks = "no text, no label or no group" if groups else "no text or no label"
            raise GreenError(f"{path}, row {i + 1}: {lacks}.", "Every row has them.")
    pairs = list(data[texts[1]]) if len(texts) > 1 else None
    members = [str(v) for v in data[groups]] if groups else None
    return Table(Path(path).name, list(data[texts[0]]), pairs, [str(v) for v in labels], members)


def _load(path: Path, *, header: bool) -> Any:
    from datasets import Features, load_dataset  # noqa: F401 - Features fails first where datasets is broken
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    if not path.is_file():
        raise GreenError(f"{path}: no such file.", "Labelled data are .tsv, .csv or .jsonl files.")
    kind = path.suffix.lower()
    if kind not in (".tsv", ".csv", ".jsonl"):
        raise GreenError(f"{path}: labelled data are .tsv, .csv or .jsonl files.", "See --data.")
    options: dict[str, Any] = {}
    if kind == ".tsv":
        options = {"delimiter": "\t", "quoting": 3}
    if kind != ".jsonl" and not header:
        columns = len(path.open(encoding="utf-8").readline().split("\t" if kind == ".tsv" else ","))
        options |= {"header": None, "names": [str(i) for i in range(columns)]}
    try:
        return load_dataset("json" if kind == ".jsonl" else "csv", data_files=str(path), split="train", **options)
    except Exception as e:
        cause = e.__cause__ or e
        raise GreenError(f"{path} cannot be read as {kind[1:]}: {str(cause).splitlines()[0][:200]}") from e


def split(table: Table, held_out: Table | None, seed: int) -> tuple[Table, Table]:
    """Rows to learn from and rows to be judged on."""
    if held_out:
        return table, held_out
    order = torch.randperm(len(table.texts), generator=torch.Generator().manual_seed(seed)).tolist()
    kept = max(1, len(order) // _HELD_OUT)
    if kept == len(order):
        raise GreenError(f"{table.name} has one row: none to be judged on.", "Add rows.")
    return table.rows(order[kept:]), table.rows(order[:kept])


def classes(tables: list[Table]) -> list[str]:
    """The labels there are, numbers in their order.

    Raises:
        GreenError: one alone, or so many that they are no classes.
    """
    found = {label for t in tables for label in t.labels}
    if not 1 < len(found) <= _MOST_LABELS:
        raise GreenError(f"{tables[0].name} has {len(found)} different labels.", "Classes are needed: see --labels.")
    return sorted(found, key=lambda v: (not v.lstrip("-").isdigit(), int(v) if v.lstrip("-").isdigit() else 0, v))


def encode(table: Table, tokenizer: Tokenizer, names: list[str], length: int) -> Batch:
    """Rows as tensors: "input_ids", "attention_mask", "labels", and "token_type_ids" of pairs.

    Raises:
        GreenError: a label that is none of ``names``.
    """
    number = {n: i for i, n in enumerate(names)}
    if unknown := [label for label in table.labels if label not in number]:
        raise GreenError(f"{table.name} has the label {unknown[0]!r}; known: {', '.join(names[:20])}.", "See --labels.")
    tokenizer.padding_side = "right"
    found = tokenizer(
        table.texts, table.pairs, padding=True, truncation=True, max_length=length, return_tensors="pt"
    )  # fmt: skip
    keys = ("input_ids", "attention_mask", *(["token_type_ids"] if table.pairs and "token_type_ids" in found else []))
    return {k: found[k] for k in keys} | {"labels": torch.tensor([number[v] for v in table.labels])}


def group_columns(table: Table, names: list[str]) -> Batch:
    """Of each row its "group", a number in ``names``, and its "weight", with which every group here counts alike.

    The weights' mean is 1: a group of n of N rows, one of G, has N / (G n), as class weights of scikit-learn's
    "balanced" (King & Zeng, 2001, Logistic Regression in Rare Events Data, section 4.2) have it.
    """
    assert table.groups is not None  # noqa: S101 - the caller's
    group = torch.tensor([names.index(g) for g in table.groups])
    counts = torch.bincount(group, minlength=len(names))
    weights = len(group) / (int((counts > 0).sum()) * counts.clamp_min(1))
    return {"group": group, "weight": weights[group].float()}

"""Public sets as tasks for few samples, NAME-few.jsonl and NAME-test: ``python -m greenllm.bench.fewsets DATA OUT``.

SST-2 (``train.tsv`` and ``dev.tsv``: sentence, label); BBQ's religion (``Religion.jsonl``; templates of odd numbers to
learn from, of even ones to ask, so that no question is both); and the Free Spoken Digit Dataset (a ``.zip`` of
``DIGIT_SPEAKER_N.wav``; the first half of the speakers to learn from). Files are looked for anywhere below DATA.
"""

from __future__ import annotations

import argparse
import csv
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from random import Random
from typing import Any

from greenllm.errors import GreenError

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def sst2(data: Path, out: Path) -> None:
    """Reviews, negative or positive."""
    for part, name in (("train", "few"), ("dev", "test")):
        with _found(data, f"sst2/{part}.tsv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        labels = ("negative", "positive")
        _write(out / f"sst2-{name}.jsonl", ({"text": t, "label": labels[int(n)]} for t, n in rows if n in ("0", "1")))


def religion(data: Path, out: Path) -> None:
    """Questions about people of two religions."""
    lines = _found(data, "Religion.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    for odd, name in ((1, "few"), (0, "test")):
        _write(out / f"religion-{name}.jsonl", (r for r in rows if int(r["question_index"]) % 2 == odd))


def digits(data: Path, out: Path) -> None:
    """Spoken digits of two halves of the speakers."""
    with zipfile.ZipFile(_found(data, "*fsdd*.zip")) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".wav"))
        for name in names:  # no directory of the archive's is kept, so that none leads elsewhere
            (out / PurePosixPath(name).name).write_bytes(archive.read(name))
    clips = [PurePosixPath(n).name for n in names]
    speakers = sorted({c.split("_")[1] for c in clips})
    for some, name in ((speakers[: len(speakers) // 2], "few"), (speakers[len(speakers) // 2 :], "test")):
        rows = [{"audio": c, "text": _DIGITS[int(c[0])]} for c in clips if c.split("_")[1] in some]
        if name == "test":
            Random(0).shuffle(rows)  # noqa: S311 - no secret
        _write(out / f"digits-{name}.jsonl", rows)


def _found(data: Path, pattern: str) -> Path:
    """The first file of a name.

    Raises:
        GreenError: there is none.
    """
    found = sorted(data.rglob(pattern))
    if not found:
        raise GreenError(f"{data} has no {pattern} below it.", "Put it there as it is published.")
    return found[0]


def _write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def main() -> None:
    """Write all three."""
    given = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    given.add_argument("data", type=Path)
    given.add_argument("out", type=Path)
    options = given.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        for make in (sst2, religion, digits):
            make(options.data, options.out)
    except GreenError as e:
        given.exit(1, f"{e}\n")


if __name__ == "__main__":
    main()

"""``greenllm clean``: a data set without duplicates, personal data, test items and what else it should not have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from greenllm.errors import GreenError


def clean(
    source: Annotated[str, typer.Argument(help=".txt or .jsonl file, or a hub data set", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", help=".txt or .jsonl file to make, as the source is")],
    against: Annotated[
        list[Path] | None,
        typer.Option(help="test items (.jsonl, .csv, .tsv, .txt) that must not be in it; may be given again"),
    ] = None,
    language: Annotated[str | None, typer.Option(help="ISO 639-1 code (en, zh …) of what stays; default: all")] = None,
    words: Annotated[Path | None, typer.Option(help="file of words that no text may have, one a line")] = None,
    keep_duplicates: Annotated[bool, typer.Option("--keep-duplicates", help="exact and near ones stay")] = False,
    keep_personal: Annotated[
        bool, typer.Option("--keep-personal", help="texts with mail addresses, telephone or card numbers … stay")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="replace the output if it exists")] = False,
) -> None:
    """Clean text to calibrate on or to learn from; what is dropped is counted, and told by number and reason."""
    from greenllm import artifact
    from greenllm.clean import Filter, Rules
    from greenllm.cli import screen

    rules = Rules(not keep_duplicates, not keep_personal, language, words, against or ())
    sieve = Filter(rules)
    wanted = ".txt" if source.endswith(".txt") else ".jsonl"
    if out.suffix != wanted:
        raise GreenError(f"{out}: of this source a {wanted} file is made.", "Change -o.")
    log = out.with_name(f"{out.stem}.dropped.json")
    for file in (out, log):
        artifact.check_free(file.absolute(), force=force)
    kept = list(sieve.over(_units(source), lambda unit: unit[1]))
    if not kept:
        raise GreenError(f"Nothing of {source} is left: {sieve.words}.", "Loosen a rule; nothing was written.")
    artifact.write_atomic(out, "".join(raw for raw, _ in kept))
    found = {
        "source": source, "texts": sieve.seen, "kept": len(kept), "dropped": dict(sieve.dropped.most_common()),
        "each": [{"text": n, "reason": why} for n, why in sieve.log], "test_items": sieve.met,
    }  # fmt: skip
    artifact.write_atomic(log, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    screen.print(f"{len(kept)} of {sieve.seen} texts kept: [bold]{out}[/]", soft_wrap=True)
    for reason, count in sieve.dropped.most_common():
        screen.print(f"  {count} dropped, {reason}", highlight=False)
    for tests, (met, there) in sieve.met.items():
        screen.print(f"  {met} of {there} test items of {tests} were in it", soft_wrap=True, highlight=False)


def _units(source: str) -> Iterator[tuple[str, str]]:
    """What is written of each text, and the text."""
    from greenllm import calibration
    from greenllm.clean.files import paragraphs

    if source.endswith(".txt"):
        return ((part, part) for text in calibration.texts(source) for part in paragraphs(text))
    path = Path(source).expanduser()
    if path.suffix == ".jsonl":
        return ((json.dumps(row, ensure_ascii=False) + "\n", text) for row, text in calibration.rows_with_text(path))
    return ((json.dumps({"text": text}, ensure_ascii=False) + "\n", text) for text in calibration.texts(source))

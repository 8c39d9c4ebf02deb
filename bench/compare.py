"""Every model against the baseline."""

from __future__ import annotations

from greenllm.bench.measurement import log_ratio, quotient
from greenllm.bench.results import Row
from greenllm.bench.session import Session

_OF_QUERIES = (
    "prefill",
    "decode",
    "first_token",
    "encode",
    "real_time",
    "caption",
    *(f"{x}_p{p}" for x in ("token", "text", "image") for p in (50, 95, 99)),
)
_BY_ROUND = (*_OF_QUERIES, "load", "load_cold")  # starts have rounds of their own, and no sittings
_BY_WINDOW = ("perplexity", "bits_per_byte")
_NO_RATIO = ("bandwidth", "kl", "top1", "cosine", "neighbour", "spearman")


def ratios(session: Session) -> None:
    """Fill in each row's ratios: paired where both did the same thing at the same time, else not."""
    base = session.rows[0]
    living = {id(c.row): c for c in session.live}
    for row in session.rows[1:]:
        sittings = living[id(row)].rounds.sittings if id(row) in living else []
        same = id(row) in living and session.comparable(living[id(row)])
        for name in row.measurements:
            if name in base.measurements and name not in _NO_RATIO:
                _ratio(row, base, name, sittings, same_tokens=same)
        if "perplexity" in row and "perplexity" in base and not same:
            row.notes.append(
                "its tokenizer or vocabulary is not the baseline's: perplexity compares per byte of text only, "
                "and KL divergence and top-1 agreement do not exist"
            )


def _ratio(row: Row, base: Row, name: str, sittings: list[int], *, same_tokens: bool) -> None:
    if name == "perplexity" and not same_tokens:
        return
    paired = name in _BY_ROUND or (name in _BY_WINDOW and same_tokens)
    if paired and name in row.samples and name in base.samples:
        over = "rounds" if name in _BY_ROUND else "windows"
        in_time = sittings if name in _OF_QUERIES and len(sittings) == len(row.samples[name]) else None
        row.ratios[name] = log_ratio(row.samples[name], base.samples[name], f"computed: paired over {over}", in_time)
    elif (ratio := quotient(row[name], base[name])) is not None:
        row.ratios[name] = ratio

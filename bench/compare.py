"""Every model against the baseline, and the words that the figures need beside them."""

from __future__ import annotations

from typing import Any

from greenllm.bench import texts
from greenllm.bench.measurement import log_ratio, quotient
from greenllm.bench.results import METRICS, Results, Row
from greenllm.bench.session import Contender, Query, Session

_BY_ROUND = ("prefill", "decode", "first_token", "encode")
_BY_WINDOW = ("perplexity", "bits_per_byte")
_NO_RATIO = ("kl", "top1", "cosine", "neighbour", "spearman")


def ratios(session: Session) -> None:
    """Fill in each row's ratios: paired where both did the same thing at the same time, else not."""
    base = session.rows[0]
    living = {id(c.row): c for c in session.live}
    for row in session.rows[1:]:
        same = id(row) in living and _same_tokens(session, living[id(row)])
        for name in row.measurements:
            if name in base.measurements and name not in _NO_RATIO:
                _ratio(row, base, name, same_tokens=same)
        if "perplexity" in row and not same:
            row.notes.append(
                "its tokenizer or vocabulary is not the baseline's: perplexity compares per byte of text only, "
                "and KL divergence and top-1 agreement do not exist"
            )


def _same_tokens(session: Session, who: Contender) -> bool:
    return bool(session.comparable(who))


def _ratio(row: Row, base: Row, name: str, *, same_tokens: bool) -> None:
    if name == "perplexity" and not same_tokens:
        return
    paired = name in _BY_ROUND or (name in _BY_WINDOW and same_tokens)
    if paired and name in row.samples and name in base.samples:
        over = "rounds" if name in _BY_ROUND else "windows"
        found = log_ratio(row.samples[name], base.samples[name], f"computed: paired over {over}")
        row.ratios[name] = found
        return
    quotient_ = quotient(row[name], base[name])
    if quotient_ is not None:
        row.ratios[name] = quotient_


def query_settings(query: Query) -> dict[str, Any]:
    """What a query is, in numbers and words."""
    if query.answer:
        words = f"a prompt of {query.prompt} tokens is read and exactly {query.answer} tokens are answered, greedy"
        return {"prompt_tokens": query.prompt, "answer_tokens": query.answer, "query": words}
    return {"prompt_tokens": query.prompt, "query": f"one text of up to {query.prompt} tokens is embedded"}


def text_settings(session: Session, text: texts.Text, window: int) -> dict[str, Any]:
    """What was read, and how much of it was scored."""
    found: dict[str, Any] = {"text": text.name, "text_bytes": len(text.text.encode())}
    first = next((c.windows for c in session.live if c.windows and c.info.task == "text-generation"), None)
    if first:
        scored = sum(len(t) - first.start for t in first.tokens)
        found |= {"window": window, "stride": window, "windows": len(first.tokens), "scored_tokens": scored,
                  "text_tokens": first.total, "prefix_tokens": len(first.tokens[0]) - window}  # fmt: skip
    return found


def methods(results: Results) -> dict[str, str]:
    """How each figure was had, in plain words."""
    s = results.settings
    found = {"Query": f"{s['query'].capitalize()}. Batch 1, {s['threads']} threads."}
    if "windows" in s:
        found["Perplexity"] = (
            f"{s['text']} is tokenized whole ({s['text_tokens']:,} tokens) and cut into windows of {s['window']} "
            f"tokens (stride {s['stride']}, no overlap); {s['windows']} of them, evenly spread, are scored, each from a cold "
            f"start: {s['scored_tokens']:,} tokens. No chat template. Interval: Student's t on the windows' "
            "log-likelihoods; ratios are paired window by window."
        )
    if results.has("kl"):
        found["Fidelity"] = (
            "KL divergence KL(baseline || model) in nats, and how often the most likely next token is the same, "
            "at every scored token. Interval: BCa bootstrap over windows."
        )
    if results.has("cosine"):
        found["Fidelity"] = (
            f"Sentences from {s['text']}, embedded by baseline and model: cosine of the two embeddings, and how "
            "often a sentence's nearest other sentence is the same. Interval: BCa bootstrap over sentences."
        )
    found["Speed"] = (
        f"Every model runs in a process of its own and they take turns, so that drift hits all alike; "
        f"rounds stopped {s['rounds']}. Speeds are geometric means over rounds with Student's t intervals; ratios are paired round by "
        "round; percentiles are over single tokens or texts, with order-statistic intervals."
    )
    if "meter" in s:
        found["Energy"] = (
            f"{s['meter']} ({s['meter_covers']}). Windows of {s['energy_window_s']:.0f} s or more of queries back to back; "
            f"an idle window of the same length gave {s['idle_w']:.2f} W. Gross is everything the meter counts "
            "while a query runs; net is less the idle power. The interval holds the scatter of power and of query times."
        )
    if "grid" in s:
        found["Carbon"] = (
            f"Energy times {s['grid_g_per_kwh']} gCO2e/kWh ({s['grid']}; {s['grid_source']}). Operation only: making the "
            "machine and the model is not in it. Per 1000 tokens: gross, per 1000 tokens "
            + ("answered, their share of prompts included." if "answer_tokens" in s else "read.")
        )
    found["Verdict"] = "Better or worse is said only where the 95 % interval of the ratio leaves out 1; else undecided."
    return found


def caveats(results: Results) -> list[str]:
    """What a reader must not overlook."""
    found = []
    here, settings = results.machine, results.settings
    if str(settings.get("meter", "")).startswith("estimated"):
        found.append(
            "Energy and carbon are estimates from the processor's rated power and load; no instrument was read. Their "
            "intervals do not hold the error of that estimate."
        )
    if "meter" in settings and "grid" not in settings:
        found.append("No country was given: energy is measured, gCO2e is left out.")
    if here.load is not None and here.load > 0.5 * here.cores:
        found.append(f"The machine was busy when the bench began (load {here.load:.1f} on {here.cores} cores).")
    if "time was up" in str(settings.get("rounds")):
        found.append("The speed rounds ended because time was up; --effort full takes more.")
    if str(settings.get("text", "")).startswith("pydoc_data"):
        found.append("The built-in text compares models with each other; published perplexities are on other texts.")
    for row in results.rows:
        noise = [METRICS[m].label for m in row.ratios if m in METRICS and row.verdict(m) == "undecided"]
        if noise:
            found.append(f"{row.name}: undecided, the difference is inside the noise: {', '.join(noise)}.")
        if row.error:
            found.append(f"{row.name}: {row.error}")
    return found

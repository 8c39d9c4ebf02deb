"""What was done, as settings for machines and as sentences for people."""

from __future__ import annotations

from typing import Any

from greenllm.bench import parts, reading, texts
from greenllm.bench.results import METRICS, Results
from greenllm.bench.runners import ENCODERS
from greenllm.bench.session import Query, Session
from greenllm.bench.tasks import tell

_DRIFT = 0.05  # of idle power, from which on it is told


def query_settings(query: Query) -> dict[str, Any]:
    """What a query is, in numbers and words."""
    if query.answer:
        words = f"a prompt of {query.prompt} tokens is read and exactly {query.answer} tokens are answered, greedy"
        return {"prompt_tokens": query.prompt, "answer_tokens": query.answer, "query": words}
    return {"prompt_tokens": query.prompt, "query": f"one text of up to {query.prompt} tokens is embedded"}


def text_settings(session: Session, text: texts.Text, window: int) -> dict[str, Any]:
    """What was read, and how much of it was scored."""
    found: dict[str, Any] = {"text": text.name, "text_bytes": len(text.text.encode())}
    first = next((c.windows for c in session.live if c.windows and c.info.task not in ENCODERS), None)
    if first is None:
        return found
    return found | {
        "window": window,
        "stride": window,
        "windows": len(first.tokens),
        "scored_tokens": sum(len(t) - first.start for t in first.tokens),
        "text_tokens": first.total,
        "prefix_tokens": len(first.tokens[0]) - window,
    }


def methods(results: Results) -> dict[str, str]:
    """How each figure was had."""
    s = results.settings
    found = {"Query": f"{s['query'][0].upper()}{s['query'][1:]}. Batch 1, {s['threads']} threads."}
    if results.has("perplexity"):
        found["Perplexity"] = _perplexity(s)
    if results.has("kl") or results.has("cosine"):
        found["Fidelity"] = _tokens() if results.has("kl") else _images(s) if "images" in s else _sentences(s)
    if tasks := {name: t for row in results.rows for name, t in row.tasks.items()}:
        found["Tasks"] = tell.pictures(tasks) if "images" in s else tell.methods(tasks, chat=bool(s.get("chat")))
    if "robustness" in s:
        found["Robustness"] = tell.robustness()
    found["Speed"] = (
        "Every model runs in a process of its own and they take turns, there and back, so that drift hits "
        f"all alike; in sittings spread over the bench. It ended {s['rounds']}. Speeds are geometric means over "
        f"sittings, and the interval is Student's t on their means, {_earlier(s)}. Ratios are paired round by round. "
        "A percentile of single tokens or texts is taken in each round; where rounds are too short for it, it is of "
        "all of them together and has no interval." + (reading.METHOD if "texts" in s else "") + _limits(s)
    )
    found |= parts.methods(results)
    if any(row.batches for row in results.rows):
        found["Batches"] = _batches()
    if any("load" in row.samples for row in results.rows):
        found["Loads"] = _loads()
    if "meter" in s:
        found["Energy"] = _energy(s)
    if "grid" in s:
        found["Carbon"] = _carbon(s)
    if any(row.payback for row in results.rows):
        found["Payback"] = _payback()
    found["Verdict"] = "Better or worse is said only where the 95 % interval of the ratio leaves out 1; else undecided."
    return found


def _earlier(s: dict[str, Any]) -> str:
    """What the intervals hold of how the machine moves between benches."""
    used = s.get("earlier")
    if "assumed" in s:
        speeds, ratios = (f"{x:.0%}".replace("%", " %") for x in s["assumed"])
        return (
            f"or, where that is wider, how much benches differ on a virtual machine, which others share: {speeds} "
            f"(ratios {ratios}) is assumed, and corrected by this machine's earlier benches of the same work "
            f"({used} repeats)"
        )
    if used:
        return f"or, where that is wider, how this machine's earlier benches of the same work differed ({used} repeats)"
    return "for where another run would lie: it holds what the machine did meanwhile, not what it does on another day"


def _limits(s: dict[str, Any]) -> str:
    """What the harness takes, and what the machine can give; of a report from before these were measured nothing."""
    if "harness_us" not in s:
        return ""
    return (
        f" The bench itself takes {s['harness_us']:.2f} µs a token (a model that answers at once), which is in them. "
        f"This machine reads {s['read_gb_s']:.1f} GB/s with {s['threads']} threads (best of 5 passes over an array far "
        "larger than its caches): what bounds decoding, because each token reads every weight."
    )


def _batches() -> str:
    return (
        "Several queries at once, of the same length as the one query, so that none is padded; three rounds in turns. "
        "Prefill and decode are tokens a second of all of them together."
    )


def _loads() -> str:
    return (
        "From the start of a process until its model is ready, Python and the engine's libraries included. In each "
        "round the models take turns, cold and then warm; no other is loaded meanwhile. Cold: all files of the model "
        "were dropped from the page cache (posix_fadvise), and mincore found 1 % of their pages in it at the most. The "
        "libraries' own files stay in it, and what a disk or a host below this machine keeps is not known here."
    )


def _perplexity(s: dict[str, Any]) -> str:
    start = f"after {s['prefix_tokens']} of the tokenizer's own first tokens" if s["prefix_tokens"] else "from nothing"
    return (
        f"{s['text']} is tokenized whole ({s['text_tokens']:,} tokens) and cut into windows of {s['window']} tokens "
        f"(stride {s['stride']}, no overlap); {s['windows']} of them, evenly spread, are scored, each {start}: "
        f"{s['scored_tokens']:,} tokens. No chat template. Interval: Student's t on the windows' log-likelihoods; "
        "ratios are paired window by window. Bits per byte is the same likelihood over the text's UTF-8 bytes, and "
        "compares models with different tokenizers."
    )


def _tokens() -> str:
    return (
        "KL divergence KL(baseline || model) in nats, and how often the most likely next token is the same, at every "
        "scored token. Interval: BCa bootstrap over windows."
    )


def _sentences(s: dict[str, Any]) -> str:
    return (
        f"Sentences from {s['text']}, read by baseline and model: cosine of the two embeddings (of a classifier: "
        "logits), and how often a sentence's nearest other sentence (its class) is the same. Interval: BCa bootstrap "
        "over sentences."
    )


def _images(s: dict[str, Any]) -> str:
    if "texts" in s:
        return (
            f"{s['images'][0].upper()}{s['images'][1:]}: cosine of model's and baseline's vectors, and how often the "
            f"nearest other image is the same. The same cosine of {s['texts']}. Intervals: BCa bootstrap."
        )
    return (
        f"{s['images'][0].upper()}{s['images'][1:]}: cosine of model's and baseline's logits (of the pooled states, "
        "where there are no classes), and how often the likeliest class (else the nearest other image) is the same. "
        "Interval: BCa bootstrap over images."
    )


def _energy(s: dict[str, Any]) -> str:
    phases = (
        " By phase: prefill has a window of its own, of prompts with one token answered; decode is a query less "
        "its prefill; starts, where loads were asked for, have a window too. A difference has both "
        "errors in its interval."
    )
    return (
        f"{s['meter']}: {s['meter_covers']}. Left out: {s['meter_leaves_out']}. Resolution: {s['meter_resolution']}. "
        f"Windows of {s['energy_window_s']:.0f} s or more of queries back to back, between two idle windows of the "
        f"same length with all models loaded: {s['idle_w']:.2f} W before, {s['idle_after_w']:.2f} W after. Gross is "
        "everything the meter counts while a query runs; net is less the idle power, taken on the line between the "
        "two. The interval holds the scatter of power and of query times, the meter's lag, half the drift of idle, and "
        "how the sittings of the speed differ; where watts are estimated, the time of a query is the mean over these."
        + (" Where that is wider, it is as of speeds." if s.get("earlier") or "assumed" in s else "")
        + phases
    )


def _carbon(s: dict[str, Any]) -> str:
    tokens = "answered, their share of the prompt included" if "answer_tokens" in s else "read"
    per = f" Per 1000 tokens: gross, per 1000 tokens {tokens}." if {"prompt_tokens", "answer_tokens"} & set(s) else ""
    found = (
        f"Energy times {s['grid_g_per_kwh']} gCO2e/kWh ({s['grid']}; {s['grid_source']}). Operation only: making the "
        f"machine and the model is not in it.{per}"
    )
    if "embodied_kg" in s:
        found += (
            f" SCI (ISO/IEC 21031), (E x I + M) / R: R is one query as above; E what the meter covers while it runs, "
            f"idle power included; I the factor above; M the making of the machine, {s['embodied_kg']:g} kgCO2e as "
            f"given, over {s['lifetime_years']:g} years of service in use all the time, by the seconds of the query. "
            "Left out: what the meter leaves out, the network, other machines, the making of the model."
        )
    return found


def _payback() -> str:
    return (
        "The energy of all steps that made the model (export and bench are not in it), over what one query saves "
        "against the baseline, gross. The interval is that of the saving; it is never where nothing is saved."
    )


def caveats(results: Results) -> list[str]:
    """What a reader must not overlook."""
    found = []
    here, settings = results.machine, results.settings
    if str(settings.get("meter", "")).startswith("estimated"):
        found.append(
            "Energy and carbon are estimates from the processor's rated power and load; no instrument was read. Their "
            "intervals do not hold the error of that estimate."
        )
    if "meter" in settings and abs(rise := settings["idle_after_w"] - settings["idle_w"]) > _DRIFT * settings["idle_w"]:
        found.append(f"Idle power drifted by {rise:+.2f} W during the bench; net energy is that much less certain.")
    if "meter" in settings and "grid" not in settings:
        found.append("No country was given: energy is told, gCO2e is left out.")
    if here.load is not None and here.load > 0.5 * here.cores:
        found.append(
            f"The machine was busy when the bench began (load {here.load:.1f} on {here.cores} cores): speeds are lower "
            "and idle power is higher than they would be alone."
        )
    if "disturbed" in settings:
        found.append(f"{settings['disturbed']}.")
    if "not every" in str(settings.get("rounds")):
        found.append(
            "The speed rounds ended when time was up, before every interval was narrow; --effort full takes more."
        )
    if str(settings.get("text", "")).startswith("pydoc_data") and results.has("perplexity"):
        found.append("The built-in text compares models with each other; published perplexities are on other texts.")
    found += [*tell.caveats(results), *settings.get("robustness", [])]
    for row in results.rows:
        noise = [METRICS[m].label for m in row.ratios if m in METRICS and row.verdict(m) == "undecided"]
        if noise:
            found.append(f"{row.name}: undecided, the difference is inside the noise: {', '.join(noise)}.")
    return found

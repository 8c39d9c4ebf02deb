"""The card of an artifact, a Hugging Face model card: where it comes from, what was done, and what is known of it.

Made from the manifest, and from the bench's results where there are some. What nobody looked at is said to be so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenllm import artifact, licence
from greenllm.artifact import Artifact, Energy, Manifest, StepRecord, write_atomic

if TYPE_CHECKING:
    from greenllm.bench.results import Results, Row

CARD = "README.md"
_LIBRARIES = {"checkpoint": "transformers", "genai": "onnxruntime-genai", "onnx": "onnxruntime", "gguf": "llama.cpp"}
_NAME = re.compile(r"[^\w .:()+-]|\s(?<! )")  # what no name needs, and front matter could be broken by
_MARKS = re.compile(r"([\\`*_\[\]<>|#])")


def seal(path: Path, manifest: Manifest) -> Artifact:
    """:func:`greenllm.artifact.seal` with a card."""
    write_card(Artifact(path, manifest))
    return artifact.seal(path, manifest)


def write_card(done: Artifact, results: Results | None = None, report: str = "") -> None:
    """Put the card into an artifact that is about to be sealed.

    Args:
        done: what was made; its manifest need not be on disk yet.
        results: of its bench, the source first and the model last.
        report: the bench's, as Markdown.
    """
    write_atomic(done.path / CARD, model_card(done, results, report))


def model_card(done: Artifact, results: Results | None = None, report: str = "") -> str:
    """The contents of a card, see :func:`write_card`."""
    from huggingface_hub import ModelCardData

    manifest, row = done.manifest, results.rows[-1] if results else None
    task = str(manifest.details.get("task") or (row.task if row else "")) or None
    hub = [p.id for p in manifest.parents if p.kind == "hub"]
    own: dict[str, Any] = licence.on_hub(_licence(manifest))
    own |= {"eval_results": _figures(row, results, task)} if row and results else {}
    data = ModelCardData(
        model_name=_NAME.sub("", row.name if row else _name(manifest)), base_model=hub[-1] if hub else None,
        pipeline_tag=task, tags=["greenllm"], co2_eq_emissions=_emissions(manifest.energy, results),
        library_name=_LIBRARIES.get(row.runner if row else manifest.kind, row.runner if row else manifest.kind), **own,
    )  # fmt: skip
    sections = "\n\n".join(f"## {title}\n\n{text}" for title, text in _sections(manifest, row))
    head = f"---\n{data.to_yaml()}\n---\n\n# {_plain(data.model_name)}\n\n"
    return head + sections + "\n" + (f"\n{report}" if report else "")


def _name(manifest: Manifest) -> str:
    """The source's, and what became of it."""
    source = manifest.parents[-1].id if manifest.parents else "model"
    return " ".join([source.rsplit("/", 1)[-1], *(s.step for s in manifest.steps), manifest.kind])


def _sections(manifest: Manifest, row: Row | None) -> Iterator[tuple[str, str]]:
    yield "Source and licence", _source(manifest)
    yield "What was done", "\n".join(map(_step, manifest.steps)) or "Its numbers were not changed."
    yield "Data", _data(manifest)
    yield "How it was tested", _tests(manifest, row)
    yield "Who is worse off", _worse(row)
    yield "Energy and carbon of making it", _energy(manifest.energy)
    task = _plain(manifest.details.get("task", "what its source does"))
    target = manifest.details.get("target")
    where = f" on {_plain(target)}" if target else ""
    yield (
        "Intended use",
        (
            f"{task.capitalize()}{where}, for what its source is meant for and within the limits that its authors "
            "state: compressing takes none of them away. Test it on your own data before people depend on it."
        ),
    )


def _source(manifest: Manifest) -> str:
    chain = " ← ".join(_plain(p.id) + (f" at {p.revision[:12]}" if p.revision else "") for p in manifest.parents)
    return f"Made from {chain or 'nothing that is recorded'}. {licence.terms(_licence(manifest))[1]}"


def _licence(manifest: Manifest) -> str | None:
    """Of the source, the last of the parents."""
    return manifest.parents[-1].licence if manifest.parents else None


def _step(record: StepRecord) -> str:
    given = ", ".join(f"{k} {v}" for k, v in record.parameters.items() if v not in (None, "", 0, False))
    found = {k: v for k, v in record.result.items() if isinstance(v, (int, float, str)) and k != "tied"}
    rounded = {k.replace("_", " "): f"{v:.4g}" if isinstance(v, float) else v for k, v in found.items()}
    told = "; ".join(f"{k} {v}" for k, v in rounded.items())
    return f"- **{record.step}**: {_plain(given)}{f' ({_plain(told)})' if told else ''}"


def _data(manifest: Manifest) -> str:
    lines = []
    if c := manifest.calibration:
        words = "its source's own words" if c.get("source") == "self" else str(c.get("source"))
        size = f"{c.get('samples')} samples" + (f" of {c['length']} tokens" if "length" in c else "")
        if balance := c.get("balance"):
            size += f", as many of each {_plain(balance)}"
        dropped = ", ".join(f"{n} {why}" for why, n in c.get("dropped", {}).items())
        lines.append(
            f"- Calibration: {_plain(words)}, {size}{f'; dropped first: {_plain(dropped)}' if dropped else ''}"
        )
    lines += [
        f"- {record.step}, {key.replace('_', ' ')}: {_plain(record.parameters[key])}"
        for record in manifest.steps
        for key in ("data", "held_out", "teacher")
        if record.parameters.get(key)
    ]
    return "\n".join(lines) or "None was used."


def _tests(manifest: Manifest, row: Row | None) -> str:
    found = manifest.details.get("verified") or {}
    told = ", ".join(f"{k.replace('_', ' ')} {v:.3g}" for k, v in found.items() if isinstance(v, float))
    lines = [f"Its graph was run and compared with the weights that it holds: {_plain(told)}."] if told else []
    lines.append(
        "It was benched against its source; the report is below." if row
        else "It was not benched against its source: what it lost is not known. `greenllm bench SOURCE THIS` finds out."
    )  # fmt: skip
    return " ".join(lines)


def _worse(row: Row | None) -> str:
    from greenllm.bench.results import METRICS

    if row is None:
        return "Nobody looked."
    lines = [
        f"- {METRICS[k].label}: {r.value:.3g} times the source's" for k, r in row.ratios.items()
        if METRICS[k].group == "Quality" and row.verdict(k) == "worse"
    ]  # fmt: skip
    lines += [
        f"- {_plain(name)}: {a.difference.value:+.3g} {a.difference.unit}" for name, t in row.tasks.items()
        for a in [t.main.against] if a and a.verdict == "worse"
    ]  # fmt: skip
    looked = f"Of {len(row.tasks) or 'no'} tasks and the text that was scored, beyond the interval:"
    closing = "Whether some people are served worse than others shows only where tasks tell groups apart."
    return "\n".join([looked, "", *(lines or ["- none"]), "", closing])


def _energy(energy: Energy | None) -> str:
    if energy is None:
        return "Not known."
    grams = "" if energy.gco2e is None else f", {energy.gco2e:.3g} gCO2e ({_plain(energy.country or 'factor given')})"
    made = f"{energy.kwh:.3g} kWh{grams}, {energy.seconds:.0f} s; {_plain(energy.method)}"
    return f"{made}. Its source's own training is not in it."


def _emissions(energy: Energy | None, results: Results | None) -> dict[str, Any] | None:
    """Grams of making it; only where the grid is known."""
    if energy is None or energy.gco2e is None:
        return None
    found = {
        "emissions": round(energy.gco2e, 4), "source": energy.method, "training_type": "compression",
        "geographical_location": energy.country or "given by the user",
    }  # fmt: skip
    return found | ({"hardware_used": f"{results.machine.cpu}, {results.machine.cores} cores"} if results else {})


def _figures(row: Row, results: Results, task: str | None) -> list[Any]:
    from huggingface_hub import EvalResult

    from greenllm.bench.results import METRICS

    text = str(results.settings.get("text") or results.settings.get("images", "unknown"))
    kind = task or "text-generation"
    found = [
        EvalResult(
            task_type=kind, dataset_type="text", dataset_name=text, metric_type=name, metric_value=m.value,
            metric_name=f"{METRICS[name].label}{', ' + m.unit if m.unit else ''} ({m.method})",
        )
        for name, m in row.measurements.items()
        if name in METRICS
    ]  # fmt: skip
    return found + [
        EvalResult(
            task_type=kind, dataset_type="task", dataset_name=name, metric_type=metric, metric_value=s.measured.value,
            metric_name=f"{metric}{', ' + s.measured.unit if s.measured.unit else ''} ({s.measured.method})",
        )
        for name, t in row.tasks.items()
        for metric, s in t.scores.items()
    ]  # fmt: skip


def _plain(value: object) -> str:
    """Text from a manifest, which is untrusted: no Markdown, no HTML, one line."""
    return _MARKS.sub(r"\\\1", " ".join(str(value).split()))

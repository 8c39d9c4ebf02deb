"""A Hugging Face model card: what a hub shows of a compressed model, with its figures as ``model-index``."""

from __future__ import annotations

from typing import Any

from greenllm.artifact import Artifact
from greenllm.bench.results import METRICS, Results, Row

_SOURCES = ("hub",)  # kinds of parents whose id means something elsewhere


def model_card(done: Artifact, results: Results, text: str) -> str:
    """The contents of a card.

    Args:
        done: the compressed model.
        results: of its bench, the source first and the model last.
        text: the report as Markdown, which becomes the card's.
    """
    from huggingface_hub import ModelCardData

    manifest, row = done.manifest, results.rows[-1]
    bases = [p.id for p in manifest.parents if p.kind in _SOURCES]
    task = str(manifest.details.get("task", row.task)) or None
    data = ModelCardData(
        model_name=row.name, base_model=bases[-1] if bases else None, pipeline_tag=task, tags=["greenllm"],
        library_name="onnxruntime-genai" if row.runner == "genai" else row.runner,
        co2_eq_emissions=_emissions(manifest.energy, results), eval_results=_figures(row, results, task),
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def _emissions(energy: Any, results: Results) -> dict[str, Any] | None:
    """Grams of making it; only where the grid is known."""
    if energy is None or energy.gco2e is None:
        return None
    return {
        "emissions": round(energy.gco2e, 4), "source": energy.method, "training_type": "compression",
        "geographical_location": energy.country or "given by the user",
        "hardware_used": f"{results.machine.cpu}, {results.machine.cores} cores",
    }  # fmt: skip


def _figures(row: Row, results: Results, task: str | None) -> list[Any]:
    from huggingface_hub import EvalResult

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

"""What a bench found out, as data: JSON there and back without loss."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from greenllm.artifact import Energy, Source, StepRecord
from greenllm.bench.measurement import Measurement
from greenllm.errors import GreenError

Outcome = Literal["met", "failed", "undecided"]
Verdict = Literal["better", "worse", "same", "undecided", "unknown"]
FEW = 10  # items of a subgroup, below which it is told and not compared


class Metric(NamedTuple):
    """How a figure is called and which way is good."""

    label: str
    group: str
    better: Literal["lower", "higher"]


METRICS: dict[str, Metric] = {
    "perplexity": Metric("Perplexity", "Quality", "lower"),
    "bits_per_byte": Metric("Bits per byte of text", "Quality", "lower"),
    "kl": Metric("KL divergence from the baseline", "Quality", "lower"),
    "top1": Metric("Same most likely token or class", "Quality", "higher"),
    "cosine": Metric("Cosine to the baseline's embedding", "Quality", "higher"),
    "cosine_text": Metric("Cosine of texts to the baseline's", "Quality", "higher"),
    "neighbour": Metric("Same nearest neighbour", "Quality", "higher"),
    "spearman": Metric("Spearman on sentence pairs", "Quality", "higher"),
    "prefill": Metric("Prefill", "Speed", "higher"),
    "first_token": Metric("Time to first token", "Speed", "lower"),
    "decode": Metric("Decode", "Speed", "higher"),
    "token_p50": Metric("Per token, p50", "Speed", "lower"),
    "token_p95": Metric("Per token, p95", "Speed", "lower"),
    "token_p99": Metric("Per token, p99", "Speed", "lower"),
    "bandwidth": Metric("Weights read while decoding", "Speed", "higher"),
    "real_time": Metric("Real-time factor", "Speed", "lower"),
    "caption": Metric("Time to a whole caption", "Speed", "lower"),
    "encode": Metric("Encode", "Speed", "higher"),
    "encode_text": Metric("Encode, texts", "Speed", "higher"),
    "text_p50": Metric("Per text, p50", "Speed", "lower"),
    "text_p95": Metric("Per text, p95", "Speed", "lower"),
    "text_p99": Metric("Per text, p99", "Speed", "lower"),
    "image_p50": Metric("Per image, p50", "Speed", "lower"),
    "image_p95": Metric("Per image, p95", "Speed", "lower"),
    "image_p99": Metric("Per image, p99", "Speed", "lower"),
    "load": Metric("Start to ready", "Speed", "lower"),
    "load_cold": Metric("Start to ready, files not in cache", "Speed", "lower"),
    "disk": Metric("On disk", "Size", "lower"),
    "bits_per_weight": Metric("Bits per weight of the baseline", "Size", "lower"),
    "memory": Metric("Peak memory", "Size", "lower"),
    "gpu_memory": Metric("Memory of the GPU", "Size", "lower"),
    "energy_gross": Metric("Energy per query, gross", "Energy", "lower"),
    "energy_net": Metric("Energy per query, net of idle", "Energy", "lower"),
    "energy_load": Metric("Energy of a start, gross", "Energy", "lower"),
    "energy_prefill": Metric("Energy of prefill, per prompt token, clip or image, gross", "Energy", "lower"),
    "energy_decode": Metric("Energy of decode, per answered token, gross", "Energy", "lower"),
    "carbon_gross": Metric("Carbon per query, gross", "Energy", "lower"),
    "carbon_net": Metric("Carbon per query, net of idle", "Energy", "lower"),
    "carbon_1000": Metric("Carbon per 1000 tokens, gross", "Energy", "lower"),
    "embodied": Metric("Share of making the machine, per query", "Energy", "lower"),
    "sci": Metric("SCI: carbon per query, making included", "Energy", "lower"),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Machine(_Strict):
    """Where it ran. ``load``: the 1-minute load average before the bench began; ``virtual``: a hypervisor is seen."""

    cpu: str
    cores: int
    memory_bytes: int
    load: float | None = None
    system: str = Field(default_factory=platform.platform)
    virtual: bool = False


class Provenance(_Strict):
    """How a model was made, from its manifest; empty for one that greenllm did not make."""

    parents: list[Source] = Field(default_factory=list)
    steps: list[StepRecord] = Field(default_factory=list)
    calibration: dict[str, Any] | None = None
    energy: Energy | None = None


class Paired(_Strict):
    """A model's answers against the baseline's, item by item; where they flip, how many, and McNemar's exact ``p``."""

    difference: Measurement
    better: Literal["lower", "higher"] = "higher"
    won: int | None = None
    lost: int | None = None
    p: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Decided only where the difference's interval leaves out 0; the same where no item flipped."""
        if self.difference.ci95 is None:
            return "unknown"
        low, high = self.difference.ci95
        if low == high == 0 or self.won == self.lost == 0:
            return "same"
        if low <= 0 <= high:
            return "undecided"
        return "better" if (low > 0) == (self.better == "higher") else "worse"


class Flip(_Strict):
    """An item to which a model's answer is another than the baseline's.

    ``nats`` is how far the likelihoods of the two answers moved, where there are any; ``better`` whether the new answer
    is right (None where both are, or neither).
    """

    asked: str
    before: str
    after: str
    nats: float | None = None
    better: bool | None = None


class Score(_Strict):
    """One metric of a task: what each item gave, and what that is over all of them."""

    values: list[float]
    measured: Measurement
    against: Paired | None = None


class Curve(_Strict):
    """A task's score of the same items against the strength of a disturbance, the first 0, and how much is ``kept``.

    ``strengths`` are percents (of other prompts: numbers of wordings), ``labels`` the same for people.
    """

    words: str
    strengths: list[float]
    labels: list[str]
    scores: list[Score]
    kept: Score | None = None


class TaskResult(_Strict):
    """How a model did on a task; ``total`` is how many items it has, ``chance`` the share that guessing gets right.

    ``scores`` go by lm-eval's names ("acc", "acc_norm", "exact_match"); the first is the task's main one. Of a subgroup
    they are called "acc: group". ``flipped`` counts the answers that differ from the baseline's; ``flips`` are some.
    ``curves`` go by the kind of disturbance; ``kept`` is the mean of theirs. ``written`` is what it wrote about images.
    """

    total: int
    chance: float | None
    scores: dict[str, Score]
    note: str = ""
    flipped: int = 0
    flips: list[Flip] = Field(default_factory=list)
    curves: dict[str, Curve] = Field(default_factory=dict)
    kept: Score | None = None
    written: list[str] = Field(default_factory=list)

    @property
    def main(self) -> Score:
        """The score that stands for the task."""
        return next(iter(self.scores.values()))


class Payback(_Strict):
    """Queries until making a model is saved by it; None is never, also at an end of the interval."""

    made: float
    unit: Literal["kWh", "gCO2e"]
    queries: float | None
    ci95: tuple[float | None, float | None] | None
    method: str

    @property
    def words(self) -> str:
        """For people: a number of queries, never, or that it is not decided."""
        least, most = self.ci95 or (self.queries, self.queries)
        if least is None:
            return "never"
        if self.queries is None or most is None:
            return f"undecided: {least:,.0f} queries at the least, or never"
        low, number, high = (f"{q:,.0f}" for q in (least, self.queries, most))
        between = f" [{low} – {high}]" if low != high else ""
        return f"after {number} {'query' if number == '1' else 'queries'}{between}"


class Requirement(_Strict):
    """What was asked of a model, and what was found."""

    text: str
    model: str
    outcome: Outcome
    found: str


class Row(_Strict):
    """One model. ``error`` says why figures are missing; ``ratios`` are to the baseline; ``sizes`` are MB by kind.

    ``lengths`` go by the prompt's length, ``batches`` by the number of queries; a batch that it cannot do is empty.
    ``parts`` go by the part's name, and hold "size", "time" and "energy" of it and of each its "…_share" of the whole.
    """

    name: str
    path: str
    runner: str
    task: str = ""
    error: str | None = None
    notes: list[str] = Field(default_factory=list)
    measurements: dict[str, Measurement] = Field(default_factory=dict)
    ratios: dict[str, Measurement] = Field(default_factory=dict)
    samples: dict[str, list[float]] = Field(default_factory=dict)
    sizes: dict[str, float] = Field(default_factory=dict)
    blocks: dict[str, float] = Field(default_factory=dict)
    lengths: dict[str, dict[str, Measurement]] = Field(default_factory=dict)
    batches: dict[str, dict[str, Measurement]] = Field(default_factory=dict)
    parts: dict[str, dict[str, Measurement]] = Field(default_factory=dict)
    tasks: dict[str, TaskResult] = Field(default_factory=dict)
    payback: dict[str, Payback] = Field(default_factory=dict)
    provenance: Provenance = Field(default_factory=Provenance)

    def __getitem__(self, metric: str) -> Measurement:
        """A figure by its name in :data:`METRICS`."""
        return self.measurements[metric]

    def __contains__(self, metric: str) -> bool:
        """Whether it has this figure."""
        return metric in self.measurements

    def verdict(self, metric: str) -> Verdict:
        """Against the baseline: decided only where the ratio's interval leaves out 1.

        "unknown" where there is no interval, as for something that was measured once.
        """
        ratio = self.ratios.get(metric)
        if ratio is None or ratio.ci95 is None:
            return "unknown"
        lo, hi = ratio.ci95
        if lo == hi == 1:
            return "same"
        if lo <= 1 <= hi:
            return "undecided"
        return "better" if (hi < 1) == (METRICS[metric].better == "lower") else "worse"


class Results(_Strict):
    """All of a bench: one row a model, in the order they were given."""

    format: Literal[1] = 1
    created: str
    baseline: str
    rows: list[Row]
    machine: Machine
    versions: dict[str, str]
    settings: dict[str, Any]
    methods: dict[str, str] = Field(default_factory=dict)
    caveats: list[str] = Field(default_factory=list)
    requirements: list[Requirement] = Field(default_factory=list)

    def __getitem__(self, name: str) -> Row:
        """A model's row.

        Raises:
            GreenError: there is no such model.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise GreenError(f"No model {name!r} in these results; there are {', '.join(r.name for r in self.rows)}.")

    def __len__(self) -> int:
        """Number of models."""
        return len(self.rows)

    def names(self) -> Iterator[str]:
        """Names of the models, baseline included."""
        return (row.name for row in self.rows)

    def has(self, metric: str) -> bool:
        """Whether any row has this figure."""
        return any(metric in row for row in self.rows)

    def to_json(self) -> str:
        """Everything, as JSON text; :meth:`from_json` reads it back equal."""
        return self.model_dump_json(indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Read what :meth:`to_json` wrote.

        Raises:
            GreenError: not JSON, or another schema.
        """
        try:
            return cls.model_validate_json(text)
        except ValueError as e:
            raise GreenError(f"These are no bench results: {str(e).splitlines()[0]}.") from e


def machine() -> Machine:
    """This machine, now."""
    import os

    import psutil

    return Machine(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        load=round(os.getloadavg()[0], 2),
        virtual=any("hypervisor" in line.split() for line in _cpu_lines() if line.startswith("flags")),
    )


def _cpu_lines() -> list[str]:
    """What Linux says of its processors; elsewhere nothing."""
    from pathlib import Path

    info = Path("/proc/cpuinfo")
    return info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []


def _cpu_name() -> str:
    named = [x.split(":", 1)[1].strip() for x in _cpu_lines() if x.lower().startswith(("model name", "hardware"))]
    return named[0] if named else platform.processor() or platform.machine()

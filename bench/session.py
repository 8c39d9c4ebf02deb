"""One bench: load every model in its own process, measure in turns, compare with the baseline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenllm.bench import latency, parts, texts
from greenllm.bench.measurement import Measurement, counted
from greenllm.bench.models import Target, sizes
from greenllm.bench.process import Failed, Model, blame
from greenllm.bench.results import Row
from greenllm.bench.runners import Info
from greenllm.bench.tensors import bytes_by_kind, bytes_by_part
from greenllm.errors import GreenError
from greenllm.progress import Progress

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Effort:
    """How long to try.

    Attributes:
        windows: windows of text to score.
        sentences: sentences to embed, for an encoder.
        items: of each task, evenly spread; 0 for all.
        sittings: over which rounds of queries are spread, at least.
        width: relative half-width at which an interval is narrow enough.
        seconds: for the rounds of all models together; half of them where the intervals are narrow by then.
        turn: least seconds of one round of one model.
        energy: seconds of an energy window, where the meter asks for no more.
        loads: rounds of a cold and a warm load.
    """

    windows: int = 16
    sentences: int = 64
    items: int = 200
    sittings: int = 5
    width: float = 0.05
    seconds: float = 45.0
    turn: float = 0.5
    energy: float = 10.0
    loads: int = 0


EFFORTS = {
    "quick": Effort(),
    "full": Effort(
        windows=100, sentences=256, items=0, sittings=10, width=0.02, seconds=300.0, turn=1.0, energy=60.0, loads=5
    ),
}


@dataclass(frozen=True)
class Query:
    """What is asked again and again: ``prompt`` tokens read (0: an image or a clip), ``answer`` written (0: none)."""

    prompt: int
    answer: int


@dataclass
class Contender:
    """A model while it is on the bench."""

    target: Target
    row: Row
    model: Model
    info: Info = field(default_factory=lambda: Info("", Path()))
    weights: int = 0  # bytes that a token reads
    copies: float = 0.0  # bytes a second that its GPU copies, read and written
    windows: texts.Windows | None = None
    prompt: Any = field(default_factory=list)  # tokens, the pixels of an image, or a clip, float32 [samples]
    rounds: latency.Rounds = field(default_factory=lambda: latency.Rounds(0))


class Session:
    """All contenders. A phase goes over those that still live; who fails keeps what it has and says why.

    Args:
        targets: the baseline first.
        threads: for each model.
        progress: told of every phase.
    """

    def __init__(self, targets: list[Target], threads: int, progress: Progress) -> None:
        self.threads = threads
        self.progress = progress
        self.targets = targets
        self.rows = [Row(name=t.name, path=t.path, runner=t.runner, provenance=t.provenance()) for t in targets]
        self.live: list[Contender] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Nothing runs yet."""
        return self

    def __exit__(self, *error: object) -> None:
        """End every process."""
        self._stack.close()

    @contextmanager
    def watching(self, who: Contender, phase: str) -> Iterator[None]:
        """A failure in the block is a finding about ``who``, who leaves the bench."""
        try:
            yield
        except Failed as e:
            who.row.error = f"{phase}: {e}"
            self.progress.note(f"{who.row.name}: {who.row.error}")
            who.model.close()
            self.live.remove(who)

    @property
    def baseline(self) -> Contender | None:
        """The first model, while it lives."""
        return self.live[0] if self.live and self.live[0].row is self.rows[0] else None

    def load(self) -> None:
        """Start and load them one by one.

        Raises:
            GreenError: a model that the user named is none, or generators and encoders are mixed.
        """
        self.progress.stage("load", len(self.targets))
        for target, row in zip(self.targets, self.rows, strict=True):
            who = Contender(target, row, self._process())
            self.live.append(who)
            with self.watching(who, "load"):
                self._load(who)
            self.progress.advance()
        tasks = {c.info.task for c in self.live}
        if len(tasks) > 1:
            kinds = " and ".join(sorted(tasks))
            raise GreenError(f"Models for {kinds} cannot be benched against each other.", "Do them apart.")

    def _load(self, who: Contender) -> None:
        begin = time.perf_counter()
        try:
            self._send(who)
            who.info = who.model.result()
        except Failed as e:
            if e.users:
                raise blame(e, who.row.name) from e
            raise
        took = time.perf_counter() - begin
        who.row.task = who.info.task
        who.row.notes += who.info.notes
        note = "one start of process, libraries and model; files as the page cache had them"
        who.row.measurements["load"] = Measurement(value=took, unit="s", n=1, method="measured:clock", note=note)
        total, weights = sizes(who.info.directory, who.target)
        who.row.measurements["disk"] = counted(total / 1e6, "MB", "all files that the model needs to run")
        where = who.info.directory, who.target.runner, Path(who.target.path)
        who.row.sizes = {k: n / 1e6 for k, n in bytes_by_kind(*where).items()}
        who.row.parts = parts.sizes(bytes_by_part(*where, who.info.task))
        who.weights = who.info.weights or weights
        base = self.live[0]
        if base.info.parameters and base.row is self.rows[0]:
            bits = weights * 8 / base.info.parameters
            note = f"its weight files over the baseline's {base.info.parameters / 1e6:.1f} million weights"
            who.row.measurements["bits_per_weight"] = counted(bits, "bits", note)

    def _process(self) -> Model:
        return self._stack.enter_context(Model(self.threads))

    def _send(self, who: Contender) -> None:
        who.model.send("load", who.target.runner, who.target.path, self.threads, who.target.where)

    def begin(self, who: Contender) -> None:
        """Begin to start a closed model again, without waiting."""
        who.model = self._process()
        self._send(who)

    def start(self, who: Contender) -> float:
        """Start a closed model again; returns the seconds until it was ready."""
        begin = time.perf_counter()
        self.begin(who)
        who.model.result()
        return time.perf_counter() - begin

    def comparable(self, who: Contender) -> bool:
        """Whether a model reads the same tokens as the (living) baseline, and predicts as many."""
        base = self.baseline
        if base is None or who is base or base.windows is None or who.windows is None:
            return False
        known = who.info.vocabulary and base.info.vocabulary
        return who.windows.tokens == base.windows.tokens and not (known and who.info.vocabulary != base.info.vocabulary)

"""To which class a text belongs, from an exported classifier; no torch needed."""

from __future__ import annotations

import sys
from pathlib import Path

from greenllm import classes
from greenllm.embed import Reader
from greenllm.generate import does


def decides(directory: Path) -> bool:
    """Whether an exported model says to which class a text belongs."""
    return does(directory) == classes.TASK


class Classifier(Reader):
    """A classifier of texts that is loaded."""

    def classify(self, text: str) -> tuple[list[tuple[str, float]], int]:
        """Classes with their probabilities, the likeliest first, and the tokens that were read.

        Of a model with one output, which is no class, its value.

        Raises:
            GreenError: the text is longer than the model reads, or it gives NaN or infinity.
        """
        logits, read = self.vector(text)
        names = {n: name for name, n in classes.names_of(self.directory).items()}
        found = classes.likely(logits, classes.several(self.directory)).tolist()
        return sorted(((names.get(i, f"class {i}"), p) for i, p in enumerate(found)), key=lambda x: -x[1]), read


def show(directory: Path, text: str, *, threads: int | None = None) -> None:
    """One line a class on standard output."""
    found, read = Classifier(directory, threads=threads).classify(text)
    for name, value in found:
        sys.stdout.write(f"{100 * value:5.1f} %  {name}\n" if len(found) > 1 else f"{value:.4f}  {name}\n")
    several = " Each class stands for itself in this model: they do not add up to 100 %."
    sys.stderr.write(f"{read} tokens read.{several if classes.several(directory) else ''}\n")

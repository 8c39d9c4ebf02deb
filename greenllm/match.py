"""Which of several labels an image shows, from an exported model for images and texts; no torch needed."""

from __future__ import annotations

import sys
from pathlib import Path

from greenllm import artifact, images
from greenllm.errors import GreenError
from greenllm.generate import onnx_runner
from greenllm.pairs import TEMPLATE, TEXT, facts_of, probabilities, said_of, unit


def matches(directory: Path) -> bool:
    """Whether an exported model compares images with texts."""
    return (directory / TEXT).is_file()


def match(
    directory: Path, image: Path, labels: list[str], template: str = TEMPLATE, *, threads: int | None = None
) -> list[tuple[str, float]]:
    """Labels with their probabilities, the likeliest first.

    Args:
        directory: of the export.
        image: the file.
        labels: two or more, each once.
        template: what is read for a label, which stands for its {}.
        threads: CPU threads; None leaves it to the runtime.

    Raises:
        GreenError: the image or the labels cannot be used, a text is too long, or the model gives no vectors.
    """
    texts = said_of(labels, template)
    images.opened(image)  # refused before anything is loaded
    facts, runner = facts_of(directory), onnx_runner(directory, threads)
    seen = unit(runner.encode(list(runner.pixels([str(image)]))))
    cosines = (seen @ unit(runner.encode(runner.tokens(texts))).T)[0]
    found = probabilities(cosines, facts).tolist()
    if not all(0 <= p <= 1 for p in found):
        raise GreenError(f"{directory} gives NaN for {image}.", "Export it again from its checkpoint.")
    return sorted(zip((label.strip() for label in labels), found, strict=True), key=lambda x: -x[1])


def show(directory: Path, image: Path, labels: list[str], template: str, *, threads: int | None = None) -> None:
    """One line a label on standard output."""
    for label, probability in match(directory, image, labels, template, threads=threads):
        sys.stdout.write(f"{100 * probability:5.1f} %  {label}\n")
    if facts_of(directory).bias is not None:
        sys.stderr.write("Each label stands for itself in this model: they do not add up to 100 %.\n")


def check_asked(
    model: str, directory: Path, image: Path | None, labels: str | None, *, others: bool
) -> tuple[Path, list[str]] | None:
    """The image and the labels, where a model is asked which of them it shows.

    Raises:
        GreenError: it is asked that and cannot, or is asked something else; or half of the question is missing.
    """
    way = f'greenllm run {model} --image photo.jpg --labels "cat,dog"'
    if not matches(directory):
        if image is None and labels is None:
            return None
        details = artifact.read(directory).manifest.details if artifact.is_artifact(directory) else {}
        does = str(details.get("task", ""))
        what = "sees images but reads no labels" if does.startswith("image-") else "does not compare images with texts"
        raise GreenError(
            f"{model} {what}.",
            "--image with --labels is for the CLIP and SigLIP kind, --image alone for models that answer.",
        )
    if others:
        raise GreenError(f"{model} says which label an image shows, and nothing else.", f"Ask it: {way}.")
    if image is None or labels is None:
        raise GreenError(
            f"{model} needs {'an image' if image is None else 'labels to choose from'}.", f"Ask it: {way}."
        )
    return image, labels.split(",")

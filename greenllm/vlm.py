"""Models that answer questions about an image (LLaVA, SmolVLM): how a question becomes a prompt. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from greenllm import template, tiles
from greenllm.errors import GreenError
from greenllm.images import PROCESSOR, Pixels
from greenllm.tiles import Seen
from greenllm.tokens import Tokenizer, read_json

TASK = "image-text-to-text"
SIGHT = "vision.onnx"  # the graph that sees; the one that reads and writes is model.onnx
KINDS = ("llava", *tiles.KINDS)  # transformers' model types


class Prompt(list[int]):
    """Tokens, some of which stand for an image: ``pixels`` [P, C, H, W] of its parts, None where there is none."""

    def __init__(self, tokens: Sequence[int] = (), pixels: Pixels | None = None) -> None:
        super().__init__(tokens)
        self.pixels = pixels


def sees(directory: Path) -> bool:
    """Whether an exported model answers questions about images."""
    return (directory / SIGHT).is_file()


def token_of(directory: Path) -> int:
    """The token that stands for a part of an image, by ``config.json``.

    Raises:
        GreenError: it names none.
    """
    config = read_json(directory / "config.json")
    found = config.get("image_token_index", config.get("image_token_id"))
    if not isinstance(found, int) or found < 0:
        raise GreenError(f"{directory / 'config.json'} has no image_token_index: which token is an image?")
    return found


def mark_of(tokenizer: Tokenizer) -> str:
    """How that token is written: ``<image>``.

    Raises:
        GreenError: see :func:`token_of`; or the tokenizer does not read it, or what frames tiles, as one token.
    """
    token = token_of(tokenizer.directory)
    found = tokenizer.inner.id_to_token(token)
    if found is None or tokenizer.plain(found) != [token]:
        raise GreenError(
            f"{tokenizer.directory}: its tokenizer has no token of its own with the number {token}, which stands for "
            "an image in config.json.",
            "Add it to the tokenizer as a special token: <image>.",
        )
    if tiles.tiled(tokenizer.directory) and len(tokenizer.plain(tiles.FRAME)) != 1:
        raise GreenError(
            f"{tokenizer.directory}: its tokenizer has no token of its own for {tiles.FRAME}, which stands around an "
            "image in its prompts.",
            "Take the tokenizer.json that was made for this model.",
        )
    return found


def check_asked(model: str, *, labels: str | None, clip: Path | None) -> None:
    """Refuse what a model that answers about images is not asked.

    Raises:
        GreenError: labels to choose from, or a clip.
    """
    if labels is not None or clip is not None:
        what = "chooses from no labels" if labels is not None else "does not hear"
        raise GreenError(
            f"{model} answers questions about images; it {what}.",
            f'Ask it: greenllm run {model} --image photo.jpg "What is this?".',
        )


def question(tokenizer: Tokenizer, text: str, *, seen: bool, system: str | None = None, raw: bool = False) -> str:
    """A question as the model was taught to read it, the image where ``text`` marks it, or else before the text.

    Args:
        tokenizer: of the model.
        text: the question.
        seen: whether it is about an image.
        system: what the model is told before.
        raw: no chat template around it.

    Raises:
        GreenError: marks of images that are not given, or a chat template that is none or fails.
    """
    mark = mark_of(tokenizer)
    if text.count(mark) > seen:
        given = "an image is" if seen else "none is"
        raise GreenError(
            f"The prompt marks {text.count(mark)} images with {mark}, and {given} given.",
            "One image a question: --image photo.jpg, and its mark once or not at all.",
        )
    if seen and mark not in text:
        text = f"{mark}\n{text}"
    if raw:
        return text
    told = [{"role": "system", "content": system}] if system else []
    return template.render(tokenizer.directory, [*told, {"role": "user", "content": text}], mark)


def read(tokenizer: Tokenizer, said: str, seen: Seen | None, each: int) -> Prompt:
    """Tokens of a text, with those of an image for its mark; as transformers' processors make them.

    Args:
        tokenizer: of the model.
        said: what :func:`question` gave.
        seen: of the image.
        each: vectors that the model makes of an image, or of each of its tiles.

    Raises:
        GreenError: a template that left the mark out, or wrote it more than once; or an image is too large for the
            context.
    """
    mark = mark_of(tokenizer)
    if said.count(mark) != (seen is not None):
        raise GreenError(
            f"The prompt of {tokenizer.directory} marks {said.count(mark)} images, and {int(seen is not None)} is "
            "given: its chat template leaves it out, or adds one.",
            "Ask it without: greenllm run --raw; greenllm bench without --chat.",
        )
    begun = tokenizer.special("bos")
    whole = begun is not None and said.startswith(str(tokenizer.inner.id_to_token(begun)))
    if seen is None:
        return Prompt(tokenizer.plain(said) if whole else tokenizer.text(said))
    tiled = tiles.tiled(tokenizer.directory)
    said = said.replace(mark, tiles.spelled(mark, each, seen.rows, seen.columns) if tiled else mark * each)
    found = Prompt(tokenizer.plain(said) if whole else tokenizer.text(said), seen.pixels)
    if len(found) > tokenizer.context:
        made = len(seen.pixels) * each
        raise GreenError(
            f"The prompt has {len(found)} tokens, {made} of them of its image; this model's context is "
            f"{tokenizer.context}.",
            f"Shorten it; or have fewer tiles: in {PROCESSOR} of its checkpoint a smaller longest_edge, or "
            "do_image_splitting false; then export it again."
            if seen.rows
            else "Shorten it.",
        )
    return found

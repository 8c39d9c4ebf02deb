"""The commands that ask a model: once, in a conversation, and over HTTP."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from greenllm.errors import GreenError, Interrupted

if TYPE_CHECKING:
    from greenllm.answer import Answer
    from greenllm.generate import Settings

_MOST = 256  # tokens of an answer where nothing is said
ModelArg = Annotated[str, typer.Argument(help="what compress, export or bundle made", show_default=False)]
SystemOption = Annotated[str | None, typer.Option(help="what the model is told before all else")]
MaxTokensOption = Annotated[int, typer.Option(min=1, help="length of an answer at most")]
TemperatureOption = Annotated[
    float, typer.Option(min=0, max=2, help="0 always takes the likeliest token; above, tokens are sampled")
]
TopPOption = Annotated[
    float, typer.Option(min=0.001, max=1, help="sample from the likeliest tokens that have this probability together")
]
SeedOption = Annotated[int | None, typer.Option(min=0, max=2**31 - 1, help="of the sampling; default: drawn")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores")]


def run(
    model: ModelArg,
    prompt: Annotated[
        str | None, typer.Argument(help="what to ask; - reads it from standard input", show_default=False)
    ] = None,
    clip: Annotated[
        Path | None, typer.Option("--audio", help="transcribers: the file to hear (.wav, .flac, .ogg …)")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="transcribers of several languages: what is spoken (en); default: what they hear")
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--image", help="models that see: the file to look at", show_default=False)
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="with --image: what it may show, by commas; the prompt is what is read: a {}")
    ] = None,
    system: SystemOption = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="length of an answer at most; default: 256, or what a clip may take")
    ] = None,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="no chat template around the prompt")] = False,
    threads: ThreadsOption = None,
) -> None:
    """Stream an answer from an exported model: text, an embedding or class, what a clip says or an image shows."""
    from greenllm import generate, switch
    from greenllm.export.archive import opened

    image = _one(images or [])
    whole, adapter = switch.split(model)
    settings = generate.Settings(max_tokens, temperature, top_p, seed, adapter)
    asked = _Asked(model, prompt, clip, language, image, labels, system, raw, settings, threads)
    with opened(whole) as path:
        answer = asked.of(generate.find(path))
    if answer is not None and answer.finish is None:
        raise typer.Exit(130)


@dataclass(frozen=True)
class _Asked:
    """What ``run`` was given."""

    model: str
    prompt: str | None
    clip: Path | None
    language: str | None
    image: Path | None
    labels: str | None
    system: str | None
    raw: bool
    settings: Settings
    threads: int | None

    @property
    def _of_text(self) -> bool:
        """Whether options of text generators were given."""
        s = self.settings
        return bool(self.system or self.raw or s.temperature or s.seed is not None)

    def of(self, directory: Path) -> Answer | None:
        """Ask the model in a directory; what it wrote, None where it says something else than words of its own."""
        from greenllm import captions, match, pairs, transcribe, vlm

        if captions.sees(directory):
            return self._described(directory)
        others = self._of_text or bool(self.clip or self.language or self.settings.max_tokens)
        if sees := vlm.sees(directory):
            vlm.check_asked(self.model, labels=self.labels, clip=self.clip)
        elif asked := match.check_asked(self.model, directory, self.image, self.labels, others=others):
            told = pairs.TEMPLATE if self.prompt is None else self.prompt
            match.show(directory, *asked, told, threads=self.threads)
            return None
        transcribe.check_asked(
            self.model, able=transcribe.hears(directory), clip=self.clip, prompt=self.prompt, others=self._of_text,
            language=self.language,
        )  # fmt: skip
        if self.clip is not None:
            return self._heard(directory, self.clip)
        text = sys.stdin.read() if self.prompt == "-" else self.prompt or ""
        if sees or not self._told(directory, text, others=others):
            return self._answered(directory, text)
        return None

    def _told(self, directory: Path, text: str, *, others: bool) -> bool:
        """What an encoder says of a text, on standard output; False where it is none."""
        from greenllm import classes, classify, generate

        tell = {classes.TASK: classify.show, "feature-extraction": _embed}.get(generate.does(directory))
        if tell is None:
            return False
        if others:
            raise GreenError(
                f"{self.model} reads a text and writes none.",
                "Leave out --system, --raw, --temperature, --top-p, --seed and --max-tokens.",
            )
        tell(directory, text, threads=self.threads)
        return True

    def _described(self, directory: Path) -> Answer:
        from greenllm import describe, talk

        more = self._of_text or self.prompt is not None or self.labels is not None or bool(self.clip or self.language)
        image = describe.check_asked(self.model, self.image, others=more)
        return talk.describe(describe.Describer(directory, threads=self.threads), image, self.settings.max_tokens)

    def _heard(self, directory: Path, clip: Path) -> Answer:
        from greenllm import audio, script, talk, transcribe

        heard = audio.read(clip, script.of(directory).longest)
        listener = transcribe.Transcriber(directory, threads=self.threads, language=self.language)
        return talk.transcribe(listener, heard, self.settings.max_tokens)

    def _answered(self, directory: Path, text: str) -> Answer:
        from greenllm import generate, talk

        loaded = generate.open_found(directory, threads=self.threads)
        ids = talk.first(loaded, text, system=self.system, raw=self.raw, image=self.image)
        settings = self.settings if self.settings.max_tokens else replace(self.settings, max_tokens=_MOST)
        return talk.say(loaded, ids, settings)


def chat(
    model: ModelArg,
    system: SystemOption = None,
    max_tokens: MaxTokensOption = 512,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Talk with a model; /reset forgets, /exit or Ctrl-D leaves, Ctrl-C stops an answer."""
    from greenllm import generate, switch, talk
    from greenllm.export.archive import opened

    whole, adapter = switch.split(model)
    with opened(whole) as path:
        loaded = generate.load(path, threads=threads, keep=True)
        talk.talk(loaded, generate.Settings(max_tokens, temperature, top_p, seed, adapter), system)


def serve(
    model: ModelArg,
    host: Annotated[str, typer.Option(help="address to listen at; 0.0.0.0: all of this machine's")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="file with the key that clients must send; default: none is asked for")
    ] = None,
    queue: Annotated[int, typer.Option(min=0, help="requests that may wait; further ones get 503")] = 16,
    threads: ThreadsOption = None,
) -> None:
    """Serve a model over HTTP as OpenAI's API: chat, completions, embeddings."""
    try:
        from greenllm import serve as room
    except ModuleNotFoundError as e:
        if e.name not in ("starlette", "uvicorn"):
            raise
        raise GreenError(f"{e.name} is not installed.", 'Install it: pip install "greenllm[serve]".') from e
    from greenllm.export.archive import opened

    try:
        with opened(Path(model).expanduser()) as path:
            room.serve(path, host=host, port=port, key_file=api_key_file, waiting=queue, threads=threads)
    except Interrupted:
        sys.stderr.write("Stopped.\n")


def _one(images: list[Path]) -> Path | None:
    """The image that is asked about.

    Raises:
        GreenError: there are several.
    """
    if len(images) > 1:
        raise GreenError(f"{len(images)} images are given; a question is about one.", "Give --image once.")
    return images[0] if images else None


def _embed(directory: Path, text: str, *, threads: int | None) -> None:
    """All numbers as JSON into a pipe or a file; a person sees the first few."""
    from greenllm.embed import Embedder

    embedder = Embedder(directory, threads=threads)
    numbers, tokens = embedder.embed(text)
    if sys.stdout.isatty():
        shown = ", ".join(f"{x:.4f}" for x in numbers[:6])
        sys.stdout.write(f"[{shown}, …]\n")
    else:
        sys.stdout.write(json.dumps(numbers) + "\n")
    sys.stderr.write(f"An embedding of {tokens} tokens: {len(numbers)} numbers of length 1.\n")

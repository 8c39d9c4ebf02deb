"""The commands that ask a model: once, in a conversation, and over HTTP."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from greenllm.errors import GreenError, Interrupted

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
    """Stream an answer from an exported model: text, an encoder's embedding, what a clip says or an image shows."""
    from greenllm import audio, captions, describe, generate, match, pairs, switch, talk, transcribe, vlm
    from greenllm.export.archive import opened

    image = _one(images or [])
    whole, adapter = switch.split(model)
    with opened(whole) as path:
        directory = generate.find(path)
        able, others = transcribe.hears(directory), bool(system or raw or temperature or seed is not None)
        if captions.sees(directory):
            more = others or prompt is not None or labels is not None or clip is not None
            seen = describe.check_asked(model, image, others=more)
            if talk.describe(describe.Describer(directory, threads=threads), seen, max_tokens).finish is None:
                raise typer.Exit(130)
            return
        if sees := vlm.sees(directory):
            vlm.check_asked(model, labels=labels, clip=clip)
        elif asked := match.check_asked(model, directory, image, labels, others=others or bool(clip or max_tokens)):
            match.show(directory, *asked, pairs.TEMPLATE if prompt is None else prompt, threads=threads)
            return
        transcribe.check_asked(model, able=able, clip=clip, prompt=prompt, others=others)
        if clip is not None:
            heard, listener = audio.read(clip), transcribe.Transcriber(directory, threads=threads)
            if talk.transcribe(listener, heard, max_tokens).finish is None:
                raise typer.Exit(130)
            return
        text = sys.stdin.read() if prompt == "-" else prompt or ""
        if not sees and generate.is_encoder(directory):
            _embed(directory, text, threads)
            return
        loaded = generate.open_found(directory, threads=threads)
        ids = talk.first(loaded, text, system=system, raw=raw, image=image)
        settings = generate.Settings(max_tokens or 256, temperature, top_p, seed, adapter)
        if talk.say(loaded, ids, settings).finish is None:
            raise typer.Exit(130)


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


def _embed(directory: Path, text: str, threads: int | None) -> None:
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

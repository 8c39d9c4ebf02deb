"""Stream text from an exported model with ONNX Runtime GenAI; no torch needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from greenllm import artifact
from greenllm.errors import GreenError
from greenllm.older import cannot_run, silence


def stream(
    model: str | Path,
    prompt: str,
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    raw: bool = False,
    threads: int | None = None,
) -> Iterator[str]:
    """Yield the answer piece by piece.

    Args:
        model: a "model" or "genai" artifact, or any ORT-GenAI directory.
        prompt: the question, put into the model's chat template unless ``raw``.
        max_tokens: length of the answer at most, in tokens.
        temperature: 0 takes the likeliest token; above, tokens are sampled.
        raw: give the prompt as it is.
        threads: CPU threads; None leaves it to the runtime.

    Raises:
        GreenError: no such model, one that cannot generate, or a prompt longer than its context.
    """
    path = generative(model)
    og = _runtime()
    try:
        config = og.Config(str(path))
        if threads:
            options = {"intra_op_num_threads": threads}
            config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        loaded = og.Model(config)
        tokenizer = og.Tokenizer(loaded)
    except RuntimeError as e:
        raise GreenError(f"{path} cannot be loaded: {str(e).splitlines()[0]}") from e
    ids = tokenizer.encode(prompt if raw else _chat(tokenizer, path, prompt))
    context = int(json.loads((path / "genai_config.json").read_text(encoding="utf-8"))["model"]["context_length"])
    if len(ids) >= context:
        raise GreenError(f"The prompt has {len(ids)} tokens; this model's context is {context}.", "Shorten the prompt.")
    parameters = og.GeneratorParams(loaded)
    length = min(context, len(ids) + max_tokens)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    parameters.set_search_options(max_length=length, **sampling)
    generator = og.Generator(loaded, parameters)
    try:
        generator.append_tokens(ids)
    except RuntimeError as e:
        raise cannot_run(path, og.__version__, e) from e
    decoder = tokenizer.create_stream()
    while not generator.is_done():
        generator.generate_next_token()
        yield decoder.decode(generator.get_next_tokens()[0])


def generative(model: str | Path) -> Path:
    """The ORT-GenAI directory in or at ``model``; an artifact's files are verified.

    Raises:
        GreenError: there is none, or it was changed.
    """
    path = Path(model).expanduser()
    if artifact.is_artifact(path):
        found = artifact.read(path).deployable
        found.verify()
        if found.kind == "genai":
            return found.path
        raise GreenError(
            f"{path} holds {found.kind!r}, which does not generate text here.",
            "Export it for ORT-GenAI: greenllm export CHECKPOINT -o OUT --to genai.",
        )
    if (path / "genai_config.json").is_file():
        return path
    what = "no such directory" if not path.exists() else "no exported model"
    raise GreenError(f"{path}: {what}.", "Give what `greenllm compress` or `greenllm export` made.")


def _runtime() -> Any:
    try:
        import onnxruntime_genai
    except ImportError as e:
        raise GreenError("onnxruntime-genai is not installed.", 'Install it: pip install "greenllm[runtime]".') from e
    silence(onnxruntime_genai)
    return onnxruntime_genai


def _chat(tokenizer: Any, path: Path, prompt: str) -> str:
    """The prompt in the model's chat template; as it is when the model has none."""
    config = path / "tokenizer_config.json"
    has = (path / "chat_template.jinja").is_file() or (
        config.is_file() and '"chat_template"' in config.read_text(encoding="utf-8")
    )
    if not has:
        return prompt
    messages = json.dumps([{"role": "user", "content": prompt}])
    return str(tokenizer.apply_chat_template(messages=messages, add_generation_prompt=True))

"""How a model's transcripts begin, go on and end: Whisper's prompt and what it never writes, by its own files.

``generation_config.json`` is read as transformers' ``generate`` reads it (``generation_whisper.py``, 5.17).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from greenllm.audio import RATE
from greenllm.errors import GreenError
from greenllm.export.device.run import Script
from greenllm.tokens import read_json, start_of

TASK = "automatic-speech-recognition"
_DAMAGED = (ValueError, TypeError, KeyError, AttributeError, IndexError)


def of(directory: Path, language: str | None = None) -> Script:
    """The script of the model in ``directory``, a checkpoint or an export.

    Args:
        directory: where its files lie.
        language: what is spoken ("en"), of a model that knows several; None: what its files say, else what it hears.

    Raises:
        GreenError: its files do not say where a transcript begins, are damaged, or know no such language.
    """
    config, told = read_json(directory / "config.json"), read_json(file := directory / "generation_config.json")
    if not told and file.is_file() and file.read_bytes().strip() != b"{}":
        raise GreenError(f"{file} is damaged.", "Copy it again from where the model came.")
    start = _said("decoder_start_token_id", told, config) or (start_of(directory),)
    ends = _said("eos_token_id", told, config)
    if config.get("model_type") != "whisper":
        if language:
            raise GreenError(f"{directory} knows one language alone.", "Leave out --language.")
        return Script(start, ends)
    told = told or config
    try:
        begun, languages, after = _prompt(directory, told, config.get("forced_decoder_ids"), language)
        known = range(int(config.get("vocab_size", 51865)))
        if unknown := {*start, *begun, *languages, *after, *ends} - set(known):
            raise ValueError(f"there are no tokens {sorted(unknown)}")
        never, first = ([t for t in told.get(f"{k}suppress_tokens") or () if t in known] for k in ("", "begin_"))
        return Script(
            (*start, *begun), ends, languages, after, tuple(never), tuple(first),
            int(config.get("max_target_positions", 448)), _window(directory),
        )  # fmt: skip
    except _DAMAGED as e:
        raise GreenError(f"{directory}: generation_config.json or the preprocessor's is damaged ({e!r}).") from e


def _prompt(
    directory: Path, told: dict[str, Any], forced: Any, language: str | None
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """What follows the start: tokens that are known, languages to choose from, and tokens after these."""
    task, language = told.get("task"), language or told.get("language")
    begun: list[int | None] = []
    for at, token in (None if task or language else told.get("forced_decoder_ids") or forced) or ():
        if at != len(begun) + 1:
            raise ValueError(f"forced_decoder_ids has nothing for position {len(begun) + 1}")
        begun.append(token)
    known, tasks = told.get("lang_to_id") or {}, told.get("task_to_id") or {}
    heard = not language and bool(known) and (not begun or begun[0] is None)
    if language:
        begun[:1] = [language_token(directory, language, known)]
    elif heard:
        begun[:1] = [None]
    if task:
        begun.append(tasks[task])
    elif language and tasks and not set(tasks.values()) & set(begun):
        begun.append(tasks["transcribe"])
    plain = told.get("no_timestamps_token_id")
    if plain is not None and begun[-1:] != [plain]:
        begun.append(plain)
    rest = tuple(int(t) for t in begun if t is not None)
    return ((), tuple(map(int, known.values())), rest) if heard else (rest, (), ())


def language_token(directory: Path, language: str, known: dict[str, int]) -> int:
    """The token of a language: "de", "<|de|>", or its English name where transformers is here to ask.

    Raises:
        GreenError: the model does not know it.
    """
    words = language.lower()
    try:
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        words = TO_LANGUAGE_CODE.get(words, words)
    except ImportError:
        pass  # a device has codes alone
    found = known.get(words, known.get(f"<|{words}|>"))
    if found is None:
        names = ", ".join(sorted(k.strip("<|>") for k in known)) or "one alone"
        raise GreenError(f"{directory} knows no language {language!r}.", f"It knows {names}.")
    return int(found)


def _said(key: str, *files: dict[str, Any]) -> tuple[int, ...]:
    """The tokens of the first file that has any."""
    for file in files:
        told = file.get(key)
        found = told if isinstance(told, list) else [told]
        if told is not None and all(isinstance(t, int) for t in found):
            return tuple(found)
    return ()


def _window(directory: Path) -> int:
    """Samples that Whisper's preprocessor hears at once."""
    told = read_json(directory / "preprocessor_config.json")
    told = told or read_json(directory / "processor_config.json").get("feature_extractor", {})
    return int(told.get("chunk_length", 30)) * RATE

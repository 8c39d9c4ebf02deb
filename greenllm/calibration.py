"""Samples for calibration: the model's own, or text from a file or a data set."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from greenllm import artifact, images, own
from greenllm.checkpoint import Checkpoint
from greenllm.clean import Filter
from greenllm.clean.files import paragraphs
from greenllm.errors import GreenError
from greenllm.kinds import CAPTIONS, IMAGES, PAIRS, SEEING, SPEECH, VLM
from greenllm.progress import Progress, Silent

Batch = dict[str, Tensor]  # what a model is called with
_TEXT_FIELDS = ("text", "content", "sentence", "instruction", "question", "prompt")


def samples(
    checkpoint: Checkpoint, source: str, count: int, length: int, seed: int, progress: Progress | None = None,
    sieve: Filter | None = None, balance: str = "",
) -> Any:  # fmt: skip
    """Token ids for calibration, int64 [count, length], no padding; of a vision encoder pixels [count, C, H, W].

    Batches of its inputs of a transcriber, one a clip (:func:`greenllm.hearing.samples`), of what writes about images,
    one each (:func:`greenllm.captioning.samples`), of a model for images and texts (:func:`greenllm.pairing.samples`)
    or one that answers about images (:func:`greenllm.looking.samples`).

    Args:
        checkpoint: whose tokenizer (and, for "self", whose own words) are used.
        source: "self", a ``.txt`` or ``.jsonl`` file, or a hub data set id; of images a ``.jsonl`` of their paths.
        count: number of samples.
        length: tokens in each.
        seed: of sampling ("self") or of the choice of windows (text).
        progress: told about the model's own samples, which take a while.
        sieve: what texts go through first.
        balance: key of the file's rows: as many samples of each of its values, a group of people say, as of another.

    Raises:
        GreenError: the file is empty or unreadable, a row is bad, or there is too little text.
    """
    if checkpoint.task in (*SEEING, SPEECH):
        return _not_text(checkpoint, source, count, seed, progress or Silent())
    if source == "self":
        return own.samples(checkpoint, count, length, seed, progress or Silent())
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True)
    if not balance:
        return _windows(tokenizer, texts(source, sieve), source, count, length, seed, sieve)
    groups = by_group(source, balance, sieve)
    if len(groups) > count:
        raise GreenError(f"{source} has {len(groups)} groups by {balance!r}, and {count} samples are asked for.")
    shares = [count // len(groups) + (i < count % len(groups)) for i in range(len(groups))]
    found = [
        _windows(tokenizer, iter(each), f"{source}, {balance} {name!r},", share, length, seed, sieve)
        for (name, each), share in zip(groups.items(), shares, strict=True)
    ]
    return torch.cat(found)


def by_group(source: str, key: str, sieve: Filter | None = None) -> dict[str, list[str]]:
    """The texts of a ``.jsonl`` file that ``sieve`` keeps, by what its rows have at ``key``, in order.

    Raises:
        GreenError: a row without it, or the same in all.
    """
    found: dict[str, list[str]] = {}
    rows = rows_with_text(Path(source).expanduser())
    for n, (row, text) in enumerate(rows if sieve is None else sieve.over(rows, lambda r: r[1]), 1):
        if not isinstance(row.get(key), str | int):
            raise GreenError(f"{source}, text {n}: no word or number at {key!r}.", "See --balance.")
        found.setdefault(str(row[key]), []).append(text)
    if len(found) < 2:  # noqa: PLR2004 - nothing to balance
        raise GreenError(f"{source}: all rows have the same {key!r}.", "Name a key whose values differ: --balance.")
    return dict(sorted(found.items()))


def _windows(
    tokenizer: Any, texts: Iterator[str], source: str, count: int, length: int, seed: int, sieve: Filter | None
) -> Tensor:  # fmt: skip
    tokens = _tokens(tokenizer, texts, count * length * 4)
    if len(tokens) < count * length:
        raise GreenError(
            f"{source} has {len(tokens)} tokens; {count} samples of {length} need {count * length}."
            + (f" {sieve.words}." if sieve and sieve.dropped else ""),
            "Give more text, or fewer or shorter samples (--samples, --length).",
        )
    starts = torch.randperm(len(tokens) // length, generator=torch.Generator().manual_seed(seed))[:count]
    return torch.stack([tokens[s * length : (s + 1) * length] for s in starts.tolist()])


def _not_text(checkpoint: Checkpoint, source: str, count: int, seed: int, progress: Progress) -> Any:
    """Samples of a model that sees or hears."""
    if checkpoint.task in IMAGES:
        return _images(checkpoint, source, count, seed)
    if checkpoint.task == CAPTIONS:
        from greenllm import captioning

        return captioning.samples(checkpoint, _chosen(source, count, seed), progress)
    if checkpoint.task in (PAIRS, VLM):
        from greenllm import looking, pairing

        return (pairing if checkpoint.task == PAIRS else looking).samples(checkpoint, source, count)
    from greenllm import hearing

    return hearing.samples(checkpoint, source, count, progress)


def _images(checkpoint: Checkpoint, source: str, count: int, seed: int) -> Tensor:
    processor = images.Processor(checkpoint.path)
    pixels = images.read(_chosen(source, count, seed), processor)
    return torch.from_numpy(images.fitting(pixels, checkpoint.image_shape, checkpoint.path))


def _chosen(source: str, count: int, seed: int) -> list[Path]:
    """Some of the images of a file."""
    files = list(dict.fromkeys(_image_files(source)))
    if len(files) < count:
        raise GreenError(f"{source} has {len(files)} images; {count} are asked for.", "Give more, or fewer --samples.")
    chosen = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))[:count]
    return [files[i] for i in chosen.tolist()]


def _image_files(source: str) -> Iterator[Path]:
    """The images of a ``.jsonl`` file, by the key "image"."""
    path = Path(source).expanduser()
    if path.suffix != ".jsonl":
        raise GreenError(
            f"A model that sees cannot be calibrated by {source!r}: it makes no images of its own, and reads no text.",
            'Give --calibration images.jsonl with rows {"image": "path.jpg"}; the recipe int8 needs no data.',
        )
    for n, row in _rows(path):
        yield artifact.placed(path.parent, row.get("image"), f"{path}, line {n}")


def tokens_of(tokenizer: Any, source: str, need: int, sieve: Filter | None = None) -> Tensor:
    """Tokens of a text file or hub data set, int64 [about ``need``, or what there is], of texts that ``sieve`` keeps.

    Raises:
        GreenError: see :func:`samples`.
    """
    return _tokens(tokenizer, texts(source, sieve), need)


def _tokens(tokenizer: Any, texts: Iterator[str], need: int) -> Tensor:
    found: list[int] = []
    for text in texts:
        found += tokenizer(text, verbose=False)["input_ids"]
        if len(found) >= need:
            break
    return torch.tensor(found, dtype=torch.int64)


def check_source(source: str, checkpoint: Checkpoint | None = None) -> None:
    """Refuse a calibration file that is missing, empty or not what the model takes, before anything long begins.

    Raises:
        GreenError: see :func:`samples`; a hub data set is looked at when it is read.
    """
    if checkpoint is not None and checkpoint.task in (*IMAGES, CAPTIONS):
        for file in itertools.islice(_image_files(source), 1):
            images.opened(file)
    elif checkpoint is not None and checkpoint.task == PAIRS:
        from greenllm import pairing

        pairing.pairs(source, 1)
    elif checkpoint is not None and checkpoint.task == VLM:
        from greenllm import looking

        looking.asked(source, 1)
    elif checkpoint is not None and checkpoint.task == SPEECH:
        from greenllm import hearing

        hearing.clips(source, 1)
    elif source != "self" and (Path(source).suffix in (".txt", ".jsonl") or Path(source).exists()):
        next(iter(texts(source)))


def check_balance(source: str, balance: str, checkpoint: Checkpoint) -> None:
    """Refuse a key of groups before anything long begins; "" is none.

    Raises:
        GreenError: no ``.jsonl`` file of texts, or see :func:`by_group`.
    """
    if balance and (checkpoint.task in (*SEEING, SPEECH) or Path(source).suffix != ".jsonl"):
        raise GreenError(f"{source} has no rows with {balance!r} and a text.", "Balance the texts of a .jsonl file.")
    if balance:
        by_group(source, balance)


def save(samples: Tensor | list[Batch], file: Path, dropped: dict[str, int]) -> None:
    """Keep samples for a run that goes on, and what was dropped, by reason."""
    about = {"dropped": json.dumps(dropped)}
    if isinstance(samples, list):
        save_file({f"{i:05d}.{k}": t.contiguous() for i, b in enumerate(samples) for k, t in b.items()}, file, about)
    else:
        save_file({"input_ids": samples.contiguous()}, file, about)


def dropped_in(file: Path) -> dict[str, int]:
    """What was dropped, as :func:`save` kept it."""
    with safe_open(file, "pt") as opened:
        found: dict[str, int] = json.loads(opened.metadata()["dropped"])
    return found


def load(file: Path) -> Any:
    """Samples as :func:`save` kept them."""
    stored, found = load_file(file), dict[str, Batch]()
    if "input_ids" in stored:
        return stored["input_ids"]
    for name in sorted(stored):
        number, _, key = name.partition(".")
        found.setdefault(number, {})[key] = stored[name]
    return list(found.values())


def describe(source: str, ids: Tensor | list[Batch], seed: int) -> dict[str, Any]:
    """What the manifest says of the samples; of batches ``length`` is the mean one in tokens."""
    if isinstance(ids, list):
        digest, rows, tokens = hashlib.sha256(), 0, 0
        for batch in ids:
            for _, tensor in sorted(batch.items()):
                digest.update(tensor.contiguous().numpy().tobytes())
            read = next(t for name, t in batch.items() if name.endswith("input_ids"))
            rows, tokens = rows + len(read), tokens + read.numel()
        return {"source": source, "samples": rows, "length": round(tokens / rows), "seed": seed,
                "sha256": digest.hexdigest()}  # fmt: skip
    sha256 = hashlib.sha256(ids.contiguous().numpy().tobytes()).hexdigest()
    size: dict[str, Any] = {"length": ids.shape[1]} if ids.dim() == 2 else {"shape": list(ids.shape[1:])}  # noqa: PLR2004
    return {"source": source, "samples": ids.shape[0], **size, "seed": seed, "sha256": sha256}


def translate(ids: Tensor, source: Checkpoint, to: Checkpoint) -> Tensor:
    """Samples [count, length] of a checkpoint's tokenizer in another one's, as many as the same text makes."""
    from tokenizers import Tokenizer

    tokenizers = [Tokenizer.from_file(str(c.path / "tokenizer.json")) for c in (source, to)]
    for tokenizer in tokenizers:
        tokenizer.no_truncation()
        tokenizer.no_padding()
    found: list[int] = []
    for row in ids.tolist():
        text = tokenizers[0].decode(row, skip_special_tokens=False)
        found += tokenizers[1].encode(text, add_special_tokens=False).ids
    count = min(len(ids), len(found) // ids.shape[1])
    return torch.tensor(found[: count * ids.shape[1]], dtype=torch.int64).view(count, -1)


def texts(source: str, sieve: Filter | None = None) -> Iterator[str]:
    """The texts of a ``.txt`` or ``.jsonl`` file or hub data set that ``sieve`` keeps (of ``.txt`` paragraphs).

    Raises:
        GreenError: see :func:`samples`.
    """
    path = Path(source).expanduser()
    if path.suffix == ".txt":
        text = _content(path)
        return iter([text if sieve is None else "".join(sieve.over(paragraphs(text), str))])
    if path.exists() and path.suffix != ".jsonl":
        raise GreenError(f"{path}: calibration text is read from .txt and .jsonl files.", "See --calibration.")
    found = (t for _, t in rows_with_text(path)) if path.suffix == ".jsonl" else _from_hub(source)
    return found if sieve is None else sieve.over(found, str)


def rows_with_text(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Rows of a ``.jsonl`` file, each with its text."""
    return ((row, _row(path, n, row)) for n, row in _rows(path))


def _content(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as e:
        raise GreenError(f"{path}: no such calibration file.", "Check --calibration.") from e
    except (OSError, UnicodeDecodeError) as e:
        raise GreenError(f"{path} cannot be read as UTF-8 text: {e}.", "Check --calibration.") from e
    if not text.strip():
        raise GreenError(f"{path} has nothing in it.", "Give text with --calibration, or --calibration self.")
    return text


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a ``.jsonl`` file."""
    for n, line in enumerate(_content(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as e:
            raise GreenError(f"{path}, line {n}: not JSON.", "Each line is one JSON object with a text.") from e
        yield n, row if isinstance(row, dict) else {}


def _row(path: Path, n: int, row: dict[str, Any]) -> str:
    if not any(isinstance(row.get(f), str) for f in _TEXT_FIELDS):
        raise GreenError(f"{path}, line {n}: no text in it.", f"One of these keys holds it: {', '.join(_TEXT_FIELDS)}.")
    parts = [row[f] for f in (*_TEXT_FIELDS, "input", "output", "answer") if isinstance(row.get(f), str)]
    return "\n".join(p for p in parts if p)


def _from_hub(name: str) -> Iterator[str]:
    from datasets import load_dataset

    try:
        data = load_dataset(name, split="train", streaming=True)
        rows = list(itertools.islice(data, 2000))
    except Exception as e:
        raise GreenError(
            f"{name}: neither a file here nor a data set that the hub gives: {str(e).splitlines()[0][:200]}",
            "Give --calibration self, a .txt or .jsonl file, or a data set id.",
        ) from e
    field = next((f for f in _TEXT_FIELDS if rows and isinstance(rows[0].get(f), str)), None)
    if field is None:
        raise GreenError(f"{name}: no column with text ({', '.join(_TEXT_FIELDS)}).", "Give another data set.")
    return (r[field] for r in rows)

"""Plain ONNX through torch's dynamo exporter: flat tensors in and out, dynamic batch and length, KV cache.

Input and output names are those that Optimum uses. Opset 21 is the newest that TensorRT-RTX runs.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import Tensor, nn

from greenllm import merge
from greenllm.audio import WINDOW
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.export import dual, speech, vlm
from greenllm.export.fused import fuse_attention, keep_norms
from greenllm.export.last_position import cut_to_last_position
from greenllm.export.names import name_weights
from greenllm.export.quantized import Quantized, join, quantize_graph
from greenllm.export.targets import Target
from greenllm.export.vision import vision, write_processor
from greenllm.kinds import GENERATION, IMAGES, PAIRS, SEEING, SPEECH, VLM, WRITING
from greenllm.progress import Progress
from greenllm.quantize.activations import Inputs
from greenllm.quantize.run import quantizable
from greenllm.save import copy_side_files, write_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GRAPH = "model.onnx"
_OPSET = 21
Names = tuple[list[str], list[str]]


def write_onnx(checkpoint: Checkpoint, out: Path, work: Path, target: Target, progress: Progress) -> Quantized | None:
    """Make a directory with ``model.onnx``, its data, configuration and tokenizer.

    The quantized matrices are standard ``DequantizeLinear`` (see :mod:`greenllm.export.forms`), so that other
    runtimes read them; ONNX Runtime fuses most when it loads. Where the target has ONNX Runtime's operators, encoders
    and what writes about clips and images take these: it would unpack a whole head that is tied to the embedding at
    each token. Where the checkpoint or the target wants integer inputs, see :mod:`greenllm.export.int8`.

    Args:
        checkpoint: dense or packed.
        out: directory to fill.
        work: directory for the dense graph; deleted by the caller.
        target: what runs it.
        progress: told of the stages.

    Returns:
        What was quantized; None for a dense checkpoint.

    Raises:
        GreenError: torch cannot export the model, or a packed weight is not in the graph.
    """
    copy_side_files(checkpoint.path, out)
    write_config(out, checkpoint.config, None)
    if checkpoint.task == SPEECH:
        speech.settle_language(out)
    if checkpoint.task in SEEING:
        write_processor(checkpoint, out, progress)
    progress.stage("exporting the graph", 1)
    path = (work if checkpoint.quantized else out) / GRAPH
    path.parent.mkdir(parents=True, exist_ok=True)
    own = target.operators == "onnxruntime" and checkpoint.task != GENERATION
    paths = export_graph(checkpoint, path, fused=own)
    progress.advance()
    found = None
    if checkpoint.quantized:
        progress.stage("packing the weights", len(paths))
        found = join(
            quantize_graph(
                p, out / p.name, checkpoint, form="nbits" if own else "qdq", accuracy_level=target.accuracy_level,
                inputs=integer_inputs(checkpoint, target), progress=progress, alone=len(paths) == 1,
            ) for p in paths
        )  # fmt: skip
    if checkpoint.task == VLM:  # an image is hundreds of tokens whose logits nobody reads
        graph = onnx.load(str(out / GRAPH), load_external_data=False)
        cut_to_last_position(graph)
        onnx.save(graph, str(out / GRAPH))
    return found


def integer_inputs(checkpoint: Checkpoint, target: Target) -> Inputs:
    """Linears whose inputs are integers in plain ONNX, with their grids: the checkpoint's, else the target's.

    An encoder multiplies many rows at once: there ONNX Runtime's int8 kernels are twice as fast as its kernels for
    4-bit weights, which are made for single rows.
    """
    by_target = target.operators == "onnxruntime" and target.accuracy_level == 4  # noqa: PLR2004 - int8
    if not by_target or checkpoint.task in (GENERATION, *WRITING, VLM):
        return checkpoint.inputs
    ends = dict.fromkeys(p for p in checkpoint.projections if checkpoint.is_packed(p))
    return {**ends, **(checkpoint.inputs or dict.fromkeys(quantizable(checkpoint)[0]))}


def export_graph(
    checkpoint: Checkpoint, path: Path, *, fused: bool = False, dtype: torch.dtype = torch.float32
) -> list[Path]:
    """Write the dense graph, or two of them: see :mod:`greenllm.export.speech` and :mod:`greenllm.export.dual`.

    Args:
        checkpoint: dense or packed.
        path: the ``.onnx`` file to make; its data lie beside it.
        fused: with ONNX Runtime's own attention.
        dtype: of weights and activations; what the model itself computes in float32 stays so, and so do its buffers.

    Returns:
        The files of the graphs.

    Raises:
        GreenError: torch cannot export the model.
    """
    model = checkpoint.load_model()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    fused = fused and fuse_attention(model)
    parts = _parts(checkpoint, model)
    try:
        for name, wrapper, example, names in parts:
            _write(wrapper, example, names, path.with_name(name))
            if checkpoint.task == VLM:  # a report tells the bytes of its parts by their names
                name_weights(path.with_name(name))
            if fused:
                keep_norms(path.with_name(name))
    except Exception as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:300]
        raise GreenError(f"torch cannot export {type(model).__name__} to ONNX: {reason}") from e
    return [path.with_name(name) for name, *_ in parts]


def _parts(checkpoint: Checkpoint, model: PreTrainedModel) -> list[speech.Part]:
    """The functions that become graphs."""
    if checkpoint.task in WRITING:
        return speech.parts(checkpoint, model)
    if checkpoint.task == PAIRS:
        return dual.parts(checkpoint, model)
    if checkpoint.task == VLM:
        decoder = _decoder(merge.Sighted(model), vlm.nothing_seen(checkpoint))
        return [vlm.sight(checkpoint, model), (GRAPH, *decoder)]
    if checkpoint.task == GENERATION:
        return [(GRAPH, *_decoder(model, {}))]
    return [(GRAPH, *(vision(checkpoint, model) if checkpoint.task in IMAGES else _encoder(model)))]


def _write(wrapper: nn.Module, example: tuple[Tensor, ...], names: Names, path: Path) -> None:
    inputs, outputs = names
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            wrapper, example, dynamo=True, opset_version=_OPSET, input_names=inputs, output_names=outputs,
            dynamic_shapes=(tuple(_dynamic(n) for n in inputs),), optimize=True, verbose=False,
        )  # fmt: skip
        assert program is not None  # noqa: S101 - dynamo=True always returns one
        program.save(str(path), external_data=True)


class _Decoder(nn.Module):
    """A causal model as a function of flat tensors: ids, mask, positions, ``more``, then keys and values in turn."""

    def __init__(self, model: nn.Module, more: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.more = more

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        ids, mask, positions, *rest = inputs
        more, past = dict(zip(self.more, rest, strict=False)), rest[len(self.more) :]
        cache = DynamicCache(tuple(zip(past[::2], past[1::2], strict=True)))
        out = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, **more
        )
        present = [t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)]
        return (out.logits, *present)


class _Encoder(nn.Module):
    """An encoder or classifier as a function of ids, mask and (where it has them) token types."""

    def __init__(self, model: PreTrainedModel, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Any = self.model(**dict(zip(self.names, inputs, strict=True)))
        first: Tensor = out[0]
        return first


def _decoder(model: nn.Module, more: dict[str, Tensor]) -> tuple[nn.Module, tuple[Tensor, ...], Names]:
    """A causal model, or one that takes ``more`` than others do."""
    from transformers import DynamicCache

    with torch.no_grad():
        seen = model(input_ids=torch.zeros(2, 3, dtype=torch.int64), use_cache=True, **more).past_key_values
    assert isinstance(seen, DynamicCache)  # noqa: S101 - what use_cache gives
    past = [t.clone() for layer in seen.layers for t in (layer.keys, layer.values)]
    ids = torch.ones(2, 5, dtype=torch.int64)
    positions = torch.arange(3, 8).repeat(2, 1)
    cache = [f"{i}.{kind}" for i in range(len(past) // 2) for kind in ("key", "value")]
    inputs = ["input_ids", "attention_mask", "position_ids", *more, *(f"past_key_values.{c}" for c in cache)]
    outputs = ["logits", *(f"present.{c}" for c in cache)]
    mask = torch.ones(2, 8, dtype=torch.int64)
    return _Decoder(model, list(more)), (ids, mask, positions, *more.values(), *past), (inputs, outputs)


def _encoder(model: PreTrainedModel) -> tuple[nn.Module, tuple[Tensor, ...], Names]:
    import inspect

    takes = inspect.signature(model.forward).parameters
    names = [n for n in ("input_ids", "attention_mask", "token_type_ids") if n in takes]
    ids = torch.ones(2, 7, dtype=torch.int64)
    values = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    classifier = hasattr(model, "classifier") or type(model).__name__.endswith("SequenceClassification")
    output = "logits" if classifier else "last_hidden_state"
    return _Encoder(model, names), tuple(values[n] for n in names), (names, [output])


def _dynamic(name: str) -> dict[int, Any]:
    auto = torch.export.Dim.DYNAMIC
    if name in ("pixel_values", WINDOW):
        return {0: auto}
    return {0: auto, 2: auto} if name.startswith("past_key_values") else {0: auto, 1: auto}


@contextlib.contextmanager
def _quiet() -> Any:
    """The exporter prints its steps and warns of what it handles itself."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)

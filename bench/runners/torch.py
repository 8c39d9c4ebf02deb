"""PyTorch: a Hugging Face checkpoint as its authors run it, fp32, packed weights dequantized; on the CPU or a GPU."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from greenllm import captions, images, merge, script
from greenllm.adapt import adapters
from greenllm.bench.runners import CPU, Decoder, Encoder, Info, Runner, Where, pooling
from greenllm.bench.runners.clock import DECODER, ENCODER, Clock
from greenllm.bench.runners.listener import Scribe, finite
from greenllm.blocks import blocks_of
from greenllm.checkpoint import Checkpoint, open_checkpoint
from greenllm.errors import GreenError
from greenllm.export.device.run import Script
from greenllm.features import Features
from greenllm.kinds import CAPTIONS, CLASSIFICATION, GENERATION, IMAGE_CLASSES, IMAGES, PAIRS, SPEECH, VLM, WRITING


def load(path: str, threads: int, where: Where = CPU) -> Runner:
    """See :class:`greenllm.bench.runners.Loader`.

    Raises:
        GreenError: no GPU is here, or a model that this bench runs on the CPU alone.
    """
    torch.set_num_threads(threads)
    adapted = adapters.is_adapter(path)
    checkpoint = adapters.open_base(path) if adapted else open_checkpoint(path)
    model = checkpoint.load_model()
    if adapted:
        adapters.load(model, path)
    if where.gpu:
        from greenllm.bench.runners.torch_gpu import on_gpu

        if adapted and adapters.read(path)[0].method == "prefix":
            raise GreenError(f"{path} is a prefix, which is run on the CPU alone.", "Leave gpu: away.")
        return on_gpu(checkpoint, model, where)
    if checkpoint.task == PAIRS:
        from greenllm.bench.runners.torch_dual import TorchDual

        return TorchDual(checkpoint, model)
    if checkpoint.task == VLM:
        from greenllm.bench.runners.torch_vlm import TorchSighted

        return TorchSighted(checkpoint, model)
    kinds: dict[str, Any] = {
        GENERATION: TorchDecoder, SPEECH: TorchListener, CAPTIONS: TorchCaptioner,
        CLASSIFICATION: TorchClassifier, **dict.fromkeys(IMAGES, TorchVision),
    }  # fmt: skip
    return cast("Runner", kinds.get(checkpoint.task, TorchEncoder)(checkpoint, model))


def _info(checkpoint: Checkpoint, model: Any) -> Info:
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    notes = [f"torch {dtype}, attention {getattr(model.config, '_attn_implementation', 'default')}"]
    if checkpoint.quantized:
        notes.append("packed weights were dequantized to run in torch: their size is real, their speed is not")
    vocabulary = int(checkpoint.words.vocab_size) if checkpoint.task in (GENERATION, *WRITING, VLM) else 0
    parameters = sum(p.numel() for p in model.parameters())  # a shared matrix comes once
    read = 0 if checkpoint.task == PAIRS else _read_by_a_token(model)
    if checkpoint.task == VLM:  # what sees is done with before the first token
        read -= sum(p.nbytes for part in merge.towers(model)[:2] for p in part.parameters())
    return Info(checkpoint.task, checkpoint.path, vocabulary, parameters, notes, read)


def _read_by_a_token(model: Any) -> int:
    """Bytes of all weights but an embedding that is no head too: of that a token reads a row."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    looked_up = isinstance(embedding, torch.nn.Embedding)  # patches are not
    alone = looked_up and (head is None or head.weight is not embedding.weight)
    return sum(p.nbytes for p in model.parameters()) - (embedding.weight.nbytes if alone else 0)


class _Blocks:
    """What a model in torch can show of its inside."""

    model: Any

    @torch.no_grad()
    def blocks(self, tokens: list[int]) -> NDArray[np.float32]:
        """Hidden states after each block, float32 [L, T, H]; the last with the norm that follows, as graphs fuse it."""
        found: list[torch.Tensor] = []
        watched = [*blocks_of(self.model)[1][:-1], self.model.base_model]
        hooks = [block.register_forward_hook(lambda _m, _a, out: found.append(_first(out))) for block in watched]
        try:
            self.model(input_ids=torch.tensor([tokens]))
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack([f.reshape(len(tokens), -1).float() for f in found]).numpy()

    def values(self, tokens: list[int], width: int) -> list[NDArray[np.float32]]:
        """Those of them that are ``width`` wide."""
        return [b for b in self.blocks(tokens) if b.shape[-1] == width]


def _first(out: Any) -> torch.Tensor:
    """The hidden states of what a module returns."""
    found: torch.Tensor = out if isinstance(out, torch.Tensor) else out[0]
    return found


class TorchDecoder(_Blocks, Decoder):
    """A causal language model with a KV cache."""

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        self.model = model
        self.info = _info(checkpoint, model)
        self._cache: Any = None
        # the head over all prompt positions is work that no deployment does
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._last = {"logits_to_keep": 1} if keeps else {}

    def prefill(self, tokens: list[int], answer: int) -> int:
        """See :class:`greenllm.bench.runners.Runner`."""
        return self.prefill_all([tokens], answer)[0]

    def step(self, token: int) -> int:
        """See :class:`greenllm.bench.runners.Runner`."""
        return self.step_all([token])[0]

    def prefill_all(self, batch: list[list[int]], answer: int) -> list[int]:
        """See :class:`greenllm.bench.runners.Batched`."""
        del answer  # the cache grows
        self._cache = None
        return self._forward(batch)

    def step_all(self, tokens: list[int]) -> list[int]:
        """See :class:`greenllm.bench.runners.Batched`."""
        return self._forward([[t] for t in tokens])

    @torch.no_grad()
    def _forward(self, batch: list[list[int]]) -> list[int]:
        ids = torch.tensor(batch, device=self.model.device)
        out = self.model(input_ids=ids, past_key_values=self._cache, use_cache=True, **self._last, **self._seen(batch))
        self._cache = out.past_key_values
        found: list[int] = out.logits[:, -1].argmax(-1).tolist()
        return found

    @torch.no_grad()
    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """See :class:`greenllm.bench.runners.Runner`."""
        self._cache = None
        ids = torch.tensor([tokens], device=self.model.device)
        out = self.model(input_ids=ids, use_cache=False, **self._seen([tokens]))
        found: NDArray[np.float32] = out.logits[0].float().cpu().numpy()
        return found

    def _seen(self, batch: list[list[int]]) -> dict[str, torch.Tensor]:
        """What a model that sees is given beside a prompt's tokens."""
        del batch
        return {}

    def close(self) -> None:
        """See :class:`greenllm.bench.runners.Runner`."""
        self.model = self._cache = None


class TorchWriter(Scribe):
    """An encoder takes in a window of a clip or an image once, a decoder with a KV cache writes about it."""

    def __init__(self, checkpoint: Checkpoint, model: Any, features: Any, asked: Script) -> None:
        self.features = features
        self.script = asked
        self.model = model
        self.info = _info(checkpoint, model)
        self.clock = Clock(ENCODER, DECODER)
        self._heard: Any = None
        self._cache: Any = None

    @torch.no_grad()
    def hear(self, sound: NDArray[np.float32]) -> None:
        """See :class:`greenllm.export.device.run.Scribe`."""
        self._cache = None
        with self.clock.of(ENCODER):
            self._heard = self.model.get_encoder()(**self.features(sound))

    @torch.no_grad()
    def feed(self, ids: list[int]) -> NDArray[np.float32]:
        """See :class:`greenllm.export.device.run.Scribe`.

        Raises:
            GreenError: the logits hold NaN or infinity.
        """
        with self.clock.of(DECODER):
            out = self.model(
                encoder_outputs=self._heard, decoder_input_ids=torch.tensor([ids]),
                past_key_values=self._cache, use_cache=True,
            )  # fmt: skip
            self._cache = out.past_key_values
            return finite(out.logits[0, -1].numpy())

    def close(self) -> None:
        """See :class:`greenllm.bench.runners.Runner`."""
        self.model = self._heard = self._cache = None


class TorchListener(TorchWriter):
    """Speech to text."""

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        super().__init__(checkpoint, model, Features(checkpoint), script.of(checkpoint.path))


class TorchEncoder(_Blocks, Encoder):
    """A bidirectional encoder."""

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        self.model = model
        self.info = _info(checkpoint, model)
        self._pooling = pooling.mode(checkpoint.path)

    @torch.no_grad()
    def encode(self, batch: list[list[int]]) -> NDArray[np.float32]:
        """See :class:`greenllm.bench.runners.Runner`."""
        ids, mask = pooling.pad(batch)
        out = self.model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
        return pooling.pool(out.last_hidden_state.numpy(), mask, self._pooling)

    def close(self) -> None:
        """See :class:`greenllm.bench.runners.Runner`."""
        self.model = None


class TorchClassifier(TorchEncoder):
    """A bidirectional encoder with a head: logits of each text's class."""

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        super().__init__(checkpoint, model)
        self.info = replace(self.info, vocabulary=int(model.config.num_labels))

    @torch.no_grad()
    def encode(self, batch: list[list[int]]) -> NDArray[np.float32]:
        """See :class:`greenllm.bench.runners.Runner`."""
        found = [self.model(input_ids=torch.tensor([text])).logits[0].float() for text in batch]
        return torch.stack(found).numpy()  # one by one: decoders' heads look for the token that pads


class _Sight:
    """What makes pixels of image files: transformers' own processor."""

    info: Info

    @cached_property
    def _processor(self) -> Any:
        from greenllm.export.vision import processor_of

        return processor_of(self.info.directory)

    def pixels(self, files: Sequence[str]) -> images.Pixels:
        """See :class:`greenllm.bench.runners.Runner`."""
        return images.read(files, self._processor)


class TorchVision(_Sight, Encoder):
    """A vision encoder."""

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        self.model = model
        classes = int(model.config.num_labels) if checkpoint.task == IMAGE_CLASSES else 0
        self.info = replace(_info(checkpoint, model), vocabulary=classes, image=checkpoint.image_shape)

    @torch.no_grad()
    def encode(self, batch: Any) -> NDArray[np.float32]:
        """See :class:`greenllm.bench.runners.Runner`."""
        out = self.model(pixel_values=torch.from_numpy(np.stack(batch)))
        found: NDArray[np.float32] = images.vector(images.answer_of(out)[1]).numpy()
        return found

    def close(self) -> None:
        """See :class:`greenllm.bench.runners.Runner`."""
        self.model = None


class TorchCaptioner(_Sight, TorchWriter):
    """Image to text."""

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        def features(pixels: images.Pixels) -> dict[str, torch.Tensor]:
            return {"pixel_values": torch.from_numpy(pixels)[None]}

        super().__init__(checkpoint, model, features, captions.script(checkpoint.path))
        self._shape = checkpoint.image_shape

    def view(self, file: str) -> images.Pixels:
        """See :class:`greenllm.bench.runners.Runner`."""
        return images.fitting(self.pixels([file]), self._shape, self.info.directory)[0]

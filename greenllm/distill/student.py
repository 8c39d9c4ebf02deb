"""The student: as it lies there, with a head for classes, or with fresh weights from a configuration alone."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from greenllm import artifact
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.kinds import CLASSIFICATION, GENERATION
from greenllm.save import copy_side_files, write_config, write_shards
from greenllm.source import cache_dir

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_SPARSE = 0.1  # share of zeros that nobody gets by chance


def with_fresh_weights(path: Path, seed: int) -> Path:
    """A checkpoint of random weights for a directory that has a ``config.json`` and no weights; others as they are.

    It is made once, in ``$GREENLLM_CACHE``, and has what lies beside the configuration (a tokenizer).
    """
    if not (path / "config.json").is_file() or any(path.glob("*.safetensors*")) or any(path.glob("*.bin")):
        return path
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    name = hashlib.sha256((path / "config.json").read_bytes() + bytes(str(seed), "ascii")).hexdigest()[:16]
    out = cache_dir() / "fresh" / name
    if artifact.is_artifact(out):
        return out
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        torch.manual_seed(seed)
        encoder = not any("CausalLM" in a or "LMHead" in a for a in config.architectures or ["CausalLM"])
        model = (AutoModel if encoder else AutoModelForCausalLM).from_config(config, dtype=torch.float32)
    except (ValueError, KeyError, OSError, TypeError, AttributeError) as e:
        raise GreenError(f"{path}: no model can be made from its config.json: {str(e).splitlines()[0][:200]}") from e
    with artifact.writing(out) as part:
        model.save_pretrained(part)
        copy_side_files(path, part)
        artifact.seal(part, artifact.Manifest(kind="checkpoint", parents=[]))
    return out


def load(checkpoint: Checkpoint, classes: list[str], seed: int) -> PreTrainedModel:
    """The student in float32, to be trained.

    Args:
        checkpoint: dense.
        classes: names of the classes that it must tell apart; none for what it does already.
        seed: of a new head.
    """
    model = _classifier(checkpoint, classes, seed) if classes else checkpoint.load_model()
    model.config.use_cache = False
    return model


def sparse(model: nn.Module) -> list[nn.Parameter]:
    """Matrices that were pruned to zeros."""
    return [p for p in model.parameters() if p.dim() > 1 and float((p == 0).float().mean()) >= _SPARSE]


def hold_zeros(parameter: nn.Parameter) -> None:
    """Let zeros be zeros while the rest of a matrix learns."""
    kept = parameter.detach() != 0
    parameter.register_hook(lambda grad: grad * kept.to(grad.device))


def _classifier(checkpoint: Checkpoint, classes: list[str], seed: int) -> PreTrainedModel:
    """With the checkpoint's own head if it has one for so many classes, else with a new one."""
    from transformers import AutoModelForSequenceClassification

    own = checkpoint.task == CLASSIFICATION and checkpoint.config.num_labels == len(classes)
    config = copy.deepcopy(checkpoint.config)
    config.id2label = dict(enumerate(classes))
    config.label2id = {n: i for i, n in enumerate(classes)}
    config.problem_type = "single_label_classification"
    torch.manual_seed(seed)
    try:
        model: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    except ValueError as e:
        raise GreenError(f"{checkpoint.path}: transformers has no classifier of this architecture.") from e
    config = model.config
    config.architectures = [type(model).__name__]
    for name, parameter in model.named_parameters():
        if own or not _of_head(model, name):
            found = checkpoint.find(name)
            if found is not None:
                parameter.data.copy_(found)
            elif own:
                raise GreenError(f"{checkpoint.path}: the weight {name} is missing from the checkpoint.")
    if config.pad_token_id is None and checkpoint.task == GENERATION:
        config.pad_token_id = config.eos_token_id
    return model.eval()


def _of_head(model: Any, name: str) -> bool:
    return not name.startswith(model.base_model_prefix + ".")


def write(out: Path, checkpoint: Checkpoint, model: nn.Module, tokenizer: Path) -> None:
    """Write a trained student as an ordinary directory of Hugging Face, float32.

    Args:
        out: where.
        checkpoint: what it began as; what lies beside its weights goes along.
        model: with its adapters merged.
        tokenizer: directory of the tokenizer that it was trained with.
    """
    if tokenizer != checkpoint.path:
        copy_side_files(tokenizer, out)
    copy_side_files(checkpoint.path, out)
    tensors = ((n, p.detach().float().cpu()) for n, p in model.named_parameters())
    config: Any = model.config
    config.use_cache = getattr(checkpoint.config, "use_cache", True)
    write_shards(out, tensors)
    write_config(out, config, None)

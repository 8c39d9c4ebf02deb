"""Recovery by adapters that are merged at the end: fewer weights learn, and none are added to the result.

LoRA, Hu et al., 2021, arXiv:2106.09685; DoRA (a learned size beside the low-rank direction), Liu et al., 2024,
arXiv:2402.09353; AdaLoRA (ranks go to where they matter), Zhang et al., 2023, arXiv:2303.10512; all three by peft.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from greenllm.distill.student import sparse
from greenllm.errors import GreenError

What = Literal["all", "blocks", "lora", "dora", "adalora"]
_SCALE = 2  # alpha over rank
_PATTERN = "rank_pattern"
_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def hold_still(student: Any, what: What) -> None:
    """Where but "blocks" learn, keep what reads and writes tokens: a cut that spared it has nothing to heal there."""
    for table in (student.get_input_embeddings(), student.get_output_embeddings()) if what == "blocks" else ():
        if table is not None:
            table.requires_grad_(requires_grad=False)


def adapt(student: Any, what: What, rank: int, steps: int, *, classifier: bool, seed: int) -> Any:
    """The student with adapters on all linear layers of its blocks; where no adapters learn, itself.

    Raises:
        GreenError: peft is not installed, the student is sparse, or there are too few steps for AdaLoRA.
    """
    if what in ("all", "blocks"):
        return student
    if sparse(student):
        raise GreenError("Adapters would fill the zeros of a sparse student.", "Leave out --train.")
    try:
        import peft
    except ModuleNotFoundError as e:
        raise GreenError(f"{what} needs the package peft.", "pip install 'greenllm[distill]'") from e
    common: dict[str, Any] = {
        "target_modules": "all-linear", "lora_alpha": _SCALE * rank, "task_type": "SEQ_CLS" if classifier else None,
    }  # fmt: skip
    if what == "adalora":
        config = adalora(rank, steps, **common)
    else:
        config = peft.LoraConfig(r=rank, use_dora=what == "dora", **common)
    torch.manual_seed(seed)
    return peft.get_peft_model(student, config)


def adalora(rank: int, steps: int, **common: Any) -> Any:
    """Peft's configuration of an AdaLoRA that ends at ``rank`` (mean) after ``steps``, from one and a half of it.

    Raises:
        GreenError: there are too few steps.
    """
    import peft

    begin, end = max(1, steps // 10), max(1, steps // 3)
    if steps - end <= begin:
        raise GreenError(f"{steps} steps are too few for adalora to move its ranks.", "Take more, or lora.")
    return peft.AdaLoraConfig(
        init_r=rank + rank // 2, target_r=rank, tinit=begin, tfinal=end, total_step=steps, **common
    )


def merged(student: Any) -> Any:
    """The student with its adapters added into its weights."""
    return student.merge_and_unload() if hasattr(student, "merge_and_unload") else student


def after_update(student: Any, step: int) -> None:
    """Let AdaLoRA look at the gradients of an update and move its ranks."""
    if _allocator(student) is not None:
        student.base_model.update_and_allocate(step)


def orthogonality(student: Any) -> Tensor | float:
    """AdaLoRA's penalty on bases that are not orthogonal (equation 4), mean over them and weighted; 0 for others."""
    if _allocator(student) is None:
        return 0.0
    weight = student.peft_config["default"].orth_reg_weight
    bases = [p if "lora_A" in n else p.T for n, p in student.named_parameters() if "lora_A" in n or "lora_B" in n]
    norms = [torch.linalg.matrix_norm(b @ b.T - torch.eye(len(b), device=b.device)) for b in bases]
    return weight * torch.stack(norms).mean()


def state(student: Any) -> dict[str, Tensor]:
    """What AdaLoRA knows beside its weights, to be written with them; nothing for others."""
    allocator = _allocator(student)
    if allocator is None:
        return {}
    found = {f"{k}|{n}": t.contiguous() for k in _IMPORTANCE for n, t in getattr(allocator, k).items()}
    pattern = allocator.peft_config.rank_pattern or {}
    return found | {f"{_PATTERN}|{n}": torch.tensor(v) for n, v in pattern.items()}


def restore(student: Any, found: dict[str, Tensor]) -> None:
    """Give back what :func:`state` told."""
    allocator = _allocator(student)
    if allocator is None:
        return
    for kind in _IMPORTANCE:
        getattr(allocator, kind).clear()
    for key, tensor in found.items():
        kind, _, name = key.partition("|")
        if kind in _IMPORTANCE:
            getattr(allocator, kind)[name] = tensor
    pattern = {k.partition("|")[2]: t.tolist() for k, t in found.items() if k.startswith(_PATTERN)}
    allocator.peft_config.rank_pattern = pattern or None


def _allocator(student: Any) -> Any:
    return getattr(getattr(student, "base_model", None), "rankallocator", None)

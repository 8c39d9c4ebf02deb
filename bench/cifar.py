"""A small vision transformer that can tell CIFAR-10's classes apart, so that its accuracy means something.

``python -m greenllm.bench.cifar TRAIN.zip TEST.zip OUT [--passes 8]``: zips of images in folders named by their class.
OUT gets ``checkpoint/`` (0.8 million weights, patches of 8 x 8), the images of both zips, ``test.jsonl`` for
``greenllm bench --task`` and ``train.jsonl`` for ``--calibration``. Some three minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from greenllm.images import PROCESSOR, Processor, read

_RATE = 1.5e-3
PREPROCESSING = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 32, "width": 32}, "resample": 2,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": [0.491, 0.482, 0.447], "image_std": [0.247, 0.243, 0.262],
}  # fmt: skip


def unpack(archive: Path, out: Path, name: str) -> list[dict[str, str]]:
    """Write images as ``name/class/file`` and ``name.jsonl`` into ``out``; returns the rows."""
    rows = []
    with zipfile.ZipFile(archive) as held:
        for member in sorted(held.namelist()):
            *_, label, file = ("", *PurePosixPath(member).parts)
            if file.endswith(".jpg"):
                target = out / name / label / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(held.read(member))
                rows.append({"image": f"{name}/{label}/{file}", "label": label})
    (out / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return rows


def small(labels: list[str], seed: int = 0) -> ViTForImageClassification:
    """The model, with random weights."""
    torch.manual_seed(seed)
    names = dict(enumerate(labels))
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, image_size=32,
            patch_size=8, id2label=names, label2id={v: k for k, v in names.items()},
        )
    )  # fmt: skip


def train(
    model: nn.Module, x: Tensor, loss_of: Callable[[Tensor, Tensor], Tensor], passes: int, *, batch: int = 128,
    rate: float = _RATE,
) -> None:  # fmt: skip
    """Learn x [N, 3, 32, 32] in batches, mirrored and shifted at random.

    Args:
        model: learns.
        x: images.
        loss_of: the loss of some of them, as they are seen, [B, 3, 32, 32], and which of x they are, [B].
        passes: how often each is seen.
        batch: images of a step.
        rate: of learning, at its highest.
    """
    steps = passes * (len(x) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    pace = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for step in range(steps):
        at = torch.randint(len(x), (batch,))
        dy, dx = torch.randint(-3, 4, (2,)).tolist()
        seen = x[at].roll((dy, dx), (2, 3))
        seen = seen.flip(3) if step % 2 else seen
        loss = loss_of(seen, at)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pace.step()
        if step % 50 == 0:
            print(f"{step}/{steps} loss {loss.item():.3f}", flush=True)
    model.eval()


def make(archives: tuple[Path, Path], out: Path, passes: int, most: int | None = None) -> Path:
    """Unpack, train, save; ``most`` images are learnt. Returns the checkpoint's directory."""
    checkpoint = out / "checkpoint"
    checkpoint.mkdir(parents=True)
    (checkpoint / PROCESSOR).write_text(json.dumps(PREPROCESSING), encoding="utf-8")
    rows, _ = (unpack(a, out, name) for a, name in zip(archives, ("train", "test"), strict=True))
    labels = sorted({r["label"] for r in rows})
    chosen = np.random.default_rng(0).permutation(len(rows))[:most]
    x = torch.from_numpy(read([out / rows[i]["image"] for i in chosen], Processor(checkpoint)))
    y = torch.tensor([labels.index(rows[i]["label"]) for i in chosen])
    model = small(labels)
    train(model, x, lambda seen, at: nn.functional.cross_entropy(model(pixel_values=seen).logits, y[at]), passes)
    model.save_pretrained(checkpoint)
    return checkpoint


def command(doc: str, make: Callable[[tuple[Path, Path], Path, int], Path], passes: int) -> None:
    """Of a module that ``make``s a model of both archives, in so many ``passes`` where nothing is said."""
    given = argparse.ArgumentParser(description=doc.splitlines()[0])
    given.add_argument("train", type=Path)
    given.add_argument("test", type=Path)
    given.add_argument("out", type=Path)
    given.add_argument("--passes", type=int, default=passes)
    options = given.parse_args()
    make((options.train, options.test), options.out, options.passes)


if __name__ == "__main__":
    command(__doc__ or "", make, 8)

"""What an engine was built for: it runs there and nowhere else."""

from __future__ import annotations

from typing import Any

from greenllm.errors import GreenError

ENGINE = "model.engine"
STAMP = "engine.json"  # beside an engine that the device built


def check_engine(built: dict[str, Any], compute_capability: str, library: str, installed: str) -> None:
    """Refuse an engine that was built for another GPU or by another library: it is not portable.

    Args:
        built: the stamp: of the manifest's details, or of ``engine.json``.
        compute_capability: of the GPU here, as "8.9".
        library: that is to run it.
        installed: version of it, as it says itself; a package's may go on, as 10.3.0.30-1+cuda12.5.

    Raises:
        GreenError: it does not run here; with what differs.
    """
    theirs = tuple(str(built.get(k)) for k in ("compute_capability", "library", "version"))
    same = theirs[2] == installed or theirs[2].startswith((f"{installed}.", f"{installed}-", f"{installed}+"))
    if theirs[:2] == (compute_capability, library) and same:
        return
    raise GreenError(
        f"This engine was built for compute capability {theirs[0]} by {theirs[1]} {theirs[2]}; here are "
        f"{compute_capability} and {library} {installed}, which do not run it.",
        "Export the checkpoint again for this GPU: greenllm export CHECKPOINT -o OUT --to tensorrt --target …",
    )

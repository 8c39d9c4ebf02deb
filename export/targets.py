"""What each device runs: one YAML file a target, here or the user's own."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from greenllm.errors import GreenError

Format = Literal["genai", "onnx"]
_HOME = Path(__file__).with_name("targets")


class Target(BaseModel):
    """A device and what is exported for it.

    Attributes:
        name: the file's name.
        description: one line.
        isa: machine name as ``uname -m`` says it; None for this machine's.
        formats: the format that runs each task best there.
        accuracy_level: of MatMulNBits: 4 multiplies in int8, 0 in float32.
        operators: in plain ONNX the standard ones alone, or those of ONNX Runtime too.
        genai: the oldest onnxruntime-genai that must run it, as "0.11"; None: the one that is installed here.
    """

    model_config = ConfigDict(extra="forbid")

    name: str = ""
    description: str
    isa: str | None = None
    formats: dict[str, Format]
    accuracy_level: int = Field(4, ge=0, le=4)
    operators: Literal["standard", "onnxruntime"] = "standard"
    genai: str | None = Field(None, pattern=r"^\d+(\.\d+)+$")


def target_names() -> list[str]:
    """Names of the targets that come with greenllm."""
    return sorted(p.stem for p in _HOME.glob("*.yaml"))


def load_target(name: str | Path) -> Target:
    """A target by name, or one from a YAML file.

    Raises:
        GreenError: no such target, or a file that does not describe one.
    """
    if str(name) in target_names():
        return _parse((_HOME / f"{name}.yaml").read_text(encoding="utf-8"), str(name))
    path = Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(str(name), target_names(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise GreenError(
            f"{name}: no such target.{hint}", f"Targets: {', '.join(target_names())}; or give a YAML file."
        )
    return _parse(path.read_text(encoding="utf-8"), path.stem)


def _parse(text: str, name: str) -> Target:
    try:
        data = yaml.safe_load(text)
        return Target.model_validate({"name": name} | data)
    except (yaml.YAMLError, TypeError) as e:
        raise GreenError(f"{name}: a target is a YAML mapping: {str(e).splitlines()[0]}.") from e
    except ValidationError as e:
        first = e.errors()[0]
        key = ".".join(str(x) for x in first["loc"])
        allowed = ", ".join(Target.model_fields)
        raise GreenError(f"target {name}: {key}: {first['msg']}.", f"Keys: {allowed}.") from e

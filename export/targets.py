"""What each device has and runs: one YAML file a target, here or the user's own."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from greenllm.errors import GreenError

Format = Literal["genai", "onnx", "tensorrt", "edge-llm", "gguf"]
Runtime = Literal["genai", "onnx", "tensorrt", "edge-llm", "gguf"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "int4", "fp8", "nvfp4"]
_HOME = Path(__file__).with_name("targets")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PowerMode(_Strict):
    """A power mode of ``nvpmodel``: its number, its name, and watts of the module (None: not capped)."""

    id: int = Field(ge=0)
    name: str
    watts: float | None = Field(gt=0)


class Embodied(_Strict):
    """What making it emitted, in kgCO2e, what of it that figure covers, and who says so."""

    kilograms: float = Field(gt=0)
    covers: str
    source: str = Field(min_length=8)


class Target(_Strict):
    """A device and what is exported for it.

    Attributes:
        name: the file's name.
        description: one line.
        isa: machine name as ``uname -m`` says it; None for this machine's.
        compute_capability: of its NVIDIA GPU, as "8.9"; None where there is none.
        memory: of the GPU, or of the machine where it has none or shares it; in GB of 2**30 bytes; None: not known.
        bandwidth: of that memory by its vendor, in GB/s (10**9).
        shared: whether GPU and CPU share that memory.
        reserved: GB of it that the system keeps; an estimate.
        precisions: that its kernels really have.
        runtimes: that run there.
        formats: the format that runs each task best there.
        accuracy_level: of MatMulNBits: 4 multiplies in int8, 0 in float32.
        operators: in plain ONNX the standard ones alone, or those of ONNX Runtime too.
        genai: the oldest onnxruntime-genai that must run it, as "0.11"; None: the one that is installed here.
        jetpack: NVIDIA's system for it.
        tensorrt: version of TensorRT in that system.
        power_modes: of ``nvpmodel``; the device's own /etc/nvpmodel.conf has the last word.
        embodied: carbon of making it; None where no source is known.
        sources: of these figures.
    """

    name: str = ""
    description: str
    isa: str | None = None
    compute_capability: str | None = Field(None, pattern=r"^\d+\.\d$")
    memory: float | None = Field(None, gt=0)
    bandwidth: float | None = Field(None, gt=0)
    shared: bool = False
    reserved: float = Field(0, ge=0)
    precisions: list[Precision] = ["fp32", "int8", "int4"]
    runtimes: list[Runtime] = ["genai", "onnx", "gguf"]
    formats: dict[str, Format]
    accuracy_level: int = Field(4, ge=0, le=4)
    operators: Literal["standard", "onnxruntime"] = "standard"
    genai: str | None = Field(None, pattern=r"^\d+(\.\d+)+$")
    jetpack: str | None = None
    tensorrt: str | None = None
    power_modes: list[PowerMode] = []
    embodied: Embodied | None = None
    sources: list[str] = []

    @property
    def sm(self) -> int | None:
        """Compute capability as one number: 89 for 8.9."""
        return int(self.compute_capability.replace(".", "")) if self.compute_capability else None


def target_names() -> list[str]:
    """Names of the targets that come with greenllm."""
    return sorted(p.stem for p in _HOME.glob("*.yaml"))


def target_text(name: str | Path) -> str:
    """The YAML of a target: one that comes with greenllm, or the user's file.

    Raises:
        GreenError: no such target.
    """
    if str(name) in target_names():
        return (_HOME / f"{name}.yaml").read_text(encoding="utf-8")
    path = Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(str(name), target_names(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise GreenError(
            f"{name}: no such target.{hint}", f"Targets: {', '.join(target_names())}; or give a YAML file."
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise GreenError(f"{name}: a target is a YAML mapping; this is no text.") from e


def load_target(name: str | Path) -> Target:
    """A target by name, or one from a YAML file; of this machine's memory is known.

    Raises:
        GreenError: no such target, or a file that does not describe one.
    """
    found = _parse(target_text(name), str(name) if str(name) in target_names() else Path(name).stem)
    if found.isa is None and found.compute_capability is None and found.memory is None:
        found.memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 2)
    return found


def embodied_of(value: str | None) -> float | None:
    """KgCO2e that a user gave: as a number, or by naming a target.

    Raises:
        GreenError: neither, or a target whose figure nobody published.
    """
    if value is None:
        return None
    try:
        return float(value)
    except ValueError:
        target = load_target(value)
    if target.embodied is None:
        raise GreenError(
            f"Nobody published what making a {target.name} emits, so its file has no figure.",
            "Give kgCO2e as a number: --embodied 150.",
        )
    return target.embodied.kilograms


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

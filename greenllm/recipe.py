"""A recipe is a list of steps with their calibration; YAML in, validated, errors that name the key."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from greenllm.errors import GreenError
from greenllm.step import Step


class Calibration(BaseModel):
    """Where calibration samples come from and how many there are."""

    model_config = ConfigDict(extra="forbid")

    source: str = Field("self", description="self (the model's own words), a .txt or .jsonl file, or a hub data set")
    samples: int = Field(64, ge=1, le=65536, description="number of samples")
    length: int = Field(128, ge=8, le=131072, description="tokens in each sample")
    clean: bool = Field(True, description="drop duplicates and personal data of a text first, and say how many")
    balance: str = Field("", description="key of a .jsonl file's rows: as many samples of each of its values")


class Recipe(BaseModel):
    """Steps in order, the calibration they share, and the seed of all that is random."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    name: str = ""
    description: str = ""
    seed: int = Field(0, ge=0)
    calibration: Calibration = Field(default_factory=lambda: Calibration.model_validate({}))
    steps: list[Any] = Field(default_factory=list)

    @property
    def calibrated(self) -> bool:
        """Whether any step needs calibration samples."""
        return any(step.calibrated for step in self.steps)

    def dump(self) -> dict[str, Any]:
        """As plain data; :func:`parse` reads it back."""
        plain = self.model_dump(exclude={"steps"})
        return plain | {"steps": [{s.name: dataclasses.asdict(s)} for s in self.steps]}


@functools.cache
def step_types() -> dict[str, type[Step]]:
    """Every kind of step by its name in a recipe."""
    from greenllm.distill.step import Distill
    from greenllm.prune.step import Prune
    from greenllm.quantize.bnb_step import BitsAndBytes
    from greenllm.quantize.fp8_step import Fp8
    from greenllm.quantize.mixed import Mixed
    from greenllm.quantize.step import Quantize
    from greenllm.quantize.tune_step import Tune

    return {t.name: t for t in (Quantize, Mixed, Tune, Fp8, BitsAndBytes, Prune, Distill)}


def builtin() -> list[str]:
    """Names of the recipes that come with greenllm."""
    return sorted(p.name.removesuffix(".yaml") for p in _home().iterdir() if p.name.endswith(".yaml"))


def text_of(name: str) -> str:
    """The YAML of a built-in recipe, to print and to start from."""
    return (_home() / f"{name}.yaml").read_text(encoding="utf-8")


def load(name: str | Path) -> Recipe:
    """A built-in recipe by name, or one from a YAML file.

    Raises:
        GreenError: no such recipe; not YAML; an unknown key, a wrong type, an impossible value.
    """
    if str(name) in builtin():
        return parse(text_of(str(name)), str(name))
    path = Path(name).expanduser()
    if not path.is_file():
        near = difflib.get_close_matches(str(name), builtin(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise GreenError(f"{name}: no such recipe.{hint}", f"Built in: {', '.join(builtin())}; or give a YAML file.")
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as e:
        raise GreenError(f"{path} cannot be read: {e}.") from e


def parse(text: str, name: str) -> Recipe:
    """Validate the YAML text of a recipe; ``name`` is for its errors.

    Raises:
        GreenError: see :func:`load`.
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise GreenError(f"{name} is not YAML: {str(e).splitlines()[0]}.") from e
    if not isinstance(data, dict):
        raise GreenError(f"{name}: a recipe is a mapping with the key steps.", "`greenllm recipes int4` prints one.")
    steps = data.get("steps")
    if not isinstance(steps, list):
        raise GreenError(f"{name}: steps must be a list.", "`greenllm recipes int4` prints a recipe to start from.")
    made = [_step(entry, f"{name}: steps[{i}]") for i, entry in enumerate(steps)]
    try:
        return Recipe.model_validate({"name": Path(name).stem} | data | {"steps": made})
    except ValidationError as e:
        raise explain(e, name, [*Recipe.model_fields, *(f"calibration.{k}" for k in Calibration.model_fields)]) from e


def make_step(kind: str, options: dict[str, Any], where: str) -> Step:
    """Build a step from its options.

    Raises:
        GreenError: an unknown key, a wrong type or an impossible value; it says where.
    """
    found = step_types()[kind]
    unknown = sorted(set(options) - {f.name for f in dataclasses.fields(found)})  # type: ignore[arg-type]
    if unknown:
        raise GreenError(f"{where}.{unknown[0]}: no such key.", _allowed(unknown[0], keys_of(kind)))
    try:
        return TypeAdapter(found).validate_python(options)
    except ValidationError as e:
        raise explain(e, where, keys_of(kind)) from e


def keys_of(kind: str) -> list[str]:
    """The option names of a step."""
    return [f.name for f in dataclasses.fields(step_types()[kind])]  # type: ignore[arg-type]


def choices(annotation: Any) -> list[str]:
    """The values of a Literal, as text; nothing for other types."""
    return [str(v) for v in get_args(annotation)] if typing.get_origin(annotation) is typing.Literal else []


def explain(error: ValidationError, where: str, allowed: Iterable[str]) -> GreenError:
    """A pydantic error in plain words: the key, what was wrong, what is allowed."""
    first = error.errors()[0]
    key = ".".join(str(x) for x in first["loc"])
    if first["type"] == "extra_forbidden":
        return GreenError(f"{where}: {key}: no such key.", _allowed(key, allowed))
    return GreenError(f"{where}: {key} = {first['input']!r}: {first['msg']}.")


def _step(entry: Any, where: str) -> Step:
    if not isinstance(entry, dict) or len(entry) != 1:
        raise GreenError(f"{where} must be one step with its options, like `quantize: {{bits: 4}}`.")
    ((kind, options),) = entry.items()
    if kind not in step_types():
        raise GreenError(f"{where}: no step is called {kind!r}.", _allowed(str(kind), step_types()))
    if options is not None and not isinstance(options, dict):
        raise GreenError(f"{where}.{kind}: its options must be a mapping.", _allowed("", keys_of(kind)))
    return make_step(kind, options or {}, f"{where}.{kind}")


def _allowed(key: str, allowed: Iterable[str]) -> str:
    names = list(allowed)
    near = difflib.get_close_matches(key, names, n=1)
    return (f"Did you mean {near[0]}? " if near else "") + f"Allowed: {', '.join(names)}."


def _home() -> Any:
    return resources.files("greenllm") / "recipes"

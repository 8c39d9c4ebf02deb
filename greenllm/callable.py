"""Let ``greenllm.bench`` be the room and the function at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def make_callable(module: str, function: Callable[..., Any]) -> None:
    """Make calling ``module`` call ``function``.

    So ``greenllm.bench(["a", "b"])`` works whether or not the subpackage of that name was imported before.
    """

    class CallableModule(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    sys.modules[module].__class__ = CallableModule

"""What must not be rounded to half precision, whatever the rest of the model is computed in."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Inside, operators on `x`'s kind of device keep the precision of their inputs.

    Where autocast is off this is nothing at all, so that a traced graph never holds it.
    """
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def precise(function: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """`function` of tensors, computed in their own precision under autocast too."""

    @wraps(function)
    def in_own_precision(x: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with without_autocast(x):
            return function(x, *args, **kwargs)

    return in_own_precision


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is if that is better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))

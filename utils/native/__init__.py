"""What is compiled: projection, search, W~ and gradient in one; the one builder of all C++."""
from types import ModuleType

import torch
from torch import Tensor

from . import cpu

METHODS = {'cpu': ('dab',)}     # with compiled code, by the type of device


def covers(weight: Tensor, method: str) -> bool:
    """Whether there is compiled code for such weights, if it can be built."""
    return (method in METHODS.get(weight.device.type, ()) and weight.dtype == torch.float32
            and weight.is_contiguous())


def compiled_for(weight: Tensor) -> ModuleType | None:
    """The module with forward_ and backward for covered weights; None where it cannot be built."""
    return cpu if cpu.library() else None

"""What is compiled: projection, search, W~ and gradient in one; the one builder of all C++."""
import importlib

import torch
from torch import Tensor

METHODS = {'cpu': ('dab',), 'cuda': ('dab', 'xnor', 'bnn')}     # with code, by type of device
MODULES = {'cpu': '.cpu', 'cuda': '.gpu'}   # with supports, forward_ and backward


class Unsupported(Exception):
    """Compiled code could not be built or started; no tensor was changed."""


def covers(weight: Tensor, method: str) -> bool:
    """Whether there is compiled code for such weights, if it can be built on this machine."""
    return (method in METHODS.get(weight.device.type, ()) and weight.dtype == torch.float32
            and weight.is_contiguous())


def call(name: str, weight: Tensor, *arguments: Tensor | str):
    """What the function `name`, forward_ or backward, returns for these arguments.

    weight: one of the arguments, which tells where. None where the compiled code is missing or
    does not run, which it has warned of once.
    """
    compiled = importlib.import_module(MODULES[weight.device.type], __name__)
    if not compiled.supports(weight):
        return None
    try:
        return getattr(compiled, name)(*arguments)
    except Unsupported:
        return None

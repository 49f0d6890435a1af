"""What is compiled: projection, search, W~ and gradient in one; the one builder of all C++.

Compiled code is a twin of a method in utils/binarize.py, used only where it proves to be: see
is_twin.
"""
import functools
import importlib
import math
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

METHODS = {'cpu': ('dab',), 'cuda': ('dab', 'xnor', 'bnn')}     # with code, by type of device
MODULES = {'cpu': '.cpu', 'cuda': '.gpu'}   # with supports, forward_, backward, TOLERANCE
UNIT = 2.0 ** 22    # the sample's weights are multiples of 1 / UNIT
ROUNDING = 1e-5     # relative, of W~ and of gradients in float32

Step = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


class Unsupported(Exception):
    """Compiled code could not be built or started; no tensor was changed."""


def covers(weight: Tensor, method: str) -> bool:
    """Whether there is compiled code for such weights, if it can be built on this machine."""
    return (method in METHODS.get(weight.device.type, ()) and weight.dtype == torch.float32
            and weight.is_contiguous())


def compiled(device: torch.device) -> ModuleType:
    """The module of the code for a type of device, with forward_ and backward."""
    return importlib.import_module(MODULES[device.type], __name__)


def is_twin(step: Step, twin: Step, device: torch.device, shape: tuple[int, ...],
            title: str) -> bool:
    """Whether two training steps do the same to filters (c, …) of this shape.

    step is in PyTorch and gets float64; twin is by compiled code on the device. Both get latent
    weights and the gradient of W~, (out, c, …), and return the projected latent weights, W~, the
    gradient of the latent weights, alpha and beta. The partition may differ where ‖W − W~‖² does
    not, up to the TOLERANCE of the compiled search. Warns, once, where the results differ.
    """
    if device.type == 'cuda' and not torch.cuda.is_available():     # of a fake tensor
        return False
    filters, gradient = sample(shape)
    try:
        found = twin(filters.to(device, copy=True), gradient.to(device))
    except Unsupported:
        return False
    try:
        expected = step(filters.double(), gradient.double())
        difference = differs(found, expected, compiled(device).TOLERANCE)
    except Exception as error:      # such as that of code for float32 only
        difference = f'in float64 it raises {type(error).__name__}: {error}'
    if difference:
        warn_once(title, difference)
    return not difference


def differs(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> str | None:
    """In what the results of two Steps differ; None where they agree."""
    found, expected = ([tensor.cpu().double().flatten(1) for tensor in result]
                       for result in (found, expected))
    projected = expected[0]
    if not torch.allclose(found[0], projected, rtol=0, atol=1e-6):
        return 'other projected weights'
    scale = projected.abs().amax(1, keepdim=True)
    same = ((found[1] - expected[1]).abs() <= ROUNDING * scale).all(1)
    errors, other_errors = ((projected - result[1]).square().sum(1)
                            for result in (found, expected))
    close = (errors - other_errors).abs() <= tolerance * projected.square().sum(1)
    if not (same | close).all():
        return 'other two-valued weights'
    for name, ours, theirs in zip(('gradient', 'alpha', 'beta'), found[2:], expected[2:]):
        if not torch.allclose(ours[same], theirs[same], rtol=10 * ROUNDING, atol=1e-6):
            return f'another {name}'
    return None


@functools.cache
def sample(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """32 filters of this shape (c, …), some beyond ±1, and a gradient.

    In float64 their means over the channels are exact, and float32 holds what they leave, so that
    no rounding of the projection decides on a partition.
    """
    size = 32, shape[0], math.prod(shape[1:])
    rng = np.random.default_rng(0)
    normal, chance = rng.normal(size=size).clip(-2, 2), rng.random(size)
    weight = np.geomspace(0.01, 1.4, 32)[:, None, None] * normal
    weight[::4] = -0.2 * np.log(1 - chance[::4])                                # skewed
    weight[1::4] = np.where(chance[1::4] < 0.1, 0.8, 0.05) * (1 + 0.1 * normal[1::4])
    levels = np.sort(rng.normal(0, 0.3, (8, 5)), 1)
    weight[2::4] = levels[np.arange(8)[:, None, None],
                          np.searchsorted([.05, .3, .7, .9], chance[2::4])]
    if shape[0] > 1:
        weight -= weight.mean(1, keepdims=True) + rng.normal(0, 0.1, (32, 1, size[2]))
        offset = np.round(weight.mean(1) * UNIT) / UNIT
        weight = np.round(weight * UNIT) / UNIT
        weight[:, -1] += shape[0] * offset - weight.sum(1)
    return tuple(torch.from_numpy(array.astype(np.float32).reshape(32, *shape))
                 for array in (weight, rng.normal(size=size)))


@functools.cache
def warn_once(title: str, difference: str):
    warnings.warn(f'{title} is not what the compiled code computes ({difference}): it runs in '
                  'PyTorch as it is written, which is slower')

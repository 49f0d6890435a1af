"""Projection, search, W~ and gradient scaling on the GPU by Triton: one launch each way.

Where Triton is missing, or a kernel cannot be compiled or launched, `supports` is False from then
on, with one warning, and PyTorch runs utils/binarize.py.
"""
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from . import Unsupported

try:
    import triton

    from . import gpu_kernels as kernels
except ImportError:     # a PyTorch without CUDA
    triton = kernels = None

FEWEST_WEIGHTS, MOST_WEIGHTS = 2, 200_000   # of a filter: float32 sums of more are not vouched for
BACKWARD_BLOCK = 1024   # weights of a program of the backward pass
_works = True


def _give_up(reason: object):
    """Stop using these kernels and warn once."""
    global _works
    if _works:
        _works = False
        warnings.warn('binarization on the GPU runs in PyTorch, correct but slower: '
                      + ' '.join(str(reason).split())[:300])


def supports(shape: Sequence[int]) -> bool:
    """Whether the kernels take weights (out, c, kh, kw) of this shape, and none has failed."""
    if triton is None:
        _give_up('Triton is not installed')
    return _works and shape[0] > 0 and FEWEST_WEIGHTS <= math.prod(shape[1:]) <= MOST_WEIGHTS


def _launch(kernel, grid, *arguments, **options):
    """Run a kernel on the device of its first argument. Raises Unsupported, nothing else."""
    try:
        with torch.cuda.device_of(arguments[0]):
            kernel[grid](*arguments, **options)
    except Exception as error:      # of the compiler, the C compiler of the launcher, the driver
        _give_up(error or type(error).__name__)
        raise Unsupported(str(error)) from error


def _warps(n: int) -> int:
    """The warps of a program for a filter of n weights: about 32 to 128 weights a thread."""
    return 1 if n <= 1024 else 2 if n <= 2048 else 4 if n <= 16384 else 8 if n <= 65536 else 16


def forward_options(channels: int, taps: int) -> tuple[int, int, dict]:
    """Return channels and taps as the kernel reads filters of this shape, and its constants."""
    is_centred = channels > 1
    if not is_centred:
        channels, taps = taps, 1    # the order of the weights is the same
    warps = _warps(channels * taps)
    lanes = 32 * warps
    tile_taps = min(triton.next_power_of_2(taps), 256)
    return channels, taps, dict(CENTRE=is_centred, TAPS=tile_taps, LANES=lanes, num_warps=warps,
                                CHANNELS=max(1, 4 * lanes // tile_taps))


def forward_(projected: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Project latent weights (out, c, kh, kw) in place and binarize them by 'dab', 'xnor' or 'bnn'.

    c: channels per group. Returns W~ of the same shape, and (4, out): alpha, beta, the boundary
    (a weight above it becomes alpha), and how many are above. A constant filter under 'dab' has
    alpha = beta = boundary = its value and counts 1. A filter with NaN has NaN in all of W~.
    One launch. Raises Unsupported, with `projected` as it was.
    """
    filters, channels = projected.shape[:2]
    channels, taps, options = forward_options(channels, projected[0, 0].numel())
    two_valued = torch.empty_like(projected)
    values = projected.new_empty(4, filters)
    _launch(kernels.forward_kernel, (filters,), projected, two_valued, values, filters, channels,
            taps, METHOD=method, **options)
    return two_valued, values


def backward(gradient: Tensor, projected: Tensor, values: Tensor, method: str) -> Tensor:
    """The gradient of the latent weights, contiguous, out of that of W~ (both (out, c, kh, kw)).

    projected, values: of forward_. One launch, and a copy of a gradient that is not contiguous.
    Raises Unsupported.
    """
    filters, channels = projected.shape[:2]
    n = projected[0].numel()
    s = 1 - 1 / channels if channels > 1 else 1.0
    latent_gradient = torch.empty_like(projected)
    block = min(BACKWARD_BLOCK, triton.next_power_of_2(n))
    _launch(kernels.backward_kernel, (filters, triton.cdiv(n, block)), gradient.contiguous(),
            projected, values, latent_gradient, filters, n, s, METHOD=method, BLOCK=block)
    return latent_gradient

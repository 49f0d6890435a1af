"""Projection, search, W~ and gradient scaling of DAB on the CPU, fused: calls cpu.cpp."""
import ctypes
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from . import compiler

SOURCES = [Path(__file__).with_name(name) for name in ('cpu.cpp', 'lanes.h')] + [compiler.THREADS]
FLAGS = ['-std=c++17', *compiler.native_flags()]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded library; None, with one warning, where it cannot be built."""
    try:
        return compiler.load('cpu', SOURCES, FLAGS, (FLAGS, compiler.processor()), ctypes.CDLL)
    except compiler.BuildError as error:
        warnings.warn(f'binarization on the CPU runs in PyTorch, correct but slower: {error}')
        return None


def supports(shape: Sequence[int]) -> bool:
    """Whether the library is there; it takes weights of every shape."""
    return library() is not None


def forward_(projected: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """binarize._fused_forward_ for 'dab', in one pass per filter.

    The split is as exact as DAB.split: a histogram bounds J and is refined where the optimum may
    lie, until so few weights are left that these are sorted.
    """
    two_valued, values = torch.empty_like(projected), projected.new_empty(4, len(projected))
    call('dab_forward', projected, two_valued, *values)
    return two_valued, values


def backward(gradient: Tensor, projected: Tensor, values: Tensor, method: str) -> Tensor:
    """binarize._fused_backward for 'dab'."""
    latent_gradient = torch.empty_like(gradient)
    call('dab_backward', gradient, projected, *values, latent_gradient)
    return latent_gradient


def call(name: str, *tensors: Tensor):
    """Call a function on float32 tensors, the first of which has the shape of the weights."""
    weight = tensors[0]
    filters, channels = weight.shape[:2]
    taps = weight.numel() // (filters * channels)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    sizes = [ctypes.c_int64(size) for size in (filters, channels, taps)]
    getattr(library(), name)(*pointers, *sizes, ctypes.c_int(torch.get_num_threads()))

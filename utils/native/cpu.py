"""Calls cpu.cpp: projection, search, W~ and gradient scaling of DAB on the CPU, fused.

Without a C++ compiler `library()` is None, with one warning, and the PyTorch code of
utils/binarize.py is used.
"""
import ctypes
import functools
import warnings
from pathlib import Path

import torch
from torch import Tensor

from . import compiler

SOURCE = Path(__file__).with_name('cpu.cpp')
FLAGS = ['-march=native', '-std=c++17']     # for this processor only
POINTER, SIZE = ctypes.c_void_p, ctypes.c_int64
SIGNATURES = {
    'dab_forward': [POINTER] * 6 + [SIZE] * 3 + [ctypes.c_int],
    'dab_backward': [POINTER] * 7 + [SIZE] * 3 + [ctypes.c_int],
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded library; None, with one warning, where it cannot be built."""
    try:
        loaded = compiler.load('cpu', [SOURCE], FLAGS, (FLAGS, compiler.processor()),
                               ctypes.CDLL)
    except compiler.BuildError as error:
        warnings.warn(f'binarization on the CPU runs in PyTorch, correct but slower: {error}')
        return None
    for name, types in SIGNATURES.items():
        getattr(loaded, name).argtypes, getattr(loaded, name).restype = types, None
    return loaded


def supports(weight: Tensor) -> bool:
    """Whether the library can work on this tensor of weights."""
    return (weight.device.type == 'cpu' and weight.dtype == torch.float32
            and weight.is_contiguous() and library() is not None)


def call(name: str, *tensors: Tensor):
    """Call a function on float32 tensors, the first of which has the shape of the weights."""
    weight = tensors[0]
    filters, channels = weight.shape[:2]
    taps = weight.numel() // (filters * channels)
    getattr(library(), name)(*(tensor.data_ptr() for tensor in tensors),
                             filters, channels, taps, torch.get_num_threads())

"""Builds utils/native.cpp once with the machine's C++ compiler, caches it, and calls it.

Without a compiler `library()` is None, said once, and the PyTorch code of utils/binarize.py is used.
"""
import ctypes
import functools
import os
import platform
import shutil
import subprocess
import warnings
from pathlib import Path

import torch

from . import cached

SOURCE = Path(__file__).with_name('native.cpp')
FLAGS = ['-O3', '-march=native', '-fno-math-errno', '-fno-trapping-math', '-fopenmp', '-std=c++17', '-shared', '-fPIC']
POINTER, SIZE = ctypes.c_void_p, ctypes.c_int64
SIGNATURES = {
    'dab_forward': [POINTER] * 6 + [SIZE] * 3 + [ctypes.c_int],
    'dab_backward': [POINTER] * 7 + [SIZE] * 3 + [ctypes.c_int],
}


def build():
    """The path of the compiled library. Raises OSError or CalledProcessError where it cannot be built."""
    compiler = os.environ.get('CXX') or next(filter(shutil.which, ('g++', 'clang++', 'c++')), None)
    if compiler is None:
        raise FileNotFoundError('there is no C++ compiler')

    def compile(folder):
        path = folder / 'native.so'
        subprocess.run([compiler, *FLAGS, '-o', path, SOURCE], check=True, capture_output=True, text=True)
        return path
    # -march=native makes the library one for this processor only.
    identity = SOURCE.read_text(), compiler, FLAGS, platform.machine(), processor_flags()
    return cached.library('native', identity, compile)


def processor_flags():
    try:
        with open('/proc/cpuinfo') as file:
            return next((line for line in file if line.startswith('flags')), '')
    except OSError:
        return platform.processor()


@functools.cache
def library():
    """The loaded library, or None, said once, where it cannot be built."""
    try:
        loaded = ctypes.CDLL(str(build()))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, 'stderr', '') or error
        warnings.warn('binarization on the CPU runs in PyTorch, correct but slower: '
                      f'{str(reason).splitlines()[0]}')
        return None
    for name, types in SIGNATURES.items():
        getattr(loaded, name).argtypes, getattr(loaded, name).restype = types, None
    return loaded


def takes(weight):
    """Whether the library can work on this tensor of weights."""
    return (weight.device.type == 'cpu' and weight.dtype == torch.float32 and weight.is_contiguous()
            and library() is not None)


def call(name, *tensors):
    """Call a function on float32 tensors, the first of which has the shape of the weights."""
    weight = tensors[0]
    filters, channels = weight.shape[:2]
    taps = weight.numel() // (filters * channels)
    getattr(library(), name)(*(tensor.data_ptr() for tensor in tensors),
                             filters, channels, taps, torch.get_num_threads())

"""Builds utils/native.cpp once with the machine's C++ compiler, caches it, and calls it.

Without a compiler `library()` is None, said once, and the PyTorch code of utils/binarize.py is used.
"""
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

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
    # -march=native makes the library one for this processor only.
    identity = f'{SOURCE.read_text()} {compiler} {FLAGS} {platform.machine()} {processor_flags()}'
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'dab'
    library = cache / f'native-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so'
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            built = Path(folder) / 'native.so'
            subprocess.run([compiler, *FLAGS, '-o', built, SOURCE], check=True, capture_output=True, text=True)
            os.replace(built, library)
    return library


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

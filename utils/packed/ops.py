"""Signs in 64-bit words, and their convolution with two-valued filters by AND and popcount.

    W~·x = (α − β)(e·x) + β·Σx,   e·x = 2·popcount(e AND b) − K,   Σx = 2·popcount(b) − n,   x = 2b − 1

(Prabhu et al., WACV 2018; Rastegari et al., ECCV 2016.) Zero padding is exact: at the border K and n count the taps
inside the image. The operators dab::pack_signs and dab::binary_conv2d are kernel.cpp, built at their first use; where
that is impossible they are the PyTorch functions here, slower, which is said once.
"""
import functools
import logging
import os
import platform
import shutil
import subprocess
import sysconfig
import warnings
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from .. import cached

SOURCES = sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in ('.cpp', '.h'))
FLAGS = ['-O3', '-fopenmp', '-fno-math-errno', '-fno-trapping-math', '-Wno-psabi']
WORD = 64
FILTERS = 32    # as in convolution.h

library = torch.library.Library('dab', 'FRAGMENT')
library.define('pack_signs(Tensor x, Tensor threshold, Tensor flip) -> Tensor', tags=torch.Tag.pt2_compliant_tag)
library.define('binary_conv2d(Tensor bits, Tensor prepared, Tensor alpha, Tensor beta, SymInt channels, '
               'int[2] kernel_size, int[2] stride, int[2] padding, bool relu) -> Tensor',
               tags=torch.Tag.pt2_compliant_tag)


def pack_signs(x, threshold, flip):
    """The signs of x (N, C, H, W) float32 as int64 (N, H, W, ceil(C / 64)), x contiguous or channels_last.

    Channel c is bit c % 64 of word c // 64: (x >= threshold[c]) != flip[c], so a NaN gives flip[c]. threshold is
    float32 (C), flip bool (C). Unused bits are 0. Raises ValueError for other shapes and types.
    """
    load()
    return torch.ops.dab.pack_signs.default(x, threshold, flip)


def binary_conv2d(bits, prepared, alpha, beta, channels, kernel_size, stride=1, padding=0, relu=False):
    """Convolve signs with two-valued filters: float32 (N, out, OH, OW) in channels_last memory.

    bits are pack_signs' of `channels` channels, prepared is prepare's, alpha and beta are float32 (out).
    kernel_size, stride and padding are numbers or pairs (rows, columns). relu gives max(0, result). The sums are exact,
    the result is computed from them in double and rounded to float32. Raises ValueError where these do not fit together.
    """
    load()
    return torch.ops.dab.binary_conv2d.default(bits, prepared, alpha, beta, channels, kernel_size, stride, padding,
                                               relu)


def pack_mask(mask):
    """The bool mask e (out, c, kh, kw) of a convolution's filters as int64 words (out, kh, kw, ceil(c / 64))."""
    return _pack(mask.permute(0, 2, 3, 1))


def unpack_mask(words, channels):
    """The bool mask (out, channels, kh, kw) of words (out, kh, kw, ceil(channels / 64)): pack_mask's inverse."""
    return _unpack(words, channels).permute(0, 3, 1, 2)


def prepare(words, channels):
    """The filters' words (out, kh, kw, ceil(channels / 64)) as the kernel reads them.

    Returns int64 (groups, rows, 32): filters side by side in groups of 32, the last filled with zeros, a row for each
    word of each tap and then one for the K of each tap. Raises ValueError if the words are not of `channels` channels.
    """
    if words.dtype != torch.int64 or words.dim() != 4 or words.shape[-1] != -(-channels // WORD):
        raise ValueError(f'the words of {channels} channels are int64 (out, kh, kw, {-(-channels // WORD)}), '
                         f'not {words.dtype} {tuple(words.shape)}')
    marked = torch.from_numpy(np.bitwise_count(words.numpy().view(np.uint64))).sum(-1)
    rows = torch.cat([words.flatten(1), marked.flatten(1)], dim=1)
    rows = functional.pad(rows, (0, 0, 0, -len(rows) % FILTERS))
    return rows.view(-1, FILTERS, rows.shape[1]).transpose(1, 2).contiguous()


def instruction_sets():
    """The names of those that this processor has, the best first; DAB_INSTRUCTIONS=name forbids those before it."""
    return torch.ops.dab.instruction_sets() if load() else ['pytorch']


@torch.compiler.assume_constant_result    # at the time of tracing
def load():
    """Build the kernel if need be and load it; whether that was possible. If not, PyTorch does its work, said once."""
    return _load_once()


@functools.cache
def _load_once():
    try:
        _load_kernel()
    except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
        warnings.warn(f'binary convolutions run in PyTorch, correct but slower: {str(error).splitlines()[0]}')
        library.impl('pack_signs', _pack_signs, 'CPU')
        library.impl('binary_conv2d', _binary_conv2d, 'CPU')
        return False
    return True


def _load_kernel():
    compiler = os.environ.get('CXX') or 'c++'
    identity = [*(path.read_text() for path in SOURCES), *FLAGS, torch.__version__, shutil.which(compiler),
                platform.machine()]
    torch.ops.load_library(cached.library('packed', identity, functools.partial(_build_kernel, compiler)))


def _build_kernel(compiler, folder):
    if shutil.which(compiler) is None:
        raise FileNotFoundError(f"there is no C++ compiler '{compiler}'")
    logging.getLogger('torch.utils.cpp_extension').setLevel(logging.ERROR)    # it looks for CUDA, in vain
    from torch.utils import cpp_extension    # takes half a second
    path = os.environ.get('PATH', '')
    os.environ['PATH'] = sysconfig.get_path('scripts') + os.pathsep + path    # pip's ninja
    try:
        cpp_extension.load('dab_packed', [str(path) for path in SOURCES if path.suffix == '.cpp'],
                           extra_cflags=FLAGS, extra_ldflags=['-fopenmp'], build_directory=folder,
                           is_python_module=False)
    finally:
        os.environ['PATH'] = path
    return folder / 'dab_packed.so'


def _pack(signs):
    signs = functional.pad(signs, (0, -signs.shape[-1] % WORD)).unflatten(-1, (-1, WORD))
    return (signs.long() << torch.arange(WORD)).sum(-1)    # of different bits: no carry, no overflow


def _unpack(words, channels):
    # A byte for each bit, not a word. The clone is contiguous also where a dimension of length 1 has any stride.
    octets = words.clone(memory_format=torch.contiguous_format).view(torch.uint8).unsqueeze(-1)
    return (octets >> torch.arange(8, dtype=torch.uint8) & 1).bool().flatten(-2)[..., :channels]


def _pack_signs(x, threshold, flip):
    signs = (x >= threshold.view(-1, 1, 1)) != flip.view(-1, 1, 1)
    return _pack(signs.permute(0, 2, 3, 1))


def _binary_conv2d(bits, prepared, alpha, beta, channels, kernel_size, stride, padding, relu):
    """The same sums of ±1 by float32 convolutions: exact below 2^24, once rounded (Winograd's algorithm would err)."""
    taps, words = kernel_size[0] * kernel_size[1], bits.shape[-1]
    rows = prepared[:, :taps * words].transpose(1, 2).flatten(0, 1)[:len(alpha)]
    marked = unpack_mask(rows.unflatten(1, (*kernel_size, words)), channels)
    x = _unpack(bits, channels).permute(0, 3, 1, 2).float().mul_(2).sub_(1)
    total = functional.conv2d(x.sum(1, keepdim=True), torch.ones(1, 1, *kernel_size), None, stride, padding).round()
    product = functional.conv2d(x, marked.float(), None, stride, padding).round()
    alpha, beta = (values.double().view(-1, 1, 1) for values in (alpha, beta))
    out = ((alpha - beta) * product + beta * total).float()
    return (out.relu() if relu else out).contiguous(memory_format=torch.channels_last)


@torch.library.register_fake('dab::pack_signs')
def _(x, threshold, flip):
    images, channels, height, width = x.shape
    return x.new_empty((images, height, width, (channels + WORD - 1) // WORD), dtype=torch.int64)


@torch.library.register_fake('dab::binary_conv2d')
def _(bits, prepared, alpha, beta, channels, kernel_size, stride, padding, relu):
    sides = ((side + 2 * pad - kernel) // step + 1
             for side, kernel, step, pad in zip(bits.shape[1:3], kernel_size, stride, padding))
    return torch.empty((len(bits), len(alpha), *sides), dtype=torch.float32, device=bits.device,
                       memory_format=torch.channels_last)

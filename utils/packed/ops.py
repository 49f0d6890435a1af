"""Signs in 64-bit words, and their convolution with two-valued filters by AND and popcount.

    W~·x = (α − β)(e·x) + β·Σx,   e·x = 2·popcount(e AND b) − K,   Σx = 2·popcount(b) − n,
    x = 2b − 1,   K = Σe

(Prabhu et al., WACV 2018; Rastegari et al., ECCV 2016.) Zero padding is exact: at the border, K and
n count only the taps inside the image. The operators torch.ops.dab.* are compiled from kernel/ at
first use.
"""
import functools
import platform
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..native import compiler

SOURCES = [*sorted(Path(__file__).with_name('kernel').glob('*.[ch]*')), compiler.THREADS]
FLAGS = ['-std=c++20', '-Wno-psabi',
         f'-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}']
WORD = 64       # bits
FILTERS = 32    # in a group, as in kernel/convolution.h


def pack_signs(x: Tensor, threshold: Tensor, flip: Tensor) -> Tensor:
    """The signs of x (N, C, H, W), float32, as int64 (N, H, W, ceil(C / 64)).

    Channel c is bit c % 64 of word c // 64: (x >= threshold[c]) != flip[c], so a NaN becomes
    flip[c]. Unused bits are 0. threshold is float32 (C,), flip is bool (C,). Fastest for contiguous
    or channels_last x. Raises ValueError for other shapes and types.
    """
    has_kernel()
    return torch.ops.dab.pack_signs(x, threshold, flip)


def pool_signs(bits: Tensor, flip: Tensor, kernel_size, stride, padding=0,
               ceil_mode: bool = False) -> Tensor:
    """Pool packed signs: the result equals pack_signs(max_pool2d(x)), with bits = pack_signs(x).

    A maximum reaches a threshold if one of the values does. kernel_size, stride and padding:
    numbers or pairs (rows, columns). Raises ValueError where these do not fit together.
    """
    has_kernel()
    return torch.ops.dab.pool_signs(bits, flip, kernel_size, stride, padding, ceil_mode)


def binary_conv2d(bits: Tensor, prepared: Tensor, alpha: Tensor, beta: Tensor, channels: int,
                  kernel_size, stride=1, padding=0, relu: bool = False,
                  shortcut: Tensor | None = None) -> Tensor:
    """Convolve signs with two-valued filters: float32 (N, out, OH, OW) in channels_last memory.

    bits: what pack_signs returns for `channels` channels. prepared: what prepare returns. alpha and
    beta: float32 (out,). kernel_size, stride and padding: numbers or pairs (rows, columns). relu:
    return max(0, result). The sums are exact; the result is computed from them in double and
    rounded to float32. shortcut: float32 (N, out, OH, OW), added in float32 before the ReLU;
    fastest in channels_last memory. Raises ValueError where these do not fit together.
    """
    has_kernel()
    return torch.ops.dab.binary_conv2d(bits, prepared, alpha, beta, channels, kernel_size, stride,
                                       padding, relu, shortcut)


def expand(words: Tensor, alpha: Tensor, beta: Tensor, channels: int) -> Tensor:
    """The weights (out, channels, kh, kw) of filters, float32: alpha where the bit is 1, else beta.

    words: int64 (out, kh, kw, ceil(channels / 64)), as pack_mask makes them. alpha and beta:
    float32 (out,). Raises ValueError where these do not fit together.
    """
    has_kernel()
    return torch.ops.dab.expand(words, alpha, beta, channels)


def pack_mask(mask: Tensor) -> Tensor:
    """A bool mask (out, c, kh, kw) of filters as int64 words (out, kh, kw, ceil(c / 64))."""
    mask = mask.permute(0, 2, 3, 1)
    mask = functional.pad(mask, (0, -mask.shape[-1] % WORD)).unflatten(-1, (-1, WORD))
    return (mask.long() << torch.arange(WORD)).sum(-1)    # of distinct bits: no overflow


def unpack_mask(words: Tensor, channels: int) -> Tensor:
    """The inverse of pack_mask: the bool mask (out, channels, kh, kw) of the words."""
    # By bytes, which need less memory than words. The clone is contiguous also where a dimension of
    # length 1 has an arbitrary stride.
    octets = words.clone(memory_format=torch.contiguous_format).view(torch.uint8).unsqueeze(-1)
    mask = (octets >> torch.arange(8, dtype=torch.uint8) & 1).bool().flatten(-2)
    return mask[..., :channels].permute(0, 3, 1, 2)


def prepare(words: Tensor, channels: int) -> Tensor:
    """The words of filters, as pack_mask makes them, in the order in which the kernel reads them.

    Returns int64 (groups, rows, 32): groups of 32 filters side by side, the last one filled up with
    zeros; one row for each word of each tap, then one for the K of each tap. Raises ValueError if
    the words are not of `channels` channels.
    """
    expected = -(-channels // WORD)
    if words.dtype != torch.int64 or words.dim() != 4 or words.shape[-1] != expected:
        raise ValueError(f'the words of {channels} channels are int64 (out, kh, kw, {expected}), '
                         f'not {words.dtype} {tuple(words.shape)}')
    marked = torch.from_numpy(np.bitwise_count(words.numpy().view(np.uint64))).sum(-1)
    rows = torch.cat([words.flatten(1), marked.flatten(1)], dim=1)
    rows = functional.pad(rows, (0, 0, 0, -len(rows) % FILTERS))
    return rows.view(-1, FILTERS, rows.shape[1]).transpose(1, 2).contiguous()


def instruction_sets() -> list[str]:
    """The instruction sets of this processor that the kernel can use, the best first.

    The environment variable DAB_INSTRUCTIONS=name rules out those before `name`.
    """
    return torch.ops.dab.instruction_sets() if has_kernel() else []


@functools.cache
def has_kernel() -> bool:
    """Build or load the compiled kernel; False, with one warning, where that is impossible."""
    identity = FLAGS, torch.__version__, platform.machine()
    try:
        compiler.load('packed', SOURCES, _torch_flags(), identity, torch.ops.load_library)
    except compiler.BuildError as error:
        warnings.warn(f'binary convolutions run in PyTorch, correct but slower: {error}')
        return False
    return True


def _torch_flags():
    """The compiler's flags to include and link PyTorch."""
    torch_folder = Path(torch.__file__).parent
    libraries = torch_folder / 'lib'
    return [*FLAGS, f'-isystem{torch_folder / "include"}', f'-L{libraries}',
            f'-Wl,-rpath,{libraries}', '-lc10', '-ltorch_cpu', '-ltorch']

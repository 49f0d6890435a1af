"""The layers of a packed network: binarized convolutions that keep their weights as bits."""
import math
from itertools import repeat

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from utils.system.devices import channels_first, channels_last

from . import ops
from .format import Bits

LARGEST_ORDER = torch.tensor(torch.finfo(torch.float32).max).view(torch.int32).item()


class BinaryUnit(nn.Module):
    """[Max pool ->] BatchNorm -> sign -> convolution with binarized weights [-> ReLU], on bits.

    norm: the BatchNorm, or what sign_threshold takes in its place. Signs are pooled, not values.
    """

    def __init__(self, pool: nn.MaxPool2d | None, norm: nn.Module, conv: nn.Conv2d, bits: Bits,
                 alpha: Tensor, beta: Tensor):
        super().__init__()
        self.pool = pool and (pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode)
        self.channels = conv.in_channels
        self.kernel_size = conv.kernel_size
        self.stride = conv.stride
        self.padding = (0, 0) if conv.padding == 'valid' else conv.padding
        self.relu = False
        threshold, flip = sign_threshold(norm, self.channels)
        self.register_buffer('threshold', threshold)
        self.register_buffer('flip', flip)
        self.register_buffer('alpha', alpha)
        self.register_buffer('beta', beta)
        self.register_buffer('bias', conv.bias)
        self.register_buffer('weight', ops.prepare(bits.words, conv.in_channels))

    @staticmethod
    def supports(conv: nn.Conv2d) -> bool:
        """Whether ops.binary_conv2d can compute this convolution."""
        return (conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == 'zeros'
                and conv.padding != 'same')

    def forward(self, x: Tensor, shortcut: Tensor | None = None):
        """The output of the unit; shortcut is added before the ReLU, in a unit without a bias."""
        bits = ops.pack_signs(x, self.threshold, self.flip)
        if self.pool:
            bits = ops.pool_signs(bits, self.flip, *self.pool)
        y = ops.binary_conv2d(bits, self.weight, self.alpha, self.beta, self.channels,
                              self.kernel_size, self.stride, self.padding,
                              self.relu and self.bias is None, shortcut)
        if self.bias is not None:
            y += self.bias.view(-1, 1, 1)
            return y.relu_() if self.relu else y
        return y

    def extra_repr(self):
        return (f'{self.channels}, {len(self.alpha)}, kernel_size={self.kernel_size}, '
                f'stride={self.stride}, padding={self.padding}, pool={self.pool}, '
                f'bias={self.bias is not None}, relu={self.relu}')


class ResidualBlock(nn.Module):
    """ReLU(residual + shortcut), where the last layer of the residual is a BinaryUnit that adds."""

    def __init__(self, residual: nn.Sequential, shortcut: nn.Sequential):
        super().__init__()
        self.residual = residual
        self.shortcut = shortcut
        residual[-1].relu = True

    @staticmethod
    def supports(residual: nn.Sequential) -> bool:
        """Whether the last layer can add the shortcut."""
        return (isinstance(residual[-1], BinaryUnit) and residual[-1].bias is None
                and not residual[-1].relu)

    def forward(self, x):
        *first, last = self.residual
        y = x
        for layer in first:
            y = layer(y)
        return last(y, self.shortcut(x))


class PooledConv2d(nn.Module):
    """A real convolution and the max pool after it.

    Where PyTorch convolves in oneDNN, the map between them stays in oneDNN's memory layout, which
    saves two copies of it. The result is the same.
    """

    def __init__(self, conv: nn.Conv2d, pool: nn.MaxPool2d):
        super().__init__()
        self.conv = conv
        self.pool = pool
        self.any_order = False      # memory layout of the output, which only a BinaryUnit reads

    def forward(self, x):
        conv, pool, x = self.conv, self.pool, channels_first(x)
        if not self.in_onednn(x):
            return pool(conv(x))
        y = torch.mkldnn_convolution(x.to_mkldnn(), conv.weight, conv.bias,
                                     conv.padding, conv.stride, conv.dilation, conv.groups)
        y = torch.mkldnn_max_pool2d(y, pool.kernel_size, pool.stride, pool.padding,
                                    pool.dilation, pool.ceil_mode)
        return y.to_dense() if self.any_order else channels_last(y.to_dense())

    def in_onednn(self, x: Tensor) -> bool:
        """Whether PyTorch convolves this contiguous x in oneDNN, which pools without dilation."""
        conv = self.conv
        if (torch.compiler.is_compiling() or conv.padding_mode != 'zeros'
                or isinstance(conv.padding, str) or self.pool.dilation not in (1, (1, 1))):
            return False
        backend = torch._C._select_conv_backend(x, conv.weight, conv.bias, conv.stride,
                                                conv.padding, conv.dilation, False, (0, 0),
                                                conv.groups)
        return backend == torch._C._ConvBackend.Mkldnn


class ExpandedConv2d(nn.Module):
    """A convolution of real inputs that expands its bits to weights, a few filters at a time."""

    # Weights at a time: 1 MB in float32, which stays in the cache until the convolution reads it.
    CHUNK = 2 ** 18

    def __init__(self, conv: nn.Conv2d, bits: Bits, alpha: Tensor, beta: Tensor):
        super().__init__()
        conv.register_parameter('weight', None)
        self.conv = conv
        self.channels = bits.shape[1]
        weights_per_filter = math.prod(bits.shape[1:])
        filters_per_chunk = max(32, self.CHUNK // weights_per_filter // 32 * 32)
        self.filters = len(alpha) if conv.groups > 1 else filters_per_chunk
        self.register_buffer('words', bits.words)
        self.register_buffer('alpha', alpha)
        self.register_buffer('beta', beta)

    def forward(self, x):
        chunks = [values.split(self.filters) for values in (self.words, self.alpha, self.beta)]
        bias = self.conv.bias
        chunks.append(repeat(None) if bias is None else bias.split(self.filters))
        x = channels_first(x)
        outputs = [self.conv._conv_forward(x, ops.expand(*values, self.channels), bias)
                   for *values, bias in zip(*chunks)]
        return channels_last(outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1))


class TwoValued(nn.Identity):
    """The parametrization by which SignConv2d knows that it can sum signs exactly."""

    two_valued = True

    @classmethod
    def give_weights(cls, conv: nn.Conv2d, bits: Bits, alpha: Tensor, beta: Tensor):
        """Expand the bits to the float32 weights of an ordinary convolution."""
        mask = ops.unpack_mask(bits.words, bits.shape[1])
        conv.weight = nn.Parameter(torch.where(mask, *(x.view(-1, 1, 1, 1) for x in (alpha, beta))))
        parametrize.register_parametrization(conv, 'weight', cls(), unsafe=True)


def sign_threshold(norm: nn.Module, channels: int) -> tuple[Tensor, Tensor]:
    """threshold, float32 (channels,), and flip, bool (channels,), so that for every finite x
    norm(x) >= 0 if and only if (x >= threshold) != flip.

    norm: a BatchNorm in evaluation mode, or a sequence of such and ReLUs: monotone in x, also as
    float32 rounds it. Bisects over all float32 numbers with PyTorch's own BatchNorm. Where the sign
    never changes, as for a scale of 0, the threshold is -inf.
    """
    def is_positive(order):
        return (norm(float_from_order(order).view(1, -1, 1, 1)) >= 0).flatten()

    low, high = (torch.full((channels,), end) for end in (-LARGEST_ORDER, LARGEST_ORDER))
    first, last = is_positive(low), is_positive(high)
    while (high - low > 1).any():
        middle = (low + high) // 2
        is_beyond = is_positive(middle) == last
        low, high = torch.where(is_beyond, low, middle), torch.where(is_beyond, middle, high)
    return torch.where(first == last, -torch.inf, float_from_order(high)), ~last


def float_from_order(order: Tensor) -> Tensor:
    """The float32 numbers at these positions (int64) when all are sorted; 0 is at position 0."""
    return order.abs().to(torch.int32).view(torch.float32) * order.sign()

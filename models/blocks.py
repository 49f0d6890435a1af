"""Building blocks of all families: sign, convolution units, the network, initialization."""
import copy
import re
from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils import parametrize

from utils.system import devices
from utils.system.errors import InputError


class SignFunction(torch.autograd.Function):
    """Forward +1 where x >= 0, else -1; backward dL/dx = dL/dsign where |x| < 1, else 0.

    Source: Hubara et al., Binarized Neural Networks, NeurIPS 2016 (the straight-through estimator).
    """

    @staticmethod
    def forward(x):
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0].abs() < 1)

    @staticmethod
    def backward(ctx, grad):
        passes, = ctx.saved_tensors
        return grad * passes


class Sign(nn.Module):
    """Binarize activations of any shape to +1 and -1, with a straight-through gradient."""

    def forward(self, x):
        return SignFunction.apply(x)


def has_signs(model: nn.Module) -> bool:
    """Whether the network binarizes any of its activations."""
    return any(isinstance(module, Sign) for module in model.modules())


class SignConv2d(nn.Conv2d):
    """A convolution whose inputs are +1 and -1.

    In evaluation, where the weight has two values per filter, the output is
    (α − β)(e·x) + β·Σx computed exactly and rounded once, as in the packed network: e·x and Σx
    are integers, which float32 holds up to 2^24. A convolution with α and β themselves would round
    every partial sum, in an order that depends on the machine, and a later sign could flip.

    Its weight has two values per filter where the last parametrization of it has an attribute
    `two_valued` that is true.
    """

    def _conv_forward(self, x, weight, bias):
        convolve = super()._conv_forward
        if not self.has_two_values() or self.groups > 1 or self.training:
            return convolve(x, weight, bias)
        if torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
            return convolve(x, weight, bias)
        alpha, beta = weight.amax((1, 2, 3), keepdim=True), weight.amin((1, 2, 3), keepdim=True)
        mask = weight == alpha
        # Sums of ±1 are integers, but Winograd's algorithm computes them with rounding errors.
        marked_sum = convolve(x, mask.to(x.dtype), None).round()
        total_sum = convolve(x, torch.ones_like(weight[:1]), None).round()
        if not devices.has_float64(x.device):       # and waits for it
            alpha, beta, marked_sum, total_sum = (
                values.cpu() for values in (alpha, beta, marked_sum, total_sum))
        alpha, beta = (values.double().view(-1, 1, 1) for values in (alpha, beta))
        y = ((alpha - beta) * marked_sum + beta * total_sum).to(x.dtype).to(x.device)
        return y if bias is None else y + bias.view(-1, 1, 1)

    def has_two_values(self) -> bool:
        """Whether evaluation can sum signs."""
        return (parametrize.is_parametrized(self, 'weight')
                and getattr(self.parametrizations.weight[-1], 'two_valued', False))


class Units:
    """Makes the convolution units of one network and numbers its convolutions from 1.

    A unit is a dict of named layers, all with the number of its convolution (conv5, bn5, relu5):
    Conv -> BatchNorm -> ReLU or, where the number is in signLayers, BatchNorm -> Sign -> Conv ->
    ReLU (Rastegari et al., XNOR-Net, ECCV 2016). A convolution has a bias where its number is in
    biasLayers. Make the units in the order in which the network registers them.
    """

    def __init__(self, signLayers='', biasLayers='', batchnorm=nn.BatchNorm2d):
        self.signLayers = layer_set(signLayers)
        self.biasLayers = layer_set(biasLayers)
        self.batchnorm = batchnorm
        self.number = 0

    def conv(self, inplanes, planes, kernel_size, kind=nn.Conv2d, **options):
        """The next convolution alone; options are those of nn.Conv2d."""
        self.number += 1
        options['bias'] = self.number in self.biasLayers
        return {f'conv{self.number}': kind(inplanes, planes, kernel_size, **options)}

    def __call__(self, inplanes, planes, kernel_size, *, norm='after', relu=True, dropout=0,
                 **options):
        """The next unit.

        norm: where a unit with real inputs has its BatchNorm, 'after' or 'before' the convolution,
        or None for no BatchNorm. dropout: its probability, directly before the convolution.
        """
        sign = self.number + 1 in self.signLayers
        kind = SignConv2d if sign else nn.Conv2d
        conv = self.conv(inplanes, planes, kernel_size, kind, **options)
        n = self.number
        layers = {}
        if sign or norm == 'before':
            layers[f'bn{n}'] = self.batchnorm(inplanes)
        if sign:
            layers[f'sign{n}'] = Sign()
        if dropout:
            layers[f'drop{n}'] = nn.Dropout(dropout)
        layers |= conv
        if norm == 'after' and not sign:
            layers[f'bn{n}'] = self.batchnorm(planes)
        if relu:
            layers[f'relu{n}'] = nn.ReLU()
        return layers


def sequential(**layers: nn.Module) -> nn.Sequential:
    """Return the nn.Sequential of the named layers."""
    return nn.Sequential(OrderedDict(layers))


def network(**parts: nn.Module) -> nn.Sequential:
    """Return the network of the named parts, followed by log-softmax.

    The last part returns (N, nClasses) or (N, nClasses, 1, 1), the network (N, nClasses).
    """
    return sequential(**parts, flatten=nn.Flatten(), logsoftmax=nn.LogSoftmax(dim=1))


def initialize(layer: nn.Module):
    """Initialize a layer in place: Kaiming-normal convolutions (fan out), all biases 0."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode='fan_out', nonlinearity='relu')
    if isinstance(layer, nn.Linear):
        layer.reset_parameters()    # drawn again, from the seed that build() has set since
    if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
        nn.init.zeros_(layer.bias)


def map_size(features: nn.Module, channels: int, inpsize: int) -> int:
    """Return the side of the feature map of an image (channels, inpsize, inpsize)."""
    on_meta = copy.deepcopy(features).to('meta').eval()
    return on_meta(torch.empty(1, channels, inpsize, inpsize, device='meta')).shape[-1]


def layer_set(layers: str | Iterable[int]) -> frozenset[int]:
    """Return the numbers in a string like '2-5,7', or in any iterable of numbers.

    Raises InputError for any other string.
    """
    if not isinstance(layers, str):
        return frozenset(layers)
    numbers: set[int] = set()
    for part in layers.split(',') if layers else ():
        match = re.fullmatch(r'(\d{1,3})(?:-(\d{1,3}))?', part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise InputError(f"a set of layers is written like '2-5,7', not '{layers}'")
        numbers.update(range(first, last + 1))
    return frozenset(numbers)


def layer_string(numbers: Iterable[int]) -> str:
    """Return the shortest string for these layers, the inverse of layer_set: '2-5,7'."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ','.join(str(first) if first == last else f'{first}-{last}' for first, last in runs)

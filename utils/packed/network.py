"""From a trained network to its packed tensors, and from these to a network that computes with bits."""
import math
from itertools import repeat

import torch
from torch import nn
from torch.nn import functional

from .. import binarize
from . import format, ops


@torch.no_grad()
def pack(model):
    """{name: float32 tensor or Bits} of a trained network, as format.write takes them.

    alpha, beta and bits are those of the two-valued weights that evaluation computes with, whatever the binarizer.
    """
    model.eval()
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()
               if not name.endswith(('parametrizations.weight.original', 'num_batches_tracked'))}
    for name, conv in binarize.binarized(model):
        weight = conv.weight.cpu()
        alpha, beta = weight.flatten(1).amax(1), weight.flatten(1).amin(1)
        mask = weight == alpha.view(-1, 1, 1, 1)
        tensors |= {f'{name}.weight': format.Bits(ops.pack_mask(mask), tuple(mask.shape)),
                    f'{name}.alpha': alpha, f'{name}.beta': beta}
    return tensors


def load(path, build, sign_type):
    """(format.Description, network in evaluation mode, on the CPU) of the packed model at path.

    build: see format.read; sign_type: the module that binarizes activations. Raises ValueError, in a sentence, for a
    file that is damaged or no packed model.
    """
    description, network, tensors = format.read(path, build)
    return description, assemble(network, tensors, sign_type)


@torch.no_grad()
def assemble(network, tensors, sign_type):
    """Give the network on the meta device its tensors, and replace what can be computed from bits.

    Takes the bits out of `tensors`, so that they need not be held twice.
    BatchNorm -> sign -> [Dropout] -> binarized convolution -> [ReLU], in a row in an nn.Sequential, becomes a
    BinaryUnit, every other binarized convolution an ExpandedConv2d; the rest stays as it is.
    """
    real = {name: tensor for name, tensor in tensors.items() if not isinstance(tensor, format.Bits)}
    network.eval().load_state_dict(real, strict=False, assign=True)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = None   # the packed model has none, and evaluation needs none
    binary = {}
    for name in tensors.keys() - real.keys():
        conv = name.removesuffix('.weight')
        binary[network.get_submodule(conv)] = tensors.pop(name), tensors[f'{conv}.alpha'], tensors[f'{conv}.beta']
    for parent in list(network.modules()):
        layers = parent._modules
        if isinstance(parent, nn.Sequential):
            layers = fused(layers, sign_type, binary)
        parent._modules = {name: ExpandedConv2d(layer, *binary.pop(layer)) if layer in binary else layer
                           for name, layer in layers.items()}
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):    # computed in the simulated network's order of memory, to round alike
            layer.register_forward_pre_hook(lambda _, inputs: channels_first(inputs[0]))
            layer.register_forward_hook(lambda _, inputs, y: channels_last(y))
    return network.requires_grad_(False)


def channels_first(x):
    """x (N, C, H, W) in contiguous memory, and with strides that say so also where both orders are one."""
    _, channels, height, width = x.shape
    return x.contiguous().as_strided(x.shape, (channels * height * width, height * width, width, 1))


def channels_last(x):
    """x (N, C, H, W) in channels_last memory, and with strides that say so also for C = 1, where both orders are one
    and PyTorch chooses the other, in which pooling is up to 20 times slower.
    """
    _, channels, height, width = x.shape
    return x.contiguous(memory_format=torch.channels_last).as_strided(
        x.shape, (channels * height * width, 1, channels * width, channels))


def fused(layers, sign_type, binary):
    """The {name: module} of a sequence, which evaluates to the same, each binary unit a single module."""
    result = {}
    for name, layer in layers.items():
        names = list(result)
        types = [type(before) for before in result.values()]
        if isinstance(layer, nn.Dropout | nn.Dropout2d):
            continue
        if types[-2:] == [nn.BatchNorm2d, sign_type] and layer in binary and takes(layer):
            norm, _ = (result.pop(before) for before in names[-2:])
            layer = BinaryUnit(norm, layer, *binary.pop(layer))
        elif isinstance(layer, nn.ReLU) and types[-1:] == [BinaryUnit] and not result[names[-1]].relu:
            result[names[-1]].relu = True
            continue
        elif isinstance(layer, nn.ReLU) and types[-1:] in ([nn.Conv2d], [nn.BatchNorm2d]):    # a tensor of its own
            layer.inplace = True
        elif isinstance(layer, nn.MaxPool2d) and types[-3:] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
            conv, norm, relu = (result[before] for before in names[-3:])
            if conv not in binary:      # the maximum before BatchNorm and ReLU, on fewer values, if these increase
                make_increasing(conv, norm)
                del result[names[-2]], result[names[-1]]
                result |= {name: layer, names[-2]: norm, names[-1]: relu}
                continue
        result[name] = layer
    return result


def make_increasing(conv, norm):
    """Negate the channels between a convolution and its BatchNorm where the scale is negative: no output changes."""
    if norm.affine:
        sign = torch.where(norm.weight < 0, -1.0, 1.0)
        for tensor in conv.weight, conv.bias, norm.weight, norm.running_mean:
            if tensor is not None:
                tensor *= sign.view(-1, *[1] * (tensor.dim() - 1))


def takes(conv):
    """Whether the kernel computes this convolution."""
    return (conv.groups, conv.dilation, conv.padding_mode) == (1, (1, 1), 'zeros') and conv.padding != 'same'


class BinaryUnit(nn.Module):
    """BatchNorm -> sign -> convolution with binarized weights [-> ReLU], on bits."""

    def __init__(self, norm, conv, bits, alpha, beta):
        super().__init__()
        threshold, flip = sign_threshold(norm)
        self.channels, self.kernel_size, self.stride = conv.in_channels, conv.kernel_size, conv.stride
        self.padding = (0, 0) if conv.padding == 'valid' else conv.padding
        self.relu = False
        for name, tensor in {'threshold': threshold, 'flip': flip, 'alpha': alpha, 'beta': beta, 'bias': conv.bias,
                             'weight': ops.prepare(bits.words, conv.in_channels)}.items():
            self.register_buffer(name, tensor)

    def forward(self, x):
        bits = ops.pack_signs(x, self.threshold, self.flip)
        y = ops.binary_conv2d(bits, self.weight, self.alpha, self.beta, self.channels, self.kernel_size, self.stride,
                              self.padding, self.relu and self.bias is None)
        if self.bias is not None:
            y += self.bias.view(-1, 1, 1)
            return y.relu_() if self.relu else y
        return y

    def extra_repr(self):
        return (f'{self.channels}, {len(self.alpha)}, kernel_size={self.kernel_size}, stride={self.stride}, '
                f'padding={self.padding}, bias={self.bias is not None}, relu={self.relu}')


class ExpandedConv2d(nn.Module):
    """A convolution that keeps its binarized weights as bits and expands a few filters at a time when it computes."""

    PIECE = 2 ** 18     # weights, 1 MB of them in float32: the cache holds them until the convolution reads them

    def __init__(self, conv, bits, alpha, beta):
        super().__init__()
        conv.weight = None
        self.conv = conv
        self.channels = bits.shape[1]
        per_filter = math.prod(bits.shape[1:])
        self.filters = len(alpha) if conv.groups > 1 else max(32, self.PIECE // per_filter // 32 * 32)
        for name, tensor in {'words': bits.words, 'alpha': alpha, 'beta': beta}.items():
            self.register_buffer(name, tensor)

    def forward(self, x):
        pieces = [values.split(self.filters) for values in (self.words, self.alpha, self.beta)]
        pieces.append(repeat(None) if self.conv.bias is None else self.conv.bias.split(self.filters))
        x = channels_first(x)
        outputs = [self.conv._conv_forward(x, self.expand(*values), bias) for *values, bias in zip(*pieces)]
        return channels_last(outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1))

    def expand(self, words, alpha, beta):
        octets = words.view(torch.uint8).int()
        weight, rest = (functional.embedding(octets, table).flatten(-2)[..., :self.channels]
                        for table in (OCTETS, 1 - OCTETS))
        weight = weight.mul_(alpha.view(-1, 1, 1, 1)).addcmul_(rest, beta.view(-1, 1, 1, 1))
        return channels_first(weight.permute(0, 3, 1, 2))


OCTETS = (torch.arange(256).unsqueeze(1) >> torch.arange(8) & 1).float()    # the bits of each byte
LARGEST = torch.tensor(torch.finfo(torch.float32).max).view(torch.int32).item()


def sign_threshold(norm):
    """(threshold, flip), float32 and bool (C,): norm(x) >= 0 just where (x >= threshold) != flip, for all finite x.

    A BatchNorm in evaluation mode is monotone in x also as float32 rounds it, so that bisection over the float32
    numbers in their order, with PyTorch's own BatchNorm, finds the very number at which its sign changes. Where
    it does not change, as for a scale of 0, the threshold is -inf.
    """
    def fires(order):
        return (norm(number(order).view(1, -1, 1, 1)) >= 0).flatten()

    low, high = (torch.full((norm.num_features,), end) for end in (-LARGEST, LARGEST))
    first, last = fires(low), fires(high)
    while (high - low > 1).any():
        middle = (low + high) // 2
        beyond = fires(middle) == last
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return torch.where(first == last, -torch.inf, number(high)), ~last


def number(order):
    """The float32 numbers at these places (int64) in their order, 0 at place 0."""
    return order.abs().to(torch.int32).view(torch.float32) * order.sign()


def size_table(rows, network, file_size):
    """The table that an export prints, bytes by kind of layer, from format.write's rows and the exported network."""
    sums = {}
    binary = {name.removesuffix('.weight') for name, kind, *_ in rows if kind == 'bits'}
    for name, kind, shape, _ in rows:
        layer, _, value = name.rpartition('.')
        title = 'binarized convolutions' if layer in binary else type(network.get_submodule(layer)).__name__
        column = 0 if kind == 'bits' else 1 if value in ('alpha', 'beta') else 2
        row = sums.setdefault(title, [0] * 4)
        row[column] += format.nbytes(kind, shape)
        row[3] += 0 if column == 1 else format.nbytes('float32', shape)
    sums['header, checksum'] = [0, 0, file_size - sum(sum(row[:3]) for row in sums.values()), 0]
    sums['file'] = [sum(column) for column in zip(*sums.values())]
    lines = [f'{"bytes of":24}' + ''.join(f'{title:>13}' for title in ('bits', 'alpha, beta', 'real', 'packed',
                                                                       'as float32', 'times less'))]
    for title, (*parts, whole) in sums.items():
        cells = ''.join(f'{cell:13,}' for cell in (*parts, sum(parts), whole))
        lines.append(f'{title:24}{cells}' + (f'{whole / sum(parts):13.1f}' if whole else ''))
    return '\n'.join(lines)

"""What a run prints of its network, data and arithmetic, measured on the network itself."""
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils.record.provenance import device_name
from utils.system.devices import float32_in

from .binarize import binarization, convolutions, weight_bits

Key = TypeVar('Key')


def describe_data(train: DataLoader, val_images: int, classes: int, processes: int) -> str:
    """Count the images; train: the training loader of one of `processes`."""
    images, share, notes = len(train.dataset), len(train.sampler), []
    if repeated := share * processes - images:
        notes.append(f'{repeated} of them twice in every epoch, for equal shares of the processes')
    if train.drop_last and (rest := share % train.batch_size):
        notes.append(f'{rest * processes} of them left out of every epoch: too few for a last '
                     'batch')
    used = f' ({"; ".join(notes)})' if notes else ''
    return (f'data: {images} training images{used}, {val_images} validation images, {classes} '
            'classes')


def arithmetic(device: torch.device, amp: str, validation_amp: str,
               channels_last: bool) -> str:
    """Describe the precision of training and, on a GPU, which faster ways PyTorch may choose.

    amp and validation_amp: the name of autocast's dtype in training and validation, or 'off'.
    """
    parts = ['float32']
    if amp != 'off':
        parts = [f'{amp} under autocast, weights in float32, validation in '
                 f'{"float32" if validation_amp == "off" else validation_amp}']
    if device.type == 'cuda':
        parts += [f'{what} of float32 in {dtype}' for what, dtype in float32_in(device).items()]
        parts.append(f'cuDNN benchmark {"on" if torch.backends.cudnn.benchmark else "off"}')
        if torch.are_deterministic_algorithms_enabled():
            parts.append('deterministic algorithms')
    parts.append(f'{"channels-last" if channels_last else "channels-first"} activations')
    return f'arithmetic: {", ".join(parts)}'


@contextlib.contextmanager
def watching_inputs(layers: Mapping[Key, nn.Module],
                    watch: Callable[[Key, Tensor], object]) -> Iterator[None]:
    """In the block, each call of a layer first calls watch(its key, its input)."""
    def make_hook(key):
        def hook(layer, inputs):
            watch(key, inputs[0])       # its result must not replace the input
        return hook

    handles = [layer.register_forward_pre_hook(make_hook(key)) for key, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def inputs_are_binary(model: nn.Module, sample: Tensor) -> dict[int, bool]:
    """Return {number of a convolution: whether its input is ±1 everywhere}, in evaluation."""
    binary: dict = {}

    def watch(number, x):
        binary[number] = bool((x.abs() == 1).all())

    was_training = model.training
    with watching_inputs({number: conv for number, _, conv in convolutions(model)}, watch):
        model.eval()(sample)
    model.train(was_training)
    return binary


def convolution_rows(model: nn.Module, sample: Tensor) -> list[tuple[str, ...]]:
    """Return header and rows of the table of convolutions; sample: (N, channels, side, side)."""
    binary_inputs = inputs_are_binary(model, sample)
    rows = [('conv', 'name', 'shape', 'weights', 'inputs')]
    for number, name, conv in convolutions(model):
        shape = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
        rows.append((str(number), name, '×'.join(map(str, shape)),
                     'binarized' if binarization(conv) else 'real',
                     'binarized' if binary_inputs[number] else 'real'))
    return rows


def describe(model: nn.Module, channels: int, inpsize: int, device: torch.device,
             verbose: bool = False) -> str:
    """Describe device, convolutions, parameters and the memory of the binarized weights."""
    rows = convolution_rows(model, torch.zeros(1, channels, inpsize, inpsize, device=device))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [f'device: {device_name(device)}']
    lines += [str(model)] if verbose else []
    lines += ['  '.join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.append(f'parameters: {sum(parameter.numel() for parameter in model.parameters()):,}')
    weights, bits = weight_bits(model)
    if weights:
        lines.append(f'binarized weights: {weights:,} in {bits:,} bits instead of {32 * weights:,} '
                     f'in float32, {32 * weights / bits:.1f} times smaller')
    else:
        lines.append('binarized weights: none (--binaryWeight binarizes them)')
    return '\n'.join(lines)

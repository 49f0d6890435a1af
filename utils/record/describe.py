"""What a run says of itself: where it comes from, its network, data and arithmetic."""
import contextlib
import datetime
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils.binarize import binarization, convolutions, weight_bits
from utils.system import console
from utils.system.devices import float32_in
from utils.system.errors import processes_of_torchrun

Key = TypeVar('Key')
ROOT = Path(__file__).resolve().parents[2]


def provenance(device: torch.device, command: str | None = None) -> dict[str, str]:
    """Return what is needed to repeat a run, as texts; command: default, of this process."""
    command = command or shlex.join(sys.orig_argv)
    return {'command': console.one_line(command),
            'date': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
            'processes': str(processes_of_torchrun()), 'commit': git_commit(),
            'python': platform.python_version(),
            'torch': torch.__version__, 'device': device_name(device)}


def describe_provenance(origin: dict[str, str]) -> str:
    """The dict of provenance() in two lines."""
    processes = f'processes {origin["processes"]}, ' if origin['processes'] != '1' else ''
    return (f'command: {origin["command"]}\n'
            f'date: {origin["date"]}, {processes}commit {origin["commit"]}, '
            f'Python {origin["python"]}, torch {origin["torch"]}, {origin["device"]}')


def git_commit() -> str:
    """The commit that the program runs from, and whether tracked files differ from it."""
    # In a hook of git such variables name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}

    def git(*arguments):
        return subprocess.run(['git', '-C', str(ROOT), *arguments], capture_output=True,
                              encoding='utf-8', check=True, env=environment).stdout.strip()
    try:
        if Path(git('rev-parse', '--show-toplevel')).resolve() != ROOT:
            return 'unknown'    # a copy of the program inside some other repository
        changed = git('status', '--porcelain', '--untracked-files=no')
        return git('rev-parse', 'HEAD') + (' with changes' if changed else '')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def device_name(device: torch.device) -> str:
    """The GPU's name, or CPU and the processor's."""
    if device.type in ('cuda', 'xpu'):
        return torch.get_device_module(device).get_device_name(device)
    if device.type == 'mps':
        return f'GPU of {processor_name()}'
    return f'CPU: {processor_name()}, {os.cpu_count()} cores'


def processor_name() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        return next(line.split(': ')[1].strip() for line in lines if line.startswith('model name'))
    with contextlib.suppress(OSError, subprocess.CalledProcessError):       # macOS
        return subprocess.run(['sysctl', '-n', 'machdep.cpu.brand_string'], capture_output=True,
                              encoding='utf-8', check=True).stdout.strip()
    return platform.processor() or platform.machine()


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

"""The network of a checkpoint as a file that other programs read, of a kind chosen by its ending.

    .dab     a packed model, one bit per binarized weight; see utils.packed
    .pt      a state_dict of plain tensors, with two values in a filter where it is binarized
    .onnx    the network for ONNX Runtime and others; see to_onnx.py
"""
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import datasets
from utils import binarize, packed
from utils.experiment import Experiment
from utils.packed import format
from utils.system.errors import InputError, RunError, naming
from utils.training import checkpoint as checkpoints
from utils.training import epoch, parallel

from . import to_onnx

TOLERANCE = 0.01    # of log-probabilities, between a checkpoint and its exported file


class Kind(NamedTuple):
    """A kind of file."""

    title: str
    recognizes: Callable[[Path], bool]
    write: Callable[[Path, Experiment, nn.Module, packed.Description], str]     # returns a report


def export(experiment: Experiment):
    """Write the network of the checkpoint to the file --export, and print what is in it."""
    flags = experiment.flags
    path, kind = Path(flags.export), KINDS[Path(flags.export).suffix]
    check_place(path, kind, flags)
    mean, std = datasets.normalization(experiment.spec)
    if len(mean) != experiment.channels:
        raise InputError(f'{experiment.source.path} was trained on images of {experiment.channels} '
                         f'channels, and those of --dataset={flags.dataset} have {len(mean)}')
    if kind is KINDS['.onnx']:
        to_onnx.check_packages(path)
    network = experiment.make_network().eval()
    description = packed.Description(flags.model_def, flags.signLayers, experiment.classes,
                                     flags.inpsize, mean, std, flags.dataset, flags.tenCrop)
    with naming('--export'):
        parallel.say(kind.write(path, experiment, network, description))
    measured_in = epoch.validation_amp(network, experiment.source.flags['amp'])
    if measured_in != 'off':
        parallel.say(f'The accuracy of {experiment.source.path} was measured in {measured_in} '
                     f'(--amp), and {path} computes in float32: to measure that, --evaluate with '
                     '--amp=off')
    if flags.ink != 'dark' and experiment.channels == 1:
        how = 'give it with --packed' if kind is KINDS['.dab'] else 'make its images dark on light'
        parallel.say(f'{path} does not record --ink={flags.ink}: {how}')


def check_place(path: Path, kind: Kind, flags):
    """Raise InputError where --export must not write to `path`."""
    if not path.parent.is_dir():
        raise InputError(f'--export: there is no folder {path.parent} to write {path.name} to')
    if not path.exists():
        return
    if path.samefile(flags.resume):
        raise InputError(f'--export: {path} is the checkpoint that is exported')
    if not flags.overwrite:
        raise InputError(f'{path} exists already: give another name, or --overwrite it')
    if not (path.is_file() and kind.recognizes(path)):
        raise InputError(f'--export: {path} is not {kind.title}: give another name')


def write_packed(path, experiment, network, description):
    flags, tensors = experiment.flags, packed.pack(network)
    on_bits = packed.assemble(packed.build_on_meta(description), dict(tensors))
    difference = largest_difference(on_bits, network.cpu(), description)
    if not difference < TOLERANCE:
        raise RunError('a packed model would compute something else than the checkpoint (its '
                       f'log-probabilities differ by {difference:.2g}): a layer does not do what '
                       'utils/packed does for it')
    rows = packed.write(path, description, tensors, flags.exportHalf, flags.overwrite)
    return size_table(rows, network, os.path.getsize(path))


def size_table(rows: list[format.TableRow], network: nn.Module, file_size: int) -> str:
    """The table of bytes by kind of layer; rows: what format.write returned for the network."""
    binarized = {name.removesuffix('.weight') for name, encoding, *_ in rows if encoding == 'bits'}
    sizes: dict[str, list[int]] = {}    # bits, alpha and beta, real, all in float32
    for name, encoding, shape, _ in rows:
        layer, _, tensor = name.rpartition('.')
        kind = ('binarized convolutions' if layer in binarized
                else type(network.get_submodule(layer)).__name__)
        is_scale = tensor in ('alpha', 'beta')
        column = 0 if encoding == 'bits' else 1 if is_scale else 2
        row = sizes.setdefault(kind, [0] * 4)
        row[column] += format.encoded_size(encoding, shape)
        row[3] += 0 if is_scale else format.encoded_size('float32', shape)
    payload = sum(sum(row[:3]) for row in sizes.values())
    sizes['header, checksum'] = [0, 0, file_size - payload, 0]
    sizes['file'] = [sum(column) for column in zip(*sizes.values())]
    titles = 'bits', 'alpha, beta', 'real', 'packed', 'as float32', 'ratio'
    lines = [f'{"bytes of":24}' + ''.join(f'{title:>13}' for title in titles)]
    for kind, (*parts, in_float32) in sizes.items():
        packed = sum(parts)
        cells = ''.join(f'{cell:13,}' for cell in (*parts, packed, in_float32))
        ratio = f'{in_float32 / packed:13.1f}' if in_float32 else ''
        lines.append(f'{kind:24}{cells}{ratio}')
    return '\n'.join(lines)


def write_state_dict(path, experiment, network, description):
    state = binarize.bake(network.cpu()).state_dict()
    checkpoints.write_checkpoint(path, state)
    arguments = [description.model_def, len(description.classes), description.channels,
                 description.inpsize]
    arguments += [] if description.signLayers is None else [description.signLayers]
    return (f'{path}: {os.path.getsize(path):,} bytes, a state_dict of {len(state)} tensors; load '
            f'it into models.build({", ".join(map(repr, arguments))})')


def write_onnx(path, experiment, network, description):
    to_onnx.write(path, network.cpu(), description)
    shape = f'(N, {description.channels}, {description.inpsize}, {description.inpsize})'
    text = (f'{path}: {os.path.getsize(path):,} bytes, from {to_onnx.INPUT} {shape} to '
            f'{to_onnx.OUTPUT} (N, {len(description.classes)})')
    if runtime := to_onnx.in_runtime(path):
        difference = largest_difference(runtime, network, description)
        if not difference < TOLERANCE:
            raise RunError(f'{path} is written, but ONNX Runtime computes something else with it: '
                           f'log-probabilities differ by {difference:.2g}')
        text += ('\nONNX Runtime gives the same log-probabilities within '
                 f'{difference:.1e} on three random images')
    return text


@torch.no_grad()
def largest_difference(one: Callable, other: Callable, description: packed.Description) -> float:
    """The largest difference of the log-probabilities of two networks on three random images."""
    shape = 3, description.channels, description.inpsize, description.inpsize
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with parametrize.cached():
        return (one(images) - other(images)).abs().max().item()


def is_state_dict(path: Path) -> bool:
    """Whether the file holds a state_dict and nothing else."""
    try:
        content = checkpoints.read_file(path)
    except InputError:
        return False
    return checkpoints.is_dict_of(content, Tensor) and len(content) > 0


KINDS = {
    '.dab': Kind('a packed model', packed.is_packed, write_packed),
    '.pt': Kind('a state_dict', is_state_dict, write_state_dict),
    '.onnx': Kind('an ONNX model', to_onnx.is_onnx, write_onnx),
}

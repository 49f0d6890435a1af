"""The benchmark `packed`: packed networks and their convolutions against float32 ones."""
import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import models
from utils import binarize, packed
from utils.record.describe import watching_inputs
from utils.packed import ops
from utils.system.processes import call_in_new_process
from utils.system.devices import channels_last

from .timing import compare, peak_megabytes, print_header

CLASSES = 250
BATCHES = 1, 16
MOST_PROCESSES = 5      # of each memory measurement
WIDTH = 72      # of the name of a case


class Pair(NamedTuple):
    name: str
    shape: tuple        # of an image
    model: nn.Module    # the float32 network, its two-valued weights plain tensors
    path: Path          # the same one packed


class Layer(NamedTuple):
    title: str
    unit: packed.BinaryUnit
    x: Tensor           # what enters it
    conv: nn.Conv2d     # the same convolution in float32


@torch.no_grad()
def bench(options: argparse.Namespace) -> list[dict]:
    """Packed networks and their binary convolutions against float32 ones: time and memory."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = [make_pair(name, folder) for name in options.networks]
        print(f'instructions: {", ".join(ops.instruction_sets())}')
        rows = bench_convolutions(pairs, options.threads, options.rounds)
        rows += bench_networks(pairs, options.threads, options.rounds)
        print_memory(pairs, min(MOST_PROCESSES, options.rounds))
    return rows


def make_pair(name: str, folder: str) -> Pair:
    """The Pair of an architecture for sketches, initialized at random."""
    torch.manual_seed(0)
    model, side = models.build(name, CLASSES, 1), models.default_inpsize(name)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    model.train()(torch.randn(4, 1, side, side))        # for BatchNorm statistics: signs vary
    binarize.wrap(model.eval(), 2, binarize.default_binEnd(model, 2))
    path = Path(folder) / f'{name}.dab'
    classes = [str(label) for label in range(CLASSES)]
    description = packed.Description(name, None, classes, side, [0.0], [1.0], 'tuberlin', False)
    packed.write(path, description, packed.pack(model))
    return Pair(name, (1, side, side), binarize.bake(model).requires_grad_(False), path)


def settings(pair: Pair, threads: list[int]) -> Iterator[tuple[Tensor, str]]:
    """Batches of images and, with PyTorch set to each number of threads, how the case ends."""
    for batch in BATCHES:
        images = torch.randn(batch, *pair.shape)
        for number in threads:
            torch.set_num_threads(number)
            yield images, f', batch {batch}, {number} threads'


def bench_convolutions(pairs: list[Pair], threads: list[int], rounds: int) -> list[dict]:
    print('\nBinary convolutions, with packing of the input, against '
          'torch.nn.functional.conv2d on the same tensors;\nin every round each is repeated '
          'for 5 ms')
    print_header(WIDTH)
    speedups: dict[str, list[float]] = {}
    rows = []
    for pair in pairs:
        network = load_packed(pair.path)
        for images, setting in settings(pair, threads):
            for layer in different_layers(pair.model, network, images):
                row = compare_convolution(f'conv {pair.name} {layer.title}{setting}', layer, rounds)
                speedups.setdefault(setting, []).append(1 / row['ratio'])
                rows.append(row)
    for setting, values in speedups.items():
        print(f'speed-up{setting}: geometric mean {statistics.geometric_mean(values):.2f}, '
              f'least {min(values):.2f}')
    return rows


def different_layers(model: nn.Module, network: nn.Module, images: Tensor) -> list[Layer]:
    """The binary layers of a packed network that differ and are larger than 1×1, without pools."""
    units = {name: unit for name, unit in network.named_modules()
             if isinstance(unit, packed.BinaryUnit)}
    inputs: dict = {}
    with watching_inputs(units, inputs.__setitem__):
        network(images)
    found: dict = {}
    for name, x in inputs.items():
        unit, size = copy.copy(units[name]), units[name].kernel_size
        if unit.pool:
            *window, ceil_mode = unit.pool
            x, unit.pool = F.max_pool2d(x, *window, ceil_mode=ceil_mode), None
        if size != (1, 1) and x.shape[2:] != size:
            title = (f'{unit.channels}→{len(unit.alpha)} {size[0]}×{size[1]} '
                     f'at {x.shape[2]}×{x.shape[3]}')
            title += f' /{unit.stride[0]}' if unit.stride[0] > 1 else ''
            found.setdefault(title, Layer(f'{title} ({name})', unit, x, model.get_submodule(name)))
    return list(found.values())


def compare_convolution(case: str, layer: Layer, rounds: int) -> dict:
    """Compare the float32 convolution with the binary unit, in seconds of a call."""
    _, unit, x, conv = layer
    real_x, x = x.contiguous(), channels_last(x)     # as in either network
    real, real_calls = repeated(
        lambda: F.conv2d(real_x, conv.weight, None, conv.stride, conv.padding))
    ours, our_calls = repeated(lambda: unit(x))
    return compare(case, real, ours, rounds, WIDTH, (real_calls, our_calls))


def repeated(function: Callable, seconds: float = 0.005) -> tuple[Callable, int]:
    """(function called as often as fills so much time, how often that is)."""
    function()
    start = time.perf_counter()
    function()
    times = max(1, round(seconds / (time.perf_counter() - start)))

    def calls():
        for _ in range(times):
            function()
    return calls, times


def bench_networks(pairs: list[Pair], threads: list[int], rounds: int) -> list[dict]:
    print('\nWhole networks, image in to classes out')
    print_header(WIDTH)
    rows = []
    for pair in pairs:
        network = load_packed(pair.path)
        for images, setting in settings(pair, threads):
            rows.append(compare(f'network {pair.name}{setting}', lambda: pair.model(images),
                                lambda: network(images), rounds, WIDTH))
    return rows


def print_memory(pairs: list[Pair], processes: int):
    """Print how many MB the networks add to the peak resident memory of a fresh process."""
    print('\nPeak resident memory, MB, of a fresh process that reads the network and classifies '
          f'one image, beyond\nPyTorch and the kernel alone: medians of {processes} processes')
    print(f'{"network":20} {"float32":>8} {"packed":>8} {"ratio":>7}')
    for pair in pairs:
        state = pair.path.with_suffix('.pth')
        torch.save(pair.model.state_dict(), state)
        real, bits = (statistics.median(
            call_in_new_process(added_memory, load, path, pair.name, pair.shape)
            for _ in range(processes)) for load, path in ((load_float, state),
                                                          (load_packed, pair.path)))
        print(f'{pair.name:20} {real:8.1f} {bits:8.1f} {bits / real:7.3f}', flush=True)


def added_memory(load: Callable, path: Path, name: str, shape: tuple) -> float:
    """Megabytes that three inferences add to the peak resident memory of this process.

    PyTorch, oneDNN and the kernel are loaded before.
    """
    torch.set_num_threads(1)
    F.conv2d(torch.zeros(2, 16, 16, 16), torch.zeros(16, 16, 5, 5))
    ops.has_kernel()
    with torch.device('meta'):
        nn.init.kaiming_normal_(nn.Conv2d(1, 1, 1).weight)
    before = peak_megabytes()
    with torch.no_grad():
        model, image = load(path, name, shape), torch.randn(1, *shape)
        for _ in range(3):
            model(image)
    return peak_megabytes() - before


def load_float(path: Path, name: str, shape: tuple) -> nn.Module:
    with torch.device('meta'):
        model = models.build(name, CLASSES, *shape[:2])
    model.load_state_dict(torch.load(path, weights_only=True), assign=True)
    return model.eval()


def load_packed(path: Path, *_) -> nn.Module:
    return packed.load(path)[1]

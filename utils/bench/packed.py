"""The benchmark `packed`: packed networks and their convolutions against float32 ones."""
import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import models
from utils import binarize, packed
from utils.describe import watching_inputs
from utils.packed import ops
from utils.system.processes import call_in_new_process
from utils.memory_format import channels_last

from .timing import interleave, peak_megabytes

CLASSES = 250
BATCHES = 1, 16
MOST_PROCESSES = 5      # of each memory measurement


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


class Memory(NamedTuple):
    """Medians over processes in MB, and the range of the increase."""
    alone: float        # PyTorch and the kernel
    peak: float
    increase: float
    least: float
    most: float

    def __str__(self):
        return f'{self.increase:8.1f} ({self.least:4.1f}–{self.most:4.1f})'


@torch.no_grad()
def bench(options: argparse.Namespace) -> list[dict]:
    """All tables; returns a list of {case, batch, threads, float_s, packed_s, speedup}."""
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


def print_header(title: str):
    print(f'\n{title}\n{"case":52} {"batch":>5} {"threads":>7} {"float ms":>10} {"packed ms":>10} '
          f'{"speed-up":>8}   quartiles')


def print_row(case: str, batch: int, threads: int, times: tuple) -> dict:
    """Print the line of a case; returns its JSON object."""
    float_s, packed_s = map(statistics.median, times)
    speedup = float_s / packed_s
    low, _, high = statistics.quantiles([a / b for a, b in zip(*times)], n=4)
    print(f'{case:52} {batch:5} {threads:7} {float_s * 1e3:10.3f} {packed_s * 1e3:10.3f} '
          f'{speedup:8.2f}   {low:.2f} – {high:.2f}', flush=True)
    return {'case': case, 'batch': batch, 'threads': threads, 'float_s': float_s,
            'packed_s': packed_s, 'speedup': speedup}


def bench_convolutions(pairs: list[Pair], threads: list[int], rounds: int) -> list[dict]:
    print_header('Binary convolutions, with packing of the input, against '
                 'torch.nn.functional.conv2d on the same tensors;\nin every round each is repeated '
                 'for 5 ms')
    rows = []
    for pair in pairs:
        network = load_packed(pair.path)
        for batch in BATCHES:
            for layer in different_layers(pair.model, network, torch.randn(batch, *pair.shape)):
                for number in threads:
                    torch.set_num_threads(number)
                    rows.append(print_row(f'conv {pair.name} {layer.title}', batch, number,
                                          time_convolution(layer, rounds)))
    for batch in BATCHES:
        for number in threads:
            speedups = [row['speedup'] for row in rows
                        if (row['batch'], row['threads']) == (batch, number)] or [1]
            print(f'batch {batch}, {number} threads: geometric mean '
                  f'{statistics.geometric_mean(speedups):.2f}, least {min(speedups):.2f}')
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


def time_convolution(layer: Layer, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of the float32 convolution and of the binary unit, in every round."""
    _, unit, x, conv = layer
    real_x, x = x.contiguous(), channels_last(x)     # as in either network
    real, real_calls = repeated(
        lambda: F.conv2d(real_x, conv.weight, None, conv.stride, conv.padding))
    ours, our_calls = repeated(lambda: unit(x))
    real_times, our_times = interleave(real, ours, rounds)
    return ([seconds / real_calls for seconds in real_times],
            [seconds / our_calls for seconds in our_times])


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
    print_header('Whole networks, image in to classes out')
    rows = []
    for pair in pairs:
        network = load_packed(pair.path)
        for batch in BATCHES:
            images = torch.randn(batch, *pair.shape)
            for number in threads:
                torch.set_num_threads(number)
                times = interleave(lambda: pair.model(images), lambda: network(images), rounds)
                rows.append(print_row(f'network {pair.name}', batch, number, times))
    return rows


def print_memory(pairs: list[Pair], processes: int):
    print('\nPeak resident memory, MB, of a fresh process that reads the network and classifies '
          f'one image: medians of {processes} processes,\nand the range of the increase over '
          f'PyTorch and the kernel alone\n{"network":20} {"alone":>7} {"float32":>8} '
          f'{"packed":>7}   increase: {"float32":>20} {"packed":>20} {"ratio":>6}')
    for pair in pairs:
        state = pair.path.with_suffix('.pth')
        torch.save(pair.model.state_dict(), state)
        real = measure_memory(load_float, state, pair, processes)
        bits = measure_memory(load_packed, pair.path, pair, processes)
        print(f'{pair.name:20} {real.alone:7.0f} {real.peak:8.0f} {bits.peak:7.0f}             '
              f'{real}{bits} {bits.increase / real.increase:6.3f}', flush=True)


def measure_memory(load: Callable, path: Path, pair: Pair, processes: int) -> Memory:
    runs = [call_in_new_process(resident_memory, load, path, pair.name, pair.shape)
            for _ in range(processes)]
    increases = [peak - alone for alone, peak in runs]
    alone, peak = map(statistics.median, zip(*runs))
    return Memory(alone, peak, statistics.median(increases), min(increases), max(increases))


def resident_memory(load: Callable, path: Path, name: str, shape: tuple) -> tuple[float, float]:
    """Megabytes of peak resident memory of this process before and after three inferences.

    Before: with PyTorch, oneDNN and the kernel loaded.
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
    return before, peak_megabytes()


def load_float(path: Path, name: str, shape: tuple) -> nn.Module:
    with torch.device('meta'):
        model = models.build(name, CLASSES, *shape[:2])
    model.load_state_dict(torch.load(path, weights_only=True), assign=True)
    return model.eval()


def load_packed(path: Path, *_) -> nn.Module:
    return packed.load(path)[1]

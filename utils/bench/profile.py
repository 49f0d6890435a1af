"""Where the time of a packed network goes, by layers, and how much of the processor they use."""
import ctypes
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.native import compiler
from utils.packed import BinaryUnit, ExpandedConv2d, PooledConv2d, ops

PEAK = Path(__file__).with_name('peak.cpp')


def print_profiles(networks: dict[str, tuple[nn.Module, Tensor]], rounds: int):
    """Print the profile of each {name: (packed network, image)} on one thread, and the limit."""
    limit = processor_limit()
    torch.set_num_threads(1)
    speed = ' (unknown: no AVX-512 VPOPCNTDQ, or no C++ compiler)'
    if limit:
        speed = (f': {limit / 1e9:.0f} G/s of AND, popcount and add on 512 bits, '
                 'with nothing else to do')
    print('\nOne image, one thread: least ms of each layer of the packed network; of binary '
          f'convolutions multiply-adds, speed,\nand what the processor does at most{speed}')
    for name, (network, image) in networks.items():
        print_profile(name, network, image, rounds, limit)


def processor_limit() -> float | None:
    """Binary multiply-adds per second of one thread, or None without AVX-512 VPOPCNTDQ."""
    if ops.instruction_sets()[0] != 'avx512':
        return None
    flags = ['-funroll-loops', '-march=native']
    try:
        library = compiler.load('peak', [PEAK], flags, (flags, compiler.processor()), ctypes.CDLL)
    except compiler.BuildError:
        return None
    measure = library.multiply_adds_per_second
    measure.restype = ctypes.c_double
    return max(measure() for _ in range(200))


def print_profile(name: str, network: nn.Module, image: Tensor, rounds: int, limit: float | None):
    leaves = {layer: title for title, layer in network.named_modules()
              if not any(layer.children()) or isinstance(layer, ExpandedConv2d | PooledConv2d)}
    seconds, work = time_layers(leaves)
    totals = []
    for _ in range(rounds):
        start = time.perf_counter()
        network(image)
        totals.append(time.perf_counter() - start)
    total = min(totals)
    print(f'{name}: {total * 1e3:.3f} ms')
    for layer, spent in seconds.items():
        line = (f'  {leaves[layer]:34} {type(layer).__name__:18} {spent * 1e3:8.3f} '
                f'{100 * spent / total:5.1f} %')
        if layer in work:
            line += f' {work[layer] / 1e6:9.1f} M {work[layer] / spent / 1e9:8.0f} G/s'
            line += f' {100 * work[layer] / spent / limit:5.1f} % of the limit' if limit else ''
        print(line)
    rest = total - sum(seconds.values())
    print(f'  {"additions, ReLU, what calls the layers":53} {rest * 1e3:8.3f} '
          f'{100 * rest / total:5.1f} %')


def time_layers(layers) -> tuple[dict[nn.Module, float], dict[nn.Module, int]]:
    """Watch the layers of a network from now on.

    Returns two dicts that its calls fill: the least seconds of each layer, and the multiply-adds of
    each BinaryUnit.
    """
    seconds: dict = {}
    work: dict = {}
    started = {}

    def start(layer, _):
        started[layer] = time.perf_counter()

    def stop(layer, _, out):
        spent = time.perf_counter() - started[layer]
        seconds[layer] = min(seconds.get(layer, math.inf), spent)
        if isinstance(layer, BinaryUnit):
            work[layer] = out.numel() * layer.channels * math.prod(layer.kernel_size)

    for layer in layers:
        layer.register_forward_pre_hook(start)
        layer.register_forward_hook(stop)
    return seconds, work

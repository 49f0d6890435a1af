"""Where the time of a packed network goes, layer by layer, and how much of the processor it uses."""
import ctypes
import math
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from . import network, ops

PEAK = """
#include <immintrin.h>
#include <time.h>
static double seconds() { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + 1e-9 * t.tv_nsec; }
double multiply_adds_per_second(void) {     // 512 a step: AND, popcount, add; 16 independent sums
    __m512i sums[16] = {0}, a = _mm512_set1_epi64(0x123456789), b = _mm512_set1_epi64(0x987654321);
    double start = seconds();
    for (long n = 0; n < 100000; n++)
        for (int i = 0; i < 16; i++) {
            sums[i] = _mm512_add_epi64(sums[i], _mm512_popcnt_epi64(_mm512_and_si512(a, b)));
            __asm__ volatile("" : "+v"(sums[i]), "+v"(a));
        }
    return 16e5 * 512 / (seconds() - start);
}
"""


def peak():
    """Binary multiply-adds per second of one thread that does nothing else, or None without AVX-512 VPOPCNTDQ."""
    compiler = shutil.which(os.environ.get('CC') or 'cc')
    if compiler is None or ops.instruction_sets()[0] != 'avx512':
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / 'peak.so'
        subprocess.run([compiler, '-O2', '-funroll-loops', '-march=native', '-shared', '-fPIC', '-x', 'c', '-', '-o',
                        library], input=PEAK, text=True, check=True)
        measure = ctypes.CDLL(str(library)).multiply_adds_per_second
        measure.restype = ctypes.c_double
        return max(measure() for _ in range(200))


def profile(networks, rounds):
    """Print where the time of networks, {name: (packed network, image)}, goes on one thread, and the processor's limit.
    """
    limit = peak()
    torch.set_num_threads(1)
    print('\nOne image, one thread: least ms of each layer of the packed network; of binary convolutions multiply-adds,'
          ' speed,\nand what the processor does at most' + (
              f': {limit / 1e9:.0f} G/s of AND, popcount and add on 512 bits, with nothing else to do' if limit
              else ' (unknown: no AVX-512 VPOPCNTDQ, or no C compiler)'))
    for name, (packed, image) in networks.items():
        seconds, started, work = {}, {}, {}

        def start(layer, _):
            started[layer] = time.perf_counter()

        def stop(layer, _, out):
            seconds[layer] = min(seconds.get(layer, math.inf), time.perf_counter() - started[layer])
            if isinstance(layer, network.BinaryUnit):
                work[layer] = out.numel() * layer.channels * layer.kernel_size[0] * layer.kernel_size[1]

        leaves = {layer: title for title, layer in packed.named_modules() if not any(layer.children()) or isinstance(
            layer, network.ExpandedConv2d)}
        for layer in leaves:
            layer.register_forward_pre_hook(start)
            layer.register_forward_hook(stop)
        totals = []
        for _ in range(rounds):
            begin = time.perf_counter()
            packed(image)
            totals.append(time.perf_counter() - begin)
        total = rest = min(totals)
        print(f'{name}: {total * 1e3:.3f} ms')
        for layer, spent in seconds.items():
            rest -= spent
            line = f'  {leaves[layer]:34} {type(layer).__name__:18} {spent * 1e3:8.3f} {100 * spent / total:5.1f} %'
            if layer in work:
                line += f' {work[layer] / 1e6:9.1f} M {work[layer] / spent / 1e9:8.0f} G/s'
                line += f' {100 * work[layer] / spent / limit:5.1f} % of the limit' if limit else ''
            print(line)
        print(f'  {"additions, ReLU, what calls the layers":53} {rest * 1e3:8.3f} {100 * rest / total:5.1f} %')

"""What the GPU's kernels cost by their machine code: counted and computed, without a GPU.

The forward kernel of each layer is compiled for an H100 and its loops are found in the disassembly.
A loop's instructions divided by the weights that it loads are its instructions a weight. The
search's loop counts once a round, and so does, once a thread, what else a round does.
"""
import math
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch

import models
from utils import binarize
from utils.errors import InputError
from utils.native import gpu

# (name, side of an image in pixels, image channels, binStart, binEnd)
NETWORKS = [('sketchanetwbin', 225, 1, 2, 7), ('resnetwbin18', 224, 1, 2, 100),
            ('bincifar', 32, 3, 2, 7), ('alexnetwbin', 224, 3, 2, 100)]
ARCHITECTURE = 90               # of an H100, as the next three
BYTES_PER_SECOND = 3.35e12
INSTRUCTIONS_PER_SECOND = 29e12     # of one lane, all SMs together
CYCLES_PER_SECOND = 1.7e9       # in each of which a warp starts one instruction at most
ROUNDS = 3                      # of the search, on bell-shaped filters
BYTES = 12                      # a weight: latent read and written, W~ written; backward as many
LAUNCHES = 2                    # a layer and step


def compiled(channels: int, taps: int, method: str = 'dab', architecture: int = ARCHITECTURE):
    """The forward kernel for filters (channels, taps), compiled by Triton for sm_<architecture>."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    channels, taps, options = gpu.forward_options(channels, taps)
    warps = options.pop('num_warps')
    names = gpu.kernels.forward_kernel.arg_names
    numbers = {'channels': channels, 'taps': taps}
    constants = {'METHOD': method, **options, **({'taps': 1} if taps == 1 else {})}
    types = {name: 'constexpr' if name in constants else 'i32' for name in names}
    types |= dict.fromkeys(names[:3], '*fp32')
    # As at a launch: which arguments are multiples of 16.
    multiples = {(index,): [['tt.divisibility', 16]] for index, name in enumerate(names)
                 if index < 3 or name not in constants and numbers.get(name, 1) % 16 == 0}
    return compile(ASTSource(gpu.kernels.forward_kernel, types, constants, multiples),
                   target=GPUTarget('cuda', architecture, 32), options={'num_warps': warps})


def cuobjdump(kernel, option: str) -> str:
    """The output of NVIDIA's cuobjdump, which comes with Triton, on a compiled kernel."""
    import triton
    tool = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(kernel.asm['cubin'])
        file.flush()
        return subprocess.run([tool, option, file.name], check=True, capture_output=True,
                              text=True).stdout


def resources(kernel) -> tuple[int, int]:
    """(registers, bytes of spill) of a thread."""
    found = re.search(r'REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)',
                      cuobjdump(kernel, '--dump-resource-usage'))
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


class Loop(NamedTuple):
    start: int          # addresses of the first and the last instruction
    end: int
    code: list[str]     # all instructions, of inner loops too

    def count(self, pattern: str) -> int:
        return sum(re.match(pattern, line) is not None for line in self.code)

    @property
    def weights(self) -> int:
        """Weights that a thread loads in one pass."""
        return sum(int(wide[1]) // 32 if (wide := re.match(r'LDG\.E\.(64|128)', line)) else 1
                   for line in self.code if line.startswith('LDG'))


def loops(kernel) -> list[Loop]:
    """The loops of the kernel's machine code, each from a branch's earlier target to the branch."""
    lines = re.findall(r'/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+ )?([A-Z].*?) *;',
                       cuobjdump(kernel, '-sass'))
    code = [(int(address, 16), line) for address, line in lines]
    found = []
    for end, line in code:
        target = re.match(r'BRA.*?(0x[0-9a-f]+)', line)
        if target and int(target[1], 16) < end:
            start = int(target[1], 16)
            found.append(Loop(start, end, [text for at, text in code if start <= at <= end]))
    return found


def instructions(kernel, padding: float) -> tuple[float, float, float]:
    """Instructions of a forward pass: (a weight, a weight and round, a thread and round).

    padding: the projection's tiles in relation to the weights in them.
    """
    found = [loop for loop in loops(kernel) if loop.count('WARPSYNC') < 2]  # else never taken
    inner = [loop for loop in found if loop.weights and not any(
        loop.start <= other.start and other.end <= loop.end for other in found if other != loop)]
    search = next(loop for loop in inner if loop.count('FSET') >= 16 * loop.weights)
    around = [loop for loop in found if loop.start < search.start and search.end < loop.end]
    a_round = next(loop for loop in around if loop.count('SHFL'))
    comparisons = around[0]
    per_weight, before = 0.0, 0
    for loop in inner:
        # One that loads fewer than the last does what is left of that, unrolled, one.
        is_rest = loop.weights < before and not loop.count('STG')
        if not is_rest and not a_round.start < loop.start < a_round.end:
            per_weight += len(loop.code) / loop.weights * (
                padding if loop.start < search.start else 1)
        before = loop.weights
    return (per_weight, len(search.code) / search.weights,
            len(a_round.code) - len(comparisons.code))


class Cost(NamedTuple):
    """Of the forward pass of one layer."""

    registers: int          # a thread
    spilled: int            # bytes a thread
    instructions: float     # a weight
    seconds: float          # the largest of three: all instructions, one filter's, all bytes
    bytes_seconds: float


def forward_cost(filters: int, channels: int, taps: int) -> Cost:
    """The cost of a layer's forward pass on an H100, counted and computed."""
    kernel = compiled(channels, taps)
    n = channels * taps
    channels, taps, options = gpu.forward_options(channels, taps)
    tiles = (math.ceil(channels / options['CHANNELS']) * options['CHANNELS']
             * math.ceil(taps / options['TAPS']) * options['TAPS'])
    per_weight, per_comparison, per_round = instructions(kernel, tiles / n)
    threads = 32 * options['num_warps']
    count = per_weight + ROUNDS * (per_comparison + per_round * threads / n)
    bytes_seconds = BYTES * filters * n / BYTES_PER_SECOND
    seconds = max(bytes_seconds, count * filters * n / INSTRUCTIONS_PER_SECOND,
                  count * n / threads / CYCLES_PER_SECOND)
    return Cost(*resources(kernel), count, seconds, bytes_seconds)


def layer_shapes(name: str, side: int, channels: int, start: int, end: int) -> Counter:
    """{(filters, channels a group, taps): layers} of a network's binarized convolutions."""
    with torch.device('meta'):
        network = models.build(name, 250, channels, side)
    shapes = [conv.weight.flatten(2).shape
              for number, _, conv in binarize.convolutions(network) if start <= number <= end]
    return Counter(tuple(shape) for shape in shapes if shape[1] * shape[2] > 1)


def bench(_) -> list[dict]:
    """What the GPU kernels cost in the layers of four networks and in a step: counted in their
    machine code for an H100 and computed, without a GPU."""
    if gpu.triton is None:
        raise InputError('kernels: there is no Triton, which comes with PyTorch for CUDA')
    print('GPU kernels: counted in the machine code for an H100 and computed, NOT measured; '
          f'{ROUNDS} rounds of search, {LAUNCHES} launches a layer and step')
    print(f'{"filters × channels × taps":>28} {"layers":>6} {"regs":>5} {"spill":>5} '
          f'{"instr/weight":>12} {"forward µs":>10} {"its bytes µs":>12}')
    rows = []
    for network in NETWORKS:
        forward = bound = 0.0
        shapes = layer_shapes(*network)
        for shape, layers in shapes.items():
            cost = forward_cost(*shape)
            forward += layers * cost.seconds
            bound += layers * cost.bytes_seconds
            print(f'{" × ".join(map(str, shape)):>28} {layers:6} {cost.registers:5} '
                  f'{cost.spilled:5} {cost.instructions:12.0f} {cost.seconds * 1e6:10.1f} '
                  f'{cost.bytes_seconds * 1e6:12.1f}', flush=True)
        print(f'{network[0]}: a step {(forward + bound) * 1e3:.3f} ms, of which its bytes '
              f'{2 * bound * 1e3:.3f} ms; {LAUNCHES * shapes.total()} launches')
        rows.append({'network': network[0], 'computed_s': forward + bound, 'bytes_s': 2 * bound,
                     'launches': LAUNCHES * shapes.total()})
    return rows

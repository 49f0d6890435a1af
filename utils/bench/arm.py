"""What binary convolutions would cost on 64-bit Arm: llvm-mca's estimate of the compiled loops.

A cross-compiler makes the assembly of arm.cpp; the loops are found in it by their instructions.
llvm-mca leaves out caches, wrong branches, and what happens once a call.
"""
import math
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError
from utils.native import compiler

COMPILER, ANALYZER = 'aarch64-linux-gnu-g++', 'llvm-mca'
SOURCE = Path(__file__).with_name('arm.cpp')
TARGET = ['-mtriple=aarch64-linux-gnu', '-iterations=1000', '-all-views=false', '-summary-view']
# Each processor, and the one whose timing LLVM takes for it.
PROCESSORS = {
    'cortex-a76': "Cortex-A57's, an older core with half as many FMA units; better: neoverse-n1",
    'neoverse-n1': "its own from LLVM 16 on, Cortex-A57's before; the vector units of Cortex-A76",
    'apple-m1': "Cyclone's, of 2013: 3 vector units instead of 4",
}
WORD, FILTERS = 64, 32      # of utils/packed/ops.py
BYTE_WORDS = 31             # of kernel/portable.h
PACKED_CHANNELS = 16        # by one pass of Neon::signs
FLOAT_MULTIPLY_ADDS = 8 * 12    # by one pass of float_product

# (input channels, filters, kernel, side of the input, stride), with outputs of side / stride, as in
# .readme/measurements.md.
CONVOLUTIONS = [(64, 128, 5, 35, 1), (128, 256, 3, 15, 1), (256, 256, 3, 15, 1), (64, 64, 3, 56, 1),
                (64, 128, 3, 56, 2), (128, 128, 3, 28, 1), (128, 256, 3, 28, 2),
                (256, 256, 3, 14, 1), (256, 512, 3, 14, 2), (512, 512, 3, 7, 1)]


class Blocks(NamedTuple):
    """Assembly, by what it does."""

    word: str       # a word of 32 filters, at one position: the loop that counts bits
    flush: str      # at most BYTE_WORDS words later: sums of bytes become numbers
    finish: str     # a position of 32 filters: numbers become floats
    pack: str       # 16 channels of a pixel
    product: str    # the loop of float_product


class Cycles(NamedTuple):
    """Of one pass through each of the Blocks."""

    word: float
    flush: float
    finish: float
    pack: float
    product: float

    @property
    def binary_rate(self) -> float:
        """Binary multiply-adds a cycle, in the loop alone."""
        return WORD * FILTERS / self.word

    @property
    def float_rate(self) -> float:
        """float32 multiply-adds a cycle, in the loop alone."""
        return FLOAT_MULTIPLY_ADDS / self.product

    def of_binary(self, channels: int, filters: int, kernel: int, side: int, stride: int) -> float:
        """Cycles of a binary convolution, with the packing of its input."""
        words = kernel ** 2 * math.ceil(channels / WORD)
        position = words * self.word + math.ceil(words / BYTE_WORDS) * self.flush + self.finish
        return (math.ceil(side / stride) ** 2 * math.ceil(filters / FILTERS) * position
                + side ** 2 * math.ceil(channels / PACKED_CHANNELS) * self.pack)

    def of_float(self, channels: int, filters: int, kernel: int, side: int, stride: int) -> float:
        """Cycles of the same convolution in float32 that does nothing but multiply and add."""
        return math.ceil(side / stride) ** 2 * filters * channels * kernel ** 2 / self.float_rate


def bench(_) -> list[dict]:
    """What binary convolutions would cost on 64-bit Arm beside float32 ones: an estimate of
    llvm-mca for the compiled loops, not measured. Needs aarch64-linux-gnu-g++ and llvm-mca."""
    for tool in COMPILER, ANALYZER:
        if not shutil.which(tool):
            raise InputError(f'arm: {tool} is missing (Debian: g++-aarch64-linux-gnu and llvm-19)')
    version = re.search(r'LLVM version (\S+)', run([ANALYZER, '--version']))[1]
    print(f'64-bit Arm: estimated by llvm-mca {version}, NOT measured')
    blocks = find_blocks(assembly())
    cycles = {processor: Cycles(*(estimate(block, processor) for block in blocks))
              for processor in PROCESSORS}
    return print_loops(cycles) + print_convolutions(cycles)


def print_loops(cycles: dict[str, Cycles]) -> list[dict]:
    print(f'Multiply-adds a cycle in the inner loops\n{"processor":12} {"binary":>8} '
          f'{"float32":>8} {"ratio":>6}   timing taken by LLVM')
    rows = []
    for name, of in cycles.items():
        row = {'case': name, 'binary': of.binary_rate, 'float': of.float_rate,
               'ratio': of.binary_rate / of.float_rate}
        print(f'{name:12} {row["binary"]:8.1f} {row["float"]:8.1f} {row["ratio"]:6.1f}   '
              f'{PROCESSORS[name]}')
        rows.append(row)
    return rows


def print_convolutions(cycles: dict[str, Cycles]) -> list[dict]:
    print('\nThousands of cycles of a binary convolution of one image on one thread, packing '
          'included, and how many times\nas long float32 takes that only multiplies and adds\n'
          f'{"convolution":28}' + ''.join(f'{name:>22}' for name in cycles))
    rows = []
    for shape in CONVOLUTIONS:
        channels, filters, kernel, side, stride = shape
        title = f'{channels}→{filters} {kernel}×{kernel} at {side}×{side}'
        title += f' /{stride}' if stride > 1 else ''
        line = f'{title:28}'
        for name, of in cycles.items():
            bits, real = of.of_binary(*shape), of.of_float(*shape)
            line += f'{bits / 1e3:14.0f} {real / bits:7.1f}'
            rows.append({'case': f'{name} {title}', 'binary_cycles': bits, 'float_cycles': real})
        print(line)
    return rows


def run(command: list[str], text: str | None = None) -> str:
    """What a command prints. Raises InputError where it fails."""
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or f'exit code {done.returncode}').splitlines()[0]
        raise InputError(f'arm: {command[0]} failed: {reason}')
    return done.stdout


def assembly() -> str:
    """arm.cpp compiled with the flags of the libraries."""
    flags = [flag for flag in compiler.COMMON if flag not in ('-shared', '-fPIC')]
    with tempfile.NamedTemporaryFile(suffix='.s') as file:
        run([COMPILER, *flags, '-std=c++20', '-Wno-psabi', '-S', str(SOURCE), '-o', file.name])
        return Path(file.name).read_text(encoding='utf-8')


def find_blocks(code: str) -> Blocks:
    """The Blocks in the assembly that GCC makes of arm.cpp."""
    lines = [line for line in code.splitlines() if not re.match(r'\s+\.', line)]

    def lines_with(name, after=0):
        return [at for at, line in enumerate(lines)
                if at > after and re.match(rf'\s+{name}\s', line)]

    def instructions(start, end):
        return '\n'.join(line for line in lines[start:end] if re.match(r'\s+[a-z]', line)
                         and not re.match(r'\s+(b|bl|ret|cb[a-z]+|tb[a-z]+)\s', line))
    count = loop_with('cnt', 16, lines)
    product = loop_with('fmla', 24, lines)
    try:
        flushed = lines_with('uadalp', count[1])[15]
        finished = lines_with('fcvtn2', count[1])[7]
        stored = [at for at in lines_with('stp', finished) if re.match(r'\s+stp\s+q', lines[at])][0]
        _, _, packed, _, _, sums = lines_with('addp')[:6]
    except (IndexError, ValueError):
        raise InputError(f'arm: {COMPILER} makes other code of {SOURCE.name} than is expected '
                         'here') from None
    return Blocks(instructions(*count), instructions(count[1], flushed + 1),
                  instructions(flushed + 1, stored + 1), instructions(packed + 1, sums + 1),
                  instructions(*product))


def loop_with(name: str, times: int, lines: list[str]) -> tuple[int, int]:
    """Start and end, in lines, of the loop without branches that has an instruction so often."""
    label = None
    for at, line in enumerate(lines):
        if found := re.match(r'(\.L\d+):', line):
            label, start = found[1], at + 1
        elif label and re.search(rf'\s{re.escape(label)}$', line):
            block = lines[start:at + 1]
            if sum(re.match(rf'\s+{name}\s', inner) is not None for inner in block) == times:
                return start, at + 1
    raise InputError(f'arm: {COMPILER} made no loop of {times} {name}')


def estimate(block: str, processor: str) -> float:
    """Cycles of a pass through the block, repeated, by llvm-mca."""
    text = run([ANALYZER, *TARGET, f'-mcpu={processor}'], block)
    return int(re.search(r'Total Cycles: +(\d+)', text)[1]) / 1000

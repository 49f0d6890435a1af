"""The code for 64-bit Arm, in an emulator, against the references that that for x86 is held to."""
import os
import shutil
import subprocess
import tempfile

import numpy as np
import pytest
import test_native
import test_packed_ops
import torch
from conftest import ROOT

from utils.native import compiler, cpu
from utils.packed import ops
from utils.system.files import cache_folder

CROSS, EMULATOR = 'aarch64-linux-gnu-g++', 'qemu-aarch64-static'
pytestmark = pytest.mark.skipif(None in (shutil.which(CROSS), shutil.which(EMULATOR)),
                                reason=f'no {CROSS} or no {EMULATOR}')


class Emulated:
    """The operators of ops, and cpu.call, of an emulated processor."""

    def __init__(self, program, instructions):
        self.process = subprocess.Popen([EMULATOR, program], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE,
                                        env=os.environ | {'DAB_INSTRUCTIONS': instructions})
        assert self.process.stdout.readline().decode().strip() == instructions

    def ask(self, what, numbers, tensors, *results):
        """Send tensors, in the order of their memory, and fill the results."""
        header = np.zeros(12, np.int64)
        header[:len(numbers) + 1] = [torch.get_num_threads(), *numbers]
        self.process.stdin.write(what + header.tobytes()
                                 + b''.join(tensor.numpy().tobytes() for tensor in tensors))
        self.process.stdin.flush()
        for result in results:
            data = self.process.stdout.read(result.nbytes)
            result.copy_(torch.frombuffer(bytearray(data), dtype=result.dtype).view(result.shape))

    def pack_signs(self, x, threshold, flip):
        images, channels, height, width = x.shape
        last = x.is_contiguous(memory_format=torch.channels_last)
        bits = torch.empty(images, height, width, -(-channels // 64), dtype=torch.int64)
        self.ask(b'p', [images, channels, height * width, last],
                 [x.permute(0, 2, 3, 1) if last else x.contiguous(), threshold, ops._pack(flip)],
                 bits)
        return bits

    def binary_conv2d(self, bits, prepared, alpha, beta, channels, kernel_size, stride=1, padding=0,
                      relu=False):
        axes = [(side,
                 *(n[axis] if isinstance(n, list | tuple) else n
                   for n in (kernel_size, stride, padding)))
                for axis, side in enumerate(bits.shape[1:3])]
        out = torch.empty(len(bits),
                          *((side + 2 * pad - kernel) // step + 1
                            for side, kernel, step, pad in axes), len(alpha))
        self.ask(b'c', [*axes[0], *axes[1], len(bits), channels, 2 * len(alpha) + relu],
                 [bits, prepared, alpha, beta], out)
        return out.permute(0, 3, 1, 2)

    def call(self, name, *tensors):
        filters, channels = tensors[0].shape[:2]
        numbers = [filters, channels, tensors[0][0, 0].numel()]
        if name == 'dab_forward':
            self.ask(b'f', numbers, tensors[:1], *tensors)
        else:
            self.ask(b'b', numbers, tensors[:-1], tensors[-1])


@pytest.fixture(scope='module')
def processors():
    """{name of an instruction set: Emulated}, compiled once for all workers, with the flags of the
    libraries."""
    program = cache_folder() / 'arm'
    program.parent.mkdir(parents=True, exist_ok=True)
    if not program.exists():
        flags = [flag for flag in compiler.COMMON if flag not in ('-shared', '-fPIC')]
        with tempfile.TemporaryDirectory(dir=program.parent) as folder:
            subprocess.run([CROSS, *flags, '-static', '-std=c++20', '-Wno-psabi',
                            ROOT / 'tests/arm.cpp',
                            ROOT / 'utils/native/cpu.cpp', '-o', f'{folder}/arm'], check=True)
            os.replace(f'{folder}/arm', program)
    found = {name: Emulated(program, name) for name in ('neon', 'portable')}
    yield found
    for emulated in found.values():
        emulated.process.communicate()
        assert emulated.process.returncode == 0


@pytest.fixture(autouse=True)
def instead(processors, monkeypatch):
    """The tests of test_packed_ops and test_native, called as functions, test these processors."""
    monkeypatch.setattr(test_packed_ops, 'implementations', processors.items)
    monkeypatch.setattr(cpu, 'library', lambda: True)
    monkeypatch.setattr(cpu, 'call', processors['neon'].call)


@pytest.mark.parametrize('channels', [1, 63, 64, 65, 130])
@pytest.mark.parametrize('filters, kernel', [(1, (1, 1)), (33, (2, 5)), (70, (7, 7))])
@pytest.mark.parametrize('stride, padding', [(1, 0), ((3, 1), (8, 5))])
def test_integers_are_exact_and_results_rounded_once(channels, filters, kernel, stride, padding):
    test_packed_ops.test_integers_are_exact_and_results_rounded_once(channels, filters, kernel,
                                                                     stride, padding)


@pytest.mark.parametrize('words', [30, 31, 32, 62, 63, 200])
def test_sums_of_bytes_do_not_overflow(processors, words):
    """All bits set, around the number of words after which a byte is full; NEON as portable, bit
    for bit."""
    for share in (1.0, 0.5):
        signs, marked, alpha, beta = test_packed_ops.case(words, 1, 64 * words, 40, (2, 2), (1, 1))
        signs, marked = signs | (share == 1), marked | (share == 1)
        test_packed_ops.check(signs, marked, alpha, beta, 1, 0)
        bits, prepared = test_packed_ops.bits_of(signs), ops.prepare(ops.pack_mask(marked),
                                                                     64 * words)
        neon, portable = (emulated.binary_conv2d(bits, prepared, alpha, beta, 64 * words, 1)
                          for emulated in processors.values())
        assert torch.equal(neon, portable)


@pytest.mark.parametrize('threads', [1, 2])
def test_threads(threads):
    torch.set_num_threads(threads)
    try:
        test_packed_ops.check(*test_packed_ops.case(3, 3, 200, 80, (21, 13), (3, 3)), 1, 1)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize('channels', [1, 15, 16, 17, 63, 64, 130])
@pytest.mark.parametrize('size', [(1, 1), (5, 13), (9, 16)])
def test_signs(channels, size):
    test_packed_ops.test_signs(channels, size)


def test_special_values():
    test_packed_ops.test_signs_of_special_values()
    test_packed_ops.test_nan_and_infinite_scales()


@pytest.mark.parametrize('n', [2, 3, 4, 9, 100, 2500, 20_000])
def test_the_split_is_the_optimum(n):
    for kind in test_native.KINDS:
        test_native.test_the_split_is_the_optimum(kind, n)


@pytest.mark.parametrize('name, row', list(test_native.adversarial_rows()))
def test_adversarial_filters(name, row):
    test_native.test_adversarial_filters(name, row)


@pytest.mark.parametrize('shape', test_native.SHAPES)
@pytest.mark.parametrize('threads, centring', test_native.THREADS_AND_CENTRING)
def test_forward_and_backward_equal_those_in_pytorch(shape, threads, centring):
    test_native.test_forward_and_backward_equal_those_in_pytorch(shape, threads, centring)


def test_nan_shows():
    test_native.test_nan_shows()

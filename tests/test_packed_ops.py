"""Bits and popcounts (utils/packed) against convolutions in float64, whose sums of ±1 are exact."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from utils.packed import ops

ROOT = Path(__file__).resolve().parents[1]
FORMATS = [torch.contiguous_format, torch.channels_last]


def implementations():
    """Yield the operators with each of the instruction sets."""
    before = os.environ.get('DAB_INSTRUCTIONS')
    try:
        for name in ops.instruction_sets():
            os.environ['DAB_INSTRUCTIONS'] = name
            yield name, ops
    finally:
        os.environ.pop(
            'DAB_INSTRUCTIONS') if before is None else os.environ.update(DAB_INSTRUCTIONS=before)


def bits_of(signs):
    """A bool (N, C, H, W) in words, one bit after another."""
    images, channels, height, width = signs.shape
    words = np.zeros((images, height, width, -(-channels // 64)), np.uint64)
    for c in range(channels):
        words[..., c // 64] |= signs[:, c].numpy().astype(np.uint64) << np.uint64(c % 64)
    return torch.from_numpy(words.view(np.int64))


def case(seed, images, channels, filters, size, kernel):
    generator = torch.Generator().manual_seed(seed)
    signs = torch.rand(images, channels, *size, generator=generator) < 0.6
    marked = torch.rand(filters, channels, *kernel, generator=generator) < 0.3
    alpha, beta = torch.randn(2, filters, generator=generator)
    return signs, marked, alpha, beta


def convolve(signs, weight, stride, padding):
    return functional.conv2d(signs.double() * 2 - 1, weight.double(), None, stride, padding)


def check(signs, marked, alpha, beta, stride, padding):
    """Every implementation: e·x and Σx are the exact integers, results are float64's rounded to
    float32."""
    channels, kernel = marked.shape[1], tuple(marked.shape[2:])
    products = convolve(signs, marked, stride, padding)
    totals = convolve(signs, torch.ones_like(marked), stride, padding)
    exact = (alpha.double() - beta.double()).view(-1, 1,
                                                  1) * products + beta.double(
                                                      ).view(-1, 1, 1) * totals
    bits, prepared = bits_of(signs), ops.prepare(ops.pack_mask(marked), channels)
    one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
    for name, operators in implementations():
        def run(alpha, beta, relu=False):
            return operators.binary_conv2d(bits, prepared, alpha, beta, channels, kernel, stride,
                                           padding, relu)
        assert torch.equal(run(one, zero).double(), products), name
        assert torch.equal(run(one, one).double(), totals), name
        out = run(alpha, beta)
        assert out.dtype == torch.float32 and out.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_max_ulp(out.numpy(), exact.float().numpy(), maxulp=1)
        assert torch.equal(run(alpha, beta, relu=True), out.relu()), name


@pytest.mark.parametrize('channels', [1, 3, 63, 64, 65, 130])
@pytest.mark.parametrize('filters, kernel', [(1, (1, 1)), (16, (3, 3)), (33, (2, 5)), (70, (7, 7))])
@pytest.mark.parametrize('stride, padding', [(1, 0), (1, 1), (2, 3), ((3, 1), (8, 5))])
def test_integers_are_exact_and_results_rounded_once(channels, filters, kernel, stride, padding):
    check(*case(0, 2, channels, filters, (9, 7), kernel), stride, padding)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.integers(1, 3), st.integers(1, 200), st.integers(1, 70),
       st.tuples(st.integers(1, 12), st.integers(1, 12)),
       st.tuples(st.integers(1, 7), st.integers(1, 7)), pairs,
       st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_random_shapes(images, channels, filters, size, kernel, stride, padding):
    padding = tuple(max(pad, (k - side + 1) // 2) for pad, k, side in zip(padding, kernel, size))
    check(*case(1, images, channels, filters, size, kernel), stride, padding)


@pytest.mark.parametrize('positions', range(1, 20))
def test_every_number_of_output_positions(positions):
    check(*case(2, 1, 70, 32, (1, positions), (1, 1)), 1, 0)


@pytest.mark.parametrize('threads', [1, 2])
def test_threads(threads):
    torch.set_num_threads(threads)
    try:
        check(*case(3, 3, 200, 80, (21, 13), (3, 3)), 1, 1)
        check(*case(3, 1, 64, 300, (2, 2), (3, 3)), 1, 1)
        x = torch.randn(3, 70, 21, 13, generator=torch.Generator().manual_seed(0))
        zero, no = torch.zeros(70), torch.zeros(70, dtype=torch.bool)
        for memory in FORMATS:
            assert torch.equal(ops.pack_signs(x.to(memory_format=memory), zero, no),
                               bits_of(x >= 0))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize('channels', [1, 3, 16, 31, 63, 64, 65, 130])
@pytest.mark.parametrize('size', [(1, 1), (3, 5), (5, 13), (9, 16)])
def test_signs(channels, size):
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(2, channels, *size, generator=generator)
    threshold = torch.randn(channels, generator=generator)
    flip = torch.rand(channels, generator=generator) < 0.5
    x[:, ::2, 0, 0] = threshold[::2]
    expected = bits_of((x >= threshold.view(-1, 1, 1)) != flip.view(-1, 1, 1))
    for name, operators in implementations():
        for memory in FORMATS:
            assert torch.equal(operators.pack_signs(x.to(memory_format=memory), threshold, flip),
                               expected), name
        assert torch.equal(operators.pack_signs(x.transpose(2, 3), threshold, flip),
                           expected.transpose(1, 2)), name


def test_signs_of_special_values():
    inf, nan = float('inf'), float('nan')
    values = [nan, inf, -inf, 0.0, -0.0, 1e-45, -1e-45]
    thresholds = [0.0, -0.0, inf, -inf, nan]
    x = torch.tensor(values).view(1, 1, 1, -1).expand(1, len(thresholds) * 2, 3, -1)
    threshold = torch.tensor(thresholds * 2)
    flip = torch.arange(len(threshold)) >= len(thresholds)
    rows = [[float(value) >= float(t) for value in np.float32(values)]
            for t in np.float32(thresholds)]
    signs = torch.tensor(rows + [[not sign for sign in row] for row in rows])
    expected = bits_of(signs.view(1, -1, 1, len(values)).expand(1, -1, 3, -1))
    for name, operators in implementations():
        for memory in FORMATS:
            signs = operators.pack_signs(x.contiguous(memory_format=memory), threshold, flip)
            assert torch.equal(signs, expected), name


@pytest.mark.parametrize('channels', [1, 63, 64, 65, 130])
def test_masks_and_back(channels):
    mask = torch.rand(5, channels, 3, 2, generator=torch.Generator().manual_seed(0)) < 0.5
    words = ops.pack_mask(mask)
    assert torch.equal(words, bits_of(mask))
    assert torch.equal(ops.unpack_mask(words, channels), mask)


def test_nan_and_infinite_scales():
    signs, marked, _, _ = case(4, 1, 8, 3, (4, 4), (3, 3))
    alpha, beta = torch.tensor([float('nan'), float('inf'), 1e36]), torch.tensor([0.0, 1.0, -1e36])
    bits, prepared = bits_of(signs), ops.prepare(ops.pack_mask(marked), 8)
    results = [operators.binary_conv2d(bits, prepared, alpha, beta, 8, 3, relu=True)
               for _, operators in implementations()]
    assert results[-1][:, 0].isnan().all() and results[-1][:, 2].isfinite().all()
    for result in results:
        assert torch.equal(result[:, 0].isnan(), results[-1][:, 0].isnan())
        assert torch.equal(result[:, 2], results[-1][:, 2])


def test_what_does_not_fit_is_refused():
    signs, marked, alpha, beta = case(5, 1, 70, 3, (4, 4), (3, 3))
    bits, prepared = bits_of(signs), ops.prepare(ops.pack_mask(marked), 70)
    good = dict(bits=bits, prepared=prepared, alpha=alpha, beta=beta, channels=70, kernel_size=3)
    ops.binary_conv2d(**good)
    for bad in (dict(bits=bits[..., :1]), dict(bits=bits.int()), dict(bits=bits[0]),
                dict(channels=64),
                dict(channels=0), dict(prepared=prepared[:, 1:]), dict(prepared=prepared.int()),
                dict(kernel_size=2),
                dict(kernel_size=[3]), dict(stride=[1, 1, 1]), dict(padding=[]),
                dict(kernel_size=5), dict(stride=0), dict(padding=-1), dict(alpha=alpha[:2]),
                dict(beta=beta.double())):
        with pytest.raises(ValueError):
            ops.binary_conv2d(**good | bad)
    x, zero, no = signs.float(), torch.zeros(70), torch.zeros(70, dtype=torch.bool)
    ops.pack_signs(x, zero, no)
    for bad in ((signs, zero, no), (x[0], zero, no), (x, zero[1:], no), (x, zero, no.float()),
                (x, zero.double(), no),
                (x[:, :0], zero[:0], no[:0])):
        with pytest.raises(ValueError):
            ops.pack_signs(*bad)
    with pytest.raises(ValueError, match='71'):
        ops.prepare(bits[..., :1], 71)


def test_no_images():
    prepared = ops.prepare(ops.pack_mask(torch.ones(3, 8, 3, 3, dtype=torch.bool)), 8)
    bits = ops.pack_signs(torch.empty(0, 8, 5, 5), torch.zeros(8), torch.zeros(8, dtype=torch.bool))
    assert bits.shape == (0, 5, 5, 1)
    assert ops.binary_conv2d(bits, prepared, torch.ones(3), torch.ones(3), 8, 3,
                             2).shape == (0, 3, 2, 2)


SCRIPT = '''
import copy, warnings
warnings.simplefilter('always')
import torch
from torch import nn
from models.blocks import Sign, SignConv2d
from utils import binarize
from utils.packed import network, ops
torch.manual_seed(0)
plain = nn.Sequential(nn.BatchNorm2d(3), Sign(), SignConv2d(3, 2, 2), nn.Conv2d(2, 2, 2))
model = binarize.wrap(copy.deepcopy(plain), 1, 2).eval()
x = torch.randn(2, 3, 5, 5)
with torch.no_grad():
    packed = network.assemble(plain.to('meta'), network.pack(model))
    error = (packed(x) - model(x)).abs().max().item()
print(*ops.instruction_sets()[:1], type(packed[0]).__name__, error < 1e-6)
'''


@pytest.fixture
def run_alone(start):
    """(stdout, stderr) of SCRIPT in a process of its own, with these variables of the
    environment."""
    def run(**environment):
        code, out, err = start(run_script, SCRIPT, environment).wait()
        assert code == 0, err
        return out, err
    return run


@pytest.mark.parametrize('broken', [False, True])
def test_without_a_compiler_pytorch_is_used_with_one_warning(tmp_path, run_alone, broken):
    compiler = tmp_path / 'compiler'
    compiler.write_text('#!/bin/sh\nexit 1\n')
    compiler.chmod(0o755)
    reason = f'{compiler} failed: no message' if broken else 'there is no C++ compiler'
    folder = tmp_path / 'no other compilers'
    out, err = run_alone(CXX=str(compiler) if broken else '', PATH=str(folder),
                         XDG_CACHE_HOME=str(tmp_path))
    assert out == 'BatchNorm2d True\n'
    said = [line for line in err.splitlines() if 'UserWarning: binary convolutions' in line]
    assert len(said) == 1 and f'correct but slower: {reason}' in said[0]
    assert not list(tmp_path.glob('dab/*'))


def test_the_kernel_is_built_once(run_alone):
    if not ops.has_kernel():
        pytest.skip('no C++ compiler')
    cache = Path(os.environ['XDG_CACHE_HOME']) / 'dab'
    built, = cache.glob('packed-*')
    written = built.stat().st_mtime_ns
    out, err = run_alone()
    assert out == f'{ops.instruction_sets()[0]} BinaryUnit True\n'
    assert err == ''
    assert built.stat().st_mtime_ns == written and list(cache.glob('packed-*')) == [built]

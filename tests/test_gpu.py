"""The Triton kernels (utils/native/gpu.py): results in Triton's interpreter, compilation for five
kinds of GPU without one, and results on a GPU where there is one."""
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_binarize import KINDS, best_objective, filters, objective
from test_native import adversarial_rows
from torch import nn
from torch._subclasses import FakeTensorMode

from utils import binarize, native
from utils.native import gpu

pytest.importorskip('triton')

SPLITS = {f'{kind}-{n}': filters(kind, n)[:1].clamp(-1, 1).view(1, 1, 1, n)
          for kind in KINDS for n in (2, 3, 9, 100, 1000)}
SPLITS['offset-100000'] = filters('offset', 100_000)[:1].view(1, 1, 1, -1)
SPLITS |= {name: torch.tensor(row, dtype=torch.float32).view(1, 1, 1, -1)
           for name, row in adversarial_rows()}
# One and several channels and taps, a depthwise layer, more taps than fit a tile.
SHAPES = [(3, 16, 3, 3), (2, 3, 5, 5), (4, 1, 3, 3), (4, 2, 1, 1), (2, 300, 1, 1), (2, 3, 17, 17)]
LAYERS = {(method, *shape): torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
          * 0.6
          for method in native.METHODS['cuda'] for shape in SHAPES}

INTERPRETED = '''
import sys, torch
sys.path.insert(0, 'tests')
import test_gpu
from utils import binarize, native
from utils.native import gpu
torch.set_num_threads(1)
results = []
for method, weight, gradient in torch.load(sys.argv[1]):
    assert gpu.supports(weight.shape)
    two_valued, values = gpu.forward_(weight, method)
    latent_gradient = None if gradient is None else gpu.backward(gradient, weight, values, method)
    results.append((weight, two_valued, values, latent_gradient))
native.METHODS['cpu'], native.MODULES['cpu'] = native.METHODS['cuda'], '.gpu'
trained = {method: test_gpu.trained(method, 'fast') for method in native.METHODS['cuda']}
torch.save((results, trained), sys.argv[2])
'''


def trained(method, search, dtype=torch.float32):
    """The weights of a small network after two steps, with all kinds of layers.

    None has two channels and several taps, where centring makes J(K) = J(n - K).
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(),
                          nn.Conv2d(6, 2, 3, groups=2), nn.ReLU(), nn.Conv2d(2, 2, 1))
    images = torch.randn(2, 1, 9, 9).to(dtype)
    binarize.wrap(model, 2, 4, method, search).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def special():
    """Weights where NaN, infinity and signed zeros matter: three filters of 2·3 weights."""
    weight = torch.tensor([[[.5, -.2, .1], [.3, .4, -.6]]] * 3).view(3, 2, 1, 3)
    weight[1, 0, 0, 1] = torch.nan
    weight[2, 1, 0, 2] = -torch.inf
    return weight


def signed_zeros():
    return torch.tensor([0.0, -0.0, 1e-45, -1e-45, 0.5, -0.5]).view(1, 1, 2, 3)


def gradient_of(weight):
    return torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))


CASES = ({name: ('dab', weight) for name, weight in SPLITS.items()}
         | {key: (key[0], weight) for key, weight in LAYERS.items()}
         | {('special', method): (method, special()) for method in native.METHODS['cuda']}
         | {('zeros', method): (method, signed_zeros()) for method in ('xnor', 'bnn')})


@pytest.fixture(scope='module')
def interpreted(tmp_path_factory):
    """{case: (projected weights, W~, values, latent gradient)} from the kernels in the
    interpreter."""
    given, found = (tmp_path_factory.mktemp('interpreter') / name for name in ('given', 'found'))
    torch.save([(method, weight, None if case in SPLITS else gradient_of(weight))
                for case, (method, weight) in CASES.items()], given)
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', INTERPRETED, given, found],
                          cwd=ROOT,
                          env=os.environ | {'TRITON_INTERPRET': '1'}, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    results, networks = torch.load(found)
    return dict(zip(CASES, results)) | networks


def check_split(latent, projected, two_valued, values, _):
    """One channel: the projection only clamps; alpha and beta are group means, J is the optimum."""
    assert torch.equal(projected, latent.clamp(-1, 1))
    for row, used, (alpha, beta, boundary, marked) in zip(
            projected.flatten(1).numpy(), two_valued.flatten(1).numpy(), values.T.tolist()):
        if row.min() == row.max():
            assert alpha == beta == boundary == row[0] and marked == 1 and (used == row).all()
            continue
        e = row > np.float32(boundary)
        assert marked == e.sum() and 0 < marked < len(row)
        np.testing.assert_array_equal(used, np.where(e, np.float32(alpha), np.float32(beta)))
        near = dict(rtol=1e-6, atol=1e-7 * np.abs(row).max())
        np.testing.assert_allclose(alpha, row[e].mean(dtype=np.float64), **near)
        np.testing.assert_allclose(beta, row[~e].mean(dtype=np.float64), **near)
        centred = row.astype(np.float64) / np.abs(row).max()
        centred -= centred.mean()
        assert objective(centred, e) >= best_objective(centred) * (1 - 1e-6)


def check_layer(method, latent, projected, two_valued, values, gradient):
    """Everything against utils/binarize.py in float64, whose split no rounding moves."""
    exact = binarize.project_(latent.double())
    torch.testing.assert_close(projected, exact.float(), rtol=0, atol=2e-7)
    alpha, beta, mask = binarize._split_rows(exact, binarize.METHODS[method])
    found = projected.flatten(1) > values[2][:, None]
    assert torch.equal(found, mask) and torch.equal(values[3], mask.sum(1).float())
    torch.testing.assert_close(values[:2], torch.stack([alpha, beta]).squeeze(2).float(), rtol=1e-6,
                               atol=1e-7)
    assert torch.equal(two_valued.flatten(1), torch.where(found, *values[:2, :, None]))
    factor = binarize.METHODS[method].gradient_factor(exact.flatten(1).abs() < 1, alpha, beta, mask)
    if latent.size(1) > 1:
        factor = factor * (1 - 1 / latent.size(1))
    expected = gradient_of(latent).double() * factor.view(latent.shape)
    torch.testing.assert_close(gradient, expected.float(), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize('name', SPLITS)
def test_the_split_is_the_optimum(interpreted, name):
    check_split(SPLITS[name], *interpreted[name])


@pytest.mark.parametrize('case', LAYERS, ids=str)
def test_forward_and_backward_equal_those_in_pytorch(interpreted, case):
    check_layer(case[0], LAYERS[case], *interpreted[case])


@pytest.mark.parametrize('method', native.METHODS['cuda'])
def test_a_network_trains_as_in_pytorch(interpreted, method):
    expected = [weight.float() for weight in trained(method, 'exact', torch.float64)]
    torch.testing.assert_close(interpreted[method], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('method', native.METHODS['cuda'])
def test_what_is_not_finite_shows_in_its_filter_only(interpreted, method):
    _, two_valued, values, gradient = interpreted['special', method]
    assert two_valued[1:].isnan().all() and values[:2, 1:].isnan().all()
    assert two_valued[0].isfinite().all() and gradient[0].isfinite().all()
    assert values[3, 1:].tolist() == ([1, 1] if method == 'dab' else values[3, 1:].tolist())


@pytest.mark.parametrize('method', ['xnor', 'bnn'])
def test_both_zeros_count_as_positive(interpreted, method):
    assert (interpreted['zeros', method][1] > 0).flatten().tolist() == [True, True, True, False,
                                                                        True, False]


def compiled(channels, taps, method, architecture):
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


def resources(kernel):
    """(registers, bytes of spill) of a thread, by NVIDIA's cuobjdump, which comes with Triton."""
    import triton
    tool = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(kernel.asm['cubin'])
        file.flush()
        usage = subprocess.run([tool, '--dump-resource-usage', file.name], check=True,
                               capture_output=True, text=True).stdout
    found = re.search(r'REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)', usage)
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def check_machine_code(channels, taps, architecture, method='dab'):
    """It compiles, without spills, with the registers that a processor has."""
    registers, spilled = resources(compiled(channels, taps, method, architecture))
    warps = gpu.forward_options(channels, taps)[2]['num_warps']
    assert spilled == 0 and registers * 32 * warps <= 65536


@pytest.fixture(scope='module', autouse=True)
def triton_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TRITON_CACHE_DIR', str(tmp_path_factory.mktemp('triton')))
        yield


# The largest filter of a published layer (Sketch-A-Net's sixth), and a depthwise one.
@pytest.mark.parametrize('channels, taps, architecture',
                         [(256, 49, 75), (256, 49, 100), (1, 9, 90)])
def test_kernels_compile_without_spills(channels, taps, architecture):
    check_machine_code(channels, taps, architecture)


@pytest.mark.soak
@pytest.mark.parametrize('architecture', [75, 80, 86, 90, 100])
def test_every_size_compiles_without_spills(architecture):
    for channels, taps in [(1, 9), (64, 1), (1024, 1), (4096, 1), (64, 9), (144, 9), (512, 9),
                           (64, 25),
                           (512, 16), (256, 49), (2, 900), (60_000, 1), (200_000, 1), (22_000, 9)]:
        check_machine_code(channels, taps, architecture)
    for method in ('xnor', 'bnn'):
        check_machine_code(256, 49, architecture, method)


def test_what_the_kernels_support(monkeypatch):
    assert gpu.supports((4, 2, 3, 3))
    assert gpu.supports((4, 1, 1, 2))
    assert gpu.supports((4, gpu.MOST_WEIGHTS, 1, 1))
    assert not gpu.supports((4, gpu.MOST_WEIGHTS + 1, 1, 1))
    assert not gpu.supports((4, 1, 1, 1)) and not gpu.supports((0, 2, 3, 3))
    with FakeTensorMode():
        weight = torch.empty(4, 2, 3, 3, device='cuda')
        assert native.covers(weight, 'xnor') and not native.covers(weight, 'adabin')
        assert not native.covers(weight.double(), 'dab')
        assert not native.covers(weight.contiguous(memory_format=torch.channels_last), 'dab')
        assert not native.covers(torch.empty(4, 2, 3, 3), 'xnor')
    monkeypatch.setattr(gpu, 'triton', None)
    monkeypatch.setattr(gpu, '_works', True)
    with pytest.warns(UserWarning, match='slower: Triton is not installed'):
        assert not gpu.supports((4, 2, 3, 3))


def test_a_failed_launch_warns_once_changes_nothing_and_is_the_last(monkeypatch):
    monkeypatch.setattr(gpu, '_works', True)
    weight = torch.randn(4, 2, 3, 3)
    before = weight.clone()
    with pytest.warns(UserWarning, match='in PyTorch, correct but slower') as said:
        # outside of the interpreter, a tensor of the CPU cannot be launched on
        for _ in range(2):
            with pytest.raises(native.Unsupported):
                gpu.forward_(weight, 'dab')
            with pytest.raises(native.Unsupported):
                gpu.backward(weight, weight, torch.ones(4, 4), 'dab')
    assert len(said) == 1 and torch.equal(weight, before)
    assert not gpu.supports(weight.shape)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('case', [case for case in CASES if case in SPLITS or case in LAYERS],
                         ids=str)
def test_on_a_gpu(case):
    method, latent = CASES[case]
    weight = latent.cuda()
    two_valued, values = gpu.forward_(weight, method)
    gradient = gpu.backward(gradient_of(latent).cuda(), weight, values, method)
    found = [tensor.cpu() for tensor in (weight, two_valued, values, gradient)]
    check_split(latent, *found) if case in SPLITS else check_layer(method, latent, *found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('shape',
                         [(512, 256, 7, 7), (1024, 512, 4, 4), (512, 512, 3, 3), (1024, 1, 3, 3)])
def test_whole_layers_on_a_gpu(shape):
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.3
    weight = latent.cuda()
    two_valued, values = (tensor.cpu() for tensor in gpu.forward_(weight, 'dab'))
    exact = binarize.project_(latent.double())
    torch.testing.assert_close(weight.cpu(), exact.float(), rtol=0, atol=2e-7)
    best = (exact - binarize.binarize_weight(exact)).square().flatten(1).sum(1)
    error = (exact - two_valued.double()).square().flatten(1).sum(1)
    assert (error <= best * (1 + 1e-6)).all()

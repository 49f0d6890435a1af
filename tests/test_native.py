"""The fused binarization (utils/native/cpu.cpp) against the PyTorch one, which test_binarize.py
holds."""
import numpy as np
import pytest
import torch
from test_binarize import KINDS, best_objective, filters, objective
from torch import nn
from torch.nn.utils import parametrize

import datasets
import models
from utils import binarize
from utils.native import WRITTEN_FOR, digest
from utils.native import cpu as native

THREADS_AND_CENTRING = [(1, True), (2, True), (2, False)]
SHAPES = [(8, 16, 3, 3), (5, 3, 5, 5), (4, 1, 3, 3), (7, 2, 1, 1), (6, 512, 1, 1), (3, 256, 7, 7)]


@pytest.fixture(autouse=True, scope='module')
def compiled():
    if native.library() is None:
        pytest.skip('no C++ compiler')


def native_split(weight):
    """W~, alpha, beta, boundary, K of weights that are projected in place."""
    two_valued = torch.empty_like(weight)
    values = torch.empty(4, len(weight))
    native.call('dab_forward', weight, two_valued, *values)
    return two_valued, *values


def test_filters_with_heavy_tails_are_at_the_optimum():
    """Most weights lie in one bin of the first histogram, whose sums are rounded there; five of
    these filters were not."""
    n = 1152
    weight = np.random.default_rng(2).standard_cauchy((4000, n)) * 1e-3
    weight = np.clip(weight, -1, 1).astype(np.float32)
    two_valued, *_ = native_split(torch.from_numpy(weight).view(-1, 1, n, 1).clone())
    mask = (two_valued.flatten(1) == two_valued.flatten(1).amax(1, keepdim=True)).numpy()
    w = weight.astype(np.float64)
    total, marked = w.sum(1), np.arange(1, n)
    found = (n * (w * mask).sum(1) - mask.sum(1) * total) ** 2 / (mask.sum(1) * (n - mask.sum(1)))
    sums = -np.cumsum(np.sort(-w), 1)[:, :-1]
    best = ((n * sums - marked * total[:, None]) ** 2 / (marked * (n - marked))).max(1)
    assert (best - found <= 1e-12 * n * np.square(w).sum(1)).all()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('n', [2, 3, 4, 9, 100, 2500, 100_000])
def test_the_split_is_the_optimum(kind, n):
    # one channel: centring leaves it alone
    weight = filters(kind, n).clamp(-1, 1).view(4, 1, 1, n)
    two_valued, alpha, beta, boundary, marked = native_split(weight)
    for row, w, a, b, t, k in zip(weight.flatten(1).numpy(), two_valued.flatten(1).numpy(), *(
            values.tolist() for values in (alpha, beta, boundary, marked))):
        e = row > np.float32(t)
        if e.any():
            assert k == e.sum() < n
            centred = row.astype(np.float64) - row.astype(np.float64).mean()
            assert objective(centred, e) >= best_objective(centred) * (1 - 1e-6) - 1e-15
            np.testing.assert_allclose(a, row[e].mean(dtype=np.float64), rtol=1e-6)
            np.testing.assert_allclose(b, row[~e].mean(dtype=np.float64), rtol=1e-6)
        else:
            assert row.min() == row.max() == a == b
        np.testing.assert_array_equal(w, np.where(e, np.float32(a), np.float32(b)))


@pytest.mark.parametrize('name', WRITTEN_FOR)
def test_compiled_code_was_written_for_what_binarize_says(name):
    """Where this fails after an edit of utils/binarize.py: change cpu.cpp and gpu_kernels.py
    likewise, and when the other tests here and in test_gpu.py pass, enter the new digest into
    utils/native/__init__.py."""
    functions = binarize._functions(binarize.Binarization(name, torch.empty(2, 3)))
    assert digest(functions) == WRITTEN_FOR[name]


def test_comments_and_docstrings_do_not_count(tmp_path):
    codes = []
    for number, lines in enumerate((['# a', 'x = 1 + y'],
                                    ["""'''Text.", '', 'More.', "'''""", '', 'x = 1 + y'],
                                    ['x = 2 + y'])):
        path = tmp_path / f'{number}.py'
        path.write_text('\n    '.join(['def f(y):', *lines, 'return x']))
        space = {}
        exec(compile(path.read_text(), path, 'exec'), space)
        codes.append((space['f'].__code__,))
    assert digest(codes[0]) == digest(codes[1]) != digest(codes[2])
    assert digest((compile('lambda: 1', '<shell>', 'eval'),)) == '?'


def adversarial_rows():
    """Filters made against histograms and against searches that start at the last boundary."""
    rng = np.random.default_rng(5)
    n = 3000
    yield 'one outlier far away', np.r_[rng.normal(0, 1e-6, n - 1), 1.0]
    yield 'two outliers', np.r_[rng.normal(0, 1e-4, n - 2), -1.0, 1.0]
    yield 'three clusters of ties', np.repeat([-0.9, 0.1, 0.100001], n // 3)
    yield 'neighbouring floats', np.where(rng.random(n) < 0.5, 0.1,
                                          np.nextafter(np.float32(0.1), np.float32(1)))
    for count in 2, 3, 5, 8:     # of which the middle between two values is none
        yield f'{count} floats in a row', np.float64(
            np.float32(0.9)) + rng.integers(0, count, 500) * 2.0 ** -24
        yield f'{count} floats in a row, few of them', 0.9 + rng.binomial(count - 1, 0.1,
                                                                          300) * 2.0 ** -24
    yield 'tiny', rng.normal(0, 1e-30, n)
    yield 'geometric', np.float64(0.99) ** np.arange(n)
    yield 'two nearly equal optima', np.r_[np.full(n // 3, -1.0), np.full(n // 3, 0.0),
                                           np.full(n // 3, 0.99999)]
    yield 'at the clamp', np.sign(rng.normal(size=n))


@pytest.mark.parametrize('name, row', list(adversarial_rows()))
def test_adversarial_filters(name, row):
    weight = torch.tensor(row, dtype=torch.float32).view(1, 1, 1, -1)
    two_valued, _, _, boundary, _ = native_split(weight)
    row = weight.flatten().double().numpy()
    scale = np.abs(row).max()
    centred = (row - row.mean()) / scale
    e = row > boundary.item()
    assert 0 < e.sum() < len(e)
    assert objective(centred, e) >= best_objective(centred) * (1 - 1e-6)


def pair(shape, groups=1, centring=True):
    """The same convolution twice: fast in float32, and exact in float64, whose split no rounding
    moves."""
    convs = []
    for search in ('fast', 'exact'):
        torch.manual_seed(0)
        conv = nn.Conv2d(shape[1] * groups, shape[0], shape[2:], groups=groups, bias=False)
        nn.init.normal_(conv.weight, std=0.6)
        convs.append(binarize.wrap(conv, 1, 1, search=search, centring=centring))
    return convs[0], convs[1].double()


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('threads, centring', THREADS_AND_CENTRING)
def test_forward_and_backward_equal_those_in_pytorch(shape, threads, centring):
    fast, exact = pair(shape, shape[0] if shape[1] == 1 else 1, centring)
    torch.set_num_threads(threads)
    try:
        gradient = torch.randn(fast.parametrizations.weight.original.shape)
        (fast.weight * gradient).sum().backward()
        (exact.weight * gradient.double()).sum().backward()
    finally:
        torch.set_num_threads(1)
    a, b = (conv.parametrizations.weight.original for conv in (fast, exact))
    assert shape == (7, 2, 1, 1) or (a.abs() == 1).any()            # the clamp and [|W| < 1] matter
    torch.testing.assert_close(a, b.float(), rtol=0, atol=2e-7)     # the projected latent weights
    torch.testing.assert_close(a.grad, b.grad.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fast.eval().weight, exact.eval().weight.float(), rtol=1e-5,
                               atol=1e-7)


def test_evaluation_leaves_the_latent_weights_and_passes_gradients():
    fast, exact = (conv.eval() for conv in pair((8, 16, 3, 3)))
    before = fast.parametrizations.weight.original.detach().clone()
    fast.weight.square().sum().backward()
    exact.weight.square().sum().backward()
    latent = fast.parametrizations.weight.original
    assert torch.equal(latent, before)
    torch.testing.assert_close(latent.grad, exact.parametrizations.weight.original.grad.float())


def test_nan_shows():
    conv, _ = pair((8, 16, 3, 3))
    with torch.no_grad():
        conv.parametrizations.weight.original[3, 0, 0, 0] = torch.nan
    assert conv.weight[3].isnan().any() and not conv.weight[:3].isnan().any()


def test_what_the_library_cannot_take_goes_through_pytorch(monkeypatch):
    fast, _ = pair((8, 16, 3, 3))
    monkeypatch.setattr(native, 'call', None)
    with pytest.raises(TypeError):
        fast.weight
    assert fast.double().weight.dtype == torch.float64
    monkeypatch.setattr(native, 'library', lambda: None)
    assert fast.float().weight.dtype == torch.float32


def test_no_compiler_is_said_once_and_is_no_error(monkeypatch):
    monkeypatch.setenv('CXX', '/nowhere/compiler')
    monkeypatch.setenv('XDG_CACHE_HOME', '/proc/nowhere')
    native.library.cache_clear()
    try:
        with pytest.warns(UserWarning, match='slower'):
            assert native.library() is None
    finally:
        native.library.cache_clear()


@pytest.mark.parametrize('steps', [30, pytest.param(300, marks=pytest.mark.soak)])
def test_the_filters_are_at_the_optimum_at_each_real_step(sketch_folder, steps):
    """J of what a layer computes with, in float64, from initialization on (Sketch-A-Net on
    sketches).

    Another layer at every step, which takes a sixth of the time."""
    torch.manual_seed(0)
    model = binarize.wrap(models.build('sketchanetwbin', 3, channels=1, inpsize=81), 2, 7)
    layers = [conv for _, conv in binarize.binarized(model)]
    sketches = datasets.load('tuberlin', str(sketch_folder), 81).train
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    for step in range(steps):
        sketches.set_epoch(step)
        images, target = zip(*(sketches[index] for index in torch.randperm(len(sketches))[:2]))
        optimizer.zero_grad()
        with parametrize.cached():
            nn.functional.nll_loss(model(torch.stack(images)), torch.tensor(target)).backward()
            conv = layers[step % len(layers)]
            # the latent weights as the forward pass projected them, and those that it used
            check_optimal(conv.parametrizations.weight.original.detach(), conv.weight.detach())
        optimizer.step()


def check_optimal(latent, used):
    """J of the partition in `used` is within 1e-6 of the largest, filter by filter."""
    rows, used = latent.flatten(1).numpy(), used.flatten(1).numpy()
    n = rows.shape[1]
    sums = np.sort(rows, 1)[:, ::-1].cumsum(1, dtype=np.float64)
    total, marked, counts = sums[:, -1:], sums[:, :-1], np.arange(1, n)
    best = (marked ** 2 / counts + (total - marked) ** 2 / (n - counts)).max(1)
    e = used == used.max(1, keepdims=True)
    marked, k, total = np.sum(rows, 1, np.float64, where=e), e.sum(1), total[:, 0]
    assert (marked ** 2 / k + (total - marked) ** 2 / (n - k) >= best * (1 - 1e-6)).all()

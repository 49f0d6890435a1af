"""The binarization against brute force in float64, the formula, and a hand-written training
step."""
import copy
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from utils import binarize


def best_objective(row):
    """The largest J over all K of one filter, in float64 with NumPy: the reference."""
    row = np.sort(np.asarray(row, dtype=np.float64))[::-1]
    marked, n = np.cumsum(row)[:-1], len(row)
    counts = np.arange(1, n)
    return (marked ** 2 / counts + (row.sum() - marked) ** 2 / (n - counts)).max()


def objective(row, mask):
    row = np.asarray(row, dtype=np.float64)
    return row[mask].sum() ** 2 / mask.sum() + row[~mask].sum() ** 2 / (~mask).sum()


def filters(kind, n, seed=0):
    """Four filters of n float32 weights."""
    rng = np.random.default_rng([seed, n])
    rows = {
        'random': lambda: rng.normal(0, 0.05, (4, n)),
        'offset': lambda: rng.normal(0.7, 1e-3, (4, n)),
        'skewed': lambda: rng.exponential(0.1, (4, n)),
        'bimodal': lambda: rng.normal(0, 0.02, (4, n))
        + np.where(rng.random((4, n)) < 0.1, 0.8, -0.1),
        'heavy-tailed': lambda: np.clip(rng.standard_cauchy((4, n)) * 1e-3, -1, 1),
        'tied': lambda: rng.choice([-0.5, -0.25, 0, 0, 0.25], (4, n)),
        'clamped': lambda: np.clip(rng.normal(0, 1.5, (4, n)), -1, 1),
        'constant': lambda: np.full((4, n), 0.1),
    }[kind]()
    return torch.tensor(rows, dtype=torch.float32)


KINDS = ['random', 'offset', 'skewed', 'bimodal', 'heavy-tailed', 'tied', 'clamped', 'constant']


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('n', [2, 3, 4, 9, 100, 2500, 100_000])
def test_the_split_is_the_optimum(kind, n):
    rows = filters(kind, n)
    alpha, beta, mask = binarize.split(rows)
    assert alpha.shape == beta.shape == (4,)
    assert mask.shape == rows.shape
    assert mask.dtype == torch.bool
    for row, a, b, e in zip(rows.numpy(), alpha.numpy(), beta.numpy(), mask.numpy()):
        assert 1 <= e.sum() <= n - 1
        np.testing.assert_allclose(a, row[e].astype(np.float64).mean(), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(b, row[~e].astype(np.float64).mean(), rtol=1e-5, atol=1e-7)
        assert objective(row, e) >= best_objective(row) * (1 - 1e-6)
        # The same for the part of J that depends on e, which a large mean would hide.
        centred = row.astype(np.float64) - row.astype(np.float64).mean()
        assert objective(centred, e) >= best_objective(centred) * (1 - 1e-4) - 1e-12


@pytest.mark.parametrize('exponent', [-20, -49, -70, -100, -125])
@pytest.mark.parametrize('method', ['dab', 'adabin'])
def test_the_split_of_tiny_weights_is_that_of_larger_ones(exponent, method):
    for kind in ('random', 'skewed', 'bimodal'):
        rows = filters(kind, 500)
        rows = rows - rows.mean(1, keepdim=True)
        small = rows * 2.0 ** exponent
        rows = small * 2.0 ** -exponent     # what the smaller ones have left of their digits
        for expected, found in zip(binarize.split(rows, method), binarize.split(small, method)):
            torch.testing.assert_close(found * 2.0 ** -exponent if found.is_floating_point()
                                       else found, expected)


def test_the_split_is_the_best_of_all_partitions():
    for seed in range(20):
        rows = torch.tensor(np.random.default_rng(seed).normal(size=(1, 10)), dtype=torch.float32)
        _, _, mask = binarize.split(rows)
        bits = (np.arange(1, 2 ** 10 - 1)[:, None] >> np.arange(10)) & 1 == 1
        best = max(objective(rows[0].numpy(), e) for e in bits)
        assert objective(rows[0].numpy(), mask[0].numpy()) >= best * (1 - 1e-6)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=40))
def test_the_split_of_any_filter(values):
    row = torch.tensor([values])
    alpha, beta, mask = binarize.split(row)
    assert 1 <= mask.sum() < len(values) and alpha.isfinite() and beta.isfinite()
    assert objective(row[0].numpy(), mask[0].numpy()) >= best_objective(values) * (1 - 1e-6) - 1e-10


def test_the_boundary_lies_halfway():
    weight = filters('skewed', 1000)
    alpha, beta, mask = binarize.split(weight)
    assert torch.equal(mask, weight > ((alpha + beta) / 2)[:, None])


def test_a_constant_filter_stays_as_it_is():
    weight = torch.full((2, 3, 3, 3), 0.1)
    assert torch.allclose(binarize.binarize_weight(weight), weight, rtol=1e-6, atol=0)


def test_half_precision_is_searched_in_float32():
    weight = torch.randn(4, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float16, torch.bfloat16):
        half = weight.to(dtype)
        alpha, beta, mask = binarize.split(half)
        assert alpha.dtype == torch.float32 and binarize.binarize_weight(half).dtype == dtype
        assert torch.equal(mask, binarize.split(half.float())[2])


def test_a_filter_of_one_weight_is_refused():
    with pytest.raises(ValueError, match='one weight'):
        binarize.split(torch.ones(4, 1, 1, 1))


def test_naive_methods():
    weight = torch.tensor([0.5, -0.25, 0.0, -0.75]).view(1, 4, 1, 1)
    sign = torch.tensor([1.0, -1, 1, -1]).view(1, 4, 1, 1)
    assert torch.equal(binarize.binarize_weight(weight, 'xnor'), 0.375 * sign)
    assert torch.equal(binarize.binarize_weight(weight, 'bnn'), sign)
    with pytest.raises(ValueError, match='dab, xnor, bnn'):
        binarize.binarize_weight(weight, 'naive')


def test_dab_never_errs_more_than_naive_binarization():
    for kind in KINDS:
        weight = filters(kind, 500)
        dab, xnor = (((weight - binarize.binarize_weight(weight, method)) ** 2).sum(1)
                     for method in ('dab', 'xnor'))
        assert (dab <= xnor * (1 + 1e-5) + 1e-9).all()


def reference_projection(weight, centring):
    weight = weight.astype(np.float64)
    if weight.shape[1] > 1 and centring:
        weight = weight - weight.mean(axis=1, keepdims=True)
    return np.clip(weight, -1, 1)


def reference_binarization(weight, method, centring):
    """W~ and the factor of the gradient, filter by filter and weight by weight, in float64."""
    out, c = weight.shape[:2]
    s = 1 - 1 / c if c > 1 and centring else 1
    two_valued, factor = np.empty_like(weight), np.empty_like(weight)
    for o in range(out):
        row, n = weight[o].ravel(), weight[o].size
        if method == 'dab':
            e = max((rank(row) < k for k in range(1, n)), key=lambda e: objective(row, e))
            alpha, beta = row[e].mean(), row[~e].mean()
        elif method == 'adabin':
            e = row >= row.mean()
            alpha, beta = row.mean() + row.std(), row.mean() - row.std()
        else:
            e = row >= 0
            alpha = np.abs(row).mean() if method == 'xnor' else 1
            beta = -alpha
        for i, index in enumerate(np.ndindex(weight.shape[1:])):
            inside = abs(row[i]) < 1
            two_valued[(o, *index)] = alpha if e[i] else beta
            factor[(o, *index)] = s * {
                'dab': (abs(alpha) * inside + 1 / e.sum() if e[i]
                        else abs(beta) * inside + 1 / (n - e.sum())),
                'xnor': n * (alpha * inside + 1 / n),
                'bnn': inside,
                'adabin': inside,
            }[method]
    return two_valued, factor


def rank(row):
    """0 for the largest weight."""
    return np.argsort(np.argsort(-row, kind='stable'), kind='stable')


@pytest.mark.parametrize('method', binarize.METHODS)
@pytest.mark.parametrize('channels, groups', [(6, 1), (6, 2), (6, 6)])
@pytest.mark.parametrize('centring', [True, False])
def test_one_training_step_against_a_hand_written_one(method, channels, groups, centring):
    torch.manual_seed(1)
    conv = nn.Conv2d(channels, 12, 3, groups=groups, bias=False).double()
    with torch.no_grad():
        # some weights beyond ±1, so that the clamp and [|W| < 1] matter
        conv.weight.normal_(0, 0.8)
    latent = conv.weight.detach().numpy().copy()
    images, target = torch.randn(5, channels, 7, 7).double(), torch.randn(5, 12, 5, 5).double()
    binarize.wrap(conv, 1, 1, method, centring=centring)
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)
    for step in range(3):
        loss = F.mse_loss(conv(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        latent = reference_projection(latent, centring)
        assert step or (np.abs(latent) == 1).any()
        two_valued, factor = reference_binarization(latent, method, centring)
        w = torch.tensor(two_valued, requires_grad=True)
        reference_loss = F.mse_loss(F.conv2d(images, w, groups=groups), target)
        reference_loss.backward()
        latent = latent - 0.1 * w.grad.numpy() * factor
        assert loss.item() == pytest.approx(reference_loss.item(), rel=1e-9)
        np.testing.assert_allclose(conv.parametrizations.weight.original.detach().numpy(), latent,
                                   atol=1e-10)


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
                         nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1), nn.Flatten(),
                         nn.Linear(36, 3))


def test_binstart_and_binend_are_inclusive():
    model = binarize.wrap(small_net(), 2, 3)
    assert [bool(binarize.binarization(conv))
            for _, _, conv in binarize.convolutions(model)] == [0, 1, 1, 0]
    assert [number for number, _, _ in binarize.convolutions(model)] == [1, 2, 3, 4]
    assert len(binarize.binarized(binarize.wrap(small_net(), 2, 100))) == 3


@pytest.mark.parametrize('start, end', [(5, 9), (3, 2)])
def test_a_range_without_a_convolution_is_refused(start, end):
    with pytest.raises(ValueError, match='holds no convolution'):
        binarize.wrap(small_net(), start, end)


def test_wrapping_twice_or_by_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match='already'):
        binarize.wrap(binarize.wrap(small_net(), 2, 3), 2, 3)
    with pytest.raises(ValueError, match='unknown binarizer'):
        binarize.wrap(small_net(), 2, 3, 'other')


def test_filters_of_one_weight_stay_real_and_it_is_said():
    model = nn.Sequential(nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 4, 3))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        binarize.wrap(model, 1, 2)
    assert [name for name, _ in binarize.binarized(model)] == ['1']
    assert 'convolution 0 stays real' in str(said[0].message)


def test_training_projects_the_latent_weights_and_evaluation_leaves_them():
    model = binarize.wrap(small_net(), 2, 2)
    conv = model[2]
    latent = conv.parametrizations.weight.original
    before = latent.detach().clone()
    images = torch.randn(2, 1, 9, 9)
    model.eval()
    in_evaluation = conv.weight.detach().clone()
    model(images)
    assert torch.equal(latent, before)
    model.train()
    model(images)
    assert not torch.equal(latent, before) and latent.mean(1).abs().max() < 1e-6
    torch.testing.assert_close(conv.weight, in_evaluation)
    torch.testing.assert_close(binarize.binarize_weight(latent.detach()), conv.weight)


def test_the_stored_parameter_is_the_latent_weight():
    model = binarize.wrap(small_net(), 2, 2)
    plain = {name.replace('parametrizations.weight.original', 'weight')
             for name in model.state_dict()}
    assert plain == small_net().state_dict().keys()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel()
                                                             for p in small_net().parameters())
    again = binarize.wrap(small_net(), 2, 2)
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(again[2].weight, model[2].weight)


def test_weights_are_two_valued_in_every_filter():
    model = binarize.wrap(small_net(), 2, 100)
    for _, conv in binarize.binarized(model):
        assert all(len(filter_.unique()) == 2 for filter_ in conv.weight)
    assert parametrize.is_parametrized(model[2]) and not parametrize.is_parametrized(model[0])


def test_bits():
    model = binarize.wrap(small_net(), 2, 2)
    assert binarize.weight_bits(model) == (576, 576 + 8 * 64)


def test_a_plain_copy_has_the_weights_that_the_layer_computes_with(monkeypatch):
    """Whatever its forward does: here edited."""
    forward = binarize.Binarization.forward
    monkeypatch.setattr(binarize.Binarization, 'forward', lambda layer,
                        latent: 1.5 * forward(layer, latent))
    conv = binarize.wrap(nn.Conv2d(3, 4, 3), 1, 1)
    before = copy.deepcopy(conv.state_dict())
    plain = binarize.bake(conv)
    assert plain.training and conv.training and conv.parametrizations.training
    assert torch.equal(plain.weight, conv.eval().weight)
    assert torch.equal(plain.weight, 1.5 * binarize.layer_weights(conv).weight)
    assert all(torch.equal(value, before[name]) for name, value in conv.state_dict().items())

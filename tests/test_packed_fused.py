"""What packed networks compute in one step equals the layers one after another, to the last bit
(utils/packed)."""
import pytest
import torch
from test_packed_network import batchnorm, repack, simulated, units
from test_packed_ops import bits_of, case, implementations
from torch import nn

from utils.packed import modules, ops
from utils.packed.modules import sign_threshold
from utils.system.devices import channels_last


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def bits(instance):
    """The numbers of a tensor as integers, so that even signs of 0 count."""
    return instance.contiguous().view(torch.int32)


def test_the_threshold_of_two_batchnorms_and_a_relu_is_exact():
    norm = nn.Sequential(batchnorm(2000), nn.ReLU(), batchnorm(2000))
    threshold, flip = sign_threshold(norm, 2000)
    tried = [threshold,
             *(torch.nextafter(threshold, torch.tensor(end)) for end in (-torch.inf, torch.inf)),
             torch.zeros(2000), norm[0].running_mean, *torch.randn(3, 2000).mul_(1e3),
             *(torch.full((2000,), end) for end in (-3.4e38, 3.4e38, 1e-45, -1e-45))]
    x = torch.stack([values.clamp(-3.4e38, 3.4e38) for values in tried])[..., None, None]
    found = ops.pack_signs(x, threshold, flip)
    assert ops.unpack_mask(found, 2000).equal(norm(x) >= 0)
    assert flip.sum() > 200 and 200 < threshold.isfinite().sum() < 1800


@pytest.mark.parametrize('channels, size, options', [
    (1, 65, dict(kernel_size=15, stride=3)),
    (3, 64, dict(kernel_size=7, stride=2, padding=3, bias=False)),
    (1, 9, dict(kernel_size=3)), (3, 40, dict(kernel_size=5, padding='same')),
    (3, 40, dict(kernel_size=5, padding=2, padding_mode='reflect'))])
@pytest.mark.parametrize('pool',
                         [dict(kernel_size=3, stride=2),
                          dict(kernel_size=(3, 2), padding=1, ceil_mode=True),
                                  dict(kernel_size=2, dilation=2)])
def test_a_convolution_with_its_pool(channels, size, options, pool):
    conv, pool = nn.Conv2d(channels, 40, **options).requires_grad_(False), nn.MaxPool2d(**pool)
    pooled = modules.PooledConv2d(conv, pool)
    for images in 1, 3:
        x = torch.randn(images, channels, size, size)
        for memory in torch.contiguous_format, torch.channels_last:
            found = pooled(x.contiguous(memory_format=memory))
            assert bits(found).equal(bits(pool(conv(x))))
            pooled.any_order = not pooled.any_order
    if torch.backends.mkldnn.is_available() and isinstance(conv.padding, tuple) and size > 60:
        assert pooled.in_onednn(x) == (pool.dilation == 1)


@pytest.mark.parametrize('channels', [3, 64, 130])
@pytest.mark.parametrize('size', [(4, 4), (9, 14)])
@pytest.mark.parametrize('window',
                         [(2, 2, 0, False), (3, 2, 1, True), (3, 1, 1, False),
                          ((2, 3), (3, 2), (1, 0), True),
                                    (2, 3, 1, True)])
def test_signs_are_pooled_instead_of_values(channels, size, window):
    x, threshold, flip = torch.randn(2, channels,
                                     *size), torch.randn(channels), torch.rand(channels) < 0.5
    threshold[::3] = -torch.inf
    *most, ceil_mode = window
    pooled = nn.functional.max_pool2d(x, *most, ceil_mode=ceil_mode)
    expected = ops.pack_signs(pooled, threshold, flip)
    packed = ops.pack_signs(x, threshold, flip)
    assert ops.pool_signs(packed, flip, *window).equal(expected)


def test_a_pool_of_signs_that_does_not_fit_is_refused():
    packed, flip = torch.zeros(1, 5, 5, 2, dtype=torch.int64), torch.zeros(70, dtype=torch.bool)
    assert ops.pool_signs(packed[:0], flip, 3, 2).shape == (0, 2, 2, 2)
    for bad in ((packed.int(), flip, 3, 2), (packed, flip[:64], 3, 2), (packed, flip, 3, 0),
                (packed, flip, 6, 1),
                (packed, flip, 2, 2, 2), (packed[0], flip, 2, 2), (packed, flip.long(), 2, 2)):
        with pytest.raises(ValueError):
            ops.pool_signs(*bad)


@pytest.mark.parametrize('filters', [32, 70])
@pytest.mark.parametrize('relu', [False, True])
def test_a_shortcut_is_added_before_the_relu(filters, relu):
    signs, marked, alpha, beta = case(0, 2, 100, filters, (9, 7), (3, 3))
    packed, prepared = bits_of(signs), ops.prepare(ops.pack_mask(marked), 100)
    shortcut = torch.randn(2, filters, 5, 4)
    for name, _ in implementations():
        def run(*more):
            return ops.binary_conv2d(packed, prepared, alpha, beta, 100, [3, 3], [2, 2], [1, 1],
                                     *more)
        expected = run(False) + shortcut
        expected = expected.relu() if relu else expected
        assert expected.count_nonzero() > 100
        for added in shortcut, channels_last(shortcut), shortcut.transpose(2,
                                                                           3).contiguous(
                                                                               ).transpose(2, 3):
            found = run(relu, added)
            assert found.equal(
                expected) and found.is_contiguous(memory_format=torch.channels_last), name
    for bad in shortcut[:1], shortcut.double(), shortcut[..., :3]:
        with pytest.raises(ValueError):
            ops.binary_conv2d(packed, prepared, alpha, beta, 100, 3, 2, 1, relu, bad)


@pytest.mark.parametrize('channels', [1, 63, 64, 65, 130])
@pytest.mark.parametrize('filters, kernel', [(1, (1, 1)), (33, (2, 5))])
def test_filters_become_weights(channels, filters, kernel, monkeypatch):
    _, marked, alpha, beta = case(0, 1, channels, filters, (1, 1), kernel)
    words = ops.pack_mask(marked)
    expected = torch.where(marked, alpha.view(-1, 1, 1, 1),
                           beta.view(-1, 1, 1, 1)).flatten().view(marked.shape)
    for instructions in ops.instruction_sets():
        monkeypatch.setenv('DAB_INSTRUCTIONS', instructions)
        found = ops.expand(words, alpha, beta, channels)
        assert bits(found).equal(bits(expected)) and found.stride() == expected.stride()
    for bad in (words.int(), alpha, beta, channels), (words, alpha, beta,
                                                      channels + 64), (words, alpha[1:], beta,
                                                                       channels):
        with pytest.raises(ValueError):
            ops.expand(*bad)


def test_the_layers_that_are_left(tmp_path):
    packed = repack(simulated('sketchanetfbin')[0], 'sketchanetfbin', tmp_path)
    assert [type(layer).__name__ for layer in packed.features] == [
        'PooledConv2d', *4 * ['BinaryUnit'], 'MaxPool2d']
    packed = repack(simulated('resnetfbin18')[0], 'resnetfbin18', tmp_path, overwrite=True)
    assert len(units(packed, modules.ResidualBlock)) == 8 and len(units(packed, nn.ReLU)) == 1
    assert len(units(packed, modules.PooledConv2d)) == 1

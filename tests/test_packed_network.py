"""Packed networks compute what the simulated ones do (utils/packed/network.py)."""
import copy
import os

import pytest
import torch
from conftest import ROOT
from torch import nn
from torch.nn.utils import parametrize

import datasets
import models
from models import blocks, resnet
from models.blocks import Sign
from utils import binarize
from utils.native import digest, functions_of
from utils.packed import format, modules, network, ops
from utils.packed.modules import sign_threshold
from utils.system.devices import channels_last

PUBLISHED = [name for name in models.names() if not name.startswith('small')]
SIGNED = ['nin', *(name for name in PUBLISHED if models.sign_layers(name))]
LEAST = {'alexnet': 63, 'bincifar': 8, 'googlenet': 33, 'sketchanet': 81, 'squeezenet': 37}
CLASSES = 10
TUBERLIN = ROOT.parent / 'shared/data/tuberlin40'


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@torch.no_grad()
def simulated(name, binStart=2, binEnd=100, method='dab', images=None, **options):
    """The binarized network and the images, four at random by default.

    BatchNorms have the statistics of the first images and scales of both signs.
    """
    size = inpsize(name)
    model = binarize.wrap(models.build(name, CLASSES, 1, size, **options), binStart, binEnd, method)
    images = torch.randn(4, 1, size, size) if images is None else images
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
            if norm.affine:
                norm.weight.uniform_(0.5, 1.5).mul_(torch.randn_like(norm.weight).sign())
                nn.init.normal_(norm.bias, std=0.3)
    model.train()(images[:40])
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            # dead channels would amplify rounding
            norm.running_var += 0.1 * norm.running_var.mean()
    return model.eval(), images


def inpsize(name):
    return next((size for family, size in LEAST.items() if name.startswith(family)), 32)


def repack(model, name, path, **options):
    """The packed network, by way of a file."""
    description = format.Description(name, None, [str(label) for label in range(CLASSES)],
                                     inpsize(name), [0.0], [1.0],
                                     'doodles', False)
    format.write(path / 'model.dab', description, network.pack(model), **options)
    return network.load(path / 'model.dab')[1]


def units(packed, kind=modules.BinaryUnit):
    return [module for module in packed.modules() if isinstance(module, kind)]


@torch.no_grad()
def differences(model, packed, images):
    """Of each image the largest difference of a log-probability."""
    with parametrize.cached():
        return (model(images) - packed(images)).abs().flatten(1).amax(1)


def agree(model, packed, images, tolerance=1e-4):
    """Whether the outputs are equal for every image."""
    return bool((differences(model, packed, images) < tolerance).all())


@torch.no_grad()
def outputs(model, images):
    with parametrize.cached():
        return [model(some) for some in (images, -images, images[:1])]


LARGE = {'alexnet', 'alexnethybrid', 'alexnethybridv2'}   # their variants are those of Sketch-A-Net


def soaked(names, large=LARGE):
    """The parameters of a test, the large networks marked."""
    return [pytest.param(name, marks=pytest.mark.soak) if name in large else name for name in names]


@pytest.mark.parametrize('name', soaked(SIGNED))
def test_every_network_with_binarized_inputs(name, tmp_path):
    """Validation on bits gives the same to the last bit, and does not touch the network; a packed
    model the same."""
    model, images = simulated(name)
    before, expected = copy.deepcopy(model.state_dict()), outputs(model, images)
    signs, layers = sum(isinstance(module, Sign)
                        for module in model.modules()), len(binarize.convolutions(model))
    fast = network.on_bits(model)
    assert len(units(fast)) == signs > 0
    assert all(map(torch.equal, outputs(fast, images), expected))
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr()
                                                             for p in fast.parameters()}

    packed = repack(model, name, tmp_path)
    assert len(units(packed)) == signs
    assert len(units(packed)) + len(units(packed, modules.ExpandedConv2d)) == layers - 1
    assert not any(isinstance(module, Sign | nn.Dropout) for module in packed.modules())
    for found, wanted in zip(outputs(packed, images), expected):
        assert (found - wanted).abs().max() < 1e-4
    units(packed)[0].flip[:8] ^= True
    difference = (outputs(packed, images)[0] - expected[0]).abs().flatten(1).amax(1)
    assert (difference > 1e-4).all()     # the comparison would notice


@pytest.mark.parametrize('method', ['xnor', 'bnn'])
def test_validation_on_bits_of_other_methods(method):
    model, images = simulated('sketchanetfbin', method=method)
    with torch.no_grad(), parametrize.cached():
        assert torch.equal(network.on_bits(model)(images), model(images))


def test_what_does_not_compute_on_bits_stays_as_it_is(monkeypatch):
    real, _ = simulated('sketchanetwbin')
    assert network.on_bits(real) is real
    model, _ = simulated('sketchanetfbin')
    with monkeypatch.context() as patch:
        patch.setattr(ops, 'has_kernel', lambda: False)
        assert network.on_bits(model) is model
    alone = nn.Sequential(model, nn.Sequential(Sign(), nn.Flatten()))
    assert network.on_bits(alone) is alone      # a sign before no binarized convolution


@pytest.mark.skipif(not TUBERLIN.exists(), reason='the sketches of TU-Berlin are not here')
@pytest.mark.parametrize('name', soaked(SIGNED, [name for name in SIGNED if 'hybrid' in name]))
def test_real_sketches(name, tmp_path):
    """A sketch of every fourth class, and all 560 for one network (under ALL_SKETCHES=1 for every
    one): the same log-probabilities, the same likeliest class."""
    sketches = datasets.load('tuberlin', TUBERLIN, inpsize(name)).val
    every = name == 'sketchanetfbin' or os.environ.get('ALL_SKETCHES')
    order = torch.randperm(len(sketches)) if every else range(0, len(sketches), 56)
    model, images = simulated(name, images=torch.stack([sketches[int(i)][0] for i in order]))
    packed = repack(model, name, tmp_path)
    with torch.no_grad(), parametrize.cached():
        for some in images.split(40):
            expected, found = model(some), packed(some)
            assert (expected - found).abs().max() < 1e-4
            assert found.argmax(1).equal(expected.argmax(1))
    assert images.unique(dim=0).shape == images.shape and expected.argmax(1).unique().numel() > 1


@pytest.mark.parametrize('name',
                         ['googlenetfbin', 'resnetfbin18', 'sketchanetfbin', 'squeezenetfbin'])
def test_the_packed_network_is_the_simulated_one_in_float64(name, tmp_path):
    model, images = simulated(name)
    packed = repack(model, name, tmp_path)
    for _, conv in binarize.binarized(model):
        # its two values stay those of float32
        parametrize.remove_parametrizations(conv, 'weight')
    model.double()
    assert agree(lambda images: model(images.double()), packed, images, tolerance=2e-5)


@pytest.mark.parametrize('name', soaked(sorted(set(PUBLISHED) - set(SIGNED))))
def test_every_network_with_real_inputs(name, tmp_path):
    model, images = simulated(name)
    packed = repack(model, name, tmp_path)
    assert len(units(packed, modules.ExpandedConv2d)) == len(binarize.binarized(model))
    assert not units(packed)
    assert len(binarize.binarized(model)) > 5
    assert agree(model, packed, images)
    units(packed, modules.ExpandedConv2d)[3].alpha[:4] += 1
    assert (differences(model, packed, images) > 1e-3).all()


@pytest.mark.parametrize('method', ['xnor', 'bnn'])
def test_other_binarizers(method, tmp_path):
    model, images = simulated('sketchanethybrid', method=method)
    packed = repack(model, 'sketchanethybrid', tmp_path)
    assert len(units(packed)) == 4
    assert agree(model, packed, images)


def test_signs_before_real_weights_stay(tmp_path):
    model, images = simulated('resnetfbin18', binStart=4, binEnd=6)
    packed = repack(model, 'resnetfbin18', tmp_path)
    assert len(units(packed)) == 3
    assert sum(isinstance(module, Sign) for module in packed.modules()) == 19 - 3
    assert agree(model, packed, images)


def test_a_real_network(tmp_path):
    model = models.build('nin', CLASSES, 1).eval()
    packed = repack(model, 'nin', tmp_path)
    assert agree(model, packed, torch.randn(2, 1, 32, 32))


def test_exported_weights_are_those_of_evaluation(tmp_path):
    model, _ = simulated('resnetwbin18')
    tensors = network.pack(model)
    for name, conv in binarize.binarized(model):
        bits, alpha, beta = (tensors[f'{name}.{key}'] for key in ('weight', 'alpha', 'beta'))
        mask = ops.unpack_mask(bits.words, bits.shape[1])
        with torch.no_grad():
            assert torch.where(mask, alpha.view(-1, 1, 1, 1),
                               beta.view(-1, 1, 1, 1)).equal(conv.weight)
        layer = binarize.layer_weights(conv)
        assert alpha.equal(layer.alpha) and beta.equal(layer.beta) and mask.equal(layer.mask)


@pytest.mark.parametrize('method', ['dab', 'xnor', 'bnn'])
def test_a_filter_of_equal_weights_is_exported_as_ones(method):
    model = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False))
    with torch.no_grad():
        model[0].weight[:2] = torch.tensor([0.25, -0.25]).view(2, 1, 1, 1)
    weight = binarize.wrap(model, 1, 1, method).eval()[0].weight.detach()
    tensors = network.pack(model)
    assert ops.unpack_mask(tensors['0.weight'].words, 1)[:2].all()
    for key in 'alpha', 'beta':
        assert tensors[f'0.{key}'][:2].equal(weight[:2, 0, 0, 0])


def test_float16_outside_the_bits(tmp_path):
    model, images = simulated('sketchanetfbin')
    rounded = copy.deepcopy(model)
    for name, tensor in rounded.state_dict().items():
        if 'original' not in name and 'num_batches' not in name:
            tensor.copy_(tensor.half())
    packed = repack(model, 'sketchanetfbin', tmp_path, half=True)
    assert agree(rounded, packed, images) and not agree(model, packed, images)


def test_every_implementation(tmp_path, monkeypatch):
    model, images = simulated('resnetfbin18')
    packed = repack(model, 'resnetfbin18', tmp_path)
    for instructions in ops.instruction_sets():
        monkeypatch.setenv('DAB_INSTRUCTIONS', instructions)
        assert agree(model, packed, images), instructions
    monkeypatch.setattr(ops, 'has_kernel', lambda: False)     # a machine without a compiler
    packed = repack(model, 'resnetfbin18', tmp_path, overwrite=True)
    assert not units(packed) and agree(model, packed, images)


def test_threads_change_nothing(tmp_path):
    model, images = simulated('sketchanetfbin')
    packed = repack(model, 'sketchanetfbin', tmp_path)
    units_only = nn.Sequential(*(unit for unit in units(packed)[1:4]))
    maps = torch.relu(torch.randn(2, 128, 9, 9))
    before, results = torch.get_num_threads(), []
    try:
        for threads in 1, 2, 3:
            torch.set_num_threads(threads)
            results.append(units_only(maps))
            assert agree(model, packed, images)
    finally:
        torch.set_num_threads(before)
    assert results[0].equal(results[1]) and results[0].equal(results[2])


def test_a_network_that_is_no_sequence():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1, padding_mode='reflect')
            self.grouped = nn.Sequential(nn.BatchNorm2d(8), Sign(),
                                         nn.Conv2d(8, 70, 3, groups=2, dilation=2))
            self.named = nn.Sequential(nn.BatchNorm2d(70), Sign(), nn.Dropout(),
                                       nn.Conv2d(70, 5, 2, padding='valid'),
                                       nn.ReLU(), nn.ReLU(), nn.MaxPool2d(2))

        def forward(self, x):
            return self.named(self.grouped(self.conv(x)))

    model = binarize.wrap(Odd(), 1, 3).eval()
    with torch.device('meta'):
        skeleton = Odd()
    packed = network.assemble(skeleton, network.pack(model))
    assert len(units(packed)) == 1 and len(units(packed, modules.ExpandedConv2d)) == 2
    assert agree(model, packed, torch.randn(2, 3, 12, 12))


def batchnorm(channels):
    """A BatchNorm in evaluation mode with numbers of every size, and every kind of scale."""
    norm = nn.BatchNorm2d(channels).eval().requires_grad_(False)
    for tensor in norm.weight, norm.bias, norm.running_mean:
        tensor.copy_(torch.randn(channels) * 10.0 ** torch.randint(-6, 5, (channels,)))
    norm.running_var.copy_(10.0 ** torch.randint(-8, 5, (channels,)) * torch.rand(channels))
    norm.weight[::7] = 0
    norm.weight[3::11] = 1e-42      # subnormal
    norm.bias[::5] = 0
    norm.running_mean[::3] = 0
    norm.running_mean[4::9] = norm.bias[4::9] = 0
    return norm


def test_thresholds_are_exact():
    """The bit is the sign that PyTorch's BatchNorm and comparison give, at the threshold's
    neighbours and elsewhere."""
    norm = batchnorm(2000)
    threshold, flip = sign_threshold(norm, norm.num_features)
    below, above = (torch.nextafter(threshold, torch.tensor(end))
                    for end in (-torch.inf, torch.inf))
    tried = [threshold, below, above, torch.zeros(2000), -torch.zeros(2000), torch.randn(2000),
             *(torch.full((2000,), end) for end in (-3.4e38, 3.4e38, 1e-45, -1e-45, 1.0, -1.0)),
             torch.randn(2000) * 1e4, norm.running_mean,
             torch.nextafter(norm.running_mean, torch.tensor(torch.inf))]
    x = torch.stack([values.clamp(-3.4e38, 3.4e38) for values in tried])[..., None, None]
    x = x.expand(-1, -1, 3, 5).contiguous()
    signs = Sign()(norm(x))
    for images in x, x.contiguous(memory_format=torch.channels_last):
        bits = ops.pack_signs(images, threshold, flip)
        assert ops.unpack_mask(bits, 2000).equal(signs > 0)
    assert 200 < (threshold == -torch.inf).sum() < 1000     # scales of 0
    assert flip.sum() > 500 and (~flip).sum() > 500


def test_thresholds_without_scale_and_bias():
    norm = nn.BatchNorm2d(3, affine=False).eval()
    norm.running_mean.copy_(torch.tensor([0, 1.5, -2]))
    threshold, flip = sign_threshold(norm, norm.num_features)
    assert threshold.tolist() == [0, 1.5, -2] and not flip.any()


def test_negated_channels_change_no_bit():
    conv, norm = nn.Conv2d(2, 6,
                           3).requires_grad_(False), nn.BatchNorm2d(6).eval().requires_grad_(False)
    for tensor in norm.weight, norm.bias, norm.running_mean:
        tensor.normal_()
    x = torch.randn(2, 2, 9, 9)
    before = norm(conv(x))
    network.make_increasing(conv, norm)
    assert (norm.weight >= 0).all() and norm(conv(x)).equal(before)


@pytest.mark.parametrize('channels', [1, 3])
def test_channels_last(channels):
    x = torch.randn(2, channels, 4, 5)
    y = channels_last(x)
    assert y.equal(x) and y.stride() == (20 * channels, 1, 5 * channels, channels)


LAYERS = {      # edits of what utils/packed computes in its own way
    'sign': (blocks.SignFunction, 'forward',
             staticmethod(lambda x: torch.where(x >= 0.3, 1.0, -1.0))),
    'sign of 0': (blocks.SignFunction, 'forward',
                  staticmethod(lambda x: torch.where(x > 0, 1.0, -1.0))),
    'block': (resnet.BasicBlock, 'forward', lambda block,
              x: torch.relu(0.5 * block.residual(x) + block.shortcut(x))),
    'block, rarely': (resnet.BasicBlock, 'forward', lambda block,
                      x: torch.relu(block.residual(x) + block.shortcut(x)).clamp(max=50)),
    'convolution': (blocks.SignConv2d, '_conv_forward', lambda conv, x, weight,
                    bias: nn.functional.conv2d(
        x, weight.abs(), bias, conv.stride, conv.padding)),
}


@pytest.mark.parametrize('edit', LAYERS)
def test_an_edited_layer_is_what_validation_computes(edit, monkeypatch):
    """Where bits would compute something else, PyTorch does as it is written, and a warning says
    so."""
    if not ops.has_kernel():
        pytest.skip('no C++ compiler')
    owner, name, edited = LAYERS[edit]
    monkeypatch.setattr(owner, name, edited)
    model, images = simulated('resnetfbin18')
    with pytest.warns(UserWarning, match='on bits: it is evaluated in PyTorch as it is written'):
        fast = network.on_bits(model)
    assert fast is model


def test_bits_were_written_for_what_models_say():
    """Where this fails after an edit of models/: change utils/packed likewise, and enter the new
    digest there."""
    assert digest(functions_of(*network.LAYERS)) == network.WRITTEN_FOR


def test_a_layer_of_ones_own_is_what_validation_computes():
    class Capped(nn.ReLU):
        def forward(self, x):
            return super().forward(x).clamp(max=0.5)
    if not ops.has_kernel():
        pytest.skip('no C++ compiler')
    model, images = simulated('bincifarfbin')
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.ReLU:
                setattr(parent, name, Capped())
    assert all(map(torch.equal, outputs(network.on_bits(model), images), outputs(model, images)))


def test_bits_give_way_where_they_give_something_else(monkeypatch):
    if not ops.has_kernel():
        pytest.skip('no C++ compiler')
    model, images = simulated('bincifarfbin')
    fast = network.on_bits(model)
    units(fast)[0].flip[:8] ^= True
    with pytest.warns(UserWarning, match='on bits: it is evaluated in PyTorch as it is written'):
        found = outputs(fast, images)
    assert all(map(torch.equal, found, outputs(model, images)))

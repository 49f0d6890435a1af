"""models/: the 31 architectures against their specification, the registry and the shared blocks.

Networks that are only counted are built on the meta device, where no weight has memory.
"""
import functools
import sys

import pytest
import torch
import torchvision
from torch import nn

import models
from models.blocks import Sign, SignConv2d, layer_set
from utils.binarize import wrap

# name: parameters, channels, classes, convolutions with binarized inputs, with a bias, in all
SPEC = {
    'alexnet':            (59_324_730, 3, 250, '', '1-8', 8),
    'alexnetwbin':        (59_315_258, 3, 250, '', '1,8', 8),
    'alexnetfbin':        (59_307_258, 3, 250, '2-7', '1,8', 8),
    'alexnethybrid':      (59_314_938, 3, 250, '2-5', '1,8', 8),
    'alexnethybridv2':    (59_307_258, 3, 250, '2-6', '1,8', 8),
    'sketchanet':         (8_512_634, 1, 250, '', '1-8', 8),
    'sketchanetwbin':     (8_510_714, 1, 250, '', '1,8', 8),
    'sketchanetfbin':     (8_509_818, 1, 250, '2-7', '1,8', 8),
    'sketchanethybrid':   (8_510_330, 1, 250, '2-5', '1,8', 8),
    'sketchanethybridv2': (8_509_818, 1, 250, '2-6', '1,8', 8),
    'resnet18':           (11_298_240, 1, 250, '', '', 21),
    'resnetwbin18':       (11_298_240, 1, 250, '', '', 21),
    'resnetfbin18':       (11_296_448, 1, 250, '2-20', '', 21),
    'resnethybrid18':     (11_296_448, 1, 250, '2-18', '', 21),
    'resnethybridv218':   (11_297_472, 1, 250, '2-13', '', 21),
    'resnethybridv318':   (11_297_472, 1, 250, '2,4-8,11-13', '', 21),
    'googlenet':          (6_297_230, 1, 250, '', '1-57', 57),
    'googlenetwbin':      (6_290_002, 1, 250, '', '1', 57),
    'googlenetfbin':      (6_316_506, 1, 250, '2-57', '1', 57),
    'squeezenet':         (860_218, 1, 250, '', '1-26', 26),
    'squeezenetwbin':     (857_338, 1, 250, '', '1,26', 26),
    'squeezenetfbin':     (857_146, 1, 250, '2-25', '1,26', 26),
    'squeezenethybrid':   (857_322, 1, 250, '5-25', '1-4,26', 26),
    'squeezenethybridv2': (857_194, 1, 250, '5-22', '1-4,26', 26),
    'squeezenethybridv3': (854_602, 1, 250, '6,7,9,10,12,13,15,16,18,19,21,22', '1-4,26', 26),
    'mobilenet':          (3_462_650, 1, 250, '', '', 27),
    'nin':                (969_418, 3, 10, '2-8', '1-9', 9),
    'vgg16_bncifar':      (14_728_266, 3, 10, '', '1-13', 13),
    'densenet':           (102_730, 3, 10, '', '', 27),
    'bincifar':           (13_228_154, 3, 250, '', '1-8', 8),
    'bincifarfbin':       (13_226_106, 3, 250, '2-7', '1-8', 8),
}

# one name of each family: default and smallest side of an input image
SIZES = {'alexnet': (224, 63), 'sketchanet': (225, 81), 'resnet18': (224, 1),
         'googlenet': (224, 17), 'squeezenet': (224, 21), 'mobilenet': (224, 1), 'nin': (32, 1),
         'vgg16_bncifar': (32, 32), 'densenet': (32, 4), 'bincifar': (32, 8)}

# every dropout of a variant: kind, probability, how many
DROPOUTS = {
    **dict.fromkeys(['alexnet', 'alexnetwbin'], (nn.Dropout2d, 0.5, 2)),
    **dict.fromkeys(['alexnetfbin', 'alexnethybridv2'], (nn.Dropout2d, 0, 2)),
    'alexnethybrid': (nn.Dropout2d, 0.1, 2),
    **dict.fromkeys(['sketchanet', 'sketchanetwbin'], (nn.Dropout2d, 0.1, 2)),
    **dict.fromkeys(['sketchanetfbin', 'sketchanethybrid', 'sketchanethybridv2'],
                    (nn.Dropout2d, 0.2, 2)),
    **dict.fromkeys(['googlenet', 'googlenetwbin'], (nn.Dropout, 0, 1)),
    'googlenetfbin': (nn.Dropout, 0.4, 1),
    **dict.fromkeys([name for name in SPEC if name.startswith('squeezenet')], (nn.Dropout, 0.2, 1)),
    'nin': (nn.Dropout, 0.5, 2),
    'densenet': (nn.Dropout, 0.2, 26),
    **dict.fromkeys(['bincifar', 'bincifarfbin'], (nn.Dropout2d, 0.4, 2)),
}


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    """Layers as small as these gain nothing from threads that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def on_meta(name, nClasses=10, channels=3, **options):
    with torch.device('meta'):
        return models.build(name, nClasses, channels, **options)


@functools.cache
def specified(name):
    """The network of SPEC, to look at."""
    _, channels, classes, *_ = SPEC[name]
    return on_meta(name, classes, channels).eval()


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def convolutions(model):
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]


def forward_on_meta(model, channels, inpsize):
    return model.eval()(torch.empty(2, channels, inpsize, inpsize, device='meta'))


def binarized_inputs(model, images):
    """Return the numbers of the convolutions whose input is +1 or -1 everywhere, and the output."""
    found = set()

    def note(number):
        def hook(layer, inputs):
            if (inputs[0].abs() == 1).all():
                found.add(number)
        return hook

    for number, layer in enumerate(convolutions(model), 1):
        layer.register_forward_pre_hook(note(number))
    with torch.no_grad():
        return found, model.eval()(images)


def test_names_are_the_31_of_the_specification():
    assert set(models.names()) - {'smallwbin', 'smallfbin'} == set(SPEC)
    assert len(SPEC) == 31


@pytest.mark.parametrize('name', SPEC)
def test_parameters_biases_and_default_size(name):
    count, channels, classes, _, biases, depth = SPEC[name]
    model = specified(name)
    layers = convolutions(model)
    assert parameters(model) == count
    assert len(layers) == depth
    with_bias = {number for number, layer in enumerate(layers, 1) if layer.bias is not None}
    assert with_bias == layer_set(biases)
    inpsize = models.default_inpsize(name)
    assert forward_on_meta(model, channels, inpsize).shape == (2, classes)


@pytest.mark.parametrize('name', SPEC)
def test_convolutions_are_named_by_their_numbers(name):
    layers = [path
              for path, layer in specified(name).named_modules() if isinstance(layer, nn.Conv2d)]
    assert [path.split('.')[-1] for path in layers] == [f'conv{n + 1}' for n in range(len(layers))]


@pytest.mark.parametrize('name', SPEC)
def test_1_and_3_channels_give_the_same_shape(name):
    channels = {1: 3, 3: 1}[SPEC[name][1]]      # the others than in SPEC
    assert forward_on_meta(on_meta(name, 7, channels), channels,
                           models.default_inpsize(name)).shape == (2, 7)


@pytest.mark.parametrize('name', SPEC)
def test_binarized_inputs_and_log_softmax(name):
    """Gradients: see test_every_model_trains_a_binarized_step in test_train.py."""
    torch.manual_seed(0)
    inpsize = max(32, models._variants[name].smallest)
    model = models.build(name, 7, 1, inpsize=inpsize)
    images = torch.randn(2, 1, inpsize, inpsize)
    found, output = binarized_inputs(model, images)
    assert found == layer_set(SPEC[name][3])
    torch.testing.assert_close(output.exp().sum(1), torch.ones(2))


@pytest.mark.parametrize('name', SPEC)
def test_dropouts(name):
    found = [(type(layer), layer.p) for layer in specified(name).modules()
             if isinstance(layer, nn.Dropout | nn.Dropout2d)]
    if name == 'vgg16_bncifar':
        assert found == [(nn.Dropout2d, 0.3)] * 7 + [(nn.Dropout, 0.4)]
    else:
        kind, probability, count = DROPOUTS.get(name, (None, 0, 0))
        assert found == [(kind, probability)] * count


@pytest.mark.parametrize('name', SIZES)
def test_input_sizes(name):
    default, smallest = SIZES[name]
    assert models.default_inpsize(name) == default
    for inpsize in smallest + 1, default + 33:
        model = on_meta(name, 1, 1, inpsize=inpsize)
        assert forward_on_meta(model, 1, inpsize).shape == (2, 1)
    model = models.build(name, 1, 1, inpsize=smallest)
    assert model(torch.randn(2, 1, smallest, smallest)).tolist() == [[0], [0]]
    sentence = (f'^{name} takes images of at least {smallest} × {smallest} pixels, '
                f'not {smallest - 1}$')
    with pytest.raises(ValueError, match=sentence):
        models.build(name, 10, inpsize=smallest - 1)
    with pytest.raises(ValueError, match='at most 4096 × 4096 pixels, not 4097'):
        models.build(name, 10, inpsize=4097)


@pytest.mark.parametrize('name', [name for name in SIZES if SIZES[name][1] > 1])
def test_the_stated_smallest_size_is_the_smallest(name, monkeypatch):
    inpsize = SIZES[name][1] - 1
    monkeypatch.setitem(models._variants, name, models._variants[name]._replace(smallest=0))
    with pytest.raises(RuntimeError):
        forward_on_meta(on_meta(name, channels=1, inpsize=inpsize), 1, inpsize)


def test_sign_element_by_element():
    x = torch.tensor([-2, -1, -0.5, -0.0, 0, 0.5, 1, 2], requires_grad=True)
    grad = torch.tensor([1., 2, 3, 4, 5, 6, 7, 8])
    y = Sign()(x)
    y.backward(grad)
    assert y.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 6, 0, 0]


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_sign_keeps_the_dtype(dtype):
    x = torch.tensor([-0.5, 0.5], dtype=dtype, requires_grad=True)
    y = Sign()(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype


@pytest.mark.parametrize('method', ['dab', 'xnor'])
def test_a_convolution_of_signs_evaluates_to_exact_sums_rounded_once(method):
    conv = SignConv2d(70, 40, 3, stride=2, padding=1, bias=True)
    wrap(nn.Sequential(conv), 1, 1, method).eval()
    signs = Sign()(torch.randn(4, 70, 21, 21))
    with torch.no_grad():
        y = conv(signs)
        exact = nn.functional.conv2d(signs.double(), conv.weight.double(), None, 2, 1)
        assert y.equal(exact.float() + conv.bias.view(-1, 1, 1))
        plain = nn.functional.conv2d(signs, conv.weight, conv.bias, 2, 1)
        assert not y.equal(plain) and torch.allclose(y, plain, atol=1e-4)
        other = nn.utils.parametrizations.weight_norm(SignConv2d(70, 40, 3)).eval()
        assert other(signs).equal(nn.functional.conv2d(signs, other.weight, other.bias))
        conv.train()
        assert conv(signs).equal(nn.functional.conv2d(signs, conv.weight, conv.bias, 2, 1))


def test_initialization():
    torch.manual_seed(0)
    model = models.build('vgg16_bncifar', 10)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            std = (2 / (layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1])) ** 0.5
            assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
            assert abs(layer.weight.mean().item()) < 0.1 * std
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            assert (layer.bias == 0).all()


def test_nin_batchnorms():
    norms = [layer for layer in on_meta('nin').modules() if isinstance(layer, nn.BatchNorm2d)]
    assert [norm.affine for norm in norms] == [False, *[True] * 7, False]
    assert all(norm.eps == 1e-4 for norm in norms)


def copy_in_order(source, target, kinds):
    """Copy the parameters and statistics of the layers of these kinds, in registration order."""
    ours, theirs = ([layer for layer in model.modules() if isinstance(layer, kinds)]
                    for model in (target, source))
    for layer, other in zip(ours, theirs, strict=True):
        layer.load_state_dict(other.state_dict())


def scramble(model):
    """Give the BatchNorms statistics and affine parameters that matter."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in layer.weight, layer.running_var:
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in layer.bias, layer.running_mean:
                nn.init.normal_(tensor, std=0.1)
    return model.eval()


@torch.no_grad()
def assert_same_output(ours, theirs, inpsize):
    images = torch.randn(2, 3, inpsize, inpsize)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-3, atol=1e-4)


def test_resnet18_computes_what_torchvision_computes():
    torch.manual_seed(0)
    theirs = scramble(torchvision.models.resnet18(num_classes=10))
    ours = models.build('resnet18', 10)
    nn.init.zeros_(theirs.fc.bias)
    convolution = nn.Conv2d(512, 10, 1, bias=False)
    convolution.weight.data = theirs.fc.weight.data[:, :, None, None]
    copy_in_order(nn.Sequential(theirs, convolution), ours, nn.Conv2d | nn.BatchNorm2d)
    assert_same_output(ours, nn.Sequential(theirs, nn.LogSoftmax(1)), 65)


def test_squeezenet_computes_what_torchvision_computes():
    """Theirs has no BatchNorms: ours, fresh, hardly change anything."""
    torch.manual_seed(0)
    theirs = torchvision.models.squeezenet1_0(num_classes=10)
    ours = models.build('squeezenet', 10)
    copy_in_order(theirs, ours, nn.Conv2d)
    for layer in ours.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0
    assert_same_output(ours, nn.Sequential(theirs, nn.LogSoftmax(1)), 75)


def test_vgg_computes_what_torchvision_computes():
    torch.manual_seed(0)
    config = torchvision.models.vgg.cfgs['D']
    theirs = scramble(torchvision.models.vgg.make_layers(config, batch_norm=True))
    ours = models.build('vgg16_bncifar', 10).features
    copy_in_order(theirs, ours, nn.Conv2d | nn.BatchNorm2d)
    assert_same_output(ours, theirs, 32)


def test_densenet_computes_what_torchvision_computes():
    torch.manual_seed(0)
    theirs = torchvision.models.DenseNet(12, (4, 4, 4), 24, num_classes=10)
    theirs.features.conv0 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
    theirs.features.norm0 = theirs.features.relu0 = theirs.features.pool0 = nn.Identity()
    scramble(theirs)
    ours = models.build('densenet', 10)
    copy_in_order(theirs, ours, nn.Conv2d | nn.BatchNorm2d | nn.Linear)
    assert_same_output(ours, nn.Sequential(theirs, nn.LogSoftmax(1)), 32)


def test_googlenet_inception_modules_have_the_channels_of_the_table():
    widths = {}
    model = on_meta('googlenet')
    for name, module in model.named_children():
        if name.startswith('inception'):
            module.register_forward_hook(
                lambda module, inputs, output, name=name: widths.update({name: output.shape[1]}))
    forward_on_meta(model, 3, 224)
    assert list(widths.values()) == [256, 480, 508, 512, 512, 528, 832, 832, 1024]


@pytest.mark.parametrize('base, signLayers, same', [
    ('sketchanetwbin', '2-5', 'sketchanethybrid'),
    ('sketchanetfbin', {2, 3, 4, 5, 6}, 'sketchanethybridv2'),
    ('alexnetfbin', '', 'alexnetwbin'),
    ('resnet18', '2, 4-8, 11-13', 'resnethybridv318'),
    ('googlenetwbin', range(2, 58), 'googlenetfbin'),
    ('squeezenethybrid', '5-22', 'squeezenethybridv2'),
])
def test_signlayers_turn_one_variant_into_another(base, signLayers, same):
    shapes = [{key: tensor.shape for key, tensor in model.state_dict().items()}
              for model in (on_meta(base, signLayers=signLayers), on_meta(same))]
    assert shapes[0] == shapes[1]


def test_signlayers_change_inputs_and_keep_biases():
    model = models.build('sketchanet', 250, 1, signLayers='2-5')
    # against sketchanet, the BatchNorms of 2-5 are on their 64, 128, 256, 256 input channels
    assert parameters(model) == 8_512_634 - 2 * (128 + 256 + 256 + 256 - 64 - 128 - 256 - 256)
    assert binarized_inputs(model, torch.randn(1, 1, 225, 225))[0] == {2, 3, 4, 5}
    assert all(layer.bias is not None for layer in convolutions(model))


@pytest.mark.parametrize('name, signLayers, sentence', [
    ('vgg16_bncifar', '2-5', 'vgg16_bncifar takes no signLayers'),
    ('nin', '2-5', 'nin takes no signLayers'),
    ('sketchanet', '2-8', 'signLayers of sketchanet must lie in 2-7, not 2-8'),
    ('resnet18', {1, 2}, 'signLayers of resnet18 must lie in 2-20, not {1, 2}'),
    ('sketchanet', '5-2', "a set of layers is written like '2-5,7', not '5-2'"),
    ('sketchanet', '2-5,', "a set of layers is written like '2-5,7', not '2-5,'"),
    ('sketchanet', 'all', "a set of layers is written like '2-5,7', not 'all'"),
])
def test_signlayers_that_are_refused(name, signLayers, sentence):
    with pytest.raises(ValueError) as refusal:
        models.build(name, 10, signLayers=signLayers)
    assert str(refusal.value).startswith(sentence)


def test_layer_set():
    assert layer_set('2-5,7') == {2, 3, 4, 5, 7}
    assert layer_set(' 3, 5-6') == {3, 5, 6}
    assert layer_set([4, 4]) == {4}
    assert layer_set('') == frozenset()


def test_unknown_name():
    with pytest.raises(ValueError, match=r"^there is no model 'sketchnet' \(near: sketchanet, "):
        models.build('sketchnet', 10)
    with pytest.raises(ValueError, match=r"^there is no model '§'; .* lists all$"):
        models.default_inpsize('§')


def test_a_new_architecture_is_one_new_file(tmp_path, monkeypatch):
    """The examples of the package's docstring, found in a folder by a fresh import of models."""
    example = '\n'.join(line[4:] for line in models.__doc__.splitlines() if line.startswith('    '))
    package = tmp_path / 'models'
    package.mkdir()
    for file in '__init__.py', 'blocks.py':
        (package / file).write_text(open(f'{models.__path__[0]}/{file}').read())
    (package / 'mynet.py').write_text(example)
    for module in [name for name in sys.modules if name.split('.')[0] == 'models']:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    import models as fresh
    assert fresh.names() == ['mynet', 'tiny', 'tinyfbin']
    assert fresh.family('tiny') == fresh.names()[1:]
    assert fresh.default_inpsize('mynet') == 32
    assert fresh.build('mynet', 5)(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    with pytest.raises(ValueError, match='both register a model mynet'):
        fresh.register()(fresh._variants['mynet'].builder)
    with pytest.raises(ValueError, match='takes no signLayers'):
        fresh.build('mynet', 5, signLayers='1')
    images = torch.randn(2, 3, 32, 32)
    assert binarized_inputs(fresh.build('tiny', 5), images)[0] == set()
    assert binarized_inputs(fresh.build('tinyfbin', 5),
                            images)[0] == {2} == fresh.sign_layers('tinyfbin')


@pytest.mark.parametrize('name', sorted({models.family(name)[0] for name in SPEC}))
def test_variants_of_a_family_start_from_the_same_weights(name):
    states = []
    for variant in models.family(name):
        torch.manual_seed(3)
        model = models.build(variant, 10, 1, SIZES[name][1])
        states.append({key: tensor for key, tensor in model.state_dict().items()
                       if key.endswith('weight') and tensor.dim() > 1})
    assert all(state.keys() == states[0].keys()
               and all(map(torch.equal, state.values(), states[0].values()))
               for state in states)

"""Where --pretrained_file takes weights from (utils/pretrained.py), and what it refuses."""
import collections
import random
import types

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import main
import models
from models.blocks import Units, network
from utils import binarize
from utils.pretrained import load_pretrained
from utils.state_dicts import plain
from utils.system.errors import InputError

TV = torchvision.models


def with_statistics(model):
    """The model, in evaluation, with BatchNorms that are not the identity."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        is_norm = 'bn' in name or 'running_' in name or 'downsample.1' in name
        if is_norm and tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def of_shapes(make, **options):
    """The state_dict of a network of these shapes, of equal numbers that need no memory."""
    with torch.device('meta'):
        state = make(**options).state_dict()
    return {name: torch.full((), 0.4).to(tensor.dtype).expand(tensor.shape)
            for name, tensor in state.items()}


def bincifar():
    return models.build('bincifar', 3, 1, 8)


@pytest.fixture
def saved(tmp_path):
    def save(content, **options):
        path = tmp_path / 'weights.pth'
        torch.save(content, path, **options)
        return path
    return save


def loaded(model, path):
    """The model's sentences, and which of its tensors kept their values."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sentences = [line.replace(str(path), 'FILE') for line in load_pretrained(model, path)]
    return sentences, {plain(name) for name, tensor in model.state_dict().items()
                       if tensor.equal(before[name])}


# torchvision's

@pytest.fixture(scope='module')
def resnet18():
    torch.manual_seed(0)
    return with_statistics(TV.resnet18())


def test_resnet18_of_torchvision_computes_the_same_here(resnet18, saved):
    state = resnet18.state_dict()
    state['fc.bias'] = torch.zeros_like(state['fc.bias'])
    images = torch.randn(1, 3, 64, 64)
    model = models.build('resnet18', 1000, 3).eval()
    sentences = load_pretrained(model, saved(state))
    with torch.no_grad():
        expected = (resnet18(images) - resnet18.fc.bias).log_softmax(1)
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=0)
    assert ': 101 of its 102 tensors, ' in sentences[0]
    assert sentences[1].endswith(': fc.bias') and len(sentences) == 2


def test_other_classes_and_channels_keep_the_first_and_the_last_layer(resnet18, saved):
    model = binarize.wrap(models.build('resnetwbin18', 250, 1), 2, 20)
    sentences, initial = loaded(model, saved(resnet18.state_dict()))
    assert {name for name in initial if not name.endswith('batches_tracked')} == {
        'conv1.weight', 'conv21.weight', 'bn1.weight', 'bn1.bias', 'bn1.running_mean',
        'bn1.running_var'}
    assert sentences[1:] == ['not taken from FILE: conv1, fc, bn1',
                             'initial values: conv1, conv21, bn1']
    conv, norm = resnet18.layer2[0].downsample
    shortcut = model.stage2[0].shortcut
    assert shortcut.conv8.parametrizations.weight.original.equal(conv.weight)
    assert shortcut.bn8.running_var.equal(norm.running_var)


@pytest.mark.parametrize('make, name, starts, rest', [
    (TV.resnet18, 'resnetfbin18', '21 of its 102',
     'initial values: bn1, stage1.0.residual.bn2 … stage4.1.residual.bn20 (20)'),
    (TV.squeezenet1_0, 'squeezenetwbin', '28 of its 52', 'features.3.squeeze.bias, '
     'features.3.expand1x1.bias … features.12.expand3x3.bias (24)'),
    (TV.vgg16_bn, 'vgg16_bncifar', '78 of its 84',
     'not taken from FILE: classifier.0, classifier.3, classifier.6')])
def test_what_fits_of_torchvision(make, name, starts, rest, saved):
    sentences, _ = loaded(models.build(name, 1000, 3), saved(of_shapes(make)))
    assert starts in sentences[0] and rest in '\n'.join(sentences)


@pytest.mark.parametrize('make, name, part', [
    (TV.alexnet, 'alexnet',
     'number 1 is features.0 (64×3×11×11), in the network features.conv1 (96×3×11×11)'),
    (TV.resnet34, 'resnet18', 'number 6 is layer1.2.conv1')])
def test_what_does_not_fit_of_torchvision(make, name, part, saved):
    model = models.build(name, 10, 3, inpsize=63)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match='neither by name nor in order') as error:
        load_pretrained(model, saved(of_shapes(make)))
    assert part in str(error.value)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


# Other files

def branches(*order):
    """A network with two parallel branches of one shape, registered in this order."""
    return nn.ModuleDict({'stem': nn.Conv2d(1, 4, 3)}
                         | {f'branch{number}': nn.Conv2d(4, 4, 3) for number in order}
                         | {'fc': nn.Linear(4, 5)})


def test_branches_in_another_order(saved):
    def renamed(model):
        return saved({f'net.{name}': tensor for name, tensor in model.state_dict().items()})
    for theirs, ours, whose in ((2, 1), (1, 2), '.*pth'), ((1, 2), (2, 1), 'this network'):
        with pytest.raises(InputError, match=f'layers of {whose} are out of order'):
            load_pretrained(branches(*ours), renamed(branches(*theirs)))
    model, other = branches(1, 2), branches(2, 1)
    load_pretrained(model, saved(other.state_dict()))     # by name, the order does not matter
    assert model.branch1.weight.equal(other.branch1.weight)
    assert model.branch2.weight.equal(other.branch2.weight)


@pytest.mark.parametrize('wrap', [
    lambda state: {'state_dict': state}, lambda state: {'model': state, 'lr': 0.1},
    lambda state: {f'module._orig_mod.{name}': tensor for name, tensor in state.items()},
    lambda state: {name: tensor.half() for name, tensor in state.items() if 'num_b' not in name}])
def test_wrapped_states(wrap, saved):
    source = with_statistics(bincifar()).half().float().state_dict()
    model = bincifar()
    sentences = load_pretrained(model, saved(wrap(source)))
    assert len(sentences) == 1 and sentences[0].endswith(': 48 of its 48 tensors, by name')
    assert all(tensor.equal(source[name]) for name, tensor in model.state_dict().items()
               if 'num_batches' not in name)


@pytest.mark.parametrize('name', ['sketchanethybrid', 'sketchanetwbin'])
def test_a_checkpoint_of_2018(name, saved):
    """It had flat names, BatchNorms registered behind convolutions, and an old file format."""
    torch.manual_seed(0)
    source = with_statistics(models.build(name, 3, 1, 81))
    layers = collections.defaultdict(dict)
    for key, tensor in source.state_dict().items():
        if 'num_batches' not in key:
            _, layer, own = key.split('.')
            layers[layer][own] = tensor
    in_their_order = sorted(layers, key=lambda layer: (layer[-1], layer[0] == 'b'))
    state = {f'module.{layer}.{own}': tensor for layer in in_their_order
             for own, tensor in layers[layer].items()}
    content = {'epoch': 9, 'arch': name, 'state_dict': collections.OrderedDict(state),
               'best_prec1': 0.5, 'optimizer': {'state': {}}}
    path = saved(content, _use_new_zipfile_serialization=False)
    model = models.build(name, 3, 1, 81).eval()
    images = torch.randn(2, 1, 81, 81)
    assert len(load_pretrained(model, path)) == 1
    with torch.no_grad():
        assert model(images).equal(source(images))
    _, initial = loaded(models.build('sketchanetfbin', 3, 1, 81), path)
    # bn4 is 256 wide in all of them.
    assert ('features.bn4.running_var' in initial) == (name == 'sketchanetwbin')
    assert not [key for key in initial if 'conv' in key and key.endswith('weight')]


@pytest.mark.parametrize('before, after, initial', [
    ('sketchanet', 'sketchanetwbin', ''),
    ('sketchanetwbin', 'sketchanetfbin', 'bn2 bn3 bn4 bn5 bn6 bn7'),
    ('sketchanethybrid', 'sketchanetfbin', 'bn6 bn7'), ('bincifar', 'bincifarfbin', '')])
def test_variants_of_a_family_share_all_but_batchnorms_in_another_place(before, after, initial,
                                                                        saved):
    model = binarize.wrap(models.build(after, 3), 2, 7)
    _, kept = loaded(model, saved(of_shapes(models.build, name=before, nClasses=3)))
    kept = {name.split('.')[-2] for name in kept if name.endswith(('weight', 'running_var'))}
    assert kept == set(initial.split())


def test_weights_that_another_parametrization_changes_are_not_taken(saved):
    """Their stored tensors are not what that network computes with."""
    model, fresh = bincifar(), bincifar()
    conv3 = model.features.conv3.weight.clone()
    spectral_norm(model.features.conv2)
    _, kept = loaded(fresh, saved(model.state_dict()))
    assert 'features.conv2.weight' in kept and fresh.features.conv3.weight.equal(conv3)


# Bad files

@pytest.mark.parametrize('content, part', [
    ([1, 2], 'no state_dict'), ({}, 'no state_dict'), ({'a': 1}, 'no state_dict'),
    (torch.ones(3), 'no state_dict'), ({'model': {'a\nb.weight': torch.ones(2, 2)}}, 'no state_di'),
    ({'x' * 9999 + '1.weight': torch.ones(2, 2)}, 'no state_dict'),
    ({'a.weight': torch.ones(2, 2).to_sparse()}, 'no state_dict'),
    ({'conv1.weight': torch.ones(2, 2, dtype=torch.complex64)}, 'no state_dict'),
    ({'state_dict': {'a.weight': torch.ones(2, 2)}}, 'neither'),
    ({'x': types.SimpleNamespace(a=1)}, 'an object of types.SimpleNamespace'),
    (of_shapes(models.build, name='sketchanetwbin', nClasses=3), 'neither by name nor in order')])
def test_files_that_are_refused(content, part, saved):
    for new_format in True, False:
        path = saved(content, _use_new_zipfile_serialization=new_format)
        with pytest.raises(InputError, match=part) as error:
            load_pretrained(bincifar(), path)
        assert '\n' not in str(error.value)


@pytest.mark.parametrize('name, shape', [('conv2.bias', (4, 4)), ('conv2.bias', 0),
                                         ('bn2.running_mean', ()), ('bn2.weight', 3)])
def test_a_layer_with_a_tensor_of_another_shape_is_not_taken(name, shape, saved):
    state = bincifar().state_dict() | {f'features.{name}': torch.ones(shape)}
    for content in state, {'state_dict': state, 'arch': 'bincifar'}:
        _, initial = loaded(bincifar(), saved(content))
        assert f'features.{name}' in initial and 'features.conv3.weight' not in initial


def test_numbers_that_are_not_finite(saved):
    state = bincifar().state_dict()
    state['features.conv2.weight'][0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match='not finite, in features.conv2.weight'):
        load_pretrained(bincifar(), saved(state))


@pytest.mark.parametrize('new_format', [True, False])
def test_damaged_files(new_format, saved):
    model = branches(1, 2)
    path = saved(model.state_dict(), _use_new_zipfile_serialization=new_format)
    whole, generator, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data[:generator.choice([len(data), generator.randrange(len(data))])])
        try:
            load_pretrained(model, path)
        except InputError as error:
            assert '\n' not in str(error)
            refused += 1
    assert refused > 30


# The command

def tiny(nClasses, channels, inpsize, signLayers=''):
    """A real and a binary unit and a classifier."""
    unit = Units(signLayers)
    return network(**unit(channels, 4, 3, stride=3), **unit(4, 6, 3), pool=nn.AdaptiveAvgPool2d(1),
                   **unit.conv(6, nClasses, 1))


def test_two_stages(sketch_folder, tmp_path, capsys, monkeypatch):
    """Real weights first, or real inputs first; and what the log says of it."""
    for name, layers in ('tiny', ''), ('tinyfbin', '2'):
        variant = models.Variant(tiny, 16, 8, {'signLayers': layers}, '2')
        monkeypatch.setitem(models._variants, name, variant)

    def stage(name, model_def, *more):
        main.main(['--dataset=tuberlin', f'--data_dir={sketch_folder}', '--workers=0',
                   '--batch-size=12', f'--logdir={tmp_path}', f'--name={name}', '--epochs=1',
                   f'--model_def={model_def}', *more])
        lines = capsys.readouterr().out.replace(f'{tmp_path}', '').splitlines()
        return [line for line in lines if line.startswith(('starts', 'not taken', 'initial'))]

    def start_from(name):
        return '--binaryWeight', '--binEnd=2', f'--pretrained_file={tmp_path}/{name}/best.pth.tar'
    assert stage('real', 'tinyfbin') == []
    assert stage('weights', 'tinyfbin', *start_from('real')) == [
        'starts from /real/best.pth.tar: 11 of its 11 tensors, by name']
    assert stage('wbin', 'tiny', '--binaryWeight', '--binEnd=2') == []
    assert stage('fbin', 'tinyfbin', *start_from('wbin')) == [
        'starts from /wbin/best.pth.tar: 7 of its 11 tensors, by name',
        'not taken from /wbin/best.pth.tar: bn2', 'initial values: bn2']
    with pytest.raises(SystemExit):
        stage('other', 'tiny', f'--pretrained_file={__file__}')
    error = capsys.readouterr().err
    assert f'--pretrained_file: {__file__} is' in error and error.count('\n') == 1

"""Where --pretrained_file takes weights from (utils/pretrained.py), and what it refuses."""
import collections
import random
import types

import pytest
import torch
import torchvision
from torch import nn

import main
import models
from models.blocks import Units, network
from utils import binarize
from utils.pretrained import load_pretrained
from utils.state_dicts import plain
from utils.system.errors import InputError

TV = torchvision.models


def with_statistics(model, seed=0):
    """The model, in evaluation, with BatchNorms that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if 'bn' in name and tensor.is_floating_point() or 'running_' in name or 'downsample.1' in name:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def of_shapes(make, **options):
    """The state_dict of a network of these shapes, of equal numbers that need no memory."""
    with torch.device('meta'):
        state = make(**options).state_dict()
    return {name: torch.full((), 0.4).to(tensor.dtype).expand(tensor.shape) for name, tensor in state.items()}


@pytest.fixture
def saved(tmp_path):
    def save(content, **options):
        path = tmp_path / 'weights.pth'
        torch.save(content, path, **options)
        return path
    return save


def kept(model, before):
    """The tensors that are as they were."""
    return {plain(name) for name, tensor in model.state_dict().items() if tensor.equal(before[name])}


def loaded(model, path):
    """The model's sentences, and which of its tensors kept their values."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sentences = load_pretrained(model, path)
    return sentences, kept(model, before)


# torchvision's

@pytest.fixture(scope='module')
def resnet18():
    torch.manual_seed(0)
    return with_statistics(TV.resnet18())


def test_resnet18_of_torchvision_computes_the_same_here(resnet18, saved):
    state = {name: torch.zeros_like(tensor) if name == 'fc.bias' else tensor for name, tensor in resnet18.state_dict().items()}
    images = torch.randn(1, 3, 64, 64)
    reference = nn.Sequential(resnet18, nn.LogSoftmax(1))
    model = models.build('resnet18', 1000, 3).eval()
    sentences = load_pretrained(model, saved(state))
    with torch.no_grad():
        expected = reference(images) - resnet18.fc.bias
        torch.testing.assert_close(model(images), expected.log_softmax(1), atol=1e-5, rtol=0)
    assert ': 101 of its 102 tensors, ' in sentences[0] and sentences[1].endswith(': fc.bias') and len(sentences) == 2


def test_other_classes_and_channels_keep_the_first_and_the_last_layer(resnet18, saved):
    model = binarize.wrap(models.build('resnetwbin18', 250, 1), 2, 20)
    sentences, initial = loaded(model, saved(resnet18.state_dict()))
    assert {name for name in initial if not name.endswith('batches_tracked')} == {
        'conv1.weight', 'bn1.weight', 'bn1.bias', 'bn1.running_mean', 'bn1.running_var', 'conv21.weight'}
    assert sentences[1:] == [f'not taken from {sentences[0].split()[2][:-1]}: conv1, fc, bn1', 'initial values: conv1, conv21, bn1']
    assert model.stage2[0].shortcut.conv8.parametrizations.weight.original.equal(resnet18.layer2[0].downsample[0].weight)
    assert model.stage2[0].shortcut.bn8.running_var.equal(resnet18.layer2[0].downsample[1].running_var)


@pytest.mark.parametrize('make, name, starts, rest', [
    (TV.resnet18, 'resnetfbin18', '21 of its 102', 'initial values: bn1, stage1.0.residual.bn2 … stage4.1.residual.bn20 (20)'),
    (TV.squeezenet1_0, 'squeezenet', '52 of its 52', 'initial values: bn1, fire2.squeeze.bn2 … fire9.expand3x3.bn25 (25)'),
    (TV.squeezenet1_0, 'squeezenetwbin', '28 of its 52', 'features.3.squeeze.bias, features.3.expand1x1.bias … features.12.expand3x3.bias (24)'),
    (TV.vgg16_bn, 'vgg16_bncifar', '78 of its 84', 'not taken from FILE: classifier.0, classifier.3, classifier.6'),
    (TV.vgg16, 'vgg16_bncifar', '26 of its 32', 'initial values: features.bn1, features.bn2 … features.bn13 (13), classifier.2')])
def test_what_fits_of_torchvision(make, name, starts, rest, saved):
    path = saved(of_shapes(make))
    text = '\n'.join(load_pretrained(models.build(name, 1000, 3), path)).replace(str(path), 'FILE')
    assert starts in text and rest in text, text


@pytest.mark.parametrize('make, name, part', [
    (TV.alexnet, 'alexnet', 'number 1 is features.0 (64×3×11×11), in the network features.conv1 (96×3×11×11)'),
    (TV.googlenet, 'googlenet', 'number 8 is inception3a.branch3.1.conv (32×16×3×3), in the network inception3a.branch3.conv8 (32×16×5×5)'),
    (TV.resnet34, 'resnet18', 'number 6 is layer1.2.conv1')])
def test_what_does_not_fit_of_torchvision(make, name, part, saved):
    model = models.build(name, 1000, 3) if name != 'alexnet' else models.build(name, 10, 3, inpsize=63)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = {'init_weights': False} if make is TV.googlenet else {}
    with pytest.raises(InputError, match='neither by name nor in order') as error:
        load_pretrained(model, saved(of_shapes(make, **options)))
    assert part in str(error.value) and all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


# Other files

def branches(order, nClasses=5):
    """A network with two parallel branches of one shape, registered in this order."""
    layers = {'stem': nn.Conv2d(1, 4, 3)} | {f'branch{number}': nn.Conv2d(4, 4, 3) for number in order} | {'fc': nn.Linear(4, nClasses)}
    return nn.ModuleDict(layers)


def test_branches_in_another_order(saved):
    renamed = {f'net.{name}': tensor for name, tensor in branches([2, 1]).state_dict().items()}
    with pytest.raises(InputError, match='the numbered layers of .* are out of order'):
        load_pretrained(branches([1, 2]), saved(renamed))
    with pytest.raises(InputError, match='the numbered layers of this network are out of order'):
        load_pretrained(branches([2, 1]), saved({f'net.{name}': tensor for name, tensor in branches([1, 2]).state_dict().items()}))
    model, other = branches([1, 2]), branches([2, 1])
    load_pretrained(model, saved(other.state_dict()))     # by name, the order does not matter
    assert model.branch1.weight.equal(other.branch1.weight) and model.branch2.weight.equal(other.branch2.weight)


@pytest.mark.parametrize('wrap', [
    lambda state: {'state_dict': state}, lambda state: {'model': state, 'lr': 0.1},
    lambda state: {f'module._orig_mod.{name}': tensor for name, tensor in state.items()},
    lambda state: {name: tensor.half() for name, tensor in state.items() if 'num_batches' not in name}])
def test_wrapped_states(wrap, saved):
    source, model = with_statistics(models.build('bincifar', 4, 1, 8)).half().float(), models.build('bincifar', 4, 1, 8)
    sentences = load_pretrained(model, saved(wrap(source.state_dict())))
    assert [line.split(': ')[1] for line in sentences] == ['48 of its 48 tensors, by name']
    assert all(tensor.equal(source.state_dict()[name]) for name, tensor in model.state_dict().items() if 'num_batches' not in name)


@pytest.mark.parametrize('name', ['sketchanethybrid', 'sketchanetwbin'])
def test_a_checkpoint_of_2018(name, saved):
    """It had flat names, BatchNorms registered behind convolutions, and PyTorch's old file format."""
    torch.manual_seed(0)
    source = with_statistics(models.build(name, 3, 1, 81))
    layers = collections.defaultdict(dict)
    for key, tensor in source.state_dict().items():
        if 'num_batches' not in key:
            _, layer, own = key.split('.')
            layers[layer][own] = tensor
    state = {f'module.{layer}.{own}': tensor for layer in sorted(layers, key=lambda layer: (layer[-1], layer[0] == 'b'))
             for own, tensor in layers[layer].items()}
    content = {'epoch': 9, 'arch': name, 'state_dict': collections.OrderedDict(state), 'best_prec1': 0.5, 'optimizer': {'state': {}}}
    path = saved(content, _use_new_zipfile_serialization=False)
    model = models.build(name, 3, 1, 81).eval()
    images = torch.randn(2, 1, 81, 81)
    assert len(load_pretrained(model, path)) == 1
    with torch.no_grad():
        assert model(images).equal(source(images))
    fbin = models.build('sketchanetfbin', 3, 1, 81)
    _, initial = loaded(fbin, path)
    assert ('features.bn4.running_var' in initial) == (name == 'sketchanetwbin')     # 256 wide in all of them
    assert not [key for key in initial if 'conv' in key and key.endswith('weight')]


@pytest.mark.parametrize('before, after, initial', [
    ('sketchanet', 'sketchanetwbin', ''), ('sketchanetwbin', 'sketchanetfbin', 'bn2 bn3 bn4 bn5 bn6 bn7'),
    ('sketchanethybrid', 'sketchanetfbin', 'bn6 bn7'), ('bincifar', 'bincifarfbin', ''),
    ('resnethybrid18', 'resnetfbin18', 'bn19 bn20')])
def test_variants_of_a_family_share_all_but_batchnorms_in_another_place(before, after, initial, saved):
    source = of_shapes(models.build, name=before, nClasses=3)
    model = binarize.wrap(models.build(after, 3), 2, 7)
    _, kept = loaded(model, saved(source))
    assert {name.split('.')[-2] for name in kept if name.endswith(('weight', 'running_var'))} == set(initial.split())


# Bad files

@pytest.mark.parametrize('content, part', [
    ([1, 2], 'holds no state_dict'), ({}, 'holds no state_dict'), ({'a': 1}, 'holds no state_dict'), (torch.ones(3), 'holds no state_dict'),
    ({'model': {'a\nb.weight': torch.ones(2, 2)}}, 'holds no state_dict'), ({'state_dict': {'a.weight': torch.ones(2, 2)}}, 'neither'),
    ({'x' * 9999 + '1.weight': torch.ones(2, 2)}, 'holds no state_dict'), ({'a.weight': torch.ones(2, 2).to_sparse()}, 'holds no state_dict'),
    ({'weights': collections.OrderedDict, 'x': types.SimpleNamespace(a=1)}, 'holds an object of types.SimpleNamespace'),
    ({'conv1.weight': torch.ones(2, 2, dtype=torch.complex64)}, 'holds no state_dict')])
def test_files_that_are_refused(content, part, saved):
    for new_format in True, False:
        with pytest.raises(InputError, match=part) as error:
            load_pretrained(models.build('bincifar', 3, 1, 8), saved(content, _use_new_zipfile_serialization=new_format))
        assert '\n' not in str(error.value)


@pytest.mark.parametrize('name, tensor', [('features.conv2.bias', torch.ones(4, 4)), ('features.conv2.bias', torch.ones(0)),
                                          ('features.bn2.running_mean', torch.ones(())), ('features.bn2.weight', torch.ones(3))])
def test_a_layer_with_a_tensor_of_another_shape_is_not_taken(name, tensor, saved):
    state = models.build('bincifar', 3, 1, 8).state_dict() | {name: tensor}
    for content in state, {'state_dict': state, 'arch': 'bincifar'}:
        model = models.build('bincifar', 3, 1, 8)
        _, initial = loaded(model, saved(content))
        assert name in initial and 'features.conv3.weight' not in initial


def test_numbers_that_are_not_finite(saved):
    state = models.build('bincifar', 3, 1, 8).state_dict()
    state['features.conv2.weight'][0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match='not finite, in features.conv2.weight'):
        load_pretrained(models.build('bincifar', 3, 1, 8), saved(state))


@pytest.mark.parametrize('new_format', [True, False])
def test_damaged_files(new_format, saved):
    model = branches([1, 2])
    whole = saved(branches([1, 2]).state_dict(), _use_new_zipfile_serialization=new_format).read_bytes()
    path, generator, refused = saved({}), random.Random(0), 0
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
    return network(**unit(channels, 4, 3, stride=3), **unit(4, 6, 3), pool=nn.AdaptiveAvgPool2d(1), **unit.conv(6, nClasses, 1))


def test_two_stages(sketch_folder, tmp_path, capsys, monkeypatch):
    """Real weights first, or real inputs first; and what the log says of it."""
    for name, layers in ('tiny', ''), ('tinyfbin', '2'):
        monkeypatch.setitem(models._variants, name, models.Variant(tiny, 16, 8, {'signLayers': layers}, '2'))
    flags = ['--dataset=tuberlin', f'--data_dir={sketch_folder}', '--workers=0', '--batch-size=12', f'--logdir={tmp_path}', '--no-compile']

    def stage(name, *more):
        main.main([*flags, f'--name={name}', *more])
        return [line.replace(str(tmp_path), '') for line in capsys.readouterr().out.splitlines() if line.startswith(('starts', 'not taken', 'initial'))]
    monkeypatch.setattr(models, 'names', lambda names=models.names(): [*names, 'tiny', 'tinyfbin'])
    assert stage('real', '--epochs=1', '--model_def=tinyfbin') == []
    assert stage('weights', '--epochs=1', '--model_def=tinyfbin', '--binaryWeight', '--binEnd=2', f'--pretrained_file={tmp_path}/real/best.pth.tar') == [
        'starts from /real/best.pth.tar: 11 of its 11 tensors, by name']
    assert stage('wbin', '--epochs=1', '--model_def=tiny', '--binaryWeight', '--binEnd=2') == []
    assert stage('fbin', '--epochs=0', '--model_def=tinyfbin', '--binaryWeight', '--binEnd=2', f'--pretrained_file={tmp_path}/wbin/best.pth.tar') == [
        'starts from /wbin/best.pth.tar: 7 of its 11 tensors, by name', 'not taken from /wbin/best.pth.tar: bn2', 'initial values: bn2']
    with pytest.raises(SystemExit):
        main.main([*flags, '--name=other', '--epochs=0', f'--pretrained_file={__file__}'])
    assert capsys.readouterr().err == f'main.py: error: --pretrained_file: {__file__} is truncated, damaged or not a checkpoint\n'


def test_weights_that_another_parametrization_changes_are_not_taken(tmp_path):
    """Their stored tensors are not what that network computes with."""
    from torch.nn.utils.parametrizations import spectral_norm
    model = models.build('bincifar', 10)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    spectral_norm(model.get_submodule('features.conv2'))
    torch.save(model.state_dict(), tmp_path / 'x.pth')
    torch.manual_seed(5)
    fresh = models.build('bincifar', 10)
    before = fresh.get_submodule('features.conv2').weight.clone()
    load_pretrained(fresh, tmp_path / 'x.pth')
    assert torch.equal(fresh.get_submodule('features.conv2').weight, before)
    assert torch.equal(fresh.get_submodule('features.conv3').weight, state['features.conv3.weight'])


def test_another_family_with_the_same_names_is_refused(tmp_path):
    torch.save(models.build('sketchanetwbin', 10).state_dict(), tmp_path / 'x.pth')
    with pytest.raises(InputError, match='neither by name nor in order'):
        load_pretrained(models.build('bincifar', 10), tmp_path / 'x.pth')

"""Networks in a user's own script: load, bake, layer_weights, and methods of one's own."""
import copy
import json
import pickle
import shlex
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch import nn

import datasets
import main
import models
from utils import binarize, experiment
from utils.record.describe import git_commit
from utils.system.errors import InputError

SMALL = ['--workers=0', '--batch-size=12', '--inpsize=32', '--epochs=1', '--dataset=tuberlin',
         '--binaryWeight']


@pytest.fixture(scope='module')
def files(sketch_folder, tmp_path_factory):
    """{'checkpoint': path, 'packed': path} of a network with binarized weights and inputs."""
    logs = tmp_path_factory.mktemp('trained')
    main.main([*SMALL, '--model_def=smallfbin', f'--data_dir={sketch_folder}', f'--logdir={logs}',
               '--name=run'])
    paths = {'checkpoint': logs / 'run/last.pth.tar', 'packed': logs / 'model.dab'}
    main.main([f'--resume={paths["checkpoint"]}', f'--export={paths["packed"]}'])
    return paths


@pytest.mark.parametrize('kind', ['checkpoint', 'packed'])
@pytest.mark.parametrize('mode', ['L', 'RGB', 'RGBA', '1', 'P'])
def test_load_classifies_as_the_program_does(files, kind, mode, sketch_folder, tmp_path, capsys):
    path = tmp_path / 'drawing.png'
    Image.open(sketch_folder / 'val/ring/0.png').convert(mode).save(path)
    trained = experiment.load(files[kind])
    with torch.no_grad():
        log_probs = trained.network(trained.transform(Image.open(path))[None])[0]
    capsys.readouterr()
    main.main([f'--resume={files["checkpoint"]}', '--classify', str(path)])
    said = capsys.readouterr().out.split(': ')[1].split(', ')
    order = log_probs.argsort(descending=True).tolist()
    assert [word.split()[0] for word in said] == [trained.classes[label] for label in order]
    assert float(said[0].split()[1]) == pytest.approx(100 * log_probs.exp().max().item(), abs=0.06)
    assert not trained.network.training


def test_load_of_a_network_that_is_not_registered(files, tmp_path):
    stored = torch.load(files['checkpoint'], weights_only=True)
    stored['flags']['model_def'] = 'mine'
    torch.save(stored, tmp_path / 'mine.pth.tar')
    asked = []

    def build(name, *arguments):
        asked.append(name)
        return models.build('smallfbin', *arguments)
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(experiment.load(tmp_path / 'mine.pth.tar', build).network(images),
                           experiment.load(files['checkpoint']).network(images))
    assert asked == ['mine']


@pytest.mark.parametrize('content', [b'', b'text', b'PK\3\4'])
def test_load_of_another_file(content, tmp_path):
    path = tmp_path / 'other'
    path.write_bytes(content)
    with pytest.raises(InputError, match='other is'):
        experiment.load(path)
    with pytest.raises(InputError, match='no checkpoint'):
        experiment.load(tmp_path / 'nowhere')


class Own(nn.Module):
    """A network of a user's own, no sequence, with a grouped and a depthwise convolution."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2, padding='same', padding_mode='reflect')
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.rest = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten())

    def forward(self, x):
        return self.rest(self.depthwise(self.grouped(self.first(x))))


@pytest.mark.parametrize('method', binarize.METHODS)
@pytest.mark.parametrize('search', ['fast', 'exact'])
@pytest.mark.parametrize('training', [True, False])
def test_bake(method, search, training):
    torch.manual_seed(0)
    model = binarize.wrap(Own(), 2, 4, method, search).train(training)
    images = torch.randn(2, 3, 9, 9)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(images)
    baked = binarize.bake(model)
    assert baked.training == training and type(baked.grouped) is nn.Conv2d
    assert baked.state_dict().keys() == Own().state_dict().keys()
    assert not any('arametri' in name for name, _ in baked.named_modules())
    with torch.no_grad():
        assert torch.equal(baked.eval()(images), expected)
        Own().load_state_dict(baked.state_dict())
    # The original is as it was, and still trains.
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert len(binarize.binarized(model)) == 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(images).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.depthwise.parametrizations.weight.original,
                           before['depthwise.parametrizations.weight.original'])
    with torch.no_grad():
        assert not torch.equal(model.eval()(images), baked(images))
        assert torch.equal(binarize.bake(model)(images), model(images))


def test_bake_of_tied_weights_and_inside_a_cache():
    a, b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    b.weight = a.weight
    model = binarize.wrap(nn.Sequential(a, b), 1, 2).eval()
    images = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        assert torch.equal(binarize.bake(model)(images), model(images))
        with nn.utils.parametrize.cached():
            for _ in range(50):
                model = binarize.wrap(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3)), 1,
                                      2).eval()
                for conv, plain in zip(model, binarize.bake(model)):
                    assert torch.equal(plain.weight, binarize.layer_weights(conv).weight)


def test_a_weight_with_another_parametrization_is_refused():
    conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 8, 3))
    with pytest.raises(InputError, match='parametrized already'):
        binarize.wrap(nn.Sequential(conv), 1, 1)


@pytest.mark.parametrize('method', binarize.METHODS)
@pytest.mark.parametrize('search', ['fast', 'exact'])
@pytest.mark.parametrize('training', [True, False])
def test_layer_weights_are_what_the_layer_computes_with(method, search, training):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 5, 3)
    nn.init.normal_(conv.weight, std=0.8)
    with torch.no_grad():
        conv.weight[2] = 0.25       # constant: all 0 when centred
    binarize.wrap(conv, 1, 1, method, search).train(training)
    latent = conv.parametrizations.weight.original
    before = latent.detach().clone()
    layer = binarize.layer_weights(conv)
    with torch.no_grad():
        assert torch.equal(layer.weight, conv.weight) and torch.equal(latent, before)
    rows = torch.where(layer.mask, layer.alpha.view(-1, 1, 1, 1), layer.beta.view(-1, 1, 1, 1))
    assert torch.equal(rows, layer.weight)
    torch.testing.assert_close(layer.projected, binarize.project_(before.clone()))
    assert not torch.allclose(layer.weight, binarize.binarize_weight(before, method))
    marked = layer.mask.flatten(1).sum(1)
    if method == 'dab':
        assert ((1 <= marked) & (marked < 54)).all() and layer.alpha[2] == layer.beta[2] == 0
    with pytest.raises(ValueError, match='real weights'):
        binarize.layer_weights(nn.Conv2d(1, 1, 3))


class Median(binarize.Method):
    """W~ = ±the median of |W|, the boundary at the median of W."""

    title, formula = 'median binarization', 'α = median |W|, β = −α'

    @staticmethod
    def split(rows):
        alpha = rows.abs().median(1, keepdim=True).values
        return alpha, -alpha, rows >= rows.median(1, keepdim=True).values

    @staticmethod
    def gradient_factor(inside, alpha, beta, mask):
        return inside.to(alpha.dtype)


def test_a_method_of_ones_own_is_one_class(sketch_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(binarize.METHODS, 'median', Median)
    main.main([*SMALL, '--model_def=smallwbin', '--binarizer=median', f'--data_dir={sketch_folder}',
               f'--logdir={tmp_path}', '--name=run'])
    main.main([f'--resume={tmp_path}/run/last.pth.tar', f'--export={tmp_path}/model.dab'])
    capsys.readouterr()
    for source in f'--resume={tmp_path}/run/last.pth.tar', f'--packed={tmp_path}/model.dab':
        main.main([source, '--classify', str(sketch_folder / 'val')])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 24 and lines[:12] == lines[12:]


def test_flags_are_the_same_everywhere_and_do_not_change(files):
    written = json.loads((files['checkpoint'].parent / 'flags.json').read_text())
    stored = torch.load(files['checkpoint'], weights_only=True)['flags']
    resumed = vars(experiment.from_command([f'--resume={files["checkpoint"]}']).flags)
    assert written == stored == resumed | {'resume': None}
    assert written['nClasses'] == 3 and written['binEnd'] == 3 and written['binarizer'] == 'dab'
    flags = experiment.from_command([f'--resume={files["checkpoint"]}']).flags
    with pytest.raises(AttributeError, match='flags do not change'):
        flags.epochs = 3


def test_a_run_can_be_traced(files):
    folder = files['checkpoint'].parent
    start, = map(json.loads, (folder / 'history.jsonl').read_text().splitlines())
    assert start.keys() == {'command', 'date', 'processes', 'commit', 'python', 'torch', 'device'}
    head = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True)
    assert head.returncode or start['commit'].startswith(head.stdout.strip())
    assert start['torch'] == torch.__version__ and start['command'] == shlex.join(sys.orig_argv)
    log = (folder / 'log.txt').read_text()
    assert all(text in log for text in start.values())


def test_the_transform_is_that_of_validation(files, sketch_folder):
    trained = experiment.load(files['packed'])
    image, _ = datasets.load('tuberlin', str(sketch_folder), 32).val[0]
    path = sketch_folder / 'val/bar/0.png'
    assert torch.equal(trained.transform(Image.open(path)), image)
    # for the workers of a loader of one's own
    copy = pickle.loads(pickle.dumps(trained.transform))
    assert torch.equal(copy(Image.open(path)), image)


def test_the_commit_is_that_of_the_program(monkeypatch, tmp_path):
    commit = git_commit()
    subprocess.run(['git', 'init', '-q', tmp_path], check=True)
    monkeypatch.setenv('GIT_DIR', str(tmp_path / '.git'))
    assert git_commit() == commit

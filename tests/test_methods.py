"""Methods of one's own with learned values and a state, through everything that a run does with them."""
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import main
import models
from models.blocks import Units, network
from utils import binarize, experiment, packed
from utils.report.__main__ import main as report


class Learned(binarize.Method):
    """W~ = centre ± scale: a learned centre per layer and scale per filter; the boundary is a running mean."""

    title, formula = 'learned values', 'learned by gradient descent'

    def __init__(self, weight):
        super().__init__(weight)
        self.centre = nn.Parameter(weight.new_full((), 0.1))
        self.scale = nn.Parameter(weight.flatten(1).abs().mean(1, keepdim=True))
        self.register_buffer('boundary', weight.new_zeros(()))
        self.register_buffer('steps', torch.zeros((), dtype=torch.int64))

    def observe(self, rows):
        self.boundary.lerp_(rows.mean(), 0.5)
        self.steps.add_(1)

    def split(self, rows):
        return self.centre + self.scale, self.centre - self.scale, rows >= self.boundary

    def gradient_factor(self, inside, alpha, beta, mask):
        return inside.to(alpha.dtype)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(binarize.METHODS, 'learned', Learned)
    monkeypatch.setitem(models._variants, 'tinyfbin', models.Variant(tiny, 32, 16, {'signLayers': '2-3'}, '2-3'))


def layer(dtype=torch.float64):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, bias=False).to(dtype)
    with torch.no_grad():
        conv.weight.normal_(0, 0.7)     # some beyond ±1
    return binarize.wrap(conv, 1, 1, 'learned')


def test_learned_values_get_the_gradient_of_their_two_values():
    conv = layer()
    images, target = torch.randn(2, 3, 6, 6).double(), torch.randn(2, 4, 4, 4).double()
    method = binarize.binarization(conv).method
    loss = F.mse_loss(conv(images), target)
    loss.backward()
    conv.eval()         # from here on the latent weights and the state stay

    def change(parameter, index):       # of the loss, by central differences
        losses = []
        for step in 1e-6, -1e-6:
            with torch.no_grad():
                parameter.flatten()[index] += step
                losses.append(F.mse_loss(conv(images), target).item())
                parameter.flatten()[index] -= step
        return (losses[0] - losses[1]) / 2e-6
    for parameter in method.parameters():
        expected = [change(parameter, index) for index in range(parameter.numel())]
        torch.testing.assert_close(parameter.grad.flatten().tolist(), expected, rtol=1e-6, atol=1e-9)
    latent = conv.parametrizations.weight.original
    w = conv.weight.detach().clone().requires_grad_()
    F.mse_loss(F.conv2d(images, w), target).backward()
    torch.testing.assert_close(latent.grad, w.grad * (latent.abs() < 1) * (1 - 1 / 3), rtol=1e-12, atol=0)


def test_only_a_training_step_is_observed():
    conv = layer()
    method, images = binarize.binarization(conv).method, torch.zeros(1, 3, 3, 3).double()
    conv(images)
    before = {name: value.clone() for name, value in conv.state_dict().items()}
    binarize.layer_weights(conv)
    binarize.bake(conv)
    with torch.no_grad():
        conv(images)
        conv.eval()(images)
    assert method.steps == 1 and all(torch.equal(value, before[name]) for name, value in conv.state_dict().items())
    used = binarize.layer_weights(conv)
    expected = torch.stack([method.centre + method.scale, method.centre - method.scale]).squeeze(2)
    assert torch.equal(torch.stack([used.alpha, used.beta]), expected)
    assert torch.equal(used.weight, conv.weight) and not used.weight.requires_grad
    assert torch.equal(binarize.bake(conv).weight, conv.weight)
    conv.train()(images)
    assert method.steps == 2


def tiny(nClasses, channels, inpsize, signLayers):
    unit = Units(signLayers)
    return network(**unit(channels, 8, 3, stride=2), **unit(8, 12, 3, stride=2), **unit(12, 12, 3, groups=4),
                   pool=nn.AdaptiveAvgPool2d(1), **unit.conv(12, nClasses, 1))


def train(folder, tmp_path, name, *flags):
    main.main(['--dataset=tuberlin', f'--data_dir={folder}', '--inpsize=32', '--model_def=tinyfbin', '--binaryWeight',
               '--batch-size=18', '--maxlr=0.01', '--workers=0', f'--logdir={tmp_path}', f'--name={name}', *flags])
    return torch.load(tmp_path / name / 'last.pth.tar', weights_only=True)


@pytest.mark.parametrize('method', ['learned', 'adabin'])
def test_a_run_from_training_to_the_packed_file(sketch_folder, tmp_path, capsys, method):
    flags = f'--binarizer={method}'
    unbroken = train(sketch_folder, tmp_path, 'run', flags, '--epochs=2')
    train(sketch_folder, tmp_path, 'broken', flags, '--epochs=1')
    resumed = train(sketch_folder, tmp_path, 'broken', f'--resume={tmp_path}/broken/last.pth.tar', '--epochs=2')
    for key in 'model', 'metrics':
        torch.testing.assert_close([*resumed[key].values()][:-2], [*unbroken[key].values()][:-2], rtol=0, atol=0)
    learned = {name: value for name, value in unbroken['model'].items() if '.method.' in name}
    if method == 'learned':
        assert len(learned) == 4 * 2
        scale, = (value for name, value in learned.items() if name.startswith('conv2.') and 'scale' in name)
        centre, = (value for name, value in learned.items() if name.startswith('conv2.') and 'centre' in name)
        assert centre != 0.1 and all(value == 4 for name, value in learned.items() if 'steps' in name)
    else:
        assert not learned
    last, dab = tmp_path / 'run/last.pth.tar', tmp_path / 'model.dab'
    main.main([f'--resume={last}', f'--export={dab}'])
    layers = dict(binarize.binarized(experiment.load(last).network))
    if method == 'learned':
        assert torch.equal(binarize.layer_weights(layers['conv2']).alpha, (centre + scale).squeeze(1))
    capsys.readouterr()
    for source in f'--resume={last}', f'--packed={dab}':
        main.main([source, '--classify', str(sketch_folder / 'val')])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 24 and lines[:12] == lines[12:]
    report([str(last)])
    assert Learned.title in (tmp_path / 'run/report/index.html').read_text()


def test_the_report_measures_the_layers_own_values():
    from utils.layer_errors import measure_layers
    conv = layer(torch.float32)
    with torch.no_grad():
        binarize.binarization(conv).method.scale.fill_(5)
    measured, = measure_layers(nn.Sequential(conv).eval())
    used = binarize.layer_weights(conv)
    expected = (used.projected.double() - used.weight).flatten(1).square().sum(1)
    assert torch.equal(measured.errors['learned'], expected) and (expected > 100).all()


def test_a_packed_network_needs_none_of_it():
    conv = layer(torch.float32)
    names = packed.pack(nn.Sequential(conv).eval()).keys()
    assert names == {'0.weight', '0.alpha', '0.beta'}


def test_learned_values_start_from_pretrained_weights(sketch_folder, tmp_path, capsys):
    """Not from the random ones before them, nor from those of another method's values of one name."""
    main.main(['--dataset=tuberlin', f'--data_dir={sketch_folder}', '--inpsize=32', '--model_def=tinyfbin', '--epochs=1', '--maxlr=0.05',
               '--batch-size=18', '--workers=0', f'--logdir={tmp_path}', '--name=real'])
    real = f'{tmp_path}/real/last.pth.tar'
    stored = torch.load(real, weights_only=True)['model']
    capsys.readouterr()
    made = experiment.from_command(['--dataset=tuberlin', f'--data_dir={sketch_folder}', '--inpsize=32', '--model_def=tinyfbin',
                                    '--binaryWeight', '--binarizer=learned', f'--pretrained_file={real}']).make_network()
    scale = binarize.binarization(made.conv2).method.scale
    torch.testing.assert_close(scale, stored['conv2.weight'].flatten(1).abs().mean(1, keepdim=True))
    train(sketch_folder, tmp_path, 'first', '--binarizer=learned', '--epochs=1')
    capsys.readouterr()
    train(sketch_folder, tmp_path, 'again', '--binarizer=learned', f'--pretrained_file={tmp_path}/first/last.pth.tar', '--epochs=1')
    out = capsys.readouterr().out
    assert 'of its 16 tensors, by name' in out and 'initial values' not in out     # BatchNorm behind learned values included


@pytest.mark.parametrize('method', ['learned', 'dab'])
def test_all_batches_of_a_step_see_the_same_weights(method):
    """And a method observes one step, not each of its batches."""
    from utils.training.updates import Updates
    torch.manual_seed(0)
    model = binarize.wrap(nn.Sequential(nn.Conv2d(3, 4, 3)), 1, 1, method)
    with torch.no_grad():
        model[0].parametrizations.weight.original.mul_(5).add_(0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    updates = Updates(model, optimizer, torch.amp.GradScaler('cpu', enabled=False), range(3), accumulate=3)
    seen = []
    model[0].register_forward_hook(lambda conv, *_: seen.append(binarize.layer_weights(conv).weight))
    for number in range(3):
        with updates.batch(number) as backward:
            backward(model(torch.ones(1, 3, 4, 4)).mean())
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])
    if method == 'learned':
        assert binarize.binarization(model[0]).method.steps == 1

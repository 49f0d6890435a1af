"""Methods of one's own with learned values and a state, through everything that a run does with
them."""
import copy
import functools

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
    """W~ = centre ± scale: a learned centre per layer and scale per filter; the boundary is a
    running mean."""

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
    monkeypatch.setitem(models._variants, 'tinyfbin',
                        models.Variant(tiny, 32, 16, {'signLayers': '2-3'}, '2-3'))


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
        torch.testing.assert_close(parameter.grad.flatten().tolist(), expected, rtol=1e-6,
                                   atol=1e-9)
    latent = conv.parametrizations.weight.original
    w = conv.weight.detach().clone().requires_grad_()
    F.mse_loss(F.conv2d(images, w), target).backward()
    torch.testing.assert_close(latent.grad, w.grad * (latent.abs() < 1) * (1 - 1 / 3), rtol=1e-12,
                               atol=0)


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
    assert method.steps == 1
    assert all(torch.equal(value, before[name]) for name, value in conv.state_dict().items())
    used = binarize.layer_weights(conv)
    expected = torch.stack([method.centre + method.scale, method.centre - method.scale]).squeeze(2)
    assert torch.equal(torch.stack([used.alpha, used.beta]), expected)
    assert torch.equal(used.weight, conv.weight) and not used.weight.requires_grad
    assert torch.equal(binarize.bake(conv).weight, conv.weight)
    conv.train()(images)
    assert method.steps == 1        # the latent weights have not changed
    with torch.no_grad():
        conv.parametrizations.weight.original.add_(0.1)
    conv(images)
    assert method.steps == 2


SPLIT, FACTOR, PROJECT = binarize.DAB.split, binarize.DAB.gradient_factor, binarize.project_


class Other(binarize.Method):
    """Another method under the name of one that has compiled code."""

    split = staticmethod(lambda rows: (rows[:, :1].abs() + 0.1, -rows[:, :1].abs(), rows > 0))
    gradient_factor = staticmethod(lambda inside, alpha, beta, mask: inside * mask + 0.5)


class Observing(binarize.DAB):
    def __init__(self, weight):
        super().__init__(weight)
        self.register_buffer('steps', torch.zeros((), dtype=torch.int64))

    def observe(self, rows):
        self.steps.add_(1)


def with_marked_doubled(rows):
    alpha, beta, mask = SPLIT(rows)
    return 2 * alpha, beta, mask


EDITS = {   # of utils/binarize.py, by what is set where
    'beta': (binarize.DAB, 'split',
             lambda rows: (lambda alpha, beta, mask: (alpha, -alpha, mask))(*SPLIT(rows))),
    'one size of filters': (binarize.DAB, 'split',
                            lambda rows: (with_marked_doubled if rows.size(1) == 18
                                          else SPLIT)(rows)),
    'off by one': (binarize.DAB, 'split',
                   lambda rows: (lambda alpha, beta,
                                 mask: (alpha * (1 - 1 / rows.size(1)), beta, mask))(*SPLIT(rows))),
    'marks the smallest': (binarize.DAB, 'split',
                           lambda rows: (lambda alpha, beta,
                                         mask: (beta, alpha, ~mask))(*SPLIT(rows))),
    'gradient': (binarize.DAB, 'gradient_factor', lambda *found: FACTOR(*found) + 0.1),
    'straight-through': (binarize._StraightThrough, 'backward', lambda ctx,
                         gradient: (2 * gradient, gradient, None)),
    'projection': (binarize, 'project_', lambda weight: PROJECT(weight).mul_(0.9)),
    'clamp': (binarize, 'project_', lambda weight: weight.sub_(weight.mean(1, keepdim=True))),
}


def step_of_layer(search, method='dab'):
    """Latent weights, W~, gradient, and what layer_weights shows, of a layer after a training
    step."""
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 8, 3, bias=False)
    nn.init.normal_(conv.weight, std=0.7)
    binarize.wrap(conv, 1, 1, method, search)
    weight = conv.weight
    weight.backward(torch.randn(8, 2, 3, 3))
    latent = conv.parametrizations.weight.original
    return [latent.detach().clone(), weight.detach(), latent.grad, *binarize.layer_weights(conv)]


@pytest.fixture
def fresh_warnings():
    binarize.native.warn_once.cache_clear()
    yield
    binarize.native.warn_once.cache_clear()


@pytest.mark.parametrize('name', EDITS)
def test_an_edited_method_is_what_runs(name, monkeypatch, fresh_warnings):
    """Compiled code, used for the method as it was, gives way to PyTorch, and a warning says so
    once."""
    if not binarize.native.compiled(torch.device('cpu')).supports(()):
        pytest.skip('no C++ compiler')
    before = step_of_layer('fast')
    owner, attribute, edited = EDITS[name]
    monkeypatch.setattr(owner, attribute, edited if owner is binarize else staticmethod(edited))
    with pytest.warns(UserWarning,
                      match=r'\(DAB\): its source is not what the compiled code was written for') as warned:
        after = step_of_layer('fast')
    assert len(warned) == 1
    expected = step_of_layer('exact')
    torch.testing.assert_close(after, expected, rtol=0, atol=0)
    assert not all(torch.allclose(*pair, rtol=1e-3) for pair in zip(after[:5], before[:5]))
    monkeypatch.undo()
    torch.testing.assert_close(step_of_layer('fast'), before, rtol=0, atol=0)


def test_an_edited_instance_or_helper_is_what_runs(monkeypatch, fresh_warnings):
    if not binarize.native.compiled(torch.device('cpu')).supports(()):
        pytest.skip('no C++ compiler')

    def weights(edit, search='fast'):
        torch.manual_seed(0)
        conv = binarize.wrap(nn.Conv2d(2, 8, 3, bias=False), 1, 1, search=search)
        edit(binarize.binarization(conv))
        return conv.weight.detach()
    plain = weights(lambda layer: None)
    for edit in (lambda layer: setattr(layer.method, 'split', with_marked_doubled),
                 lambda layer: monkeypatch.setattr(binarize, 'project_',
                                                   functools.partial(torch.clamp_, min=-0.05,
                                                                     max=0.05)),
                 lambda layer: monkeypatch.setattr(binarize, '_scale',
                                                   lambda rows: rows[:, :1] * torch.nan)):
        found = weights(edit)
        torch.testing.assert_close(found, weights(edit, 'exact'), rtol=0, atol=0, equal_nan=True)
        assert not torch.allclose(found, plain)


@pytest.mark.parametrize('other', [Other, Observing])
def test_another_method_of_the_same_name_is_what_runs(other, monkeypatch, fresh_warnings):
    if not binarize.native.compiled(torch.device('cpu')).supports(()):
        pytest.skip('no C++ compiler')
    monkeypatch.setitem(binarize.METHODS, 'dab', other)
    with pytest.warns(UserWarning, match='is not what the compiled code was written for'):
        found = step_of_layer('fast')
    torch.testing.assert_close(found, step_of_layer('exact'), rtol=0, atol=0)
    if other is Observing:
        conv = binarize.wrap(nn.Conv2d(2, 8, 3), 1, 1)
        conv(torch.zeros(1, 2, 3, 3))
        assert binarize.binarization(conv).method.steps == 1


def test_a_run_and_its_file_are_those_of_the_edited_method(sketch_folder, tmp_path, monkeypatch,
                                                           capsys):
    plain = train(sketch_folder, tmp_path, 'plain', '--binarizer=dab', '--epochs=1')
    monkeypatch.setattr(binarize.DAB, 'split', staticmethod(EDITS['beta'][2]))
    fast, exact = (train(sketch_folder, tmp_path, search, '--binarizer=dab', '--epochs=1',
                         f'--binSearch={search}')
                   for search in ('fast', 'exact'))
    torch.testing.assert_close(fast['model'], exact['model'], rtol=0, atol=0)
    assert not torch.equal(fast['model']['conv2.parametrizations.weight.original'],
                           plain['model']['conv2.parametrizations.weight.original'])
    main.main([f'--resume={tmp_path}/fast/last.pth.tar', f'--export={tmp_path}/fast.dab'])
    _, network = packed.load(tmp_path / 'fast.dab')
    tensors = packed.format.read(tmp_path / 'fast.dab')[2]
    assert torch.equal(tensors['conv2.alpha'], -tensors['conv2.beta'])


def test_a_split_of_the_wrong_shape_is_refused(monkeypatch):
    monkeypatch.setattr(binarize.DAB, 'split', staticmethod(lambda rows: (rows, -rows, rows > 0)))
    with pytest.raises(ValueError,
                       match=r'DAB.split must return alpha and beta of the shape \(8, 1\)'):
        step_of_layer('exact')


@pytest.mark.parametrize('search', ['fast', 'exact'])
@pytest.mark.parametrize('method', [*binarize.METHODS, 'learned'])
def test_all_forward_passes_before_a_step_see_one_projection(method, search):
    """Two passes before one backward, as in siamese networks; their gradient is that of one pass
    over both batches."""
    def gradients(*batches):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Conv2d(6, 4, 3), nn.Tanh(),
                              nn.Conv2d(4, 4, 3, groups=4))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(5)       # beyond ±1: a projection of the projection differs
        binarize.wrap(model, 1, 3, method, search)
        sum(model(batch).square().sum() for batch in batches).backward()
        return [parameter.grad
                for parameter in model.parameters()], [*model.parameters()], [*model.buffers()]
    images = torch.randn(4, 2, 9, 9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(gradients(images[:2], images[2:]), gradients(images), rtol=1e-4,
                               atol=1e-5)


@pytest.mark.parametrize('search', ['fast', 'exact'])
def test_each_step_projects_however_it_writes_the_weights(search):
    """Optimizers, and loops that write through .data, which changes no version of a tensor."""
    def trained(update):
        torch.manual_seed(0)
        conv = binarize.wrap(nn.Conv2d(2, 6, 3, bias=False), 1, 1, search=search)
        latent = conv.parametrizations.weight.original
        kept = []
        for _ in range(4):
            latent.grad = None
            conv.weight.square().sum().backward()
            kept.append(conv(torch.zeros(1, 2, 3, 3)))      # a graph that nobody runs backward
            update(latent)
        conv.weight
        return latent.detach()

    def in_place(latent):
        with torch.no_grad():
            latent.sub_(0.5 * latent.grad + 0.3)

    def data(latent):
        latent.data = latent.data - (0.5 * latent.grad + 0.3)

    def data_in_place(latent):
        latent.data.sub_(0.5 * latent.grad + 0.3)
    expected = trained(in_place)
    assert expected.mean(1).abs().max() < 1e-6      # centred after the last step
    assert torch.equal(trained(data), expected) and torch.equal(trained(data_in_place), expected)


def with_one_changed(latent):
    changed = latent.detach().clone()
    changed.view(-1)[5] += 0.9
    return changed


def fused_step(latent):
    latent.grad = latent.detach() - with_one_changed(latent)
    torch.optim.SGD([latent], lr=1.0, fused=True).step()


@pytest.mark.parametrize('change', [
    fused_step,     # PyTorch's fused optimizers do not count as a version of a tensor either
    lambda latent: latent.data.copy_(with_one_changed(latent)),
    lambda latent: setattr(latent, 'data', with_one_changed(latent)),
    lambda latent: nn.utils.vector_to_parameters(with_one_changed(latent).flatten(), [latent])])
@pytest.mark.parametrize('search', ['fast', 'exact'])
def test_a_change_of_one_weight_is_seen(change, search):
    def layer():
        torch.manual_seed(0)
        return binarize.wrap(nn.Conv2d(8, 8, 3, groups=8, bias=False), 1, 1, search=search)
    conv, fresh = layer(), layer()
    conv.weight
    latent = conv.parametrizations.weight.original
    change(latent)
    with torch.no_grad():
        fresh.parametrizations.weight.original.copy_(latent)
    assert torch.equal(conv.weight, fresh.weight)
    assert torch.equal(latent, fresh.parametrizations.weight.original)


def test_a_copy_does_not_take_its_weights_for_those_of_before():
    conv = binarize.wrap(nn.Conv2d(8, 8, 3, bias=False), 1, 1)
    conv.weight
    other = copy.deepcopy(conv)
    latent = other.parametrizations.weight.original
    with torch.no_grad():
        while latent._version < conv.parametrizations.weight.original._version:
            latent.view(-1)[5] += 0.3
    fresh = binarize.wrap(nn.Conv2d(8, 8, 3, bias=False), 1, 1)
    with torch.no_grad():
        fresh.parametrizations.weight.original.copy_(latent)
    assert torch.equal(other.weight, fresh.weight)


def test_another_search_between_two_passes():
    conv = binarize.wrap(nn.Conv2d(3, 8, 3, bias=False), 1, 1, search='exact')
    first = conv.weight.detach()
    binarize.binarization(conv).search = 'fast'
    torch.testing.assert_close(conv.weight.detach(), first)


@pytest.mark.parametrize('search', ['fast', 'exact'])
def test_gradient_checkpointing(search):
    from torch.utils.checkpoint import checkpoint

    def gradients(*runs):
        torch.manual_seed(0)
        conv = nn.Conv2d(2, 6, 3, bias=False)
        nn.init.normal_(conv.weight, std=0.9)
        binarize.wrap(conv, 1, 1, search=search)
        x = torch.ones(1, 2, 5, 5, requires_grad=True)
        sum(run(conv, x).square().sum() for run in runs).backward()
        return conv.parametrizations.weight.original.grad

    def plain(conv, x):
        return conv(x)

    for reentrant in False, True:
        def checkpointed(conv, x, reentrant=reentrant):
            return checkpoint(conv, x, use_reentrant=reentrant)
        assert torch.equal(gradients(checkpointed), gradients(plain))
        assert torch.equal(gradients(plain, checkpointed), gradients(plain, plain))


def tiny(nClasses, channels, inpsize, signLayers):
    unit = Units(signLayers)
    return network(**unit(channels, 8, 3, stride=2), **unit(8, 12, 3, stride=2),
                   **unit(12, 12, 3, groups=4),
                   pool=nn.AdaptiveAvgPool2d(1), **unit.conv(12, nClasses, 1))


def train(folder, tmp_path, name, *flags):
    main.main(['--dataset=tuberlin', f'--data_dir={folder}', '--inpsize=32', '--model_def=tinyfbin',
               '--binaryWeight',
               '--batch-size=18', '--maxlr=0.01', '--workers=0', f'--logdir={tmp_path}',
               f'--name={name}', *flags])
    return torch.load(tmp_path / name / 'last.pth.tar', weights_only=True)


@pytest.mark.parametrize('method', ['learned', 'adabin'])
def test_a_run_from_training_to_the_packed_file(sketch_folder, tmp_path, capsys, method):
    flags = f'--binarizer={method}'
    unbroken = train(sketch_folder, tmp_path, 'run', flags, '--epochs=2')
    train(sketch_folder, tmp_path, 'broken', flags, '--epochs=1')
    resumed = train(sketch_folder, tmp_path, 'broken', f'--resume={tmp_path}/broken/last.pth.tar',
                    '--epochs=2')
    for key in 'model', 'metrics':
        torch.testing.assert_close([*resumed[key].values()][:-2], [*unbroken[key].values()][:-2],
                                   rtol=0, atol=0)
    learned = {name: value for name, value in unbroken['model'].items() if '.method.' in name}
    if method == 'learned':
        assert len(learned) == 4 * 2
        scale, = (value for name, value in learned.items() if name.startswith('conv2.')
                  and 'scale' in name)
        centre, = (value for name, value in learned.items() if name.startswith('conv2.')
                   and 'centre' in name)
        assert centre != 0.1
        assert all(value == 4 for name, value in learned.items() if 'steps' in name)
    else:
        assert not learned
    last, dab = tmp_path / 'run/last.pth.tar', tmp_path / 'model.dab'
    main.main([f'--resume={last}', f'--export={dab}'])
    layers = dict(binarize.binarized(experiment.load(last).network))
    if method == 'learned':
        assert torch.equal(binarize.layer_weights(layers['conv2']).alpha,
                           (centre + scale).squeeze(1))
    capsys.readouterr()
    for source in f'--resume={last}', f'--packed={dab}':
        main.main([source, '--classify', str(sketch_folder / 'val')])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 24 and lines[:12] == lines[12:]
    report([str(last)])
    assert Learned.title in (tmp_path / 'run/report/index.html').read_text()


def test_the_report_measures_the_layers_own_values():
    from utils.report.layer_errors import measure_layers
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
    """Not from the random ones before them, nor from those of another method's values of one
    name."""
    main.main(['--dataset=tuberlin', f'--data_dir={sketch_folder}', '--inpsize=32',
               '--model_def=tinyfbin', '--epochs=1', '--maxlr=0.05',
               '--batch-size=18', '--workers=0', f'--logdir={tmp_path}', '--name=real'])
    real = f'{tmp_path}/real/last.pth.tar'
    stored = torch.load(real, weights_only=True)['model']
    capsys.readouterr()
    made = experiment.from_command(['--dataset=tuberlin', f'--data_dir={sketch_folder}',
                                    '--inpsize=32', '--model_def=tinyfbin',
                                    '--binaryWeight', '--binarizer=learned',
                                    f'--pretrained_file={real}']).make_network()
    scale = binarize.binarization(made.conv2).method.scale
    torch.testing.assert_close(scale, stored['conv2.weight'].flatten(1).abs().mean(1, keepdim=True))
    train(sketch_folder, tmp_path, 'first', '--binarizer=learned', '--epochs=1')
    capsys.readouterr()
    train(sketch_folder, tmp_path, 'again', '--binarizer=learned',
          f'--pretrained_file={tmp_path}/first/last.pth.tar', '--epochs=1')
    out = capsys.readouterr().out
    # BatchNorm behind learned values included
    assert 'of its 16 tensors, by name' in out and 'initial values' not in out


@pytest.mark.parametrize('method', ['learned', 'dab'])
def test_all_batches_of_a_step_see_the_same_weights(method):
    """And a method observes one step, not each of its batches."""
    from utils.training.optim import Steps
    torch.manual_seed(0)
    model = binarize.wrap(nn.Sequential(nn.Conv2d(3, 4, 3)), 1, 1, method)
    with torch.no_grad():
        model[0].parametrizations.weight.original.mul_(5).add_(0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    updates = Steps(model, optimizer, torch.amp.GradScaler('cpu', enabled=False), range(3),
                    accumulate=3)
    seen = []
    model[0].register_forward_hook(lambda conv,
                                   *_: seen.append(binarize.layer_weights(conv).weight))
    for number in range(3):
        with updates.batch(number) as backward:
            backward(model(torch.ones(1, 3, 4, 4)).mean())
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])
    if method == 'learned':
        assert binarize.binarization(model[0]).method.steps == 1

"""Learning rates, groups of parameters and the steps of an epoch, against references."""
import contextlib
import copy
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import flags_of
from torch import nn
from torch.nn import functional as F

import main
import models
import opts
from models.blocks import Units, network
from utils import binarize
from utils.compare import __main__ as compare
from utils.compare import cells
from utils.flags import resolve
from utils.record.progress import Progress
from utils.report.network import training
from utils.system import processes
from utils.system.errors import InputError
from utils.training import epoch as one_epoch
from utils.training import optim
from utils.training.checkpoint import read_checkpoint

CPU = torch.device('cpu')


def rates(*arguments):
    flags = flags_of(*arguments)
    return [optim.learning_rate(flags, epoch) for epoch in range(flags.epochs)]


# Learning rates

RANGE = ['--maxlr=0.5', '--minlr=0.01']


@pytest.mark.parametrize('epochs', [1, 2, 7, 50])
def test_cosine_is_pytorchs(epochs):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs, scheduler = [], torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, max(1, epochs - 1), eta_min=0.01)
    for _ in range(epochs):
        theirs.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    ours = rates('--learningratescheduler=cosine', f'--epochs={epochs}', *RANGE)
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert ours[0] == 0.5 and (epochs == 1 or ours[-1] == 0.01)


def test_linear_constant_and_decayschedular():
    assert rates('--learningratescheduler=linear', '--epochs=4', '--maxlr=0.4',
                 '--minlr=0.1') == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert rates('--learningratescheduler=linear', '--epochs=4', *RANGE)[-1] == 0.01
    assert rates('--learningratescheduler=constant', '--epochs=3', *RANGE) == [0.5] * 3
    assert optim.decay_schedular(5000, 0.002, 0.0001, decayinterval=1, decaylevel=10) == 0.0001
    assert rates('--epochs=7', '--decayinterval=2', '--decaylevel=4', *RANGE) == [
        0.5, 0.5, 0.125, 0.125, 0.03125, 0.03125, 0.01]


@pytest.mark.parametrize('schedule', optim.SCHEDULES)
def test_warmup_rises_to_maxlr_and_the_schedule_runs_over_the_rest(schedule):
    flags = [f'--learningratescheduler={schedule}', '--decayinterval=2', *RANGE]
    warm = rates('--epochs=11', '--warmup=4', *flags)
    assert warm[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5]) and warm[4] == 0.5
    assert warm[4:] == rates('--epochs=7', *flags)
    assert rates('--epochs=3', '--warmup=4',
                 *flags) == warm[:3]  # as for utils.bench, which trains two epochs


# Groups of parameters

def small(inpsize=16, **options):
    """A binarized network without BatchNorm and dropout, as deterministic as a function."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Conv2d(6, 8, 3), nn.Tanh(),
                          nn.AdaptiveAvgPool2d(2), nn.Conv2d(8, 3, 2), nn.Flatten(),
                          nn.LogSoftmax(1))
    nn.init.normal_(model[2].weight, std=0.8)       # the clamp moves means
    return binarize.wrap(model, 2, 2, **options).train()


def names(model, noDecay):
    spared = optim.spared(model, noDecay)
    return {name for name, parameter in model.named_parameters() if parameter in spared}


def test_what_weight_decay_spares():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3),
                          nn.BatchNorm2d(4, affine=False))
    binarize.wrap(model, 2, 2)
    latent = '2.parametrizations.weight.original'
    assert {name for name, _ in model.named_parameters()} == {
        '0.weight', '0.bias', '1.weight', '1.bias', '2.bias', latent}
    assert names(model, '') == set() and names(model, 'latent') == {latent}
    assert names(model, 'norm') == {'1.weight', '1.bias'}
    assert names(model, 'bias') == {'0.bias', '2.bias'}
    assert names(model, 'norm,bias,latent') == {'0.bias', '1.weight', '1.bias', '2.bias', latent}


def gradients_of_ones(model):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)


@pytest.mark.parametrize('name, decoupled', [('sgd', False), ('adam', False), ('adamw', True)])
def test_decay_by_hand(name, decoupled):
    model = small()
    optimizer = optim.build_optimizer(name, model, 0.1, 0.5, 0.0, False, 'bias,latent')
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    gradients_of_ones(model)
    optimizer.step()
    for key, parameter in model.named_parameters():
        decay = 0.0 if 'bias' in key or 'original' in key else 0.5
        old = before[key] * (1 - 0.1 * decay) if decoupled else before[key]
        gradient = 1 + (0 if decoupled else decay * before[key])
        step = gradient if name == 'sgd' else gradient.sign() if isinstance(
            gradient, torch.Tensor) else 1  # Adam's first
        assert torch.allclose(parameter, old - 0.1 * step, atol=1e-6), key


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
@pytest.mark.parametrize('before, after', [('', 'bias'), ('latent', ''), ('bias', 'latent'),
                                           ('bias,latent', 'bias,latent')])
def test_the_state_of_a_parameter_stays_its_own_under_other_groups(name, before, after):
    model = small()
    old = optim.build_optimizer(name, model, 0.1, 0.5, 0.9, False, before)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    old.step()
    stored = optim.optimizer_state(old, model)
    assert sorted(sum((group['params'] for group in stored['param_groups']), [])) == [*range(6)]
    new = optim.build_optimizer(name, model, 0.1, 0.5, 0.9, False, after)
    optim.restore_optimizer(new, model, stored['state'])
    for parameter in model.parameters():
        assert old.state[parameter].keys() == new.state[parameter].keys()
        assert all(
            torch.equal(value, new.state[parameter][key])
            for key, value in old.state[parameter].items())
    assert all(torch.equal(value, optim.optimizer_state(new, model)['state'][number][key])
               for number, values in stored['state'].items() for key, value in values.items())


def test_one_group_is_stored_as_pytorch_stores_it():
    model = small()
    optimizer = optim.build_optimizer('adam', model, 0.1, 0.5, 0.9, False)
    gradients_of_ones(model)
    optimizer.step()
    ours, theirs = optim.optimizer_state(optimizer, model), optimizer.state_dict()
    assert ours['param_groups'] == theirs['param_groups']
    assert list(ours['state']) == list(theirs['state'])


# The steps of an epoch

def batches(count, size, classes=3, inpsize=16):
    torch.manual_seed(1)
    return [(torch.randn(size, 1, inpsize, inpsize), torch.arange(size) % classes)
            for _ in range(count)]


def train(model, loader, lr=0.5, name='sgd', device=CPU, **options):
    optimizer = optim.build_optimizer(name, model, lr, 0.0, 0.0, False)
    return one_epoch.train_epoch(model, loader, optimizer, device, Progress('test', len(loader)),
                                 10, **options)


def latent(model):
    return model[2].parametrizations.weight.original


def distance(model, other):
    return max((a - b).abs().max().item() for a, b in zip(model.parameters(), other.parameters()))


def test_the_clamp_moves_means_in_the_network_of_these_tests():
    once = binarize.project_(latent(small()).detach().clone())
    assert (binarize.project_(once.clone()) - once).abs().max() > 0.01


@pytest.mark.parametrize('method', binarize.METHODS)
def test_accumulated_batches_are_one_batch(method):
    whole, parts, start = small(method=method), small(method=method), small(method=method)
    loader = batches(4, 3)
    train(whole, [tuple(map(torch.cat, zip(*loader)))])
    train(parts, loader, accumulate=4)
    assert distance(whole, parts) < 1e-5 < 1e-3 < distance(whole[0], start[0])


def test_accumulated_batches_are_one_batch_under_compile():
    """Where each forward pass projects again, so that latent weights are restored before it."""
    whole, parts, loader = small(), small(), batches(4, 3)
    train(whole, [tuple(map(torch.cat, zip(*loader)))])
    train(torch.compile(parts, backend='eager'), loader, accumulate=4)
    assert distance(whole, parts) < 1e-5


def test_the_last_group_takes_the_mean_over_what_it_has():
    one, other = small(), small()
    loader = batches(5, 3)
    together = [tuple(map(torch.cat, zip(*loader[i:i + 2]))) for i in (0, 2, 4)]
    train(one, together)
    metrics = train(other, loader, accumulate=2)
    assert distance(one, other) < 1e-5 and metrics['images'] == 15
    one, other = small(), small()
    train(one, together[:1])
    train(other, loader[:2], accumulate=100)
    assert distance(one, other) < 1e-5


def test_clipping_by_hand():
    model, reference = small(), small()
    (images, target), = loader = batches(1, 6)
    F.nll_loss(reference(images), target).backward()
    norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in reference.parameters()))
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter -= 0.5 * parameter.grad * min(1, 0.01 / norm)
    assert norm > 0.02
    train(model, loader, clipGrad=0.01)
    assert distance(model, reference) < 1e-6
    long, plain = small(), small()
    train(long, loader, clipGrad=2 * norm)
    train(plain, loader)
    assert distance(long, plain) < 1e-6 < distance(long, model)


def test_accumulated_gradients_are_clipped_once():
    whole, parts = small(), small()
    loader = batches(3, 4)
    train(whole, [tuple(map(torch.cat, zip(*loader)))], clipGrad=0.01)
    train(parts, loader, accumulate=3, clipGrad=0.01)
    assert distance(whole, parts) < 1e-6


def test_float16_steps_are_those_of_float32_but_for_rounding():
    """The scaler multiplies gradients by 65536, and divides them before they are clipped."""
    half, single, start = small(), small(), small()
    loader = batches(4, 6)
    options = dict(accumulate=2, clipGrad=0.05, labelSmoothing=0.1)
    scaler = torch.amp.GradScaler('cpu')
    train(half, loader, amp='float16', scaler=scaler, **options)
    train(single, loader, **options)
    step = distance(single[0], start[0])
    assert distance(half[0], single[0]) < 0.1 * step and scaler.get_scale() == 65536


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.9])
def test_label_smoothing(smoothing):
    """Source: Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, §7."""
    model, loader = small(), batches(1, 6)
    (images, target), = loader
    log_probs = copy.deepcopy(model)(images)
    expected = (1 - smoothing) * F.nll_loss(log_probs, target) - smoothing * log_probs.mean()
    assert train(model, loader, labelSmoothing=smoothing)['loss'] == pytest.approx(expected.item())
    plain = one_epoch.validate(model, loader, CPU, Progress('test', 1))['loss']
    assert plain == pytest.approx(F.nll_loss(model.eval()(images), target).item(), rel=1e-5)


# Runs

@pytest.fixture(scope='module')
def common(sketch_folder, tmp_path_factory):
    """The flags of a run, or a comparison, of a tiny network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, '_variants', dict(models._variants))

        @models.register(inpsize=16)
        def tiny(nClasses, channels, inpsize):
            unit = Units()
            return network(**unit(channels, 8, 3), pool1=nn.MaxPool2d(2), drop=nn.Dropout2d(0.2),
                           **unit(8, 8, 3), pool=nn.AdaptiveAvgPool2d(1), **unit.conv(
                               8, nClasses, 1))

        yield [
            '--dataset=tuberlin', f'--data_dir={sketch_folder}', '--model_def=tiny', '--inpsize=16',
            '--workers=0', '--batch-size=8', '--maxlr=0.01',
            f'--logdir={tmp_path_factory.mktemp("runs")}']


@pytest.fixture(scope='module')
def run(common):
    """Trains a binarized network by main, and returns the folder of the run."""
    def run(name, *flags):
        main.main([*common, '--binaryWeight', f'--name={name}', *flags])
        return Path(common[-1].partition('=')[2]) / name
    return run


@pytest.fixture(scope='module')
def plain(run):
    return contents(run('plain', '--epochs=4'))


def contents(folder):
    """What two equal runs have in common."""
    rows = [
        json.loads(line) for name in ('metrics', 'weights')
        for line in (folder / f'{name}.jsonl').read_text().splitlines()]
    stored = [read_checkpoint(folder / f'{name}.pth.tar') for name in ('last', 'best')]
    for row in rows + [checkpoint['metrics'] for checkpoint in stored]:
        row.pop('time', None), row.pop('data_time', None)
    for checkpoint in stored:
        checkpoint['flags'] = {
            key: value for key, value in checkpoint['flags'].items()
            if key not in ('name', 'resume', 'overwrite')}
    return rows, stored


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@contextlib.contextmanager
def interrupted_in_epoch(number):
    """A Ctrl-C during so many-th epoch that is trained, from 1."""
    train_epoch, calls = one_epoch.train_epoch, []

    def interrupted(*arguments):
        calls.append(train_epoch(*arguments))
        if len(calls) == number:
            raise KeyboardInterrupt
        return calls[-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_epoch, 'train_epoch', interrupted)
        with pytest.raises(SystemExit):
            yield


@pytest.mark.parametrize(
    'flags',
    [['--learningratescheduler=cosine', '--warmup=1'],
     ['--learningratescheduler=linear', '--warmup=3', '--optimType=adamw', '--weightDecay=0.1'],
     ['--learningratescheduler=constant', '--noDecay=latent,norm', '--weightDecay=0.1'],
     ['--optimType=sgd', '--noDecay=bias', '--weightDecay=0.01', '--clipGrad=0.1'],
     ['--accumulate=3'], ['--labelSmoothing=0.2'],
     ['--accumulate=2', '--clipGrad=0.5', '--labelSmoothing=0.1', '--amp=float16']], ids=' '.join)
def test_a_resumed_run_equals_an_unbroken_one(run, plain, flags):
    whole = run('whole', '--epochs=4', '--overwrite', *flags)
    rows, stored = contents(whole)
    with interrupted_in_epoch(3):
        run('half', '--epochs=4', '--overwrite', *flags)
    half = whole.with_name('half')
    assert read_checkpoint(half / 'last.pth.tar')['epoch'] == 2
    main.main([f'--resume={half}/last.pth.tar'])
    other_rows, other_stored = contents(half)
    assert rows == other_rows and len(rows) == 4 * 3 and same(stored, other_stored)
    assert rows != plain[0]         # every flag does something


def test_another_length_of_a_schedule_is_said(run, capsys):
    folder = run('length', '--epochs=2', '--learningratescheduler=linear', '--minlr=0.001')
    capsys.readouterr()
    run('length', '--epochs=4', f'--resume={folder}/last.pth.tar')
    note = ('the linear schedule now ends with --epochs=4, not 2: '
            'the learning rate goes on at 0.004 after 0.001')
    assert note in capsys.readouterr().out and note in (folder / 'log.txt').read_text()
    run('length', '--epochs=5', f'--resume={folder}/last.pth.tar',
        '--learningratescheduler=decayschedular')
    out = capsys.readouterr().out
    assert 'the schedule is now --learningratescheduler=decayschedular, not linear: ' in out


@pytest.mark.parametrize('flags, note', [
    (['--learningratescheduler=cosine', '--decayinterval=3', '--decaylevel=4'
      ], '--decayinterval and --decaylevel without effect on --learningratescheduler=cosine'),
    (['--learningratescheduler=constant', '--minlr=0.1'
      ], '--minlr without effect on --learningratescheduler=constant'),
    (['--warmup=15'], '--warmup=15 leaves nothing of --epochs=15'),
    (['--optimType=adamw'], 'computes what adam does'),
    (['--noDecay=norm'], '--noDecay without --weightDecay'),
    (['--noDecay=latent', '--weightDecay=1'], 'no latent weights'),
    ([
        '--learningratescheduler=cosine', '--warmup=14', '--optimType=adamw', '--weightDecay=1',
        '--noDecay=bias', '--minlr=0.0001'], None),
    (['--decayinterval=3', '--decaylevel=4', '--minlr=0.0001'], None)])
def test_flags_without_effect_are_said(flags, note):
    notes = resolve.ignored(flags_of(*flags), 1, CPU)
    assert (notes == []) if note is None else (len(notes) == 1 and note in notes[0])


@pytest.mark.parametrize('flag, sentence',
                         [('--learningratescheduler=cosin', 'did you mean cosine'),
                          ('--labelSmoothing=1', 'must be less than 1, not 1'),
                          ('--noDecay=norm,biases', "unknown name 'biases': did you mean bias"),
                          ('--noDecay=norm,', "unknown name ''"), ('--accumulate=0', 'at least 1'),
                          ('--clipGrad=-1', 'at least 0'), ('--warmup=-1', 'at least 0'),
                          ('--minlr=1', '--maxlr')])
def test_bad_values(flag, sentence):
    with pytest.raises(InputError) as error:
        flags_of(flag)
    assert sentence in str(error.value) and flag.split('=')[0] in str(error.value)
    assert '\n' not in str(error.value)


def test_a_checkpoint_older_than_the_flags_has_their_defaults():
    flags = vars(resolve.complete(flags_of(), ['a', 'b'], 1, CPU))
    new = {'warmup', 'noDecay', 'clipGrad', 'accumulate', 'labelSmoothing'}
    assert opts.recorded({key: value for key, value in flags.items() if key not in new}) == flags
    assert [flags[name] for name in sorted(new)] == [1, 0.0, 0.0, '', 0]
    assert flags_of('--noDecay=latent,norm,norm').noDecay == 'norm,latent'
    assert flags_of('--noDecay=').noDecay == ''


def test_the_report_says_how_the_steps_were_made():
    assert training(vars(flags_of())) == (
        'adam, learning rate 0.001, divided by 2 every 50 epochs down to 1e-05, batches of 32, '
        'weight decay 0, seed 0')
    flags = flags_of('--learningratescheduler=cosine', '--warmup=2', '--accumulate=4',
                     '--weightDecay=0.1', '--noDecay=norm,bias', '--clipGrad=0.5',
                     '--labelSmoothing=0.1')
    assert training(vars(flags)) == (
        'adam, learning rate 0.001, reached after a warm-up of 2 epochs, falling as a cosine to '
        '1e-05 in epoch 15, batches of 32, '
        '4 of them in a step, weight decay 0.1, but none of norm,bias, gradients clipped at the '
        'norm 0.5, label smoothing 0.1, seed 0'
    )


def test_a_comparison_does_not_mix_lengths_of_a_schedule(common, monkeypatch, capsys):
    monkeypatch.setattr(processes, 'call_in_new_process',
                        lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(cells, 'evaluate_cell', lambda *_: {})
    monkeypatch.setattr(compare, 'write', lambda *_: None)
    last = Path(common[-1].partition('=')[2]) / 'cells/tiny-seed0/last.pth.tar'

    def compare_methods(*flags):
        compare.main([
            *common, '--methods=real', '--seeds=1', '--name=cells', '--labelSmoothing=0.1', *flags])
        return read_checkpoint(last)
    assert compare_methods('--epochs=1')['flags']['labelSmoothing'] == 0.1
    assert compare_methods('--epochs=2')['epoch'] == 2      # continued
    cosine = '--learningratescheduler=cosine'
    last.unlink()
    compare_methods('--epochs=1', cosine)
    with pytest.raises(SystemExit):
        compare_methods('--epochs=2', cosine)
    error = capsys.readouterr().err
    assert 'was trained with --epochs=1, not with --epochs=2' in error and '--name' in error
    assert read_checkpoint(last)['epoch'] == 1

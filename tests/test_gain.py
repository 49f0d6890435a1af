"""Where dab can gain over xnor: the measures, the runs without centring, resuming, bad input."""
import pytest
import torch
from torch import nn

import main
import models
from utils import binarize, experiment, layer_errors, processes
from utils.compare import gain, gain_runs, gain_tables
from utils.training.checkpoint import read_checkpoint

METHODS = ['dab', 'xnor', 'dab-uncentred', 'xnor-uncentred']
FLAGS = ['--dataset=tuberlin', '--inpsize=17', '--binEnd=3', '--batch-size=12', '--testbatchsize=12', '--workers=0', '--epochs=2']


@pytest.fixture(scope='module', autouse=True)
def in_this_process():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, 'call_in_new_process', lambda function, *arguments: function(*arguments))
        yield patch


def tiny(nClasses, channels, inpsize, signLayers=''):
    return nn.Sequential(nn.Conv2d(channels, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12),
                         nn.ReLU(), nn.Conv2d(12, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, nClasses), nn.LogSoftmax(1))


@pytest.fixture(scope='module', autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models._variants, 'tiny', models.Variant(tiny, 32, 8, {}, ''))
        yield


@pytest.fixture(scope='module')
def measure(sketch_folder):
    def run(logdir, *flags):
        gain.main([*FLAGS, f'--data_dir={sketch_folder}', f'--logdir={logdir}', *flags])
        return logdir / 'gain'
    return run


@pytest.fixture(scope='module')
def finished(measure, tmp_path_factory):
    """The folder of a finished command."""
    return measure(tmp_path_factory.mktemp('gain'), '--networks=tiny', '--measureAt=0', f'--methods={",".join(METHODS)}')


def latent(folder, run, epoch=2):
    checkpoint = read_checkpoint(folder / run / 'last.pth.tar')
    assert checkpoint['epoch'] == epoch
    return {name: value for name, value in checkpoint['model'].items() if name.endswith('original')}


def largest_mean(weights):
    """Over input channels, of the projected weights of the first binarized convolution."""
    return next(iter(weights.values())).clamp(-1, 1).mean(1).abs().max()


def brute_force(rows):
    """{column: value} of float64 rows (out, n), each split by definition."""
    errors, shares = [], []
    for row in rows:
        row = row.sort(descending=True).values
        losses = [sum((part - part.mean()).square().sum() for part in (row[:k], row[k:])) for k in range(1, len(row))]
        errors.append(min(losses))
        shares.append((1 + int(torch.stack(losses).argmin())) / len(row))
    shares, norm = torch.tensor(shares).double(), rows.square().sum()
    error_dab = torch.stack(errors).sum() / norm
    error_xnor = (rows.abs() - rows.abs().mean(1, keepdim=True)).square().sum() / norm
    centred = rows - rows.mean(1, keepdim=True)
    error_adabin = (centred.abs() - centred.std(1, correction=0, keepdim=True)).square().sum() / norm
    return {'filters': len(rows), 'n': rows.size(1), 'K_over_n': shares.mean(), 'K_over_n_sd': shares.std(correction=0),
            'asymmetry': (shares - 0.5).abs().mean(), 'error_dab': error_dab, 'error_xnor': error_xnor,
            'error_adabin': error_adabin, 'gain': 1 - error_dab / error_xnor, 'squared_norm': norm}


@pytest.mark.parametrize('method', ['dab', 'xnor'])
@pytest.mark.parametrize('centring', [True, False])
def test_the_measures_are_those_of_the_definition(method, centring):
    weight = torch.randn(5, 4, 3, 3).exp()
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, 3))
    with torch.no_grad():
        model[1].weight.copy_(0.1 * weight)
    binarize.wrap(model, 2, 2, method, centring=centring)
    found, = gain_runs.measures(model)
    rows = 0.1 * weight
    rows = (rows - rows.mean(1, keepdim=True) if centring else rows).clamp(-1, 1).flatten(1).double()
    assert (found.pop('number'), found.pop('name')) == (2, '1')
    assert found == pytest.approx({key: float(value) for key, value in brute_force(rows).items()}, rel=1e-6)
    assert found['gain'] > 0.02


def test_a_run_has_its_measures_of_every_layer_before_the_first_step_and_after_the_last(finished):
    everything = gain_tables.read_rows(finished / 'gain.csv')
    assert [row for method in METHODS for row in gain_tables.read_rows(finished / f'tiny-{method}/gain.csv')] == everything
    places = [(row['method'], row['epoch'], row['number']) for row in everything]
    assert places == [(method, epoch, number) for method in METHODS for epoch in (0, 2) for number in (2, 3)]
    first = [[row['error_dab'] for row in everything if (row['epoch'], row['method']) == (0, method)] for method in ('dab', 'xnor')]
    assert first[0] == pytest.approx(first[1])      # the same initial weights, projected by two codes


def test_flips_are_the_weights_that_change_sides_in_a_step(finished, sketch_folder, tmp_path, monkeypatch):
    counted, networks = [], []      # the share of the first layer, in every step
    build, adam = experiment.Experiment.make_network, torch.optim.Adam.step

    def make_network(self):
        networks.append(build(self))
        return networks[-1]

    def step(self, *arguments, **named):
        conv = networks[-1][3]
        before = binarize.layer_weights(conv).mask
        adam(self, *arguments, **named)
        counted.append((binarize.layer_weights(conv).mask != before).double().mean().item())
    monkeypatch.setattr(experiment.Experiment, 'make_network', make_network)
    monkeypatch.setattr(torch.optim.Adam, 'step', step)
    main.main([*FLAGS, f'--data_dir={sketch_folder}', f'--logdir={tmp_path}', '--name=run', '--model_def=tiny', '--binaryWeight'])
    row = gain_tables.read_rows(finished / 'tiny-dab/gain.csv')[2]
    steps = len(counted) // 2
    assert (row['epoch'], row['number']) == (2, 2) and steps > 1
    assert row['flips'] == pytest.approx(sum(counted[steps:]) / steps) and row['flips'] > 0


def test_uncentred_runs_are_uncentred(finished):
    for method in 'dab', 'xnor':
        assert largest_mean(latent(finished, f'tiny-{method}')) < 1e-3
        assert largest_mean(latent(finished, f'tiny-{method}-uncentred')) > 1e-2


def test_measuring_does_not_change_what_is_trained(finished, sketch_folder, tmp_path):
    main.main([*FLAGS, f'--data_dir={sketch_folder}', f'--logdir={tmp_path}', '--name=run', '--model_def=tiny',
               '--binaryWeight'])
    stored = [read_checkpoint(path / 'last.pth.tar') for path in (tmp_path / 'run', finished / 'tiny-dab')]
    assert all(torch.equal(value, stored[1]['model'][name]) for name, value in stored[0]['model'].items())
    assert torch.equal(stored[0]['rng']['cpu'], stored[1]['rng']['cpu'])


def test_the_summary_adds_up_the_squared_errors_of_all_layers(finished):
    rows = [row for row in gain_tables.read_rows(finished / 'gain.csv')
            if (row['method'], row['epoch']) == ('xnor-uncentred', 2)]
    sums = [sum(row[f'error_{method}'] * row['squared_norm'] for row in rows) for method in ('dab', 'xnor')]
    lines = (finished / 'gain.md').read_text().splitlines()
    line, = [line for line in lines if line.startswith('| tiny | xnor-uncentred |')]
    assert line.split(' | ')[-1] == f'{100 - 100 * sums[0] / sums[1]:.2f} |'
    tables = [line for line in lines if line.startswith('| ')]
    assert len(tables) == 2 + 4 + 2 + 8 and not any('uncentred' in line for line in tables[7:])
    gains = [float(line.split(' | ')[-1].removesuffix(' |')) for line in tables[8:]]
    assert gains == sorted(gains, reverse=True)


def test_a_repeated_command_trains_nothing_and_an_interrupted_one_resumes(finished, measure, tmp_path, monkeypatch):
    folder = measure(tmp_path, '--networks=tiny', '--methods=xnor', '--measureAt=0', '--epochs=1')
    measure(tmp_path, '--networks=tiny', '--methods=xnor', '--measureAt=0')   # a second epoch
    unbroken, resumed = (gain_tables.read_rows(path / 'tiny-xnor/gain.csv') for path in (finished, folder))
    assert [row for row in resumed if row['epoch'] != 1] == unbroken and len(resumed) == 6
    monkeypatch.setattr(processes, 'call_in_new_process', None)
    before = (folder / 'gain.md').read_text().splitlines()[4:]
    measure(tmp_path, '--networks=tiny', '--methods=xnor')
    assert (folder / 'gain.md').read_text().splitlines()[4:] == before


def test_a_run_that_fails_does_not_stop_the_others(measure, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        measure(tmp_path, '--networks=alexnet,tiny', '--methods=xnor', '--epochs=1', '--measureAt=0')
    error = capsys.readouterr().err
    assert ended.value.code == 1 and 'alexnet-xnor failed: ' in error and 'Traceback' not in error
    assert len(gain_tables.read_rows(tmp_path / 'gain/gain.csv')) == 4


@pytest.mark.parametrize('flag, sentence', [
    ('--networks=nin,sketchanetwbn', "argument --networks: unknown name 'sketchanetwbn': did you mean sketchanetwbin"),
    ('--model_def=nin', '--model_def is decided by the comparison'),
    ('--binarizer=xnor', '--binarizer is decided by the comparison'),
    ('--measureAt=0,x', "argument --measureAt: 'x' is not a whole number"),
    ('--no-centring', '--no-centring is decided by the comparison'),
    ('--epochs=0', '--epochs=0: '),
])
def test_a_wrong_flag_is_one_sentence(measure, tmp_path, capsys, flag, sentence):
    with pytest.raises(SystemExit) as ended:
        measure(tmp_path, flag)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and f'utils.compare.gain: error: {sentence}' in error and len(error.splitlines()) == 1


@pytest.mark.parametrize('n', [9, 64, 576])
@pytest.mark.parametrize('distribution, constant', [('rand', 2.0), ('randn', 2.7)])
def test_the_gain_on_symmetric_weights_is_a_constant_over_n(n, distribution, constant):
    draw = getattr(torch, distribution)
    weight = draw(2_000_000 // n // 9, n, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = 2 * weight - 1 if distribution == 'rand' else weight
    dab, xnor = (layer_errors.squared_errors(weight, method).sum() for method in ('dab', 'xnor'))
    assert n * gain_tables.gain(dab, xnor) == pytest.approx(constant, rel=0.15)

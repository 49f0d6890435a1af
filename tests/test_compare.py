"""The comparison of methods: cells, counting, resuming, tuning, statistics, bad input."""
import csv
import json
import math
import os
import shutil
import signal
import time
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import models
from models.blocks import Units, network
from utils import binarize, experiment
from utils.compare import __main__ as compare
from utils.compare import cells, output, statistics, tuning
from utils.compare.cells import train_cell
from utils.record.describe import provenance
from utils.system import files, processes
from utils.system.processes import call_in_new_process
from utils.training import epoch
from utils.training.checkpoint import read_checkpoint

FLAGS = ['--model_def=tiny', '--methods=real,dab,xnor', '--seeds=2', '--dataset=tuberlin',
         '--workers=0', '--batch-size=12', '--epochs=2', '--name=small']
SMALL = '--methods=real,dab', '--inputs=real', '--seeds=1'
CELLS = [f'{name}-seed{seed}' for seed in (0, 1) for name in (
    'tiny', 'tinywbin-dab', 'tinywbin-xnor', 'tinyfbin-dab', 'tinyfbin-xnor')]


def register_tiny():
    """A family of two convolutions and a classifier."""
    @models.register(inpsize=16, variants={'tiny': {'signLayers': ''},
                                           'tinywbin': {'signLayers': ''},
                                           'tinyfbin': {'signLayers': '2'}})
    def tiny(nClasses, channels, inpsize, signLayers):
        unit = Units(signLayers)
        return network(**unit(channels, 4, 3, stride=2), **unit(4, 6, 3),
                       pool=nn.AdaptiveAvgPool2d(1), **unit.conv(6, nClasses, 1))


@pytest.fixture(scope='module', autouse=True)
def in_this_process():
    """Train the cells in the process of the tests, which is faster; two tests undo it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, '_variants', dict(models._variants))
        patch.setattr(processes, 'call_in_new_process', lambda function, *rest: function(*rest))
        register_tiny()
        yield


@pytest.fixture(scope='module')
def run(sketch_folder):
    def run(logdir, *flags, rate=('--maxlr=0.01',)):
        where = f'--data_dir={sketch_folder}', f'--logdir={logdir}'
        compare.main([*FLAGS, *where, *rate, *flags])
        return logdir / 'small'
    return run


@pytest.fixture(scope='module')
def finished(run, tmp_path_factory):
    """The folder of a finished comparison, with its plots."""
    return run(tmp_path_factory.mktemp('compared'))


@pytest.fixture(autouse=True)
def without_plots(finished, monkeypatch):
    monkeypatch.setattr(Figure, 'savefig', lambda self, path, **_: path.write_bytes(b''))


@pytest.fixture
def failure(run, capsys):
    """A function that runs a comparison that ends with an error: its exit code and lines."""
    def failure(*arguments):
        with pytest.raises(SystemExit) as stop:
            run(*arguments)
        return stop.value.code, capsys.readouterr().err.splitlines()
    return failure


@pytest.fixture
def without_training(monkeypatch):
    metrics = dict.fromkeys(('top1', 'top5', 'loss', 'time', 'data_time'), 0.) | {'images': 36}
    monkeypatch.setattr(epoch, 'train_epoch', lambda *_: metrics)


def table(folder):
    """compare.csv without what the clock decides."""
    with open(folder / 'compare.csv') as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key != 'hours'} for row in rows]


def checkpoints(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob('last.pth.tar')}


def test_what_a_comparison_writes(finished, run):
    for name in ('curves', 'accuracy'):
        with Image.open(finished / f'{name}.png') as picture:
            assert min(picture.size) > 300
        assert '<svg' in (finished / f'{name}.svg').read_text()
    assert sorted(path.name for path in finished.iterdir() if path.is_dir()) == sorted(CELLS)
    rows = table(finished)
    assert [(row['weights'], row['inputs']) for row in rows] == [
        ('real', 'real'), ('dab', 'real'), ('xnor', 'real'), ('dab', 'sign'), ('xnor', 'sign')]
    for row, first in zip(rows, CELLS):
        metrics = [read_checkpoint(finished / name / 'last.pth.tar')['metrics']
                   for name in (first, first.replace('seed0', 'seed1'))]
        for top in 'top1', 'top5':
            mean = sum(of_seed[top] for of_seed in metrics) / 2
            assert float(row[top]) == pytest.approx(mean)
    assert rows[0]['bits_per_weight'] == '32' and 1 < float(rows[1]['bits_per_weight']) < 4
    assert float(rows[0]['megabytes']) > float(rows[1]['megabytes'])
    text = (finished / 'compare.md').read_text()
    assert text.count(' − ') == 8 and 'real − dab' in text and 'smallest difference' in text
    assert 'on 12 validation images of tuberlin' in text and '--maxlr)' not in text


def test_the_cells_of_a_seed_start_alike_and_see_the_same_data(finished):
    starts = []
    for name in CELLS:
        cell = experiment.from_command([f'--resume={finished / name}/last.pth.tar'])
        model = replace(cell, source=None).make_network()
        cell.data.train.set_epoch(0)
        batch, _ = next(iter(cell.make_loaders()[0]))
        weights = [conv.parametrizations.weight.original if binarize.binarization(conv)
                   else conv.weight for _, _, conv in binarize.convolutions(model)]
        starts.append((batch, *weights))
    for name, start in zip(CELLS, starts):
        same = starts[0] if name.endswith('0') else starts[5]
        assert all(map(torch.equal, start, same)), name
    assert not any(map(torch.equal, starts[0], starts[5]))


def test_a_finished_cell_is_not_trained_again(finished, run, monkeypatch):
    before, rows = checkpoints(finished), table(finished)
    monkeypatch.setattr(processes, 'call_in_new_process', None)
    run(finished.parent)
    assert checkpoints(finished) == before and table(finished) == rows
    run(finished.parent, '--tenCrop')   # counted again, with ten crops
    assert checkpoints(finished) == before
    assert 'ten crops' in (finished / 'compare.md').read_text()


def interrupt_in(monkeypatch, *numbers):
    """Ctrl-C ahead of these of the epochs that are trained from now on; returns all of them."""
    train_epoch, calls = epoch.train_epoch, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) in numbers:
            raise KeyboardInterrupt
        return train_epoch(*arguments)
    monkeypatch.setattr(epoch, 'train_epoch', interrupted)
    return calls


def test_an_interrupted_comparison_ends_in_the_same_table(finished, run, failure, tmp_path,
                                                          monkeypatch):
    # The first epoch of the second cell and, of what then goes on, the second.
    calls = interrupt_in(monkeypatch, 3, 5)
    some = '--methods=real,dab', '--inputs=real'
    for _ in range(2):
        code, error = failure(tmp_path, *some)
        assert code == 130 and len(error) == 1
        assert len(table(tmp_path / 'small')) == 1
    run(tmp_path, *some)
    run(finished.parent)
    assert len(calls) == 2 * 4 + 2
    expected = [row for row in table(finished) if row['inputs'] == 'real'][:2]
    assert table(tmp_path / 'small') == expected


def test_cells_that_fail_do_not_stop_the_others(failure, tmp_path, monkeypatch):
    train_epoch = epoch.train_epoch
    errors = [epoch.Diverged('NaN'), MemoryError('17 GiB'), ZeroDivisionError('a bug')]

    def failing(*arguments):
        if errors:
            raise errors.pop(0)
        return train_epoch(*arguments)
    monkeypatch.setattr(epoch, 'train_epoch', failing)
    code, (nan, memory, *trace, bug, summary) = failure(
        tmp_path, '--methods=real,xnor,bnn,dab', '--inputs=real', '--seeds=1', '--epochs=1')
    assert code == 1
    assert 'tiny-seed0, tinywbin-xnor-seed0, tinywbin-bnn-seed0 failed' in summary
    assert 'tiny-seed0 failed' in nan and 'NaN' in nan
    assert '--batch-size' in memory and 'a bug' in bug
    assert 'Traceback' in trace[0]      # of a bug only
    assert [row['weights'] for row in table(tmp_path / 'small')] == ['dab']


def train_tiny(flags, *rest):
    """In a new process: die in a cell that is named to die, train the others."""
    if flags['name'] == 'tiny-seed0' and 'killed' in flags['logdir']:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.set_num_threads(1)
    register_tiny()
    train_cell(flags, *rest)


@pytest.fixture
def in_new_processes(monkeypatch):
    monkeypatch.setattr(processes, 'call_in_new_process', call_in_new_process)
    monkeypatch.setattr(cells, 'train_cell', train_tiny)
    monkeypatch.setattr(os, 'cpu_count', lambda: 2)     # one thread for each of two jobs


def test_a_cell_whose_process_is_killed_does_not_stop_the_others(failure, tmp_path,
                                                                 in_new_processes):
    code, (reason, summary) = failure(tmp_path / 'killed', *SMALL, '--epochs=1')
    assert code == 1 and 'killed' in reason and 'tiny-seed0 failed' in summary
    folder = tmp_path / 'killed/small'
    assert [row['weights'] for row in table(folder)] == ['dab']
    history = (folder / 'tinywbin-dab-seed0/history.jsonl').read_text()
    assert '"command": "python3 -m utils.compare ' in history


def test_cells_trained_at_the_same_time_give_the_same_table(finished, run, tmp_path, capsys,
                                                            in_new_processes):
    run(tmp_path, '--jobs=2', *SMALL)
    out = capsys.readouterr().out
    assert 'cell 1 of 2: tiny-seed0' in out and 'epoch' not in out.split('cell 2 of 2')[0]
    run(finished.parent, *SMALL)
    assert table(tmp_path / 'small') == table(finished)


def hold(folder):
    with files.claimed(folder):
        time.sleep(60)


def test_two_comparisons_in_one_folder(finished, run, failure, start):
    first = start(hold, finished)
    first.wait_for((finished / '.lock').exists)
    for flags in [], ['--collect']:
        code, (error,) = failure(finished.parent, *flags)
        assert code == 2 and f'in use by process {first.process.pid} on ' in error
    first.kill()
    run(finished.parent)


def test_damaged_and_old_results_are_counted_again(finished, run, tmp_path):
    """Results of the old counting, in which ties were right, have ranks that are too low."""
    folder = shutil.copytree(finished, tmp_path / 'small')
    for cell, damage in zip(CELLS, ['half a li', '[]', '']):
        (folder / cell / 'result.json').write_text(damage)
    (folder / CELLS[3] / 'result.json').unlink()
    (folder / CELLS[3] / 'metrics.jsonl').unlink()
    for cell in CELLS[4:]:
        path = folder / cell / 'result.json'
        result = json.loads(path.read_text()) | {'ranks': [0] * 12}
        del result['counting']
        path.write_text(json.dumps(result))
    run(tmp_path, '--collect')
    run(finished.parent)
    assert table(folder) == table(finished)


def test_a_result_that_is_a_pipe_is_named(finished, run, tmp_path, at_once, capsys):
    folder = shutil.copytree(finished, tmp_path / 'small')
    (folder / CELLS[0] / 'result.json').unlink()
    os.mkfifo(folder / CELLS[0] / 'result.json')
    with pytest.raises(SystemExit):
        run(tmp_path, '--collect')
    assert f'{CELLS[0]}/result.json is a pipe, not a file\n' in capsys.readouterr().err
    assert '| dab | real |' in (folder / 'compare.md').read_text()     # the other cells


def test_cells_that_cannot_be_counted_do_not_stop_the_others(finished, failure, tmp_path, start):
    folder = shutil.copytree(finished, tmp_path / 'small')
    (folder / CELLS[0] / 'last.pth.tar').write_bytes(b'half')
    for name in 'result.json', 'metrics.jsonl':
        (folder / CELLS[1] / name).write_text('half\n')
    for name in 'last.pth.tar', 'best.pth.tar':
        (folder / CELLS[2] / name).unlink()
    locked = start(hold, folder / CELLS[2])
    locked.wait_for((folder / CELLS[2] / '.lock').exists)
    code, (*reasons, summary) = failure(tmp_path, '--seeds=1')
    assert code == 1 and f'{", ".join(CELLS[:3])} failed' in summary and len(reasons) == 3
    for reason, part in zip(reasons, ('damaged', 'damaged in line 1', 'in use')):
        assert part in reason
    assert [(row['weights'], row['inputs']) for row in table(folder)] == [
        ('dab', 'sign'), ('xnor', 'sign')]


def test_all_cells_are_counted_on_the_same_images(run, failure, tmp_path, sketch_folder,
                                                  without_training):
    data = shutil.copytree(sketch_folder, tmp_path / 'data')
    flags = f'--data_dir={data}', '--epochs=1', *SMALL

    def images():
        folder = run(tmp_path, *flags)
        return len(json.loads((folder / 'tiny-seed0/result.json').read_text())['ranks'])
    assert images() == 12
    (data / 'val/box/0.png').unlink()
    assert images() == 11
    (data / 'train/box/0.png').rename(data / 'val/box/trained.png')       # as of another fold
    _, (error,) = failure(tmp_path, *flags)
    assert 'other images than those of --data_dir' in error and '--name' in error


def test_accuracies_are_counted_under_autocast_where_training_was(run, tmp_path, monkeypatch,
                                                                  without_training):
    used, predictions = [], epoch.predictions
    monkeypatch.setattr(epoch, 'predictions',
                        lambda *args: used.append(args[-1]) or predictions(*args[:-1]))
    run(tmp_path, '--amp=bfloat16', *SMALL, '--epochs=1', '--methods=real')
    assert used == ['bfloat16', 'bfloat16']     # in validation, and for the table


@pytest.mark.parametrize('flags, part', [
    (['--methods=dab,twn'], 'twn'), (['--inputs=ternary'], 'ternary'),
    (['--methods=real', '--inputs=sign'], 'nothing to compare'),
    (['--model_def=mobilenet'], 'no fbin variant'),
    (['--model_def=nin', '--inputs=real'], 'nin has binarized inputs'),
    (['--model_def=sketchnet'], 'sketchanet'), (['--binarizer=dab'], '--binarizer'),
    (['--seeds=0'], 'at least 1'), (['--epoch=3'], '--epoch'), (['--jobs=0'], '--jobs'),
    (['--collect', '--name=other'], 'no finished cells'),
    (['--maxlr=0.5'], 'with --maxlr=0.01, not with --maxlr=0.5'),
    (['--binEnd=1', '--binStart=1'], 'with --binStart=2, not with --binStart=1'),
    (['--signLayers=2'], '--signLayers'),
    (['--signLayers=2', '--inputs=sign'], 'without --signLayers, not with --signLayers=2'),
    (['--calculateBinarizationLosses'], '--calculateBinarizationLosses'),
    (['--epochs=0'], '--epochs'), (['--epochs=1'], 'more than --epochs=1'),
    (['--name=../x'], 'a folder inside --logdir')])
def test_bad_input(finished, failure, flags, part):
    before = checkpoints(finished)
    code, (error,) = failure(finished.parent, *flags)
    assert code == 2 and part in error and checkpoints(finished) == before


def test_other_flags_are_found_before_anything_is_trained(finished, failure, tmp_path):
    shutil.copytree(finished / CELLS[-1], tmp_path / 'small' / CELLS[-1])
    _, (error,) = failure(tmp_path, '--decaylevel=3')
    assert CELLS[-1] in error and len(list((tmp_path / 'small').iterdir())) == 1


@pytest.mark.parametrize('flag', ['--binEnd=3', '--amp=bfloat16'])
def test_a_flag_that_the_command_no_longer_gives(run, failure, tmp_path, without_training, flag):
    run(tmp_path, *SMALL, '--epochs=1', flag)
    assert flag in failure(tmp_path, *SMALL, '--epochs=1')[1][0]


def test_a_method_without_centring_is_one_of_its_own(run, tmp_path, without_training):
    folder = run(tmp_path, *SMALL, '--methods=dab,dab-uncentred', '--epochs=1')
    for method, centring in ('dab', True), ('dab-uncentred', False):
        flags = json.loads((folder / f'tinywbin-{method}-seed0/flags.json').read_text())
        assert flags['centring'] == centring
    assert '| real | dab − dab-uncentred | 1 |' in (folder / 'compare.md').read_text()


# Learning rates

TUNED = *SMALL, '--methods=dab,xnor', '--epochs=1', '--tune=0.01,0.0001', '--tuningSeeds=2'


@pytest.fixture(scope='module')
def run_tuned(run):
    return partial(run, rate=TUNED)


@pytest.fixture(scope='module')
def tuned(run_tuned, tmp_path_factory):
    return run_tuned(tmp_path_factory.mktemp('tuned'))


def chosen(folder):
    """{method: the rate in bold}, read from rates.md."""
    lines = (folder / 'rates.md').read_text().splitlines()
    header, _, *rows = [line.strip('| ').split(' | ') for line in lines if line.startswith('|')]
    assert header == ['weights', 'inputs', '0.0001', '0.01']
    return {row[0]: float(header[next(place for place, text in enumerate(row) if '**' in text)])
            for row in rows}


def test_tuning_chooses_the_rates_of_the_comparison(tuned):
    rates = chosen(tuned)
    assert rates.keys() == {'dab', 'xnor'} and len(table(tuned)) == 2
    text = (tuned / 'compare.md').read_text()
    for method, rate in rates.items():
        stored = read_checkpoint(tuned / f'tinywbin-{method}-seed0/last.pth.tar')
        assert stored['flags']['maxlr'] == rate and f'{method} (real inputs) {rate:g}' in text
    images = tuned / 'tuning/images'
    assert len(list(images.glob('train/*/*'))) == 30 and len(list(images.glob('val/*/*'))) == 6
    trial = read_checkpoint(tuned / 'tuning/tinywbin-xnor-seed1-maxlr0.01/last.pth.tar')
    assert trial['flags']['maxlr'] == 0.01 and trial['flags']['manualSeed'] == 1


@pytest.mark.parametrize('first', [2, 9])   # among the 8 trials, and after them
def test_interrupted_tuning_ends_in_the_same_tables(tuned, run_tuned, tmp_path, monkeypatch, first):
    calls = interrupt_in(monkeypatch, first)
    with pytest.raises(SystemExit):
        run_tuned(tmp_path)
    before = checkpoints(tmp_path)
    assert len(before) == first - 1
    folder = run_tuned(tmp_path)
    assert len(calls) == 8 + 2 + 1 and before.items() <= checkpoints(tmp_path).items()
    assert chosen(folder) == chosen(tuned) and table(folder) == table(tuned)


def test_collecting_unfinished_tuning(tuned, run_tuned, tmp_path, capsys):
    folder = shutil.copytree(tuned, tmp_path / 'small')
    before = table(run_tuned(tmp_path, '--collect'))
    shutil.rmtree(folder / 'tuning/tinywbin-dab-seed0-maxlr0.01')
    with pytest.raises(SystemExit):
        run_tuned(tmp_path, '--collect')
    assert '1 of 8 runs of --tune' in capsys.readouterr().err and table(folder) == before


def test_a_rate_at_which_training_diverges_is_not_chosen(run_tuned, tmp_path, monkeypatch, capsys):
    train_epoch, bad = epoch.train_epoch, [0.01]

    def diverging(model, batches, optimizer, *rest):
        if optimizer.param_groups[0]['lr'] in bad:
            raise epoch.Diverged('NaN')
        return train_epoch(model, batches, optimizer, *rest)
    monkeypatch.setattr(epoch, 'train_epoch', diverging)
    assert chosen(run_tuned(tmp_path)) == {'dab': 0.0001, 'xnor': 0.0001}
    bad.append(0.0001)
    with pytest.raises(SystemExit):
        run_tuned(tmp_path, '--name=all')
    assert '--tune: dab real diverged at every rate' in capsys.readouterr().err


def test_the_best_rate_is_that_of_the_highest_mean(tmp_path):
    results = {}
    for method, rate, *of_seeds in (
            ('dab', 0.1, [0, 0, 0, 9], [0, 9, 9, 9]), ('dab', 0.2, [0, 0, 9, 9], [0, 0, 0, 9]),
            ('dab', 0.4, [0, 0, 0, 0]), ('xnor', 0.2, [0, 0, 9, 9], [0, 0, 9, 9]),
            ('xnor', 0.1, [0, 0, 9, 9], [0, 0, 9, 9])):     # in the order in which they ended
        for seed, ranks in enumerate(of_seeds):
            cell = cells.Cell('name', method, 'real', 'net', seed, tmp_path, rate)
            results[cell] = {'ranks': ranks}
    best = {('dab', 'real'): 0.2, ('xnor', 'real'): 0.1}    # 0.4 has one seed only
    assert tuning.best_rates(results, seeds=2) == best
    options, _ = compare.parse(['--tune=0.1,0.2,0.4', '--tuningSeeds=2'])
    flags = cells.resolved({'dataset': 'tuberlin'})
    tuning.write(tmp_path, options, flags, results)
    text = (tmp_path / 'rates.md').read_text()
    assert '| dab | real | 50.00 ± 35.36 | **62.50 ± 17.68** | 100.00 |' in text
    assert 'The best rate of xnor real is at an edge' in text


@pytest.mark.parametrize('flags, words', [
    (['--tune=0.1,fast'], 'fast'), (['--tune=0'], '--tune'), (['--tuningSeeds=0'], 'at least 1'),
    (['--rates=0.1,0.2'], "'0.1' is not METHOD:RATE"), (['--rates=dab:0'], '--rates'),
    (['--rates=dab:0.1,dab:0.2'], "'dab:0.2' is not METHOD:RATE"),
    (['--rates=bnn:0.1'], 'bnn is not among --methods'),
    (['--rates=dab:0.1'], '--maxlr and --rates'), (['--tune=0.1'], '--maxlr and --tune')])
def test_bad_rates(failure, tmp_path, flags, words):
    code, (error,) = failure(tmp_path, *flags)
    assert code == 2 and words in error and not (tmp_path / 'small').exists()


@pytest.mark.parametrize('flags', [['--dataset=doodles', '--data_dir='],
                                   ['--dataset=folder', '--channels=3']])
def test_only_folders_of_sketches_are_tuned_on(run_tuned, tmp_path, capsys, flags):
    with pytest.raises(SystemExit) as stop:
        run_tuned(tmp_path, *flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and 'folder of sketches' in error and error.count('\n') == 1


def test_tuning_on_images_of_ones_own(run_tuned, tmp_path, without_training):
    folder = run_tuned(tmp_path, '--dataset=folder', '--channels=1', '--tuningSeeds=1')
    flags = json.loads((folder / 'tinywbin-dab-seed0/flags.json').read_text())
    assert flags['maxlr'] == 0.0001 and flags['dataset'].startswith('folder:')   # equally good


def test_rates_of_methods_by_hand(run, tmp_path, without_training):
    folder = run(tmp_path, *SMALL, '--epochs=1', rate=['--rates=dab:0.5'])
    stored = [read_checkpoint(folder / name / 'last.pth.tar')['flags']['maxlr']
              for name in ('tiny-seed0', 'tinywbin-dab-seed0')]
    assert stored == [0.001, 0.5]
    assert '(--maxlr): dab (real inputs) 0.5.' in (folder / 'compare.md').read_text()


# Statistics

@pytest.mark.parametrize('only_a, only_b', [(0, 0), (3, 3), (1, 9), (20, 41), (300, 200)])
def test_mcnemar(only_a, only_b):
    n = only_a + only_b
    tail = sum(Fraction(math.comb(n, k), 2 ** n) for k in range(min(only_a, only_b) + 1))
    p = statistics.mcnemar(only_a, only_b)
    assert p == statistics.mcnemar(only_b, only_a) == pytest.approx(float(min(1, 2 * tail)))


def result(*ranks):
    return {'ranks': list(ranks), 'epoch': 9, 'seconds': 60, 'bits_per_weight': 1, 'bytes': 1}


def test_a_command_and_names_are_printable_in_tables_for_people():
    origin = provenance(torch.device('cpu'), "compare '--data_dir=a\033[2J\n# forged\udcff'")
    assert origin['command'] == r"compare '--data_dir=a\x1b[2J\n# forged\udcff'"
    assert output.markdown_table(['a'], [['b\033\n']]).split('\n')[2] == r'| b\x1b\n |'


def test_a_folder_with_dollars_in_its_name_is_no_formula(tmp_path):
    rows = [{'weights': 'dab'}]
    figure = output.plot_curves({('dab', 'real'): {0: {'curve': [1., 2.]}}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, 'plot_curves', lambda _: figure)
        patch.setattr(output, 'plot_accuracy', lambda *_: output.Figure())
        output.write(tmp_path, '', rows, {}, r'net on $\frac$')
    figure.draw_without_rendering()


def test_pairs_and_rows_by_hand():
    by_kind = {('dab', 'sign'): {0: result(0, 0, 2, 7), 1: result(0, 3, 0, 0)},
               ('xnor', 'sign'): {1: result(1, 0, 0, 1), 2: result(0, 0, 0, 0)}}
    pair = statistics.paired(*by_kind, by_kind)    # of seed 1: 1, 0, 1, 1 against 0, 1, 1, 0
    assert (pair['seeds'], pair['alone'], pair['difference'], pair['p']) == (1, [(2, 1)], 25, [1])
    variance = (0.75 ** 2 * 2 + 1.25 ** 2 + 0.25 ** 2) / 3
    assert pair['se'] == pytest.approx(100 * math.sqrt(variance / 4))
    by_kind['xnor', 'sign'][0] = result(1, 1, 0, 0)    # of seed 0: 1, 1, 0, 0 against 0, 0, 1, 1
    pair = statistics.paired(*by_kind, by_kind)
    assert (pair['seeds'], pair['alone'], pair['difference']) == (2, [(2, 2), (2, 1)], 12.5)
    assert pair['sd'] == pytest.approx(25 / math.sqrt(2))
    variance = (0.875 ** 2 + 0.125 ** 2 * 2 + 0.625 ** 2) / 3
    assert pair['se'] == pytest.approx(100 * math.sqrt(variance / 4))
    del by_kind['xnor', 'sign'][0]
    row = statistics.summarize('dab', 'sign', by_kind['dab', 'sign'])
    assert (row['top1'], row['top5']) == (62.5, 87.5)
    assert row['top1_sd'] == pytest.approx(25 / math.sqrt(2))
    variance = (0.375 ** 2 + 3 * 0.125 ** 2) / 3
    assert row['top1_se'] == pytest.approx(100 * math.sqrt(variance / 4))
    apart = {kind: {number: {}} for number, kind in enumerate(by_kind)}
    assert statistics.paired(*by_kind, apart) is None


def test_the_spread_that_differences_were_drawn_with_is_found():
    """Variances 4 of seeds, 900 of images, 1600 of the rest; and the power that they promise."""
    rng = np.random.default_rng(0)

    def draw(seeds, images, mean=0):
        return (mean + 2 * rng.standard_normal((seeds, 1)) + 30 * rng.standard_normal((1, images))
                + 40 * rng.standard_normal((seeds, images)))
    found = np.mean([statistics.spread(draw(40, 300))[:3] for _ in range(20)], axis=0)
    assert (abs(found - [4, 900, 1600]) < [1.5, 60, 20]).all(), found
    planned = statistics.Spread(4, 900, 1600, seeds=6, images=500)
    pair = {'inputs': 'real', 'a': 'dab', 'b': 'xnor', 'difference': 5, 'spread': planned}
    error = (4 / 6 + 900 / 500 + 1600 / 6 / 500) ** 0.5     # 1.73
    interval = f'{5 - 1.96 * error:+.2f} to {5 + 1.96 * error:+.2f}'
    assert output.power_cells(pair)[2] == interval == '+1.61 to +8.39'
    difference = planned.smallest_seen()
    bound = 1.96 * difference / statistics.STANDARD_ERRORS
    seen = [abs(draw(6, 500, difference).mean()) > bound for _ in range(1000)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.04)
    for needed, with_so_many in (planned.seeds_for(5), lambda n: planned._replace(seeds=n)), (
            planned.images_for(5), lambda n: planned._replace(images=n)):
        assert with_so_many(needed).smallest_seen() <= 5 < with_so_many(needed - 1).smallest_seen()
    assert planned.seeds_for(1) is None and planned.images_for(1) is None
    assert statistics.spread(draw(1, 9)) is None

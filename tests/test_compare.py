"""The comparison of methods: cells, counting, resuming, statistics, bad input."""
import contextlib
import csv
import json
import math
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from utils import binarize, experiment
from utils.compare import __main__ as compare
from utils.compare import cells, output, rates, statistics
from utils.compare.cells import train_cell
from utils.record.provenance import provenance
from utils.system import files, processes
from utils.system.processes import call_in_new_process
from utils.training import epoch
from utils.training.checkpoint import read_checkpoint

FLAGS = ['--model_def=sketchanet', '--methods=real,dab,xnor', '--seeds=2', '--dataset=tuberlin', '--workers=0',
         '--batch-size=12', '--inpsize=81', '--epochs=2', '--name=small']
CELLS = [f'{name}-seed{seed}' for seed in (0, 1) for name in (
    'sketchanet', 'sketchanetwbin-dab', 'sketchanetwbin-xnor', 'sketchanetfbin-dab', 'sketchanetfbin-xnor')]


@pytest.fixture(scope='module', autouse=True)
def in_this_process():
    """Cells are trained in the process of the tests, which is faster; two tests undo it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, 'call_in_new_process', lambda function, *arguments: function(*arguments))
        yield patch


@pytest.fixture(scope='module')
def run(sketch_folder):
    def run(logdir, *flags):
        compare.main([*FLAGS, f'--data_dir={sketch_folder}', f'--logdir={logdir}', *flags])
        return logdir / 'small'
    return run


@pytest.fixture(scope='module')
def finished(run, tmp_path_factory):
    """The folder of a finished comparison."""
    folder = tmp_path_factory.mktemp('compared')
    with no_pictures():
        run(folder)
    return run(folder)


@contextlib.contextmanager
def no_pictures():
    """Every picture takes a second to draw."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, 'savefig', lambda self, path, **_: path.write_bytes(b''))
        yield


@pytest.fixture(autouse=True)
def without_pictures(finished):
    with no_pictures():
        yield


def table(folder):
    """compare.csv without what the clock decides."""
    with open(folder / 'compare.csv') as file:
        return [{key: value for key, value in row.items() if key != 'hours'} for row in csv.DictReader(file)]


def checkpoints(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob('*/last.pth.tar')}


def test_what_a_comparison_writes(finished):
    assert sorted(path.name for path in finished.iterdir() if path.is_dir()) == sorted(CELLS)
    rows = table(finished)
    assert [(row['weights'], row['inputs']) for row in rows] == [
        ('real', 'real'), ('dab', 'real'), ('xnor', 'real'), ('dab', 'sign'), ('xnor', 'sign')]
    for row in rows[1:]:
        seeds = [read_checkpoint(finished / name / 'last.pth.tar')['metrics'] for name in CELLS
                 if ('fbin' in name) == (row['inputs'] == 'sign') and row['weights'] in name]
        assert float(row['top1']) == pytest.approx(sum(metrics['top1'] for metrics in seeds) / 2)
        assert float(row['top5']) == 100 and 1 < float(row['bits_per_weight']) < 1.1 and row['epochs'] == '2'
    assert float(rows[0]['megabytes']) > 15 * float(rows[1]['megabytes'])
    text = (finished / 'compare.md').read_text()
    assert text.count(' − ') == 8 and 'smallest difference seen' in text and 'real − dab' in text and 'on 12 validation images' in text
    for name in ('curves', 'accuracy'):
        with Image.open(finished / f'{name}.png') as picture:
            assert min(picture.size) > 300
        assert '<svg' in (finished / f'{name}.svg').read_text()


def test_the_cells_of_a_seed_start_alike_and_see_the_same_data(finished):
    starts = []
    for name in CELLS:
        cell = experiment.from_command([f'--resume={finished / name}/last.pth.tar'])
        model = replace(cell, source=None).make_network()
        cell.data.train.set_epoch(0)
        batch, _ = next(iter(cell.make_loaders()[0]))
        starts.append((batch, *(conv.parametrizations.weight.original if binarize.binarization(conv) else conv.weight
                                for _, _, conv in binarize.convolutions(model))))
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
    assert checkpoints(finished) == before and 'ten crops' in (finished / 'compare.md').read_text()


def test_an_interrupted_comparison_ends_in_the_same_table(finished, run, tmp_path, monkeypatch, capsys):
    train_epoch, calls = epoch.train_epoch, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) in (3, 5):     # the first epoch of the second cell, and, of what then goes on, the second
            raise KeyboardInterrupt
        return train_epoch(*arguments)
    monkeypatch.setattr(epoch, 'train_epoch', interrupted)
    some = '--methods=real,dab', '--inputs=real'
    for _ in range(2):
        with pytest.raises(SystemExit) as exit_:
            run(tmp_path, *some)
        assert exit_.value.code == 130 and 'Traceback' not in capsys.readouterr().err
        assert len(table(tmp_path / 'small')) == 1
    run(tmp_path, *some)
    run(finished.parent)
    assert len(calls) == 2 * 4 + 2
    assert table(tmp_path / 'small') == [row for row in table(finished) if row['inputs'] == 'real'][:2]


def test_cells_that_fail_do_not_stop_the_others(run, tmp_path, monkeypatch, capsys):
    train_epoch = epoch.train_epoch
    errors = [epoch.Diverged('the loss became NaN'), MemoryError('17 GiB'), ZeroDivisionError('a bug')]

    def failing(*arguments):
        if errors:
            raise errors.pop(0)
        return train_epoch(*arguments)
    monkeypatch.setattr(epoch, 'train_epoch', failing)
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path, '--methods=real,xnor,bnn,dab', '--inputs=real', '--seeds=1', '--epochs=1')
    nan, memory, *trace, bug, summary = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 1 and 'sketchanet-seed0, sketchanetwbin-xnor-seed0, sketchanetwbin-bnn-seed0 failed' in summary
    assert 'sketchanet-seed0 failed' in nan and 'NaN' in nan and 'a smaller --batch-size' in memory and 'a bug' in bug
    assert 'Traceback' in trace[0]      # of a bug only
    assert [row['weights'] for row in table(tmp_path / 'small')] == ['dab']


def test_loading_workers_of_a_cell_start_as_in_main():
    assert call_in_new_process(multiprocessing.get_start_method) == multiprocessing.get_start_method()


def train_or_die(arguments, command):
    """In a new process: die in the first cell, train the others."""
    if arguments['name'] == 'sketchanet-seed0':
        os.kill(os.getpid(), signal.SIGKILL)
    torch.set_num_threads(1)
    train_cell(arguments, command)


def test_a_cell_whose_process_is_killed_does_not_stop_the_others(run, tmp_path, monkeypatch, capsys,
                                                                 in_this_process):
    with in_this_process.context() as patch:
        patch.setattr(processes, 'call_in_new_process', call_in_new_process)
        patch.setattr(cells, 'train_cell', train_or_die)
        with pytest.raises(SystemExit) as exit_:
            run(tmp_path, '--methods=real,dab', '--inputs=real', '--seeds=1', '--epochs=1')
    reason, summary = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 1 and 'killed' in reason and 'sketchanet-seed0 failed' in summary
    assert [row['weights'] for row in table(tmp_path / 'small')] == ['dab']
    history = (tmp_path / 'small/sketchanetwbin-dab-seed0/history.jsonl').read_text()
    assert '"command": "python3 -m utils.compare ' in history


def hold(folder):
    with files.claimed(folder):
        time.sleep(60)


def test_two_comparisons_in_one_folder(finished, run, capsys, start):
    first = start(hold, finished)
    first.wait_for((finished / '.lock').exists)
    for flags in [], ['--collect']:
        with pytest.raises(SystemExit) as exit_:
            run(finished.parent, *flags)
        error = capsys.readouterr().err
        assert exit_.value.code == 2 and f'in use by process {first.process.pid} on ' in error
    first.kill()
    run(finished.parent)


def test_damaged_results_are_counted_again(finished, run, tmp_path):
    folder = shutil.copytree(finished, tmp_path / 'small')
    for cell, damage in zip(CELLS, ['half a li', '[]', '']):
        (folder / cell / 'result.json').write_text(damage)
    (folder / CELLS[3] / 'result.json').unlink()
    (folder / CELLS[3] / 'metrics.jsonl').unlink()
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


def test_results_of_the_old_counting_are_counted_again(finished, run, tmp_path):
    """In which ties were right: its ranks were too low."""
    folder = shutil.copytree(finished, tmp_path / 'small')
    for path in folder.glob('*/result.json'):
        result = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in result.items() if key != 'counting'} | {'ranks': [0] * 12}))
    run(tmp_path, '--collect')
    run(finished.parent)
    assert table(folder) == table(finished)


def test_cells_that_cannot_be_counted_do_not_stop_the_others(finished, run, tmp_path, capsys, start):
    folder = shutil.copytree(finished, tmp_path / 'small')
    (folder / CELLS[0] / 'last.pth.tar').write_bytes(b'half')
    for name in 'result.json', 'metrics.jsonl':
        (folder / CELLS[1] / name).write_text('half\n')
    for name in 'last.pth.tar', 'best.pth.tar':
        (folder / CELLS[2] / name).unlink()
    locked = start(hold, folder / CELLS[2])
    locked.wait_for((folder / CELLS[2] / '.lock').exists)
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path, '--seeds=1')
    *reasons, summary = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 1 and summary.endswith(f'{", ".join(CELLS[:3])} failed, as reported above')
    assert [part in reason for reason, part in zip(reasons, ('damaged', 'damaged in line 1', 'in use'))] == [True] * 3
    assert [(row['weights'], row['inputs']) for row in table(folder)] == [('dab', 'sign'), ('xnor', 'sign')]


def test_all_cells_are_counted_on_the_same_images(run, tmp_path, sketch_folder, capsys):
    data = shutil.copytree(sketch_folder, tmp_path / 'data')
    flags = [f'--data_dir={data}', '--inputs=real', '--seeds=1', '--epochs=1', '--methods=real']
    folder = run(tmp_path, *flags)
    assert len(read_result(folder)['ranks']) == 12
    (data / 'val/box/0.png').unlink()
    run(tmp_path, *flags)
    assert len(read_result(folder)['ranks']) == 11
    (data / 'train/box/0.png').rename(data / 'val/box/trained.png')       # as of another fold
    with pytest.raises(SystemExit):
        run(tmp_path, *flags)
    assert 'was trained on other images than those of --data_dir: give this comparison another --name' in capsys.readouterr().err


def read_result(folder):
    return json.loads((folder / 'sketchanet-seed0/result.json').read_text())


@pytest.fixture
def without_training(monkeypatch):
    monkeypatch.setattr(epoch, 'train_epoch', lambda *_: {'top1': 0., 'top5': 0., 'loss': 0., 'time': 0., 'images': 36,
                                                          'data_time': 0.})


def test_accuracies_are_counted_under_autocast_where_training_was(run, tmp_path, monkeypatch, without_training):
    used, predictions = [], epoch.predictions
    monkeypatch.setattr(epoch, 'predictions', lambda *args: used.append(args[-1]) or predictions(*args[:-1]))
    run(tmp_path, '--amp=bfloat16', '--inputs=real', '--seeds=1', '--epochs=1', '--methods=real')
    assert used == ['bfloat16', 'bfloat16']     # in validation, and for the table


@pytest.mark.parametrize('flags, part', [
    (['--methods=dab,twn'], 'twn'),
    (['--inputs=ternary'], 'ternary'),
    (['--methods=real', '--inputs=sign'], 'nothing to compare'),
    (['--model_def=mobilenet'], 'no fbin variant'),
    (['--model_def=nin', '--inputs=real'], 'nin has binarized inputs'),
    (['--model_def=sketchnet'], 'sketchanet'),
    (['--binarizer=dab'], '--binarizer'),
    (['--seeds=0'], 'at least 1'),
    (['--epoch=3'], '--epoch'),
    (['--collect', '--name=other'], 'no finished cells'),
    (['--maxlr=0.5'], 'with --maxlr=0.001, not with --maxlr=0.5'),
    (['--binEnd=3'], 'with --binEnd=7, not with --binEnd=3'),
    (['--signLayers=2-5'], '--signLayers'),
    (['--signLayers=2-5', '--inputs=sign'], 'without --signLayers, not with --signLayers=2-5'),
    (['--epochs=0'], '--epochs'),
    (['--calculateBinarizationLosses'], '--calculateBinarizationLosses'),
    (['--epochs=1'], 'more than --epochs=1'),
    (['--name=../x'], 'a folder inside --logdir'),
])
def test_bad_input(finished, run, capsys, flags, part):
    before = checkpoints(finished)
    with pytest.raises(SystemExit) as exit_:
        run(finished.parent, *flags)
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and part in error and error.count('\n') == 1
    assert checkpoints(finished) == before


def test_a_cell_with_other_flags_is_found_before_anything_is_trained(finished, run, tmp_path, capsys):
    shutil.copytree(finished / CELLS[-1], tmp_path / 'small' / CELLS[-1])
    with pytest.raises(SystemExit):
        run(tmp_path, '--decaylevel=3')
    assert CELLS[-1] in capsys.readouterr().err and len(list((tmp_path / 'small').iterdir())) == 1


def test_a_cell_with_a_flag_that_the_command_does_not_give(run, tmp_path, capsys, without_training):
    for name, flag in ('binEnd', '--binEnd=3'), ('amp', '--amp=bfloat16'):
        common = '--methods=dab', '--inputs=real', '--seeds=1', '--epochs=1', f'--name={name}'
        run(tmp_path, *common, flag)
        with pytest.raises(SystemExit):
            run(tmp_path, *common)
        assert flag in capsys.readouterr().err


@pytest.mark.parametrize('only_a, only_b', [(0, 0), (3, 3), (1, 9), (20, 41), (300, 200)])
def test_mcnemar(only_a, only_b):
    n = only_a + only_b
    tail = sum(Fraction(math.comb(n, k), 2 ** n) for k in range(min(only_a, only_b) + 1))
    assert statistics.mcnemar(only_a, only_b) == statistics.mcnemar(only_b, only_a) == pytest.approx(min(1, 2 * tail))


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
    def result(*ranks):
        return {'ranks': list(ranks), 'epoch': 9, 'seconds': 60, 'bits_per_weight': 1, 'bytes': 1}
    by_kind = {('dab', 'sign'): {0: result(0, 0, 2, 7), 1: result(0, 3, 0, 0)},
               ('xnor', 'sign'): {1: result(1, 0, 0, 1), 2: result(0, 0, 0, 0)}}
    pair = statistics.paired(*by_kind, by_kind)    # of seed 1: right are 1, 0, 1, 1 against 0, 1, 1, 0
    assert (pair['seeds'], pair['alone'], pair['difference'], pair['p']) == (1, [(2, 1)], 25, [1])
    assert pair['se'] == pytest.approx(100 * math.sqrt((0.75 ** 2 * 2 + 1.25 ** 2 + 0.25 ** 2) / 3 / 4))
    by_kind['xnor', 'sign'][0] = result(1, 1, 0, 0)    # of seed 0: 1, 1, 0, 0 against 0, 0, 1, 1
    pair = statistics.paired(*by_kind, by_kind)
    assert (pair['seeds'], pair['alone'], pair['difference']) == (2, [(2, 2), (2, 1)], 12.5)
    assert pair['sd'] == pytest.approx(25 / math.sqrt(2))
    assert pair['se'] == pytest.approx(100 * math.sqrt((0.875 ** 2 + 0.125 ** 2 * 2 + 0.625 ** 2) / 3 / 4))
    del by_kind['xnor', 'sign'][0]
    row = statistics.summarize('dab', 'sign', by_kind['dab', 'sign'])
    assert (row['top1'], row['top5']) == (62.5, 87.5) and row['top1_sd'] == pytest.approx(25 / math.sqrt(2))
    assert row['top1_se'] == pytest.approx(100 * math.sqrt((0.375 ** 2 + 3 * 0.125 ** 2) / 3 / 4))
    assert statistics.paired(*by_kind, {kind: {number: {}} for number, kind in enumerate(by_kind)}) is None


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
    assert output.power_cells(pair)[2] == f'{5 - 1.96 * error:+.2f} to {5 + 1.96 * error:+.2f}' == '+1.61 to +8.39'
    difference = planned.smallest_seen()
    seen = [abs(draw(6, 500, difference).mean()) > 1.96 * difference / statistics.STANDARD_ERRORS for _ in range(1000)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.04)
    for needed, with_so_many in (planned.seeds_for(5), lambda n: planned._replace(seeds=n)), (
            planned.images_for(5), lambda n: planned._replace(images=n)):
        assert with_so_many(needed).smallest_seen() <= 5 < with_so_many(needed - 1).smallest_seen()
    assert planned.seeds_for(1) is None and planned.images_for(1) is None     # the other alone is too much
    assert statistics.spread(draw(1, 9)) is None


def test_a_method_without_centring_is_one_of_its_own(run, tmp_path, without_training):
    run(tmp_path, '--methods=dab,dab-uncentred', '--inputs=real', '--epochs=1', '--seeds=1')
    folder, = tmp_path.iterdir()
    assert [json.loads((folder / f'sketchanetwbin-{method}-seed0/flags.json').read_text())['centring']
            for method in ('dab', 'dab-uncentred')] == [True, False]
    assert '| real | dab − dab-uncentred | 1 |' in (folder / 'compare.md').read_text()


def test_rates_are_tried_and_chosen(run, tmp_path, capsys, without_training):
    small = '--methods=real,dab', '--inputs=real', '--epochs=1', '--seeds=1', '--rates=0.01,0.0001'
    folder = run(tmp_path, *small)
    text = (folder / 'rates.md').read_text()
    assert '| weights | 0.0001 | 0.01 |' in text and text in capsys.readouterr().out
    chosen = next(line.strip() for line in text.splitlines() if '--rates=real:' in line and 'python3' not in line)
    found = read_checkpoint(folder / 'sketchanetwbin-dab-seed0-maxlr0.01/last.pth.tar')
    assert found['flags']['maxlr'] == 0.01
    folder = run(tmp_path, *small[:-1], chosen, '--name=chosen')
    assert len(table(folder.with_name('chosen'))) == 2


def test_the_best_rate_is_that_of_the_highest_mean():
    def cell(method, rate, seed):
        return cells.Cell(method, 'real', 'net', seed, None, rate, True)
    results = {cell('dab', 0.1, 0): {'ranks': [0, 0, 0, 9]}, cell('dab', 0.1, 1): {'ranks': [0, 9, 9, 9]},
               cell('dab', 0.2, 0): {'ranks': [0, 0, 9, 9]}, cell('dab', 0.2, 1): {'ranks': [0, 0, 0, 9]},
               cell('xnor', 0.1, 0): {'ranks': [0, 0, 9, 9]}, cell('xnor', 0.2, 0): {'ranks': [0, 9, 9, 9]},
               cell('xnor', 0.4, 0): {'ranks': [9, 9, 9, 9]}}
    assert rates.best(results) == {'dab': 0.2, 'xnor': 0.1}
    text = rates.text(provenance(torch.device('cpu'), 'c'), results, 'images')
    assert '| dab | 50.00 ± 35.36 | **62.50 ± 17.68** |  |' in text and '--rates=dab:0.2,xnor:0.1' in text
    assert 'The best rate of xnor is at an edge' in text


@pytest.mark.parametrize('flags, words', [
    (['--rates=0.1,fast'], 'fast'), (['--rates=0'], '--rates'), (['--rates=dab:0.1,0.2'], "'0.2' is not METHOD:RATE"),
    (['--rates=bnn:0.1'], 'bnn is not among --methods'), (['--rates=0.1,0.2'], '--inputs=real'),
    (['--rates=dab:0.1', '--maxlr=0.1'], 'leave one out'), (['--jobs=0'], '--jobs')])
def test_bad_rates(run, tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path, *flags)
    assert exit_.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / 'small').exists()


def test_cells_trained_at_the_same_time_give_the_same_table(finished, run, tmp_path, in_this_process, capsys):
    torch.manual_seed(0)
    with in_this_process.context() as patch:
        patch.setattr(processes, 'call_in_new_process', call_in_new_process)
        patch.setattr(os, 'cpu_count', lambda: 2)       # one thread each, as in these tests
        run(tmp_path, '--jobs=2', '--methods=real,dab', '--inputs=real', '--seeds=1')
    out = capsys.readouterr().out
    assert 'cell 1 of 2: sketchanet-seed0' in out and 'epoch' not in out.split('cell 2 of 2')[0]
    rows = [{**row, 'hours': ''} for row in table(tmp_path / 'small')]
    run(finished.parent, '--seeds=1', '--methods=real,dab', '--inputs=real')
    assert rows == [{**row, 'hours': ''} for row in table(finished)]

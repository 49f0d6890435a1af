"""The comparison of methods: cells, counting, resuming, statistics, bad input."""
import csv
import math
import shutil
from fractions import Fraction

import pytest
import torch
from PIL import Image

import main
from utils import binarize, compare, results
from utils.checkpoint import read_checkpoint

FLAGS = ['--model_def=sketchanet', '--methods=real,dab,xnor', '--seeds=2', '--dataset=tuberlin', '--workers=0',
         '--batch-size=12', '--inpsize=81', '--epochs=2', '--name=small']
CELLS = [f'{name}-seed{seed}' for seed in (0, 1) for name in (
    'sketchanet', 'sketchanetwbin-dab', 'sketchanetwbin-xnor', 'sketchanetfbin-dab', 'sketchanetfbin-xnor')]


@pytest.fixture(scope='module')
def run(sketch_folder):
    def run(logdir, *flags):
        compare.compare([*FLAGS, f'--data_dir={sketch_folder}', f'--logdir={logdir}', *flags])
        return logdir / 'small'
    return run


@pytest.fixture(scope='module')
def finished(run, tmp_path_factory):
    """The folder of a finished comparison."""
    return run(tmp_path_factory.mktemp('compared'))


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
    assert text.count(' − ') == 4 and 'real − dab' in text and 'on 12 validation images' in text
    for name in ('curves.png', 'accuracy.png'):
        with Image.open(finished / name) as picture:
            assert min(picture.size) > 300


def test_the_cells_of_a_seed_start_alike_and_see_the_same_data(finished):
    starts = []
    for name in CELLS:
        flags, _ = compare.opts.parse([f'--resume={finished / name}/last.pth.tar'])
        torch.manual_seed(flags.manualSeed)
        model = main.build(flags, None, channels=1)
        data = main.load_data(flags, None)
        data.train.set_epoch(0)
        batch, _ = next(iter(main.loaders(data, flags, torch.device('cpu'))[0]))
        starts.append((batch, *(conv.parametrizations.weight.original if binarize.binarization(conv) else conv.weight
                                for _, _, conv in binarize.convolutions(model))))
    for name, start in zip(CELLS, starts):
        same = starts[0] if name.endswith('0') else starts[5]
        assert all(map(torch.equal, start, same)), name
    assert not any(map(torch.equal, starts[0], starts[5]))


def test_a_finished_cell_is_not_trained_again(finished, run, monkeypatch):
    before, rows = checkpoints(finished), table(finished)
    monkeypatch.setattr(main, 'main', None)
    run(finished.parent)
    assert checkpoints(finished) == before and table(finished) == rows
    run(finished.parent, '--tenCrop')   # counted again, with ten crops
    assert checkpoints(finished) == before and 'ten crops' in (finished / 'compare.md').read_text()


def test_an_interrupted_comparison_ends_in_the_same_table(finished, run, tmp_path, monkeypatch, capsys):
    train_epoch, calls = main.train.train_epoch, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) in (3, 5):     # the first epoch of the second cell, and, of what then goes on, the second
            raise KeyboardInterrupt
        return train_epoch(*arguments)
    monkeypatch.setattr(main.train, 'train_epoch', interrupted)
    for _ in range(2):
        with pytest.raises(SystemExit) as exit_:
            run(tmp_path)
        assert exit_.value.code == 130 and 'Traceback' not in capsys.readouterr().err
        assert len(table(tmp_path / 'small')) == 1
    run(tmp_path)
    run(finished.parent)
    assert len(calls) == 2 * len(CELLS) + 2 and table(tmp_path / 'small') == table(finished)


def test_a_cell_that_fails_does_not_stop_the_others(run, tmp_path, monkeypatch, capsys):
    train_epoch, calls = main.train.train_epoch, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise FloatingPointError('the loss became NaN')
        return train_epoch(*arguments)
    monkeypatch.setattr(main.train, 'train_epoch', failing)
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path, '--methods=real,dab', '--inputs=real', '--seeds=1', '--epochs=1')
    error = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 1 and 'NaN' in error[0] and 'sketchanet-seed0 failed' in error[1]
    assert [row['weights'] for row in table(tmp_path / 'small')] == ['dab']


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
    (['--maxlr=0.5'], '--maxlr=0.001, not 0.5'),
    (['--binEnd=3'], '--binEnd=7, not 3'),
    (['--signLayers=2-5'], '--signLayers'),
    (['--signLayers=2-5', '--inputs=sign'], '--signLayers=None, not 2-5'),
    (['--epochs=0'], '--epochs'),
    (['--calculateBinarizationLosses'], '--calculateBinarizationLosses'),
    (['--epochs=1'], 'more than --epochs=1'),
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


def test_a_cell_with_a_flag_that_the_command_does_not_give(run, tmp_path, capsys):
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
    assert results.mcnemar(only_a, only_b) == results.mcnemar(only_b, only_a) == pytest.approx(min(1, 2 * tail))


def test_pairs_and_rows_by_hand():
    def result(*ranks):
        return {'ranks': list(ranks), 'epoch': 9, 'seconds': 60, 'bits_per_weight': 1, 'bytes': 1}
    by_kind = {('dab', 'sign'): {0: result(0, 0, 2, 7), 1: result(0, 3, 0, 0)},
               ('xnor', 'sign'): {1: result(1, 0, 0, 1), 2: result(0, 0, 0, 0)}}
    pair = results.paired(*by_kind, by_kind)    # of seed 1: right are 1, 0, 1, 1 against 0, 1, 1, 0
    assert (pair['seeds'], pair['alone'], pair['difference'], pair['p']) == (1, [(2, 1)], 25, [1])
    assert pair['se'] == pytest.approx(100 * math.sqrt((0.75 ** 2 * 2 + 1.25 ** 2 + 0.25 ** 2) / 3 / 4))
    by_kind['xnor', 'sign'][0] = result(1, 1, 0, 0)    # of seed 0: 1, 1, 0, 0 against 0, 0, 1, 1
    pair = results.paired(*by_kind, by_kind)
    assert (pair['seeds'], pair['alone'], pair['difference']) == (2, [(2, 2), (2, 1)], 12.5)
    assert pair['sd'] == pytest.approx(25 / math.sqrt(2))
    assert pair['se'] == pytest.approx(100 * math.sqrt((0.875 ** 2 + 0.125 ** 2 * 2 + 0.625 ** 2) / 3 / 4))
    del by_kind['xnor', 'sign'][0]
    row = results.summarize('dab', 'sign', by_kind['dab', 'sign'])
    assert (row['top1'], row['top5']) == (62.5, 87.5) and row['top1_sd'] == pytest.approx(25 / math.sqrt(2))
    assert row['top1_se'] == pytest.approx(100 * math.sqrt((0.375 ** 2 + 3 * 0.125 ** 2) / 3 / 4))
    assert results.paired(*by_kind, {kind: {number: {}} for number, kind in enumerate(by_kind)}) is None

"""The benchmark runs and reports; it asserts no times."""
import json
import subprocess
import sys

import pytest

from conftest import ROOT

SMALL = ['--model_def=densenet', '--batch-size=2', '--channels=3', '--rounds=2', '--json']


@pytest.mark.parametrize('what, cases', [('step', 2), ('eval', 1)])
def test_bench(what, cases):
    done = subprocess.run([sys.executable, '-m', 'utils.bench', what, *SMALL], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert len(rows) == cases
    assert all(row['ratio'] == pytest.approx(row['ours_s'] / row['baseline_s']) for row in rows)


def test_bench_packed():
    done = subprocess.run([sys.executable, '-m', 'utils.bench', 'packed', '--model_def=nin', '--threads=1',
                           '--rounds=2', '--json'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert {(row['case'].split()[0], row['batch'], row['threads']) for row in rows} == {
        (what, batch, 1) for what in ('conv', 'network') for batch in (1, 16)}
    assert all(row['speedup'] == pytest.approx(row['float_s'] / row['packed_s']) for row in rows)
    assert 'geometric mean' in done.stdout and 'Peak resident memory' in done.stdout and 'BinaryUnit' in done.stdout


def test_bench_without_data_says_so():
    done = subprocess.run([sys.executable, '-m', 'utils.bench', 'data', '--data_dir=/nowhere'], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 2 and '/nowhere' in done.stderr and 'Traceback' not in done.stderr
    assert done.stderr.startswith('utils.bench: error: --data_dir: ') and done.stderr.count('\n') == 1

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


def test_bench_without_data_says_so():
    done = subprocess.run([sys.executable, '-m', 'utils.bench', 'data', '--data_dir=/nowhere'], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 2 and '/nowhere' in done.stderr and 'Traceback' not in done.stderr

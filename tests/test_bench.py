"""The benchmark runs and reports; it asserts no times."""
import json
from concurrent.futures.process import BrokenProcessPool

import pytest

from utils.bench import __main__ as bench

SMALL = ['--model_def=densenet', '--batch-size=2', '--channels=3', '--rounds=2', '--json']


def bench_in_one_process(arguments):
    """The memory is measured in processes of its own otherwise, which takes longer."""
    for benchmark in bench.packed, bench.step:
        benchmark.call_in_new_process = lambda function, *arguments: function(*arguments)
    bench.main(arguments)


@pytest.mark.parametrize('what, cases', [('step', 2), ('eval', 1)])
def test_bench(start, what, cases):
    code, out, err = start(bench_in_one_process, [what, *SMALL]).wait()
    assert code == 0, err
    rows = json.loads(out.splitlines()[-1])
    assert len(rows) == cases
    assert all(row['ratio'] == pytest.approx(row['ours_s'] / row['baseline_s']) for row in rows)


def test_bench_packed(start):
    code, out, err = start(bench_in_one_process,
                           ['packed', '--model_def=nin', '--threads=1', '--rounds=2', '--json']).wait(120)
    assert code == 0, err
    rows = json.loads(out.splitlines()[-1])
    assert {(row['case'].split()[0], row['batch'], row['threads']) for row in rows} == {
        (what, batch, 1) for what in ('conv', 'network') for batch in (1, 16)}
    assert all(row['speedup'] == pytest.approx(row['float_s'] / row['packed_s']) for row in rows)
    assert 'geometric mean' in out and 'Peak resident memory' in out and 'BinaryUnit' in out


def test_bench_without_data_says_so(capsys):
    with pytest.raises(SystemExit) as exit_:
        bench.main(['data', '--data_dir=/nowhere'])
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and '/nowhere' in error and 'Traceback' not in error
    assert error.startswith('utils.bench: error: --data_dir: ') and error.count('\n') == 1


@pytest.mark.parametrize('flags, part, code', [
    (['step', '--model_def=sketchanet', '--batch-size=1'], '--batch-size: must be at least 2', 2),
    (['packed', '--threads', '1', '1000000000'], '--threads: must be at most 256', 2),
    (['data', '--inpsize=100000'], '--inpsize: must be at most 4096', 2),
    (['step', '--json=1'], '--json takes no value', 2),
    (['step', '--model_def=nin', '--binStart=50'], 'holds no convolution', 2)])
def test_bench_refuses_in_a_sentence(flags, part, code, capsys, monkeypatch):
    monkeypatch.setattr(bench.step, 'copy_bandwidth', lambda: 1e9)
    with pytest.raises(SystemExit) as stop:
        bench.main([*flags, '--rounds=2'])
    error = capsys.readouterr().err
    assert stop.value.code == code and part in error and error.count('\n') == 1


def test_bench_without_memory(capsys, monkeypatch):
    def bench_with(error):
        def raise_error(options):
            raise error
        monkeypatch.setitem(bench.BENCHMARKS, 'eval', raise_error)
        bench.main(['eval'])
    for error, part in ((RuntimeError("DefaultCPUAllocator: can't allocate memory"), '--batch-size'),
                        (BrokenProcessPool('A process in the process pool was terminated abruptly'), 'memory')):
        with pytest.raises(SystemExit) as stop:
            bench_with(error)
        assert stop.value.code == 1 and part in capsys.readouterr().err
    with pytest.raises(RuntimeError, match='of ours'):
        bench_with(RuntimeError('a bug of ours'))

"""The benchmarks run and report; no test asserts a time."""
import json
import re
import tempfile
import time
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

from utils.bench import __main__ as bench
from utils.bench import epoch, timeline
from utils.experiment import from_command
from utils.record.logs import read_log
from utils.training.checkpoint import read_checkpoint

FLAGS = {
    'step': {'--against', '--rounds'},
    'epoch': set(),
    'data': {'--device', '--data_dir', '--inpsize', '--images', '--rounds'},
    'packed': {'--networks', '--threads', '--rounds'},
}
SMALL = ['--model_def=densenet', '--batch-size=2', '--inpsize=32']


def bench_in_one_process(arguments):
    """The memory is measured in processes of its own otherwise, which takes longer."""
    for benchmark in bench.packed, bench.step:
        benchmark.call_in_new_process = lambda function, *arguments: function(*arguments)
    bench.main(arguments)


def refusal(arguments, capsys, code=2):
    """The one sentence with which the benchmark exits."""
    with pytest.raises(SystemExit) as stop:
        bench.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == code and error.count('\n') == 1, error
    return error


@pytest.mark.parametrize('flags', [[], ['--clipGrad=1', '--accumulate=2', '--against=--clipGrad=0']])
def test_a_step_against_another(start, flags):
    code, out, err = start(bench_in_one_process, ['step', *SMALL, '--rounds=2', '--json', *flags]).wait()
    assert code == 0, err
    rows = json.loads(out.splitlines()[-1])
    assert [row['case'].partition(' --')[0] for row in rows] == ['step', 'peak MB step']
    assert all(row['ratio'] == pytest.approx(row['ours_s'] / row['baseline_s']) for row in rows)


def test_the_step_trains_the_network_of_the_flags(monkeypatch):
    """Binarized or real, with the arithmetic that the flags ask for."""
    trained = []
    monkeypatch.setattr(bench.step, 'train_epoch', lambda *arguments: trained.append(arguments))
    for words in (['--binaryWeight', *SMALL, '--amp=bfloat16'], SMALL):
        bench.step.make_steps(words)()
    weights = [bench.step.binarize.weight_bits(model)[0] for model, *_ in trained]
    assert weights[0] > 0 == weights[1] and [arguments[6] for arguments in trained] == ['bfloat16', 'off']
    assert trained[0][1][0][0].shape == (2, 1, 32, 32)


def test_bench_packed(start):
    # Up to a minute more where no test of this session has built the kernel yet.
    code, out, err = start(bench_in_one_process,
                           ['packed', '--networks=nin', '--threads=1', '--rounds=2', '--json']).wait(120)
    assert code == 0, err
    rows = json.loads(out.splitlines()[-1])
    assert {(row['case'].split()[0], row['batch'], row['threads']) for row in rows} == {
        (what, batch, 1) for what in ('conv', 'network') for batch in (1, 16)}
    assert all(row['speedup'] == pytest.approx(row['float_s'] / row['packed_s']) for row in rows)
    assert 'geometric mean' in out and 'Peak resident memory' in out


def test_every_benchmark_has_its_own_help(capsys):
    for arguments, words in [(['--help'], set(FLAGS)), *(([name, '--help'], flags | {'--json', '--help'})
                                                         for name, flags in FLAGS.items())]:
        with pytest.raises(SystemExit) as stop:
            bench.main(arguments)
        out = capsys.readouterr().out
        assert stop.value.code == 0
        listed = re.findall(r'^  (?:-h, )?(--[\w-]+)', out.partition('options:')[2], re.M)
        if arguments == ['--help']:
            listed = re.findall(r'^ +([a-z]+)  ', out.partition('positional arguments:')[2], re.M)
        assert sorted(listed) == sorted(words), arguments


@pytest.mark.parametrize('flags, part', [
    (['step', '--batch-size=none'], '--batch-size'), (['step', '--rounds=1'], 'at least 2'),
    (['step', '--against=--nothing'], '--against'), (['step', '--binStart=50'], 'holds no convolution'),
    (['step', '--model_def=nowhere'], '--model_def: unknown name'),
    (['step', '--inpsize=20'], 'takes images of at least'),
    (['packed', '--threads', '1', '1000000000'], '--threads: must be at most 256'),
    (['packed', '--images=3'], '--images'), (['data', '--inpsize=100000'], 'at most 4096'),
    (['data', '--data_dir=/nowhere'], '/nowhere'), (['step', '--json=1'], '--json takes no value'),
    (['speed'], 'invalid choice'), ([], 'BENCHMARK'),
    (['epoch', '--model_def=nowhere'], '--model_def: unknown name'),
    (['epoch', '--resume=nowhere.tar'], '--resume: epoch measures')])
def test_bench_refuses_in_a_sentence(flags, part, capsys):
    assert part in refusal(flags, capsys)


def test_bench_without_memory(capsys, monkeypatch):
    def bench_with(error, code):
        def run(options):
            raise error
        monkeypatch.setitem(bench.BENCHMARKS, 'packed', bench.BENCHMARKS['packed']._replace(run=run))
        return refusal(['packed'], capsys, code)
    for error, part in (
            (RuntimeError("DefaultCPUAllocator: can't allocate memory"), '--batch-size'),
            (BrokenProcessPool('A process in the process pool was terminated abruptly'), 'memory')):
        assert part in bench_with(error, 1)
    with pytest.raises(RuntimeError, match='of ours'):
        bench_with(RuntimeError('a bug of ours'), 1)


class Ticks:
    """A clock that every look at advances by a second; as a CUDA event it remembers its tick."""

    now = 0.0

    def __init__(self, enable_timing=False):
        assert enable_timing

    @classmethod
    def look(cls):
        cls.now += 1
        return cls.now

    def record(self):
        self.tick = Ticks.look()

    def synchronize(self):
        pass

    def elapsed_time(self, later):
        return 1e3 * (later.tick - self.tick)


@pytest.fixture
def ticks(monkeypatch):
    monkeypatch.setattr(Ticks, 'now', 0.0)
    monkeypatch.setattr(torch.cuda, 'Event', Ticks)
    monkeypatch.setattr(time, 'perf_counter', Ticks.look)


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
@pytest.mark.parametrize('fold', [1, timeline.FOLD])
def test_the_innermost_part_counts_and_no_time_is_lost(device, fold, ticks, monkeypatch):
    monkeypatch.setattr(timeline, 'FOLD', fold)
    watch = timeline.Timeline(torch.device(device), 'a')
    for _ in range(3):
        watch.enter('b')        # a second of a before
        watch.enter('c')
        watch.leave()           # after a second of c
        watch.leave()           # after two of b in all
    watch.switch('d')
    assert watch.read() == {'a': 4, 'b': 6, 'c': 3, 'd': 1}
    assert watch.read() == {'d': 1}


def epoch_flags(sketch_folder):
    return ['--dataset=tuberlin', f'--data_dir={sketch_folder}', '--model_def=densenet', '--inpsize=16',
            '--batch-size=8', '--binaryWeight', '--binStart=3', '--binEnd=6', '--workers=0', '--printfreq=2']


def test_measuring_an_epoch_changes_nothing_in_it(sketch_folder, tmp_path, ticks, capsys):
    """By a clock that goes on by a second when somebody looks, so that the seconds are marks."""
    flags = [*epoch_flags(sketch_folder), '--epochs=2', f'--logdir={tmp_path}']
    from_command([*flags, '--name=plain']).train()
    epochs, _ = epoch.measure(from_command([*flags, '--name=measured']))
    plain, measured = (read_checkpoint(tmp_path / name / 'last.pth.tar')['model'] for name in ('plain', 'measured'))
    assert plain.keys() == measured.keys() and all(torch.equal(plain[name], measured[name]) for name in plain)
    rows = read_log(tmp_path / 'measured' / 'metrics.jsonl', {'loss'})
    assert [row['loss'] for row in rows] == [epoch.metrics[split]['loss'] for epoch in epochs
                                             for split in ('train', 'val')]
    layers, steps = 4, -(-36 // 8)
    for one in epochs:
        assert set(one.seconds) == set(epoch.PARTS) and min(one.seconds.values()) > 0
        # A mark at the begin and one at the end of each layer's forward and backward.
        assert one.seconds['binarization'] == 2 * layers * steps
        assert one.seconds['data'] >= steps + 1 and one.wall == sum(one.seconds.values())
        assert one.wall > one.metrics['train']['time'] + one.metrics['val']['time']
    assert '--resume: epoch' in refusal(['epoch', f'--resume={tmp_path}/plain/last.pth.tar'], capsys)


def test_bench_epoch(sketch_folder, tmp_path, monkeypatch, capsys):
    temporary = tmp_path / 'temporary'
    temporary.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(temporary))
    monkeypatch.chdir(tmp_path)
    bench.main(['epoch', *epoch_flags(sketch_folder), '--name=mine', '--logdir=logs', '--epochs=600', '--json'])
    out = capsys.readouterr().out
    rows = json.loads(out.splitlines()[-1])
    assert [row['epoch'] for row in rows] == [1, 2] and [row['images'] for row in rows] == [36, 36]
    for row in rows:
        assert sum(row[part] for part in epoch.PARTS) == pytest.approx(row['wall'])
    assert re.search(r'^Beside arithmetic, (\w+) takes most, [\d.]+ %.*: what helps is .*\.$', out, re.M)[1] in epoch.ADVICE
    assert list(tmp_path.iterdir()) == [temporary] and not list(temporary.iterdir())



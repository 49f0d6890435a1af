"""The benchmark runs and reports; it asserts no times."""
import json
import re
import tempfile
import time
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

import opts
from conftest import ROOT
from utils.bench import __main__ as bench
from utils.bench import correctness, epoch, gpu, step, timeline
from utils.bench.cases import Case, chosen
from utils.bench.correctness import Layer
from utils.compare import __main__ as compare
from utils.errors import RunError
from utils.experiment import from_command
from utils.training.checkpoint import read_checkpoint
from utils.training.logs import read_log

CPU = torch.device('cpu')
SMALL = ['--model_def=densenet', '--batch-size=2', '--channels=3', '--rounds=2', '--json']
NETWORK = {'--model_def', '--channels', '--binStart', '--binEnd', '--inpsize'}
FLAGS = {
    'step': NETWORK | {'--device', '--batch-size', '--binSearch', '--rounds'},
    'flags': NETWORK | {'--device', '--batch-size', '--binSearch', '--rounds'},
    'eval': NETWORK | {'--device', '--binSearch', '--rounds'},
    'packed': NETWORK | {'--threads', '--rounds'},
    'data': {'--device', '--data_dir', '--inpsize', '--images', '--rounds'},
    'epoch': set(),
    'kernels': set(),
    'arm': set(),
    'gpu': {'--data_dir'},
}


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


@pytest.mark.parametrize('what, cases', [('step', 2), ('eval', 1)])
def test_bench(start, what, cases):
    flags = [flag for flag in SMALL if what == 'step' or not flag.startswith('--batch-size')]
    code, out, err = start(bench_in_one_process, [what, *flags]).wait()
    assert code == 0, err
    rows = json.loads(out.splitlines()[-1])
    assert len(rows) == cases
    assert all(row['ratio'] == pytest.approx(row['ours_s'] / row['baseline_s']) for row in rows)


def test_bench_packed(start):
    # Up to a minute more where no test of this session has built the kernel yet.
    code, out, err = start(bench_in_one_process,
                           ['packed', '--model_def=nin', '--threads=1', '--rounds=2', '--json']).wait(120)
    assert code == 0, err
    rows = json.loads(out.splitlines()[-1])
    assert {(row['case'].split()[0], row['batch'], row['threads']) for row in rows} == {
        (what, batch, 1) for what in ('conv', 'network') for batch in (1, 16)}
    assert all(row['speedup'] == pytest.approx(row['float_s'] / row['packed_s']) for row in rows)
    assert 'geometric mean' in out and 'Peak resident memory' in out and 'BinaryUnit' in out


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


@pytest.mark.parametrize('what', FLAGS)
def test_every_benchmark_refuses_the_flags_of_others(what, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    for flag in set().union(*FLAGS.values()) - FLAGS[what]:
        if what != 'epoch' or flag in ('--threads', '--images', '--rounds', '--channels'):
            assert flag in refusal([what, f'{flag}=2'], capsys)


def test_bench_without_data_says_so(capsys):
    error = refusal(['data', '--data_dir=/nowhere'], capsys)
    assert error.startswith('utils.bench: error: --data_dir: ') and '/nowhere' in error


@pytest.mark.parametrize('flags, part', [
    (['step', '--model_def=sketchanet', '--batch-size=1'], '--batch-size: must be at least 2'),
    (['packed', '--threads', '1', '1000000000'], '--threads: must be at most 256'),
    (['data', '--inpsize=100000'], '--inpsize: must be at most 4096'),
    (['step', '--json=1'], '--json takes no value'),
    (['step', '--model_def=nin', '--binStart=50'], 'holds no convolution'),
    (['speed'], 'invalid choice'), ([], 'BENCHMARK'),
    *(([what, '--inpsize=20'], 'takes images of at least') for what in ('step', 'flags', 'eval', 'packed')),
    (['epoch', '--model_def=nowhere'], '--model_def: unknown name'),
    (['epoch', '--resume=nowhere.tar'], 'there is no checkpoint')])
def test_bench_refuses_in_a_sentence(flags, part, capsys, monkeypatch):
    monkeypatch.setattr(bench.step, 'copy_bandwidth', lambda device: 1e9)
    assert part in refusal(flags, capsys)


def test_bench_without_memory(capsys, monkeypatch):
    def bench_with(error, code=None):
        def raise_error(options):
            raise error
        monkeypatch.setitem(bench.BENCHMARKS, 'eval', bench.BENCHMARKS['eval']._replace(run=raise_error))
        return refusal(['eval'], capsys, code)
    for error, part in ((RuntimeError("DefaultCPUAllocator: can't allocate memory"), '--batch-size'),
                        (BrokenProcessPool('A process in the process pool was terminated abruptly'), 'memory')):
        assert part in bench_with(error, 1)
    with pytest.raises(RuntimeError, match='of ours'):
        bench_with(RuntimeError('a bug of ours'))


def test_flags_change_the_default_cases_too():
    options = bench.parse(['step', '--inpsize=64', '--batch-size=3'])
    cases = chosen(options, CPU)
    assert [case.name for case in cases] == ['sketchanetwbin', 'resnetwbin18', 'bincifar']
    assert all(case.images(CPU, case.batch).shape == (3, case.channels, 64, 64) for case in cases)
    assert [case.binEnd for case in cases] == [7, 100, 7] and [case.channels for case in cases] == [1, 1, 3]
    case = chosen(bench.parse(['eval', '--model_def', 'nin', '--inpsize=40', '--channels=2']), CPU)[0]
    with torch.no_grad():
        assert case.network('fast', CPU)(case.images(CPU, 5)).shape == (5, 250)
    assert chosen(bench.parse(['step']), torch.device('cuda'))[0] == Case('sketchanetwbin', 256, 1, 2, 7)


@pytest.mark.parametrize('settings', [{}, {'memory_format': step.channels_last}])
def test_a_step_on_a_gpu_has_everything_there(settings, monkeypatch):
    """With tensors that have a device and no memory; the backward pass alone would need a GPU."""
    cuda, mode = torch.device('cuda'), FakeTensorMode()
    real_network = Case.network

    def network(self, search, device):
        with unset_fake_temporarily():
            model = real_network(self, search, CPU)
        for module in model.modules():
            for name, tensor in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.empty(tensor.shape, device=device)))
            for name, tensor in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
        return model
    losses = []
    monkeypatch.setattr(Case, 'network', network)
    monkeypatch.setattr(torch.Tensor, 'backward', lambda self: losses.append(self))
    with mode:
        step.make_step(Case('nin', 4), cuda, None, **settings)()
        bench.evaluation.validate(Case('nin').network(None, cuda), Case('nin').images(cuda, 2, 10))
    assert len(losses) == 1 and losses[0].device.type == 'cuda' and losses[0].dtype == torch.float32


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


def test_gpu_without_one_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert 'finds no GPU' in refusal(['gpu'], capsys)


def test_gpu_checks_layers(capsys, monkeypatch):
    layers = [Layer(22, 3, 3, 3), Layer(22, 1, 3, 3, 22), Layer(22, 2, 1, 1)]
    rows = gpu.check_layers(layers, CPU, 60)
    assert len(rows) == 9 and not any('error' in row for row in rows)
    assert capsys.readouterr().out.count('PASS') == 9
    make_convolution = correctness.make_convolution

    def wrong_split(layer, method, weight, device):
        return make_convolution(layer, 'bnn' if method == 'xnor' else 'xnor', weight, device)

    def wrong_gradient(*arguments):
        conv = make_convolution(*arguments)
        conv.parametrizations.weight.original.register_hook(lambda gradient: 1.001 * gradient)
        return conv

    def wrong_weight(*arguments):
        conv = make_convolution(*arguments)
        conv.parametrizations.weight.original.data.mul_(1.001)
        return conv
    for wrong, name in ((wrong_split, 'J'), (wrong_gradient, 'gradient'), (wrong_weight, 'W~')):
        monkeypatch.setattr(correctness, 'make_convolution', wrong)
        rows = gpu.check_layers(layers[:1], CPU, 60)
        assert [row['case'] for row in rows if 'error' in row][0] == 'dab 22×3×3×3', name
        assert 'FAIL' in capsys.readouterr().out
    assert gpu.check_layers(layers, CPU, -1) == [] and 'left out' in capsys.readouterr().out


def test_gpu_knows_the_layers_and_the_large_networks():
    assert Layer(192, 3, 5, 5) in correctness.layers_of([Case('nin', 2, 3, 1)])
    large = gpu.networks_with(gpu.MANY)
    assert {'alexnetwbin', 'resnetfbin18', 'mobilenet', 'vgg16_bncifar'} < set(large)
    assert not {'alexnet', 'densenet', 'squeezenetwbin', 'alexnethybrid'} & set(large)


def test_gpu_compares_steps(capsys):
    cases = [Case('nin', 2, binEnd=3, inpsize=8), Case('nowhere', 2)]
    rows = gpu.compare_steps(cases, CPU, 2, 60)
    assert [('error' in row) for row in rows] == [False, False, True, True]
    rows = gpu.compare_flags(cases[:1], CPU, 2, 60, flags=['--channelsLast'])
    assert len(rows) == 1 and rows[0]['ratio'] > 0
    assert "no model 'nowhere'" in capsys.readouterr().err


def test_gpu_measures_an_epoch_and_compares(tmp_path, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(gpu, 'run_command', lambda arguments, *_: commands.append(arguments))
    gpu.measure_epoch([*gpu.EPOCH, '--workers=0'], ['--dataset=cifar10'], tmp_path, 1)
    gpu.compare_methods([*gpu.COMPARISON, '--workers=0'], None, tmp_path, 1)
    assert opts.parse(commands[0][2:]).tenCrop and commands[0][:2] == ['utils.bench', 'epoch']
    options, common = compare.parse(commands[1][1:])
    assert opts.parse(common).epochs == 11 and options.logdir == str(tmp_path)
    monkeypatch.setattr(gpu, 'run_command', lambda arguments, *_: bench.main(arguments[1:]))
    gpu.measure_epoch(['--model_def=densenet', '--inpsize=16', '--workers=0'], None, tmp_path, 1,
                      {'classes': 3, 'train': 4, 'val': 2})
    out = capsys.readouterr().out
    assert 'Where the time of an epoch goes' in out and re.search('^all .*100.0 %$', out, re.M)


def test_gpu_runs_commands(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    gpu.run_command(['platform'], 60, tmp_path)
    gpu.run_command(['timeit', '-n1', '-r1', '__import__("time").sleep(600)'], 0.5, tmp_path)
    out = capfd.readouterr().out
    assert 'python3 -m platform\nLinux' in out and 'stopped after 0.5 s' in out
    with pytest.raises(RunError, match='exit code 1'):
        gpu.run_command(['nowhere'], 60, tmp_path)


def test_a_failure_is_the_exit_code_and_the_rest_is_printed(capsys, monkeypatch):
    def run(options):
        return [{'case': 'a', 'error': 'e'}, {'case': 'b'}]
    monkeypatch.setitem(bench.BENCHMARKS, 'gpu', bench.BENCHMARKS['gpu']._replace(run=run))
    with pytest.raises(SystemExit) as stop:
        bench.main(['gpu', '--json'])
    out, error = capsys.readouterr()
    assert stop.value.code == 1 and 'a failed' in error and len(json.loads(out.splitlines()[-1])) == 2

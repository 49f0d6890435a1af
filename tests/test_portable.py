"""Systems and devices other than Linux on x86, as far as they can be simulated."""
import ast
import json
import math
import multiprocessing
import os
import pickle
import platform
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import without_posix
from conftest import ROOT, flags_of
from PIL import Image
from test_architecture import tracked
from torch import nn

import datasets
import opts
from datasets import made_once
from datasets import items as resident
from utils import experiment
from utils.bench import timing
from utils.record.describe import arithmetic
from utils.flags import checks, config, parser
from utils.record import describe as provenance
from utils.system import console, devices, files, locks
from utils.system.errors import InputError, explained
from utils.system.interrupt import out_of_reach
from utils.training import parallel
from utils.training.checkpoint import read_checkpoint, restore_random_state
from utils.training.predictions import Meter

CPU = torch.device('cpu')


def tiny(name='tiny', sign=''):
    """A network that trains in a moment, under `name`."""
    import models
    from models.blocks import Units, network

    if name in models.names():
        return

    @models.register(inpsize=16, variants={name: dict(signLayers=sign)})
    def build(nClasses, channels, inpsize, signLayers):
        unit = Units(signLayers)
        return network(**unit(channels, 4, 3, stride=2), **unit(4, 6, 3, dropout=0.1),
                       pool=nn.AdaptiveAvgPool2d(1), **unit.conv(6, nClasses, 1))


def command(data, logs, name, *more):
    return [
        '--dataset=folder', f'--data_dir={data}', '--channels=1', f'--logdir={logs}',
        f'--name={name}', '--binaryWeight', '--batch-size=12', *more]


@pytest.fixture
def registered(monkeypatch):
    """tiny() for this test only."""
    import models
    monkeypatch.setattr(models, '_variants', dict(models._variants))
    tiny(), tiny('tinyfbin', '2')


# Windows

@pytest.fixture
def windows(monkeypatch):
    """Locks by a msvcrt, and no open file is removed."""
    monkeypatch.setattr(locks, 'fcntl', None)
    monkeypatch.setattr(locks, 'msvcrt', without_posix.msvcrt)
    monkeypatch.setattr(os, 'unlink', without_posix.refusing_open_files(os.unlink))


WITHOUT_POSIX = '''
import sys
sys.path[:0] = {paths!r}
import without_posix
without_posix.simulate()
import torch
torch.set_num_threads(1)
import main
from test_portable_network import tiny
tiny('tinyfbin', '2')
for arguments in {commands!r}:
    main.main(arguments)
if {report!r}:
    from utils.report import __main__ as report
    report.main([{report!r}])
'''


@pytest.mark.parametrize('reports', [False, pytest.param(True, marks=pytest.mark.soak)])
def test_everything_runs_without_posix(reports, sketch_folder, tmp_path, registered):
    """With outputs in cp1252, and at last a report."""
    (tmp_path / 'test_portable_network.py').write_text(network_source())
    run, dab = tmp_path / 'logs/run', tmp_path / 'model.dab'
    resume = f'--resume={run}/last.pth.tar'
    train = command(sketch_folder, tmp_path / 'logs', 'run', '--model_def=tinyfbin', '--inpsize=32')
    commands = [[*train, '--epochs=1'], [*train, '--epochs=1', '--overwrite'], [
        resume, '--epochs=2'], [resume, '--evaluate'], [resume, f'--export={dab}'],
                [f'--packed={dab}', '--evaluate', f'--data_dir={sketch_folder}'],
                [f'--packed={dab}', '--classify', f'{sketch_folder}/val/box/0.png']]
    script = WITHOUT_POSIX.format(paths=[str(ROOT), str(ROOT / 'tests'),
                                         str(tmp_path)], commands=commands,
                                  report=f'{run}/last.pth.tar' * reports)
    environment = os.environ | {
        'LOCALAPPDATA': str(tmp_path / 'local'), 'PYTHONIOENCODING': 'cp1252', 'CXX': ''}
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, cwd=ROOT,
                          env=environment, timeout=300)
    assert done.returncode == 0, done.stderr.decode('cp1252')
    out, err = done.stdout.decode('cp1252'), done.stderr.decode('cp1252')
    assert err.count('\n') == 2 and err.count('there is no C++ compiler') == 2, err
    assert out.count('accuracy') == 8 and 'of 8.6 GB free on cpu' in out
    assert f'{sketch_folder}/val/box/0.png: ' in out
    assert f'device: CPU: {platform.processor() or platform.machine()}, ' in out
    assert (run / 'report/index.html').is_file() == reports
    assert list((tmp_path / 'local/dab').glob('*.sketches'))
    assert not [
        path for path in (*run.iterdir(), *(tmp_path / 'local/dab').iterdir())
        if path.suffix in ('.lock', '.tmp', '.part')]
    # What fcntl and a compiler change is the way, not the result.
    other = command(sketch_folder, tmp_path, 'posix', '--model_def=tinyfbin', '--inpsize=32',
                    '--epochs=2', '--binSearch=exact')
    experiment.from_command(other).train()
    ours, theirs = (read_checkpoint(path / 'last.pth.tar')['model']
                    for path in (tmp_path / 'posix', run))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def network_source():
    """The source of tiny(), for another process."""
    import inspect
    return f'from torch import nn\n\n\n{inspect.getsource(tiny)}'


def test_a_folder_is_claimed_by_one(windows, tmp_path):
    first = files.claim(tmp_path)
    with pytest.raises(files.InUse, match=f'is in use by process {os.getpid()} on '):
        files.claim(tmp_path)
    files.release(first)
    assert not list(tmp_path.iterdir())
    with files.claimed(tmp_path), pytest.raises(files.InUse), files.claimed(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_another_process_has_opened_stays(windows, tmp_path):
    first = files.claim(tmp_path)
    with open(first.name, 'rb'):
        files.release(first)
    files.release(files.claim(tmp_path))
    assert not list(tmp_path.iterdir())


def test_one_of_several_makes_a_cached_file(windows, tmp_path):
    made = []

    def write(path):
        made.append(path)
        time.sleep(0.2)
        path.write_bytes(b'content')
    read = partial(made_once.made_once, tmp_path / 'x', Path.read_bytes, write)
    others = [threading.Thread(target=read) for _ in range(3)]
    for thread in others:
        thread.start()
    assert read() == b'content'
    for thread in others:
        thread.join()
    assert len(made) == 1 and [path.name for path in tmp_path.iterdir()] == ['x']


def test_a_cached_file_in_use_stays(windows, tmp_path, monkeypatch):
    monkeypatch.setattr(made_once, 'LIMIT', 0)
    (tmp_path / 'x.sketches').write_bytes(b'1')
    (tmp_path / 'y.part').touch()
    (tmp_path / 'y.tmp').touch()
    with made_once.open_in_use(tmp_path / 'x.sketches'):
        made_once.make_room(tmp_path, 1)
        assert [path.name for path in tmp_path.iterdir()] == ['x.sketches']
    made_once.make_room(tmp_path, 1)
    assert not list(tmp_path.iterdir())


def test_without_any_locks_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, 'fcntl', None)
    monkeypatch.setattr(locks, 'msvcrt', None)
    with files.claimed(tmp_path), files.claimed(tmp_path):
        pass


def test_a_file_that_another_program_has_open_is_replaced_later(tmp_path, monkeypatch):
    failures, replace = [PermissionError(13, 'Access is denied')] * 2, os.replace

    def refuse(*paths):
        if failures:
            raise failures.pop()
        replace(*paths)
    monkeypatch.setattr(os, 'replace', refuse)
    with pytest.raises(PermissionError):        # elsewhere that will not change
        files.write_text(tmp_path / 'x', 'text')
    monkeypatch.setattr(files, 'IS_WINDOWS', True)
    files.write_text(tmp_path / 'x', 'text')
    assert (tmp_path / 'x').read_text() == 'text' and len(list(tmp_path.iterdir())) == 1


def test_where_windows_has_no_posix(tmp_path, monkeypatch):
    monkeypatch.delattr(os, 'getuid')
    monkeypatch.setattr(files.tempfile, 'gettempdir', lambda: str(tmp_path))
    assert files.private_folder.__wrapped__() == tmp_path
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('LOCALAPPDATA', str(tmp_path))
    assert files.cache_folder() == tmp_path / 'dab'
    monkeypatch.setattr(parser, 'NOT_IN_NAMES', '<>:"\\|?*')
    for name in ('a:b', r'..\x', 'x?'):
        with pytest.raises(InputError, match='names on Windows cannot'):
            opts.parse([f'--name={name}'])
    monkeypatch.delattr('select.poll')
    assert console.is_closed(sys.stdout)
    monkeypatch.delattr('signal.pthread_sigmask')
    with out_of_reach():
        pass


def test_a_processor_on_macos(monkeypatch):
    monkeypatch.setattr(Path, 'read_text', lambda *_, **__: '')
    monkeypatch.setattr(provenance.subprocess, 'run', lambda *_, **__: subprocess.CompletedProcess(
        (), 0, 'Apple M1\n'))
    assert provenance.processor_name() == 'Apple M1'


def test_memory_that_only_linux_tells(monkeypatch):
    monkeypatch.setattr('builtins.open', without_posix.without_proc)
    assert math.isnan(timing.peak_megabytes())
    assert resident.free_memory(CPU) == os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def test_names_of_images_are_the_same_everywhere(sketch_folder, monkeypatch):
    train = datasets.load('tuberlin', str(sketch_folder), 16, plain=True).train
    before = datasets.names_digest(train)
    monkeypatch.setattr(datasets.items, 'image_names', lambda *_, **__: [
        os.path.relpath(path, train.images.root).replace('/', '\\')
        for path, _ in train.images.samples])
    monkeypatch.setattr(datasets.items.os, 'sep', '\\')
    assert datasets.names_digest(train) == before


@pytest.mark.parametrize(
    'message',
    [  # of PyTorch, on Linux and on Windows
        'InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx',
        'Compiler: cl is not found.'])
def test_compile_without_a_compiler(message):
    assert str(explained(
        RuntimeError(message))).startswith('--compile: PyTorch finds no C++ compiler')


def test_sources_are_of_the_oldest_python_and_name_their_encodings():
    for path in tracked():
        ast.parse((ROOT / path).read_text(encoding='utf-8'), feature_version=(3, 11))
    done = subprocess.run(
        [sys.executable, '-m', 'ruff', 'check', '--preview', '--select', 'PLW1514', *tracked()],
        cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# Devices

@pytest.mark.parametrize('name, says', [('cuda', 'finds no NVIDIA or AMD GPU on this machine'),
                                        ('mps', 'finds no Apple GPU'),
                                        ('xpu:1', 'finds no Intel GPU')])
def test_a_device_that_is_not_there(name, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(InputError, match=f'^--device={name}: PyTorch .* {says}'):
        experiment.from_command([f'--device={name}'])


@pytest.mark.parametrize('name', ['gpu', 'cpu:0', 'cuda:', 'mps:1', 'cuda:x', 'meta', ''])
def test_what_is_not_a_device(name):
    with pytest.raises(
            InputError,
            match='^argument --device: .* is not one of auto, cpu, cuda, xpu, mps, cuda:1'):
        opts.parse([f'--device={name}'])


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda device: None)


def test_the_device_of_a_process(two_gpus, monkeypatch):
    assert [str(parallel.start(name)) for name in ('auto', 'cuda', 'cuda:1', 'cpu')] == [
        'cuda:0', 'cuda:0', 'cuda:1', 'cpu']
    with pytest.raises(InputError, match='--device=cuda:2: .* but cuda:0, cuda:1$'):
        parallel.start('cuda:2')
    for name, value in {
            'WORLD_SIZE': '2', 'RANK': '1', 'LOCAL_RANK': '1', 'MASTER_ADDR': '127.0.0.1',
            'MASTER_PORT': '1'}.items():
        monkeypatch.setenv(name, value)
    assert str(parallel.device_of_rank(devices.choose())) == 'cuda:1'
    with pytest.raises(InputError,
                       match='torchrun gives each process a GPU of its own: write --device=cuda$'):
        parallel.start('cuda:1')
    with pytest.raises(InputError, match='--device=mps.*: torchrun is for cpu, cuda, xpu'):
        parallel.device_of_rank(torch.device('mps'))


def test_the_device_is_that_of_a_command(sketch_folder, tmp_path, registered):
    """What was trained on another device can be used here."""
    arguments_ = command(sketch_folder, tmp_path, 'run', '--model_def=tiny', '--epochs=1',
                         '--device=cpu')
    experiment.from_command(arguments_).train()
    folder = tmp_path / 'run'
    stored = read_checkpoint(folder / 'last.pth.tar')
    assert stored['flags']['device'] == 'cpu'
    stored['flags']['device'] = 'mps'
    stored['rng']['mps'] = [torch.zeros(5, dtype=torch.uint8)]
    torch.save(stored, folder / 'last.pth.tar')
    resumed = experiment.from_command([f'--resume={folder}/last.pth.tar', '--epochs=2'])
    assert resumed.flags.device == 'auto' and resumed.train() is not None
    recorded = json.loads((folder / 'flags.json').read_text())
    for name, sentences in (('auto', 0), ('mps', 1)):
        (tmp_path / 'flags.json').write_text(
            json.dumps(recorded | {'device': name, 'resume': None}))
        taken, said = config.config_flags(f'{tmp_path}/flags.json', {})
        assert 'device' not in taken and len(said) == sentences
    with pytest.raises(InputError, match='--device=cuda: a packed model computes on the CPU'):
        checks.check(flags_of().replace(packed='x', evaluate=True, device='cuda'), {}, {})


def test_random_numbers_continue_on_other_gpus(monkeypatch):
    restored = []
    states = {
        'cuda': [], 'mps': [torch.ones(3, dtype=torch.uint8)],
        'xpu': [torch.zeros(3, dtype=torch.uint8)] * 2}
    monkeypatch.setattr(devices, 'count', {'cuda': 0, 'mps': 1, 'xpu': 1}.get)
    monkeypatch.setattr(torch.mps, 'set_rng_state', lambda state: restored.append(state.tolist()))
    monkeypatch.setattr(torch.mps, 'get_rng_state', lambda: states['mps'][0])
    monkeypatch.setattr(torch.xpu, 'get_rng_state_all', lambda: states['xpu'])
    assert devices.random_states().keys() == {'cuda', 'xpu', 'mps'}
    restore_random_state({'cpu': torch.get_rng_state(), **states})
    assert restored == [[1, 1, 1]]      # there are two states of xpu, and one such GPU


def test_arithmetic_of_a_gpu_is_told_from_the_newer_settings(monkeypatch):
    capability = [(8, 0)]
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability[0])
    conv, before = torch.backends.cudnn.conv, torch.backends.cudnn.conv.fp32_precision
    gpu = torch.device('cuda')
    assert devices.float32_in(gpu) == {'convolutions': 'TF32', 'matrix products': 'float32'}
    try:
        conv.fp32_precision = 'ieee'        # from here on `allow_tf32` raises an error
        assert 'convolutions of float32 in float32' in arithmetic(gpu, None, None, False)
    finally:
        conv.fp32_precision = before
    capability[0] = (7, 5)
    assert devices.float32_in(gpu)['convolutions'] == 'float32'


def test_sums_are_those_of_float64():
    meter, sums = Meter(CPU), torch.zeros(3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for number in range(25):
        log_probs = torch.randn(7, 9, generator=generator).log_softmax(1)
        target = torch.randint(9, (7,), generator=generator)
        loss = nn.functional.nll_loss(log_probs, target)
        meter.update(log_probs, loss, target)
        hits = log_probs.topk(5).indices == target[:, None]
        sums += torch.stack([loss.double() * 7, hits[:, 0].sum(), hits.sum()])
        if number % 10 == 9:
            meter.read()
    read = meter.read()
    assert [read[key] for key in ('loss', 'top1', 'top5', 'images')] == [
        sums[0].item() / 175, *(100 * (value / 175) for value in sums[1:].tolist()), 175]


def train_without_float64(*commands):
    """For Command: main.main of each command, where --device=mps has no float64."""
    from without_float64 import main_there
    tiny('tinyfbin', '2')
    main_there(*commands)


def test_a_device_without_float64(sketch_folder, tmp_path, start):
    """Each method computes what it does on the CPU."""
    common = ('--model_def=tinyfbin', '--inpsize=16', '--binSearch=exact', '--workers=0')
    flags = {
        'dab': ('--clipGrad=1', '--dataOn=workers', '--tenCrop'), 'xnor': ('--accumulate=2', ),
        'bnn': ('--optimType=sgd', ), 'adabin': ('--labelSmoothing=0.1', '--optimType=adagrad')}
    commands = [
        command(sketch_folder, tmp_path, f'{method}-{device}', *common, *flags[method],
                f'--binarizer={method}', '--epochs=1', f'--device={device}') for method in flags
        for device in ('mps', 'cpu')]
    last = f'--resume={tmp_path}/dab-mps/last.pth.tar'
    for device in 'mps', 'cpu':
        commands.append([
            f'--resume={tmp_path}/dab-{device}/last.pth.tar', '--epochs=2', f'--device={device}'])
    commands += [[last, '--device=mps', '--evaluate', '--calculateBinarizationLosses'],
                 [last, '--device=mps', '--classify', f'{sketch_folder}/val/box/0.png'],
                 [last, '--device=mps', f'--export={tmp_path}/x.dab']]
    code, out, err = start(train_without_float64, *commands).wait(200)
    assert code == 0, err[:3000]
    assert 'features' not in out and 'sign2' in out and 'box' in out
    assert (tmp_path / 'x.dab').exists()
    for method in flags:
        there, here = (read_checkpoint(tmp_path / f'{method}-{device}/last.pth.tar')
                       for device in ('mps', 'cpu'))
        assert all(torch.equal(there['model'][key], here['model'][key])
                   for key in here['model']), method
        assert all(there['metrics'][key] == here['metrics'][key]
                   for key in ('loss', 'top1', 'top5', 'images')), method


# Start methods

def image_folders(tmp_path, mode):
    for split, count in (('train', 4), ('val', 2)):
        for label in 'ab':
            for number in range(count):
                path = tmp_path / split / label / f'{number}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new('L', (40, 40), 40 * number).convert(mode).save(path)
    return str(tmp_path)


@pytest.mark.parametrize('name, channels, options',
                         [('doodles', None, {}), ('folder:own', 1, {}),
                          ('folder:own', 1, {'ink': 'auto', 'skipBroken': True}),
                          ('folder:own', 3, {}),
                          ('folder:own', 3, {'skipBroken': True, 'tenCrop': True}),
                          ('imagenet12', None, {})])
def test_any_data_reaches_spawned_workers(name, channels, options, tmp_path):
    folder = image_folders(tmp_path / 'data', 'L' if channels == 1 else 'RGB')
    spec = datasets.spec(name, channels, ink=options.pop('ink', 'dark'))
    data = datasets.load(spec, folder, 32, **options)
    for images in data.train, data.val:
        images.set_epoch(3)
        image, label = pickle.loads(multiprocessing.reduction.ForkingPickler.dumps(images))[1]
        assert torch.equal(image, images[1][0]) and label == images[1][1]


def under(method, commands):
    """For Command: main functions of their arguments, with processes that start by `method`."""
    multiprocessing.set_start_method(method, force=True)
    for function, words in commands:
        function(words)


@pytest.mark.soak
@pytest.mark.parametrize('method', ['spawn', 'forkserver'])
def test_commands_under_other_start_methods(method, sketch_folder, tmp_path, start):
    import main
    from utils.bench import __main__ as bench
    from utils.compare import __main__ as compare
    from utils.report import __main__ as report
    data = [
        '--dataset=folder', f'--data_dir={sketch_folder}', '--channels=1', '--inpsize=81',
        '--epochs=1', '--batch-size=12']
    commands = [(compare.main, [
        '--methods=real,dab', '--inputs=real', '--seeds=1', *data, f'--logdir={tmp_path}',
        '--name=c', '--workers=2', '--dataOn=workers']),
                (main.main, [
                    *data, f'--logdir={tmp_path}', '--name=device', '--dataOn=device',
                    '--binaryWeight']),
                (main.main, [
                    f'--resume={tmp_path}/device/last.pth.tar', '--evaluate', '--dataOn=workers',
                    '--workers=2']),
                (bench.main, ['epoch', *data, '--workers=1', '--dataOn=workers', '--binaryWeight']),
                (report.main, [f'{tmp_path}/device/last.pth.tar'])]
    code, out, err = start(under, method, commands).wait(1500)
    assert (code, err) == (0, ''), err
    assert (tmp_path / 'c/compare.md').exists() and 'Beside arithmetic' in out
    assert (tmp_path / 'device/report/index.html').exists()

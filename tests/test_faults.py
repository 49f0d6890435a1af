"""What a run survives: kills, full disks, closed terminals, damaged files, two at once. See the README."""
import ast
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script
from PIL import Image
from test_architecture import tracked
from test_main import SMALL, rows
from torch.utils.data import get_worker_info

import main
from datasets import imagenet, prepare, transforms
from utils import experiment
from utils.record import logs, run as record
from utils.record.tensorboard import TensorBoard
from utils.source import checkpoint_source
from utils.system import files
from utils.system.errors import InputError
from utils.training import epoch, optim
from utils.training.checkpoint import read_checkpoint


@pytest.fixture
def flags(sketch_folder, tmp_path):
    return [*SMALL, f'--data_dir={sketch_folder}', f'--logdir={tmp_path}/logs', '--name=run', '--epochs=2']


@pytest.fixture
def run_folder(tmp_path):
    return tmp_path / 'logs/run'


@pytest.fixture(scope='module')
def trained(sketch_folder, tmp_path_factory):
    """The folder of a run of one epoch; copy it before you change it."""
    logs = tmp_path_factory.mktemp('trained')
    main.main([*SMALL, f'--data_dir={sketch_folder}', f'--logdir={logs}', '--name=run', '--epochs=1'])
    return logs / 'run'


def last_line(folder):
    return (folder / 'log.txt').read_text().splitlines()[-1]


# Kills

def contents(folder):
    """What a run computed: its numbers, but for times, and its checkpoints' tensors."""
    logs = [[{key: value for key, value in row.items() if 'time' not in key} for row in rows(folder / name)]
            for name in ('metrics.jsonl', 'weights.jsonl')]
    checkpoints = [read_checkpoint(folder / name) for name in ('last.pth.tar', 'best.pth.tar')]
    return logs, [[stored[key] for key in ('epoch', 'best', 'model', 'optimizer')] for stored in checkpoints]


def assert_same(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        assert_same(list(one.values()), list(other.values()))
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other):
            assert_same(*pair)
    else:
        assert one == other


def train_and_die(arguments, moment):
    """Train, but be killed at the call number `count` of a function (module, name)."""
    module, name, count = moment
    holder = {'record': record.Run, 'board': TensorBoard, 'writing': logs, 'epoch': epoch}[module]
    function, calls = getattr(holder, name), []

    def deadly(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    setattr(holder, name, deadly)
    main.main(arguments)


class Dying:
    """main.main for Command, killed at a moment; it can be pickled."""

    def __init__(self, *moment):
        self.moment = moment

    def __call__(self, arguments):
        train_and_die(arguments, self.moment)


MOMENTS = {
    'before the log of epoch 1': ('record', 'record_epoch', 1),
    'before the first checkpoint': ('record', 'save', 1),
    'between last and best': ('writing', 'write_atomically', 1),
    'while weights are recorded': ('board', 'add_layer', 3),
    'in epoch 2': ('epoch', 'validate', 2),
}


SLOW = 'before the log of epoch 1', 'before the first checkpoint', 'in epoch 2'


@pytest.mark.parametrize('moment', [
    pytest.param(moment, marks=pytest.mark.soak) if moment in SLOW else moment for moment in MOMENTS])
def test_a_killed_run_ends_as_an_unbroken_one(flags, run_folder, start, sketch_folder, tmp_path_factory, moment,
                                              unbroken):
    killed = start(Dying(*MOMENTS[moment]), flags)
    code, _, err = killed.wait()
    assert code == -signal.SIGKILL, err
    last = run_folder / 'last.pth.tar'
    main.main(flags + ([f'--resume={last}'] if last.exists() else []))
    assert_same(contents(run_folder), contents(unbroken))


@pytest.fixture(scope='module')
def unbroken(sketch_folder, tmp_path_factory):
    logs = tmp_path_factory.mktemp('unbroken')
    main.main([*SMALL, f'--data_dir={sketch_folder}', f'--logdir={logs}', '--name=run', '--epochs=2'])
    return logs / 'run'


@pytest.mark.soak
def test_forty_kills(flags, run_folder, start, unbroken):
    """At the moments above and at random ones; after each the same command, or --resume, goes on."""
    generator, last, kills, resumed = random.Random(0), run_folder / 'last.pth.tar', 0, 0
    moments = list(MOMENTS.values()) * 4
    while kills < 40:
        shutil.rmtree(run_folder, ignore_errors=True)
        while True:
            more = [f'--resume={last}'] if last.exists() else []
            resumed += bool(more)
            if moments:
                command = start(Dying(*moments.pop()), flags + more)
                command.process.join(60)
            else:
                command = start(main.main, flags + more)
                command.process.join(generator.uniform(0, 5))
            if command.process.is_alive():
                command.kill()
            if command.process.exitcode == 0:
                break
            assert command.process.exitcode == -signal.SIGKILL, command.wait()
            kills += 1
        assert_same(contents(run_folder), contents(unbroken))
    print(f'{kills} kills, {resumed} resumed starts')


# Signals and terminals

@pytest.mark.parametrize('number, code, said', [(signal.SIGTERM, 143, 'SIGTERM'), (signal.SIGINT, 130, 'Ctrl-C')])
def test_a_signal_ends_a_run_with_a_last_line_in_the_log(flags, run_folder, start, number, code, said):
    command = start(main.main, [*flags, '--epochs=1000', '--dataOn=workers', '--workers=1'])
    command.wait_for(lambda: (run_folder / 'last.pth.tar').exists())
    command.send(number)
    exit_code, out, err = command.wait()
    assert exit_code == code and err.count('\n') == 1 and f'stopped by {said}' in err
    assert last_line(run_folder) == f'ended early: stopped by {said}'
    assert f'{read_checkpoint(run_folder / "last.pth.tar")["epoch"]} of 1000 epochs done' in out
    assert out.splitlines()[-1].endswith(f'{run_folder}; to go on: --resume={run_folder / "last.pth.tar"}')
    assert not (run_folder / '.lock').exists()


def test_a_stop_before_the_first_checkpoint_blocks_nobody(flags, run_folder, start, capsys):
    command = start(main.main, [*flags, '--epochs=1000'])
    command.wait_for(lambda: (run_folder / 'metrics.jsonl').exists() or 'lr' in log(run_folder))
    command.send(signal.SIGTERM)
    assert command.wait()[0] == 143 and not (run_folder / 'last.pth.tar').exists()
    (run_folder / 'notes').write_text('mine')
    main.main([*flags, '--epochs=1'])
    assert '1 of 1 epochs done' in capsys.readouterr().out and len(rows(run_folder / 'metrics.jsonl')) == 2
    assert 'stopped by SIGTERM' in log(run_folder) and len(rows(run_folder / 'history.jsonl')) == 2
    assert (run_folder / 'notes').read_text() == 'mine'


def log(folder):
    return (folder / 'log.txt').read_text() if (folder / 'log.txt').exists() else ''


@pytest.mark.parametrize('module', [['main.py'], ['-m', 'utils.compare']])
def test_ctrl_c_while_the_program_starts(module):
    process = subprocess.Popen([sys.executable, *module, '--epochs=1'], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while 'libtorch' not in Path(f'/proc/{process.pid}/maps').read_text():      # it imports torch
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == '' and process.returncode == -signal.SIGINT


def test_a_closed_terminal_does_not_end_a_run(flags, run_folder, start):
    terminal, name = os.openpty()
    command = start(main.main, flags, stdout=os.ttyname(name))
    os.close(name)
    command.wait_for(lambda: 'Train:' in log(run_folder))
    os.close(terminal)
    command.send(signal.SIGHUP)
    assert command.wait()[0] == 0 and '2 of 2 epochs done' in last_line(run_folder)
    assert log(run_folder).count('Val:') == 2


def test_a_full_or_closed_output_does_not_end_a_run(flags, run_folder, start):
    assert start(main.main, [*flags, '--epochs=1'], stdout='/dev/full').wait()[0] == 0
    assert '1 of 1 epochs done' in last_line(run_folder)


def test_an_output_that_cannot_be_written_ends_other_commands_in_a_sentence(trained, sketch_folder, start):
    code, _, err = start(main.main, [f'--resume={trained}/last.pth.tar', '--evaluate'], stdout='/dev/full').wait()
    assert code == 1 and err == 'main.py: error: No space left on device\n'


def test_an_output_in_ascii(flags, run_folder, start):
    code, out, err = start(main.main, [*flags, '--epochs=0'], encoding='ascii').wait()
    assert code == 0 and '12\\xd78\\xd73\\xd73' in out and '12×8×3×3' in log(run_folder), err


# Disks

@pytest.fixture
def small_disk(tmp_path):
    """A file system of 150 MB; needs the rights to mount one."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=150m', 'tmpfs', folder], capture_output=True)
    if mounted.returncode:
        pytest.skip('a file system cannot be mounted here')
    yield folder
    subprocess.run(['umount', '-l', folder], check=True)


class Filling:
    """main.main, which fills the disk at `folder` when a function of a Run is called for the second time."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name

    def __call__(self, arguments):
        function, calls = getattr(record.Run, self.name), []

        def fill(run, *args, **kwargs):
            calls.append(1)
            if len(calls) == 2:
                with open(self.folder / 'full', 'wb', buffering=0) as file:
                    while True:
                        try:
                            file.write(bytes(4096))
                        except OSError:
                            break
            return function(run, *args, **kwargs)
        setattr(record.Run, self.name, fill)
        main.main(arguments)


@pytest.mark.parametrize('name', ['record_weights', 'save'])
def test_a_disk_that_is_full_ends_the_run_in_a_sentence(flags, small_disk, start, name):
    flags = [*flags, f'--logdir={small_disk}', '--epochs=2']
    code, _, err = start(Filling(small_disk, name), flags).wait()
    assert code == 1 and err.count('\n') == 1 and 'No space left on device' in err
    stored = read_checkpoint(small_disk / 'run/last.pth.tar')
    assert stored['epoch'] == 1
    (small_disk / 'full').unlink()
    main.main([*flags, f'--resume={small_disk}/run/last.pth.tar'])
    assert len(rows(small_disk / 'run/metrics.jsonl')) == 4


# Damaged files

def test_a_flipped_bit_in_a_checkpoint_is_noticed(trained, tmp_path):
    data = bytearray((trained / 'last.pth.tar').read_bytes())
    reference, generator, refused = read_checkpoint(trained / 'last.pth.tar'), random.Random(0), 0
    path = tmp_path / 'flipped.pth.tar'
    for _ in range(12):
        place, bit = generator.randrange(len(data)), 1 << generator.randrange(8)
        data[place] ^= bit
        path.write_bytes(data)
        try:
            stored = read_checkpoint(path)
        except experiment.InputError as error:
            assert 'damaged' in str(error)
            refused += 1
        else:
            assert_same(stored, reference)      # a bit between the contents
        data[place] ^= bit
    assert refused > 6


SCALER = {'scale': 1.0, 'growth_factor': 2.0, 'backoff_factor': 0.5, 'growth_interval': 2000, '_growth_tracker': 0}


@pytest.mark.parametrize('key, value, part', [
    ('flags', 5, 'no valid flags'), ('epoch', -1, 'no valid epoch'), ('classes', ['a', 3], 'no valid classes'),
    ('model', {'a': 1}, 'no valid model'), ('metrics', {}, 'no valid metrics'), ('best', float('nan'), 'best'),
    ('rng', {'cpu': None, 'cuda': []}, 'no valid rng'), ('scaler', {'scale': 1.0}, 'no valid scaler'),
    ('scaler', torch.zeros(2), 'no valid scaler'), ('scaler', SCALER | {'scale': float('nan')}, 'no valid scaler'),
    ('scaler', SCALER | {'growth_factor': float('nan')}, 'no valid scaler'), ('scaler', SCALER | {'backoff_factor': -1.0}, 'no valid scaler'),
    ('classes', ['a', 'b', 'a'], 'no valid classes'), ('metrics', {'top1': 1.0}, 'metrics'),
    ('metrics', {'top1': 1.0, 'top5': 1.0, 'images': 3, 'loss': float('nan')}, 'no valid metrics'),
    ('optimizer', {'state': {0: {'step': 'x'}}}, 'state of the optimizer'),
    ('rng', {'cpu': torch.zeros(5, dtype=torch.uint8), 'cuda': []}, 'random state'),
])
def test_a_checkpoint_edited_by_hand(trained, tmp_path, start, key, value, part, capsys):
    folder = shutil.copytree(trained, tmp_path / 'run')
    stored = torch.load(folder / 'last.pth.tar')
    torch.save(stored | {key: value}, folder / 'last.pth.tar')
    with pytest.raises(SystemExit):
        main.main([f'--resume={folder}/last.pth.tar', '--epochs=2'])
    error = capsys.readouterr().err
    assert part in error and error.count('\n') == 1 and f'{folder}' in error


@pytest.mark.parametrize('name, value', [('inpsize', None), ('inpsize', 'x'), ('binStart', 0), ('maxlr', 'nan'),
                                         ('binaryWeight', 'yes'), ('model_def', 7), ('optimType', 'adamm'),
                                         ('binEnd', None), ('amp', 'x'), ('dataset', 'folder:../../x'),
                                         ('dataset', 'folder:a\033b'), ('pretrained_file', 'a\0b'), ('data_dir', '\0'), ('mean', 'x'), ('signLayers', '9-2'), ('noDecay', 'x')])
def test_flags_edited_by_hand(trained, tmp_path, name, value, capsys):
    stored = torch.load(trained / 'last.pth.tar')
    torch.save(stored | {'flags': stored['flags'] | {name: value}}, tmp_path / 'edited.pth.tar')
    with pytest.raises(SystemExit):
        main.main([f'--resume={tmp_path}/edited.pth.tar', '--epochs=2'])
    error = capsys.readouterr().err
    assert name in error and error.count('\n') == 1
    with pytest.raises(InputError, match=f'--{name} is '):       # what utils.report, utils.draw and scripts read with
        checkpoint_source(tmp_path / 'edited.pth.tar')


def test_a_damaged_log_is_named(trained, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / 'run')
    lines = (folder / 'metrics.jsonl').read_text()
    (folder / 'metrics.jsonl').write_text('{"epoch": 0, \n' + lines)
    with pytest.raises(SystemExit):
        main.main([f'--resume={folder}/last.pth.tar', '--epochs=2'])
    error = capsys.readouterr().err
    assert 'metrics.jsonl is damaged in line 1' in error and error.count('\n') == 1


def test_half_a_line_at_the_end_of_a_log_is_dropped(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / 'run')
    with open(folder / 'metrics.jsonl', 'a') as file:
        file.write('{"epoch": 1, "spl')
    main.main([f'--resume={folder}/last.pth.tar', '--epochs=2'])
    assert [row['epoch'] for row in rows(folder / 'metrics.jsonl')] == [0, 0, 1, 1]


@pytest.mark.parametrize('flag, name, parts', [
    ('--resume', 'run', ['--resume', 'is a folder', 'run/last.pth.tar']),
    ('--resume', 'run/model.dab', ['--resume', 'packed model', '--packed']),
    ('--pretrained_file', 'run', ['--pretrained_file', 'is a folder']),
    ('--resume', 'run/' + 300 * 'x', ['--resume', 'too long']),
])
def test_another_file_than_a_checkpoint(trained, tmp_path, capsys, flag, name, parts):
    folder = shutil.copytree(trained, tmp_path / 'run')
    main.main([f'--resume={folder}/last.pth.tar', f'--export={folder}/model.dab'])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main.main([f'{flag}={tmp_path}/{name}', '--epochs=1'])
    error = capsys.readouterr().err
    assert all(part in error for part in parts) and error.count('\n') == 1


@pytest.mark.parametrize('command', [
    'main --config=PIPE', 'main --resume=PIPE', 'main --resume=PIPE --evaluate', 'main --packed=PIPE --evaluate',
    'main --pretrained_file=PIPE --model_def=bincifar --inpsize=32', 'main --resume=RUN/last.pth.tar --classify PIPE',
    'main --resume=RUN/last.pth.tar --evaluate --predictions=PIPE --overwrite',
    'utils.compare --config=PIPE', 'utils.report PIPE', 'utils.report RUN/last.pth.tar --out=OUT --image=PIPE', 'utils.draw PIPE',
    'datasets.prepare tuberlin --source=PIPE --out=OUT', 'datasets.prepare imagenet12 --source=PIPE --out=OUT',
    'datasets.prepare tuberlin --source=FOLDER --split_list=PIPE --out=OUT',
    'datasets.prepare imagenet12 --source=FOLDER --val_labels=PIPE --out=OUT'])
def test_a_pipe_is_refused_by_name_at_once(trained, tmp_path, at_once, monkeypatch, capsys, command):
    os.mkfifo(tmp_path / 'pipe')
    shutil.copytree(trained, tmp_path / 'run')
    for path in 'train/ant/1.png', 'val/2.png':
        (tmp_path / 'folder' / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (9, 9)).save(tmp_path / 'folder' / path)
    for word in 'PIPE', 'RUN', 'OUT', 'FOLDER':
        command = command.replace(word, str(tmp_path / word.lower()))
    module, *arguments = command.split(' ')
    monkeypatch.setattr(sys, 'argv', [module, *arguments])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f'{module}.__main__' if module.startswith('utils') else module).main()
    error = capsys.readouterr().err
    assert f'{tmp_path}/pipe is a pipe, not a file\n' in error and error.count('\n') == 1
    assert ended.value.code == 2 and (tmp_path / 'pipe').is_fifo()


def test_what_else_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening, pytest.raises(InputError, match='^s is a socket, not a file$'):
        listening.bind('s')
        files.check_file('s', 'checkpoint')
    with pytest.raises(InputError, match='^/dev/null is a device, not a file$'):
        files.check_file('/dev/null')
    with pytest.raises(InputError, match=f'^{tmp_path} is a folder, not a checkpoint$'):
        files.check_file(tmp_path, 'checkpoint')
    with pytest.raises(InputError, match='^there is no file a\0b$'):
        files.check_file('a\0b')


@pytest.mark.parametrize('name', ['log.txt', 'history.jsonl', 'flags.json', 'metrics.jsonl', 'weights.jsonl', '.lock'])
def test_a_run_refuses_what_would_lead_its_texts_elsewhere(trained, tmp_path, at_once, capsys, name):
    folder, victim = shutil.copytree(trained, tmp_path / 'big/run'), tmp_path / 'victim'
    victim.write_text('mine')
    (tmp_path / 'logs').symlink_to('big')       # of the folders a link is as good as any
    for target, sentence in (victim, 'is a symbolic link'), (tmp_path / 'new', 'is a symbolic link'), (None, 'is a pipe, not a file'):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target) if target else os.mkfifo(folder / name)
        if (name, target) == ('flags.json', tmp_path / 'new'):      # without flags.json it is not the folder of a run
            continue
        for start in [f'--resume={tmp_path}/logs/run/last.pth.tar'], ['--overwrite', f'--logdir={tmp_path}/logs', '--name=run', *SMALL]:
            with pytest.raises(SystemExit) as ended:
                main.main([*start, f'--data_dir={torch.load(trained / "last.pth.tar")["flags"]["data_dir"]}', '--epochs=2'])
            error = capsys.readouterr().err
            assert ended.value.code == 2 and f'logs/run/{name} {sentence}' in error and error.count('\n') == 1
    assert victim.read_text() == 'mine' and not (tmp_path / 'new').exists()
    (folder / name).unlink()
    shutil.copy(trained / 'flags.json', folder)
    main.main([f'--resume={tmp_path}/logs/run/last.pth.tar', '--epochs=2'])
    assert read_checkpoint(folder / 'last.pth.tar')['epoch'] == 2


def test_a_tar_of_imagenet_that_is_a_pipe(tmp_path):
    for name in imagenet.TRAIN_TAR, imagenet.VAL_TAR:
        os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f'{imagenet.TRAIN_TAR} is a pipe, not a file'):
        imagenet.find_images(tmp_path, None)


def test_what_is_left_of_a_name_that_a_killed_process_wrote_to_is_replaced(tmp_path, at_once):
    os.mkfifo(tmp_path / 'temporary')
    files.write_atomically(tmp_path / 'x', lambda path: path.write_text('new'), temporary=tmp_path / 'temporary')
    assert (tmp_path / 'x').read_text() == 'new'


# Numbers that no network can compute with

def spoil(checkpoint, name, value):
    checkpoint['model'][name].view(-1)[0] = value


@pytest.mark.parametrize('name, value, part', [
    ('conv1.weight', torch.nan, 'not finite, in conv1.weight'),
    ('bn2.running_mean', torch.inf, 'not finite, in bn2.running_mean'),
    ('conv3.parametrizations.weight.original', -torch.inf, 'not finite, in conv3.'),
    ('bn2.running_var', -1, 'a variance below 0, in bn2.running_var')])
def test_a_checkpoint_with_impossible_numbers_is_refused_everywhere(trained, sketch_folder, tmp_path, capsys, name, value, part):
    folder = shutil.copytree(trained, tmp_path / 'run')
    file = folder / 'last.pth.tar'
    checkpoint = read_checkpoint(file)
    spoil(checkpoint, name, value)
    torch.save(checkpoint, file)
    image = next(sketch_folder.rglob('*.png'))
    resume = f'--resume={file}'
    for command in ([resume, '--evaluate'], [resume, f'--export={tmp_path}/model.dab'], [resume, '--classify', str(image)],
                    [resume, '--epochs=2']):
        with pytest.raises(SystemExit) as ended:
            main.main(command)
        output = capsys.readouterr()
        assert ended.value.code == 2 and f'{file} has ' in output.err and part in output.err and output.err.count('\n') == 1
        assert 'accuracy' not in output.out
    for read in experiment.load, checkpoint_source:      # what utils.report, utils.draw and utils.compare read with
        with pytest.raises(InputError, match=part):
            read(file)
    assert not (tmp_path / 'model.dab').exists()


@pytest.mark.parametrize('optimType', ['sgd', 'adam', 'adamw', 'adagrad', 'adamax', 'adadelta'])
def test_an_optimizer_is_not_restored_with_impossible_numbers(optimType):
    model = torch.nn.Linear(2, 1)
    optimizer = optim.build_optimizer(optimType, model, 0.1, 0, 0.9, False)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = optim.optimizer_state(optimizer, model)['state']
    optim.restore_optimizer(optimizer, model, state)
    for key in state[1]:
        may_be_negative = key in ('momentum_buffer', 'exp_avg')
        for value in [float('nan'), -1.0]:
            spoilt = {**state, 1: state[1] | {key: torch.full_like(state[1][key], value)}}
            expected = (contextlib.nullcontext() if value < 0 and may_be_negative else
                        pytest.raises(InputError, match=f'impossible {key} of bias in the state of the optimizer'))
            with expected:
                optim.restore_optimizer(optimizer, model, spoilt)


# Two at once

def test_two_processes_cannot_continue_one_run(trained, tmp_path, start, capsys):
    folder = shutil.copytree(trained, tmp_path / 'run')
    resume = [f'--resume={folder}/last.pth.tar', '--epochs=1000', '--dataOn=workers', '--workers=2']
    first = start(main.main, resume)
    first.wait_for(lambda: (folder / '.lock').exists() and len(rows(folder / 'metrics.jsonl')) > 2)
    with pytest.raises(SystemExit) as exit_:
        main.main(resume)
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and f'is in use by process {first.process.pid} on ' in err and err.count('\n') == 1
    os.kill(first.process.pid, signal.SIGKILL)      # its workers live on for a moment
    first.process.join()
    done = read_checkpoint(folder / 'last.pth.tar')['epoch']
    main.main([resume[0], f'--epochs={done + 1}'])
    assert [row['epoch'] for row in rows(folder / 'metrics.jsonl')] == [n // 2 for n in range(2 * done + 2)]


# Moved runs

def test_a_run_goes_on_where_its_checkpoint_lies(trained, sketch_folder, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(trained, tmp_path / 'elsewhere/other')
    best = read_checkpoint(folder / 'best.pth.tar')['metrics']['top1']
    monkeypatch.chdir(tmp_path)
    main.main(['--resume=elsewhere/other/last.pth.tar', '--epochs=2'])
    monkeypatch.chdir(folder)
    main.main(['--resume=last.pth.tar', '--epochs=3'])
    assert [row['epoch'] for row in rows(folder / 'metrics.jsonl')] == [0, 0, 1, 1, 2, 2]
    assert read_checkpoint('last.pth.tar')['best'] >= best and json.loads(Path('flags.json').read_text())['name'] == 'other'
    assert not (tmp_path / 'logs').exists() and not Path('logs').exists()
    main.main(['--resume=last.pth.tar', '--epochs=4', f'--logdir={tmp_path}', '--name=branch'])
    assert read_checkpoint(tmp_path / 'branch/last.pth.tar')['epoch'] == 4
    assert read_checkpoint('last.pth.tar')['epoch'] == 3


def test_a_checkpoint_from_elsewhere_does_not_say_where_the_run_is_recorded(trained, tmp_path, monkeypatch, capsys):
    (tmp_path / 'work').mkdir()
    monkeypatch.chdir(tmp_path / 'work')
    stored = torch.load(trained / 'last.pth.tar')
    for number, place in enumerate([{'logdir': str(tmp_path / 'victim')}, {'name': '../../victim'}, {'name': f'{tmp_path}/victim'},
                                    {'logdir': '..', 'name': 'victim'}, {'name': 'a\033b'}]):
        torch.save(stored | {'flags': stored['flags'] | place}, tmp_path / 'downloaded.pth.tar')
        main.main([f'--resume={tmp_path}/downloaded.pth.tar', '--epochs=1', *(['--overwrite'] if number else [])])
        assert f'continues {tmp_path}/downloaded.pth.tar after epoch 1, in logs/tuberlin-tinywbin-dab\n' in capsys.readouterr().out
    main.main([f'--resume={tmp_path}/downloaded.pth.tar', '--epochs=1', '--logdir=mine', '--name=that'])
    assert {path.name for path in tmp_path.iterdir()} == {'work', 'downloaded.pth.tar'}
    assert {path.as_posix() for path in Path().glob('*/*')} == {'logs/tuberlin-tinywbin-dab', 'mine/that'}


# What a terminal would take for commands

def test_no_name_of_a_file_or_a_class_reaches_the_terminal_as_a_command(sketch_folder, tmp_path, start, monkeypatch, capfd):
    data, ring = tmp_path / 'data', '\033]0;title\07ring\nmain.py: error: forged\u202e'
    shutil.copytree(sketch_folder, data)
    for split in 'train', 'val':
        (data / split / 'ring').rename(data / split / ring)
    (data / 'train' / ring / 'a\033[2J').write_text('not an image')
    (data / 'val/bar/broken\033[2J.png').write_text('not an image')
    run, packed = f'--resume={tmp_path}/run/last.pth.tar', tmp_path / 'model\033[2J.dab'
    data_dir = f'--data_dir={data}'
    train = start(main.main, [*SMALL, data_dir, f'--logdir={tmp_path}', '--name=run', '--epochs=1', '--skipBroken'])
    code, *texts = train.wait()
    log = (tmp_path / 'run/log.txt').read_text()
    assert code == 0 and all('a\\x1b[2J' in text and 'broken\\x1b[2J.png' in text for text in (texts[1], log))
    main.main([run, '--evaluate'])
    main.main([run, f'--export={packed}'])
    with pytest.raises(SystemExit):
        main.main([f'--packed={packed}', '--classify', f'{data}/val'])
    monkeypatch.setattr(sys, 'argv', ['prepare', 'tuberlin', f'--source={data}/train', f'--out={tmp_path}/prepared\033[2J', '--size=9'])
    prepare.main()
    out, err = capfd.readouterr()
    assert 'broken\\x1b[2J.png' in err and 'prepared\\x1b[2J: ' in out
    texts += out, err, log
    lines = [line for text in texts for line in text.split('\n')]
    assert all(line.isprintable() for line in lines) and not [line for line in lines if line.startswith('main.py: error: forged')]
    assert sum('\\x1b]0;title\\x07ring\\nmain.py: error: forged\\u202e' in line for line in lines) > 8


def test_everything_is_printed_by_the_console():
    """So that no print is forgotten; utils.bench prints its own measurements."""
    elsewhere = [f'{name}:{node.lineno}' for name in tracked() if name != 'utils/system/console.py' and not name.startswith('utils/bench/')
                 for node in ast.walk(ast.parse((ROOT / name).read_text(encoding='utf-8')))
                 if isinstance(node, ast.Call) and ast.unparse(node.func) in ('print', 'sys.stdout.write', 'sys.stderr.write')
                 and 'file' not in {keyword.arg for keyword in node.keywords}]
    assert elsewhere == []


# Processes and memory

@pytest.mark.parametrize('what, workers, remedy', [
    ('killed', 1, '--workers=0'), ('memory', 0, 'smaller --batch-size'), ('memory', 1, 'smaller --batch-size')])
def test_what_ran_out_is_said_with_the_remedy(flags, run_folder, monkeypatch, capsys, what, workers, remedy):
    def die(dataset, indices):      # the loading worker is killed by the system, or runs out of memory
        if what == 'memory':
            torch.empty(10 ** 15)
        elif get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
    monkeypatch.setattr(transforms.TransformedSquares, '__getitems__', die)
    with pytest.raises(SystemExit) as exit_:
        main.main([*flags, '--dataOn=workers', f'--workers={workers}'])
    err = capsys.readouterr().err
    assert exit_.value.code == 1 and remedy in err and err.count('\n') == 1
    assert 'ended early' in last_line(run_folder) and remedy in last_line(run_folder)


LIMITED = """
import os, resource, sys
import main
from datasets import prepare
opened = max(map(int, os.listdir('/dev/fd'))) + 1
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
"""


@pytest.mark.parametrize('more', [0, 1, 2, 4, 8, 16, 32])
def test_too_few_open_files_for_the_workers_are_said_with_the_remedies(flags, start, more):
    script = f"""{LIMITED}
resource.setrlimit(resource.RLIMIT_NOFILE, (opened + {more}, opened + {more}))
main.main({[*flags, '--dataOn=workers', '--epochs=1', '--workers=4']})
"""
    code, _, error = start(run_script, script, {}).wait()
    assert code in (1, 2) and error.count('\n') == 1 and 'ulimit -n' in error and '--workers' in error


def test_the_limit_of_open_files_is_raised_where_it_can_be(flags, start):
    script = f"""{LIMITED}
resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 20, hard))
main.main({[*flags, '--dataOn=workers', '--epochs=1', '--workers=2']})
"""
    code, out, error = start(run_script, script, {}).wait()
    assert code == 0 and 'open files' not in error and '1 of 1 epochs done' in out


def test_a_process_that_the_system_refuses_is_one_sentence(flags, start):
    script = f"""{LIMITED}
def refuse(forks=[], fork=os.fork):
    forks.append(1)
    if len(forks) > 2:
        raise BlockingIOError(11, 'Resource temporarily unavailable')
    return fork()
os.fork = refuse
main.main({[*flags, '--dataOn=workers', '--epochs=1', '--workers=4']})
"""
    code, _, error = start(run_script, script, {}).wait()
    lines = [line for line in error.splitlines() if 'This DataLoader will create' not in line]      # PyTorch's, on few cores
    assert code == 1 and len(lines) == 1, error
    assert 'Resource temporarily unavailable' in lines[0] and '--workers' in lines[0]


@pytest.mark.parametrize('more', [-3, -2, -1, 0, 1])
def test_too_few_open_files_to_prepare(sketch_folder, tmp_path, start, more):
    script = f"""{LIMITED}
for number in range(opened):
    if not os.path.exists(f'/dev/fd/{{number}}'):
        os.open('/dev/null', os.O_RDONLY)       # no gaps
resource.setrlimit(resource.RLIMIT_NOFILE, (opened + {more}, opened + {more}))
sys.argv = ['prepare', 'tuberlin', {f'--source={sketch_folder}/train'!r}, {f'--out={tmp_path}/out'!r}, '--size=9']
prepare.main()
"""
    code, out, error = start(run_script, script, {}).wait()
    if code:
        assert code == 1 and error.count('\n') == 1 and 'ulimit -n' in error
    else:
        assert more > 0 and error == '' and 'images in train/' in out


def test_a_bug_keeps_its_traceback_in_the_log_too(flags, run_folder, monkeypatch):
    monkeypatch.setattr(epoch, 'validate', lambda *_: [][1])
    with pytest.raises(IndexError):
        main.main(flags)
    assert 'Traceback' in log(run_folder) and last_line(run_folder) == 'IndexError: list index out of range'


@pytest.mark.parametrize('variables, missing', [
    ({'WORLD_SIZE': '2'}, 'RANK, MASTER_ADDR, MASTER_PORT'), ({'WORLD_SIZE': '2', 'RANK': '1', 'LOCAL_RANK': '1'}, 'MASTER_ADDR, MASTER_PORT'),
    ({'WORLD_SIZE': '2', 'RANK': '0', 'MASTER_ADDR': 'a', 'MASTER_PORT': ''}, 'MASTER_PORT'), ({'WORLD_SIZE': 'x'}, 'RANK, MASTER_ADDR, MASTER_PORT')])
def test_half_of_the_variables_of_torchrun(flags, monkeypatch, capsys, variables, missing):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exit_:
        main.main(flags)
    assert exit_.value.code == 2 and capsys.readouterr().err == (
        f'main.py: error: WORLD_SIZE={variables["WORLD_SIZE"]} is set, but not {missing}: start the processes with torchrun or, '
        'for one process alone, unset WORLD_SIZE\n')


def test_a_world_that_is_no_number(flags, monkeypatch, capsys):
    for name in 'WORLD_SIZE', 'RANK', 'MASTER_ADDR', 'MASTER_PORT':
        monkeypatch.setenv(name, 'x')
    with pytest.raises(SystemExit) as exit_:
        main.main(flags)
    assert exit_.value.code == 2 and 'WORLD_SIZE=x is not a number' in capsys.readouterr().err


STRAY = [{'LOCAL_RANK': '1'}, {'RANK': '1'}, {'WORLD_SIZE': '1'}, {'WORLD_SIZE': '1', 'RANK': '0', 'LOCAL_RANK': '1'}, {'LOCAL_RANK': 'x', 'RANK': ''}]


@pytest.mark.parametrize('variables', STRAY)
def test_variables_that_another_program_left(flags, run_folder, monkeypatch, capsys, sketch_folder, tmp_path, variables):
    """As wrappers of SLURM and old shells: the process is alone, so it trains, warns and refuses like any other."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    shutil.copytree(sketch_folder, tmp_path / 'data')
    (tmp_path / 'data/train/bar/notes.txt').touch()
    with pytest.warns(UserWarning, match='1 file is left out'):
        main.main([*flags, f'--data_dir={tmp_path}/data', '--epochs=0'])
    assert json.loads((run_folder / 'history.jsonl').read_text())['processes'] == '1'
    with pytest.raises(SystemExit) as exit_:
        main.main([*flags, f'--data_dir={tmp_path}/none'])
    assert exit_.value.code == 2 and 'main.py: error: --data_dir: there is no folder ' in capsys.readouterr().err


# Data

def test_a_training_set_that_trains_nothing(tmp_path, flags, capsys):
    for split in 'train', 'val':
        (tmp_path / split / 'only').mkdir(parents=True)
        Image.new('L', (90, 90), 255).save(tmp_path / split / 'only/1.png')
    with pytest.raises(SystemExit) as exit_:
        main.main([*flags, '--nClasses=1', f'--data_dir={tmp_path}'])
    assert exit_.value.code == 2 and 'a single image' in capsys.readouterr().err


def test_an_image_that_cannot_be_classified_does_not_hide_the_others(trained, sketch_folder, tmp_path, capsys):
    good, bad = sketch_folder / 'val/bar/0.png', tmp_path / os.fsdecode(b'bad\xff.png')
    bad.write_bytes(b'no image')
    with pytest.raises(SystemExit) as exit_:
        main.main([f'--resume={trained}/last.pth.tar', '--classify', str(good), str(bad), str(good)])
    out, err = capsys.readouterr()
    assert exit_.value.code == 1 and out.count(f'{good}: ') == 2
    assert err.count('\n') == 1 and 'bad' in err


def test_a_line_stays_a_line(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main.main(['--data_dir=a\nb', '--dataset=tuberlin', f'--logdir={tmp_path}'])
    assert capsys.readouterr().err.count('\n') == 1


def test_names_that_are_no_text(flags, tmp_path):
    logs = tmp_path / os.fsdecode(b'\xff')
    main.main([*flags, '--epochs=1', f'--logdir={logs}'])
    main.main([f'--resume={logs}/run/last.pth.tar', '--epochs=2'])
    assert len(rows(logs / 'run/metrics.jsonl')) == 4


def test_an_export_replaces_packed_models_only(trained, tmp_path, capsys):
    (tmp_path / 'other.dab').write_bytes(b'mine')
    for _ in range(2):
        main.main([f'--resume={trained}/last.pth.tar', f'--export={tmp_path}/model.dab', '--overwrite'])
    with pytest.raises(SystemExit):
        main.main([f'--resume={trained}/last.pth.tar', f'--export={tmp_path}/other.dab', '--overwrite'])
    assert 'is not a packed model' in capsys.readouterr().err and (tmp_path / 'other.dab').read_bytes() == b'mine'


SECOND_OF_TWO = {'WORLD_SIZE': '2', 'RANK': '1', 'LOCAL_RANK': '1', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '1'}


def test_more_processes_than_gpus(flags, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    for name, value in SECOND_OF_TWO.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(experiment.InputError, match='fewer GPUs than processes: give --nproc_per_node=1'):
        experiment.from_command(flags)


# Found by attacking it

def test_going_back_retires_the_later_epochs_first(trained, tmp_path, start):
    """Killed at any moment, what last.pth.tar holds is what the records say."""
    folder = shutil.copytree(trained, tmp_path / 'run')
    shutil.copy(folder / 'last.pth.tar', folder / 'epoch1.pth.tar')
    main.main([f'--resume={folder}/last.pth.tar', '--epochs=2'])
    code, _, err = start(Dying('record', 'record_epoch', 1),
                         [f'--resume={folder}/epoch1.pth.tar', '--overwrite', '--epochs=2']).wait()
    assert code == -signal.SIGKILL, err
    assert read_checkpoint(folder / 'last.pth.tar')['epoch'] == read_checkpoint(folder / 'best.pth.tar')['epoch'] == 1
    main.main([f'--resume={folder}/last.pth.tar', '--epochs=2'])
    assert [row['epoch'] for row in rows(folder / 'metrics.jsonl')] == [0, 0, 1, 1]


def test_overwrite_does_not_remove_what_it_reads(trained, tmp_path, flags, capsys):
    folder = shutil.copytree(trained, tmp_path / 'logs/run')
    with pytest.raises(SystemExit) as exit_:
        main.main([*flags, '--overwrite', f'--pretrained_file={folder}/best.pth.tar'])
    assert exit_.value.code == 2 and '--pretrained_file' in capsys.readouterr().err
    assert (folder / 'best.pth.tar').exists() and (folder / 'last.pth.tar').exists()


def test_files_beside_an_output_stay(trained, tmp_path):
    for name in 'model.dab.tmp', 'model.tmp', 'model.dab.part':
        (tmp_path / name).write_text('mine')
    main.main([f'--resume={trained}/last.pth.tar', f'--export={tmp_path}/model.dab'])
    main.main([f'--resume={trained}/last.pth.tar', f'--export={tmp_path}/model.pt'])
    assert {path.name for path in tmp_path.iterdir() if path.read_bytes() == b'mine'} == {
        'model.dab.tmp', 'model.tmp', 'model.dab.part'}


def test_a_refused_folder_stays_as_it_is(flags, run_folder, capsys):
    run_folder.mkdir(parents=True)
    for name in 'lock', 'other', 'x.tmp':
        (run_folder / name).write_text('mine')
    with pytest.raises(SystemExit):
        main.main(flags)
    assert 'holds something else' in capsys.readouterr().err
    assert sorted(path.name for path in run_folder.iterdir()) == ['lock', 'other', 'x.tmp']


def test_fewer_epochs_than_there_are(trained, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / 'run')
    before = (folder / 'flags.json').read_bytes()
    with pytest.raises(SystemExit) as exit_:
        main.main([f'--resume={folder}/last.pth.tar', '--epochs=0'])
    assert exit_.value.code == 2 and '1 epochs already' in capsys.readouterr().err
    assert (folder / 'flags.json').read_bytes() == before


class Interrupted:
    """main.main, stopped by a signal while a checkpoint is written."""

    def __call__(self, arguments):
        save = torch.save

        def interrupted(*arguments):
            os.kill(os.getpid(), signal.SIGTERM)
            save(*arguments)
        torch.save = interrupted
        main.main(arguments)


def test_a_signal_waits_until_a_checkpoint_is_written(flags, run_folder, start):
    code, _, err = start(Interrupted(), flags).wait()
    assert code == 143 and err == 'main.py: stopped by SIGTERM\n'
    assert read_checkpoint(run_folder / 'last.pth.tar')['epoch'] == read_checkpoint(run_folder / 'best.pth.tar')['epoch'] == 1


def test_no_memory_to_read_a_checkpoint_is_not_its_fault(trained, monkeypatch, capsys):
    def no_memory(*_, **__):
        raise MemoryError
    monkeypatch.setattr(torch, 'load', no_memory)
    with pytest.raises(SystemExit):
        main.main([f'--resume={trained}/last.pth.tar', '--evaluate'])
    error = capsys.readouterr().err
    assert 'memory ran out' in error and 'damaged' not in error


def test_where_the_weights_start_is_in_the_log(flags, run_folder, trained, start):
    code, _, err = start(main.main, [*flags, '--epochs=0', f'--pretrained_file={trained}/best.pth.tar'],
                         stdout='/dev/full').wait()
    assert code == 0 and f'starts from {trained}/best.pth.tar' in log(run_folder), err


def test_a_checkpoint_that_is_a_link(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / 'run')
    (tmp_path / 'big').mkdir()
    shutil.move(folder / 'last.pth.tar', tmp_path / 'big/last.pth.tar')
    (folder / 'last.pth.tar').symlink_to(tmp_path / 'big/last.pth.tar')
    main.main([f'--resume={folder}/last.pth.tar', '--epochs=2'])
    assert len(rows(folder / 'metrics.jsonl')) == 4


def test_a_damaged_best_names_the_remedy(trained, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / 'run')
    (folder / 'best.pth.tar').write_bytes(b'half')
    with pytest.raises(SystemExit):
        main.main([f'--resume={folder}/last.pth.tar', '--epochs=2'])
    assert 'move it away' in capsys.readouterr().err


@pytest.mark.parametrize('value', [-1, True, 10 ** 400, 0.5], ids=['negative', 'truth', 'huge', 'half'])
def test_a_log_with_an_impossible_number(tmp_path, value):
    for key in {'epoch', 'top1'} if value != 0.5 else {'epoch'}:
        (tmp_path / 'x.jsonl').write_text(json.dumps({'epoch': 0, 'top1': 50.0} | {key: value}) + '\n')
        with pytest.raises(InputError, match='damaged in line 1'):      # utils.report would draw it
            logs.read_log(tmp_path / 'x.jsonl', {'epoch', 'top1'})


def test_a_log_with_a_value_of_another_type(trained, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / 'run')
    with open(folder / 'metrics.jsonl', 'a') as file:
        file.write('{"epoch": "x", "split": "val"}\n')
    with pytest.raises(SystemExit):
        main.main([f'--resume={folder}/last.pth.tar', '--epochs=2'])
    assert 'damaged in line 3' in capsys.readouterr().err


def test_exporting_under_torchrun_is_done_once(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(main.parallel, 'rank', lambda: 1)
    main.main([f'--resume={trained}/last.pth.tar', f'--export={tmp_path}/model.dab'])
    assert not (tmp_path / 'model.dab').exists()

"""Runs survive kills, full disks, closed terminals, damaged files and a second process."""
import ast
import contextlib
import importlib
import json
import math
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
from datasets import imagenet, items, prepare
from utils import experiment
from utils.record import logs
from utils.record import run as record
from utils.record.tensorboard import TensorBoard
from utils.source import checkpoint_source
from utils.system import files
from utils.system.errors import InputError
from utils.training import epoch, optim
from utils.training.checkpoint import read_checkpoint


@pytest.fixture
def flags(sketch_folder, tmp_path):
    return [*SMALL, f'--data_dir={sketch_folder}', f'--logdir={tmp_path}/logs', '--name=run',
            '--epochs=2']


@pytest.fixture
def run_folder(tmp_path):
    return tmp_path / 'logs/run'


def train(sketch_folder, logs, epochs):
    main.main([*SMALL, f'--data_dir={sketch_folder}', f'--logdir={logs}', '--name=run',
               f'--epochs={epochs}'])
    return logs / 'run'


@pytest.fixture(scope='module')
def trained(sketch_folder, tmp_path_factory):
    """The folder of a run of one epoch; see `copied`."""
    return train(sketch_folder, tmp_path_factory.mktemp('trained'), 1)


@pytest.fixture(scope='module')
def unbroken(sketch_folder, tmp_path_factory):
    """The folder of a run of two epochs."""
    return train(sketch_folder, tmp_path_factory.mktemp('unbroken'), 2)


@pytest.fixture
def copied(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / 'run')


@pytest.fixture
def refused(capsys):
    """Calls main.main, expects an exit code and one line on stderr, and returns the line."""
    def run(arguments, code=2, function=main.main):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            function(arguments)
        output = capsys.readouterr()
        assert ended.value.code == code and output.err.count('\n') == 1, output.err
        assert 'accuracy' not in output.out
        return output.err
    return run


def resume(folder, *more):
    return [f'--resume={folder}/last.pth.tar', *more]


def last_line(folder):
    return (folder / 'log.txt').read_text().splitlines()[-1]


def log(folder):
    return (folder / 'log.txt').read_text() if (folder / 'log.txt').exists() else ''


def epochs_of(folder):
    return [row['epoch'] for row in rows(folder / 'metrics.jsonl')]


# Kills

def contents(folder):
    """Return the numbers of a run, without times, and the tensors of its checkpoints."""
    numbers = [[{key: value for key, value in row.items() if 'time' not in key}
                for row in rows(folder / name)] for name in ('metrics.jsonl', 'weights.jsonl')]
    stored = [read_checkpoint(folder / name) for name in ('last.pth.tar', 'best.pth.tar')]
    return numbers, [[each[key] for key in ('epoch', 'best', 'model', 'optimizer')]
                     for each in stored]


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


class Dying:
    """main.main for Command, killed at call number `count` of a function; it can be pickled."""

    def __init__(self, module, name, count):
        self.module, self.name, self.count = module, name, count

    def __call__(self, arguments):
        holder = {'record': record.Run, 'board': TensorBoard, 'writing': logs,
                  'epoch': epoch}[self.module]
        function, calls = getattr(holder, self.name), []

        def deadly(*args, **kwargs):
            calls.append(1)
            if len(calls) == self.count:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        setattr(holder, self.name, deadly)
        main.main(arguments)


MOMENTS = {
    'before the log of epoch 1': ('record', 'record_epoch', 1),
    'before the first checkpoint': ('record', 'save', 1),
    'between last and best': ('writing', 'write_atomically', 1),
    'while weights are recorded': ('board', 'add_layer', 3),
    'in epoch 2': ('epoch', 'validate', 2),
}
FAST = 'between last and best', 'while weights are recorded'


@pytest.mark.parametrize('moment', [
    moment if moment in FAST else pytest.param(moment, marks=pytest.mark.soak)
    for moment in MOMENTS])
def test_a_killed_run_ends_as_an_unbroken_one(flags, run_folder, start, moment, unbroken):
    code, _, err = start(Dying(*MOMENTS[moment]), flags).wait()
    assert code == -signal.SIGKILL, err
    main.main(flags + (resume(run_folder) if (run_folder / 'last.pth.tar').exists() else []))
    assert_same(contents(run_folder), contents(unbroken))


@pytest.mark.soak
def test_forty_kills(flags, run_folder, start, unbroken):
    """At these and at random moments; after each the same command, or --resume, goes on."""
    generator, kills = random.Random(0), 0
    moments = list(MOMENTS.values()) * 4
    while kills < 40:
        shutil.rmtree(run_folder, ignore_errors=True)
        while True:
            more = resume(run_folder) if (run_folder / 'last.pth.tar').exists() else []
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


# Signals and terminals

@pytest.mark.parametrize('number, code, said', [
    (signal.SIGTERM, 143, 'SIGTERM'), (signal.SIGINT, 130, 'Ctrl-C')])
def test_a_signal_ends_a_run_with_a_last_line_in_the_log(
        flags, run_folder, start, number, code, said):
    command = start(main.main, [*flags, '--epochs=1000', '--dataOn=workers', '--workers=1'])
    command.wait_for((run_folder / 'last.pth.tar').exists)
    command.send(number)
    exit_code, out, err = command.wait()
    assert exit_code == code and err.count('\n') == 1 and f'stopped by {said}' in err
    assert last_line(run_folder) == f'ended early: stopped by {said}'
    assert f'{read_checkpoint(run_folder / "last.pth.tar")["epoch"]} of 1000 epochs done' in out
    assert out.splitlines()[-1].endswith(f'--resume={run_folder / "last.pth.tar"}')
    assert not (run_folder / '.lock').exists()


def test_a_stop_before_the_first_checkpoint_blocks_nobody(flags, run_folder, start, capsys):
    command = start(main.main, [*flags, '--epochs=1000'])
    command.wait_for(lambda: (run_folder / 'metrics.jsonl').exists() or 'lr' in log(run_folder))
    command.send(signal.SIGTERM)
    assert command.wait()[0] == 143 and not (run_folder / 'last.pth.tar').exists()
    (run_folder / 'notes').write_text('mine')
    main.main([*flags, '--epochs=1'])
    assert '1 of 1 epochs done' in capsys.readouterr().out
    assert len(rows(run_folder / 'metrics.jsonl')) == 2
    assert 'stopped by SIGTERM' in log(run_folder) and len(rows(run_folder / 'history.jsonl')) == 2
    assert (run_folder / 'notes').read_text() == 'mine'


@pytest.mark.parametrize('module', [['main.py'], ['-m', 'utils.compare']])
def test_ctrl_c_while_the_program_starts(module):
    process = subprocess.Popen([sys.executable, *module, '--epochs=1'], cwd=ROOT, text=True,
                               stderr=subprocess.PIPE)
    maps = Path(f'/proc/{process.pid}/maps')
    while 'libtorch' not in maps.read_text():      # it imports torch
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


def test_a_full_output_does_not_end_a_run(flags, run_folder, trained, start):
    more = ['--epochs=1', f'--pretrained_file={trained}/best.pth.tar']
    code, _, err = start(main.main, [*flags, *more], stdout='/dev/full').wait()
    assert code == 0 and '1 of 1 epochs done' in last_line(run_folder), err
    assert f'starts from {trained}/best.pth.tar' in log(run_folder)


def test_a_full_output_ends_other_commands_in_a_sentence(trained, start):
    code, _, err = start(main.main, resume(trained, '--evaluate'), stdout='/dev/full').wait()
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
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=150m', 'tmpfs', folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('a file system cannot be mounted here')
    yield folder
    subprocess.run(['umount', '-l', folder], check=True)


class Filling:
    """main.main, which fills the disk at `folder` at the second call of a function of a Run."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name

    def __call__(self, arguments):
        function, calls = getattr(record.Run, self.name), []

        def fill(run, *args, **kwargs):
            calls.append(1)
            if len(calls) == 2:
                with (open(self.folder / 'full', 'wb', buffering=0) as file,
                      contextlib.suppress(OSError)):
                    while True:
                        file.write(bytes(4096))
            return function(run, *args, **kwargs)
        setattr(record.Run, self.name, fill)
        main.main(arguments)


@pytest.mark.parametrize('name', ['record_weights', 'save'])
def test_a_disk_that_is_full_ends_the_run_in_a_sentence(flags, small_disk, start, name):
    flags = [*flags, f'--logdir={small_disk}']
    code, _, err = start(Filling(small_disk, name), flags).wait()
    assert code == 1 and err.count('\n') == 1 and 'No space left on device' in err
    assert read_checkpoint(small_disk / 'run/last.pth.tar')['epoch'] == 1
    (small_disk / 'full').unlink()
    main.main([*flags, *resume(small_disk / 'run')])
    assert len(rows(small_disk / 'run/metrics.jsonl')) == 4


# Damaged files

def test_a_flipped_bit_in_a_checkpoint_is_noticed(trained, tmp_path):
    data = bytearray((trained / 'last.pth.tar').read_bytes())
    reference = read_checkpoint(trained / 'last.pth.tar')
    generator, refused, path = random.Random(0), 0, tmp_path / 'flipped.pth.tar'
    for _ in range(12):
        place, bit = generator.randrange(len(data)), 1 << generator.randrange(8)
        data[place] ^= bit
        path.write_bytes(data)
        try:
            assert_same(read_checkpoint(path), reference)      # a bit between the contents
        except InputError as error:
            assert 'damaged' in str(error)
            refused += 1
        data[place] ^= bit
    assert refused > 6


NAN = math.nan
SCALER = {'scale': 1.0, 'growth_factor': 2.0, 'backoff_factor': 0.5, 'growth_interval': 2000,
          '_growth_tracker': 0}


@pytest.mark.parametrize('key, value, part', [
    ('flags', 5, 'no valid flags'), ('epoch', -1, 'no valid epoch'),
    ('classes', ['a', 3], 'no valid classes'), ('classes', ['a', 'b', 'a'], 'no valid classes'),
    ('model', {'a': 1}, 'no valid model'), ('best', NAN, 'best'),
    ('metrics', {}, 'no valid metrics'), ('metrics', {'top1': 1.0}, 'metrics'),
    ('metrics', {'top1': 1.0, 'top5': 1.0, 'images': 3, 'loss': NAN}, 'no valid metrics'),
    ('scaler', {'scale': 1.0}, 'no valid scaler'), ('scaler', torch.zeros(2), 'no valid scaler'),
    ('scaler', SCALER | {'scale': NAN}, 'no valid scaler'),
    ('scaler', SCALER | {'growth_factor': NAN}, 'no valid scaler'),
    ('scaler', SCALER | {'backoff_factor': -1.0}, 'no valid scaler'),
    ('optimizer', {'state': {0: {'step': 'x'}}}, 'state of the optimizer'),
    ('rng', {'cpu': None, 'cuda': []}, 'no valid rng'),
    ('rng', {'cpu': torch.zeros(5, dtype=torch.uint8), 'cuda': []}, 'random state'),
])
def test_a_checkpoint_edited_by_hand(copied, key, value, part, refused):
    stored = torch.load(copied / 'last.pth.tar')
    torch.save(stored | {key: value}, copied / 'last.pth.tar')
    error = refused(resume(copied, '--epochs=2'))
    assert part in error and f'{copied}' in error


@pytest.mark.parametrize('name, value', [
    ('inpsize', None), ('inpsize', 'x'), ('binStart', 0), ('maxlr', 'nan'), ('binaryWeight', 'yes'),
    ('model_def', 7), ('optimType', 'adamm'), ('binEnd', None), ('amp', 'x'),
    ('dataset', 'folder:../../x'), ('dataset', 'folder:a\033b'), ('pretrained_file', 'a\0b'),
    ('data_dir', '\0'), ('mean', 'x'), ('signLayers', '9-2'), ('noDecay', 'x')])
def test_flags_edited_by_hand(trained, tmp_path, name, value, refused):
    stored = torch.load(trained / 'last.pth.tar')
    edited = tmp_path / 'last.pth.tar'
    torch.save(stored | {'flags': stored['flags'] | {name: value}}, edited)
    assert name in refused(resume(tmp_path, '--epochs=2'))
    with pytest.raises(InputError, match=f'--{name} is '):      # for report, draw and scripts
        checkpoint_source(edited)


@pytest.mark.parametrize('damage, line', [
    (lambda lines: '{"epoch": 0, \n' + lines, 1),
    (lambda lines: lines + '{"epoch": "x", "split": "val"}\n', 3)])
def test_a_damaged_log_is_named(copied, damage, line, refused):
    path = copied / 'metrics.jsonl'
    path.write_text(damage(path.read_text()))
    error = refused(resume(copied, '--epochs=2'), 1)
    assert f'metrics.jsonl is damaged in line {line}' in error


def test_half_a_line_at_the_end_of_a_log_is_dropped(copied):
    with open(copied / 'metrics.jsonl', 'a') as file:
        file.write('{"epoch": 1, "spl')
    main.main(resume(copied, '--epochs=2'))
    assert epochs_of(copied) == [0, 0, 1, 1]


@pytest.mark.parametrize('value', [-1, True, 10 ** 400, 0.5],
                         ids=['negative', 'truth', 'huge', 'half'])
def test_a_log_with_an_impossible_number(tmp_path, value):
    for key in {'epoch', 'top1'} if value != 0.5 else {'epoch'}:
        row = {'epoch': 0, 'top1': 50.0} | {key: value}
        (tmp_path / 'x.jsonl').write_text(json.dumps(row) + '\n')
        with pytest.raises(InputError, match='damaged in line 1'):      # report would draw it
            logs.read_log(tmp_path / 'x.jsonl', {'epoch', 'top1'})


@pytest.mark.parametrize('flag, name, parts', [
    ('--resume', 'run', ['--resume', 'is a folder', 'run/last.pth.tar']),
    ('--resume', 'run/model.dab', ['--resume', 'packed model', '--packed']),
    ('--pretrained_file', 'run', ['--pretrained_file', 'is a folder']),
    ('--resume', 'run/' + 300 * 'x', ['--resume', 'too long']),
])
def test_another_file_than_a_checkpoint(copied, tmp_path, refused, flag, name, parts):
    main.main(resume(copied, f'--export={copied}/model.dab'))
    error = refused([f'{flag}={tmp_path}/{name}', '--epochs=1'])
    assert all(part in error for part in parts)


@pytest.mark.parametrize('command', [
    'main --config=PIPE', 'main --resume=PIPE', 'main --resume=PIPE --evaluate',
    'main --packed=PIPE --evaluate',
    'main --pretrained_file=PIPE --model_def=bincifar --inpsize=32',
    'main --resume=RUN/last.pth.tar --classify PIPE',
    'main --resume=RUN/last.pth.tar --evaluate --predictions=PIPE --overwrite',
    'utils.compare --config=PIPE', 'utils.report PIPE',
    'utils.report RUN/last.pth.tar --out=OUT --image=PIPE', 'utils.draw PIPE',
    'datasets.prepare tuberlin --source=PIPE --out=OUT',
    'datasets.prepare imagenet12 --source=PIPE --out=OUT',
    'datasets.prepare tuberlin --source=FOLDER --split_list=PIPE --out=OUT',
    'datasets.prepare imagenet12 --source=FOLDER --val_labels=PIPE --out=OUT'])
def test_a_pipe_is_refused_by_name_at_once(copied, tmp_path, at_once, monkeypatch, refused,
                                           command):
    os.mkfifo(tmp_path / 'pipe')
    for path in 'train/ant/1.png', 'val/2.png':
        (tmp_path / 'folder' / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (9, 9)).save(tmp_path / 'folder' / path)
    for word in 'PIPE', 'RUN', 'OUT', 'FOLDER':
        command = command.replace(word, str(tmp_path / word.lower()))
    module, *arguments = command.split(' ')
    monkeypatch.setattr(sys, 'argv', [module, *arguments])
    name = f'{module}.__main__' if module.startswith('utils') else module
    function = importlib.import_module(name).main
    assert f'{tmp_path}/pipe is a pipe, not a file\n' in refused(None, 2, lambda _: function())
    assert (tmp_path / 'pipe').is_fifo()


def test_what_else_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind('s')
        for path, sentence in (('s', 's is a socket, not a file'),
                               ('/dev/null', '/dev/null is a device, not a file'),
                               (tmp_path, f'{tmp_path} is a folder, not a checkpoint'),
                               ('a\0b', 'there is no checkpoint a\0b')):
            with pytest.raises(InputError, match=f'^{sentence}$'):
                files.check_file(path, 'checkpoint')


@pytest.mark.parametrize('name', ['log.txt', 'history.jsonl', 'flags.json', 'metrics.jsonl',
                                  'weights.jsonl', '.lock'])
def test_a_run_refuses_what_would_lead_its_texts_elsewhere(
        trained, tmp_path, at_once, refused, sketch_folder, name):
    folder, victim = shutil.copytree(trained, tmp_path / 'big/run'), tmp_path / 'victim'
    victim.write_text('mine')
    (tmp_path / 'logs').symlink_to('big')       # of the folders a link is as good as any
    starts = [resume(tmp_path / 'logs/run'),
              ['--overwrite', f'--logdir={tmp_path}/logs', '--name=run', *SMALL]]
    for target in victim, tmp_path / 'new', None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target) if target else os.mkfifo(folder / name)
        if (name, target) == ('flags.json', tmp_path / 'new'):
            continue        # without flags.json it is not the folder of a run
        sentence = 'is a symbolic link' if target else 'is a pipe, not a file'
        for arguments in starts:
            error = refused([*arguments, f'--data_dir={sketch_folder}', '--epochs=2'])
            assert f'logs/run/{name} {sentence}' in error
    assert victim.read_text() == 'mine' and not (tmp_path / 'new').exists()
    (folder / name).unlink()
    shutil.copy(trained / 'flags.json', folder)
    main.main(resume(tmp_path / 'logs/run', '--epochs=2'))
    assert read_checkpoint(folder / 'last.pth.tar')['epoch'] == 2


def test_a_tar_of_imagenet_that_is_a_pipe(tmp_path):
    for name in imagenet.TRAIN_TAR, imagenet.VAL_TAR:
        os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f'{imagenet.TRAIN_TAR} is a pipe, not a file'):
        imagenet.find_images(tmp_path, None)


def test_what_is_left_of_a_name_that_a_killed_process_wrote_to_is_replaced(tmp_path, at_once):
    os.mkfifo(tmp_path / 'temporary')
    files.write_atomically(tmp_path / 'x', lambda path: path.write_text('new'),
                           temporary=tmp_path / 'temporary')
    assert (tmp_path / 'x').read_text() == 'new'


@pytest.mark.parametrize('name, value, part', [
    ('conv1.weight', torch.nan, 'not finite, in conv1.weight'),
    ('bn2.running_mean', torch.inf, 'not finite, in bn2.running_mean'),
    ('conv3.parametrizations.weight.original', -torch.inf, 'not finite, in conv3.'),
    ('bn2.running_var', -1, 'a variance below 0, in bn2.running_var')])
def test_impossible_weights_are_refused_everywhere(
        copied, sketch_folder, tmp_path, refused, name, value, part):
    file = copied / 'last.pth.tar'
    checkpoint = read_checkpoint(file)
    checkpoint['model'][name].view(-1)[0] = value
    torch.save(checkpoint, file)
    image = next(sketch_folder.rglob('*.png'))
    for more in (['--evaluate'], [f'--export={tmp_path}/model.dab'], ['--classify', str(image)],
                 ['--epochs=2']):
        error = refused(resume(copied, *more))
        assert f'{file} has ' in error and part in error
    for read in experiment.load, checkpoint_source:     # for report, draw and compare
        with pytest.raises(InputError, match=part):
            read(file)
    assert not (tmp_path / 'model.dab').exists()


@pytest.mark.parametrize('optimType', optim.OPTIMIZERS)
def test_an_optimizer_is_not_restored_with_impossible_numbers(optimType):
    model = torch.nn.Linear(2, 1)
    optimizer = optim.build_optimizer(optimType, model, 0.1, 0, 0.9, False)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = optim.optimizer_state(optimizer, model)['state']
    optim.restore_optimizer(optimizer, model, state)
    for key in state[1]:
        may_be_negative = key in ('momentum_buffer', 'exp_avg')
        for value in [NAN] if may_be_negative else [NAN, -1.0]:
            spoilt = {**state, 1: state[1] | {key: torch.full_like(state[1][key], value)}}
            with pytest.raises(InputError, match=f'impossible {key} of bias in the state'):
                optim.restore_optimizer(optimizer, model, spoilt)


# Two at once

def test_two_processes_cannot_continue_one_run(copied, start, refused):
    command = resume(copied, '--epochs=1000', '--dataOn=workers', '--workers=2')
    first = start(main.main, command)
    first.wait_for(lambda: (copied / '.lock').exists() and len(epochs_of(copied)) > 2)
    assert f'is in use by process {first.process.pid} on ' in refused(command)
    os.kill(first.process.pid, signal.SIGKILL)      # its workers live on for a moment
    first.process.join()
    done = read_checkpoint(copied / 'last.pth.tar')['epoch']
    main.main(resume(copied, f'--epochs={done + 1}'))
    assert epochs_of(copied) == [number // 2 for number in range(2 * done + 2)]


# Moved runs

def test_a_run_goes_on_where_its_checkpoint_lies(trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained, tmp_path / 'elsewhere/other')
    best = read_checkpoint(folder / 'best.pth.tar')['metrics']['top1']
    monkeypatch.chdir(tmp_path)
    main.main(resume('elsewhere/other', '--epochs=2'))
    monkeypatch.chdir(folder)
    main.main(['--resume=last.pth.tar', '--epochs=3'])
    assert epochs_of(folder) == [0, 0, 1, 1, 2, 2]
    assert read_checkpoint('last.pth.tar')['best'] >= best
    assert json.loads(Path('flags.json').read_text())['name'] == 'other'
    assert not (tmp_path / 'logs').exists() and not Path('logs').exists()
    main.main(['--resume=last.pth.tar', '--epochs=4', f'--logdir={tmp_path}', '--name=branch'])
    assert read_checkpoint(tmp_path / 'branch/last.pth.tar')['epoch'] == 4
    assert read_checkpoint('last.pth.tar')['epoch'] == 3


def test_a_checkpoint_from_elsewhere_does_not_say_where_the_run_is_recorded(
        trained, tmp_path, monkeypatch, capsys):
    (tmp_path / 'work').mkdir()
    monkeypatch.chdir(tmp_path / 'work')
    stored, file = torch.load(trained / 'last.pth.tar'), tmp_path / 'last.pth.tar'
    places = [{'logdir': str(tmp_path / 'victim')}, {'name': '../../victim'},
              {'name': f'{tmp_path}/victim'}, {'logdir': '..', 'name': 'victim'},
              {'name': 'a\033b'}]
    for number, place in enumerate(places):
        torch.save(stored | {'flags': stored['flags'] | place}, file)
        main.main(resume(tmp_path, '--epochs=1', *(['--overwrite'] if number else [])))
        note = f'continues {file} after epoch 1, in logs/tuberlin-smallwbin-dab\n'
        assert note in capsys.readouterr().out
    main.main(resume(tmp_path, '--epochs=1', '--logdir=mine', '--name=that'))
    assert {path.name for path in tmp_path.iterdir()} == {'work', 'last.pth.tar'}
    assert {path.as_posix() for path in Path().glob('*/*')} == {
        'logs/tuberlin-smallwbin-dab', 'mine/that'}


# What a terminal would take for commands

def test_no_name_of_a_file_or_a_class_reaches_the_terminal_as_a_command(
        sketch_folder, tmp_path, start, monkeypatch, capfd):
    forged = 'main.py: error: forged'
    data, ring = tmp_path / 'data', f'\033]0;title\07ring\n{forged}\u202e'
    shutil.copytree(sketch_folder, data)
    for split in 'train', 'val':
        (data / split / 'ring').rename(data / split / ring)
    (data / 'train' / ring / 'a\033[2J').write_text('not an image')
    (data / 'val/bar/broken\033[2J.png').write_text('not an image')
    packed = tmp_path / 'model\033[2J.dab'
    code, *texts = start(main.main, [
        *SMALL, f'--data_dir={data}', f'--logdir={tmp_path}', '--name=run', '--epochs=1',
        '--skipBroken']).wait()
    texts.append(log(tmp_path / 'run'))
    assert code == 0
    assert all('a\\x1b[2J' in text and 'broken\\x1b[2J.png' in text for text in texts[1:])
    main.main(resume(tmp_path / 'run', '--evaluate'))
    main.main(resume(tmp_path / 'run', f'--export={packed}'))
    with pytest.raises(SystemExit):
        main.main([f'--packed={packed}', '--classify', f'{data}/val'])
    monkeypatch.setattr(sys, 'argv', ['prepare', 'tuberlin', f'--source={data}/train',
                                      f'--out={tmp_path}/prepared\033[2J', '--size=9'])
    prepare.main()
    texts += capfd.readouterr()
    assert 'broken\\x1b[2J.png' in texts[-1] and 'prepared\\x1b[2J: ' in texts[-2]
    lines = [line for text in texts for line in text.split('\n')]
    assert all(line.isprintable() and not line.startswith(forged) for line in lines)
    shown = f'\\x1b]0;title\\x07ring\\n{forged}\\u202e'
    assert sum(shown in line for line in lines) > 8


def test_everything_is_printed_by_the_console():
    """So that no print is forgotten; utils.bench prints its own measurements."""
    prints = 'print', 'sys.stdout.write', 'sys.stderr.write'
    for name in tracked():
        if name == 'utils/system/console.py' or name.startswith('utils/bench/'):
            continue
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in prints:
                assert 'file' in {keyword.arg for keyword in node.keywords}, name


# Processes and memory

@pytest.mark.parametrize('what, workers, remedy', [
    ('killed', 1, '--workers=0'), ('memory', 0, 'smaller --batch-size'),
    ('memory', 1, 'smaller --batch-size')])
def test_what_ran_out_is_said_with_the_remedy(
        flags, run_folder, monkeypatch, refused, what, workers, remedy):
    def die(dataset, indices):      # the worker is killed by the system, or runs out of memory
        if what == 'memory':
            torch.empty(10 ** 15)
        elif get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
    monkeypatch.setattr(items.TransformedSquares, '__getitems__', die)
    assert remedy in refused([*flags, '--dataOn=workers', f'--workers={workers}'], 1)
    assert 'ended early' in last_line(run_folder) and remedy in last_line(run_folder)


LIMITED = """
import os, resource, sys
import main
from datasets import prepare
opened = max(map(int, os.listdir('/dev/fd'))) + 1
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
"""
LIMIT = 'resource.setrlimit(resource.RLIMIT_NOFILE, (opened + {}, {}))\n'


@pytest.mark.parametrize('more', [0, 2, 8, 32])
def test_too_few_open_files_for_the_workers_are_said_with_the_remedies(flags, start, more):
    command = [*flags, '--dataOn=workers', '--epochs=1', '--workers=4']
    script = LIMITED + LIMIT.format(more, f'opened + {more}') + f'main.main({command})'
    code, _, error = start(run_script, script, {}).wait()
    assert code in (1, 2) and error.count('\n') == 1
    assert 'ulimit -n' in error and '--workers' in error


def test_the_limit_of_open_files_is_raised_where_it_can_be(flags, start):
    command = [*flags, '--dataOn=workers', '--epochs=1', '--workers=2']
    script = LIMITED + LIMIT.format(20, 'hard') + f'main.main({command})'
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
    ours = [line for line in error.splitlines()
            if 'This DataLoader will create' not in line]      # PyTorch's, on few cores
    assert code == 1 and len(ours) == 1, error
    assert 'Resource temporarily unavailable' in ours[0] and '--workers' in ours[0]


@pytest.mark.parametrize('more', [-3, -1, 0, 1])
def test_too_few_open_files_to_prepare(sketch_folder, tmp_path, start, more):
    words = ['prepare', 'tuberlin', f'--source={sketch_folder}/train', f'--out={tmp_path}/out',
             '--size=9']
    script = f"""{LIMITED}
for number in range(opened):
    if not os.path.exists(f'/dev/fd/{{number}}'):
        os.open('/dev/null', os.O_RDONLY)       # no gaps
{LIMIT.format(more, f'opened + {more}')}
sys.argv = {words}
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
    assert 'Traceback' in log(run_folder)
    assert last_line(run_folder) == 'IndexError: list index out of range'


def test_no_memory_to_read_a_checkpoint_is_not_its_fault(trained, monkeypatch, refused):
    def no_memory(*_, **__):
        raise MemoryError
    monkeypatch.setattr(torch, 'load', no_memory)
    error = refused(resume(trained, '--evaluate'), 1)
    assert 'memory ran out' in error and 'damaged' not in error


# The variables of torchrun

SECOND_OF_TWO = {'WORLD_SIZE': '2', 'RANK': '1', 'LOCAL_RANK': '1', 'MASTER_ADDR': '127.0.0.1',
                 'MASTER_PORT': '1'}


@pytest.mark.parametrize('variables, missing', [
    ({'WORLD_SIZE': '2'}, 'RANK, MASTER_ADDR, MASTER_PORT'),
    ({'WORLD_SIZE': '2', 'RANK': '1', 'LOCAL_RANK': '1'}, 'MASTER_ADDR, MASTER_PORT'),
    ({'WORLD_SIZE': '2', 'RANK': '0', 'MASTER_ADDR': 'a', 'MASTER_PORT': ''}, 'MASTER_PORT'),
    ({'WORLD_SIZE': 'x'}, 'RANK, MASTER_ADDR, MASTER_PORT')])
def test_half_of_the_variables_of_torchrun(flags, monkeypatch, refused, variables, missing):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert f'WORLD_SIZE={variables["WORLD_SIZE"]} is set, but not {missing}: ' in refused(flags)


@pytest.mark.parametrize('name, value, wanted', [
    *(('WORLD_SIZE', value, '1 or more') for value in ('x', '0', '-1')),
    *(('RANK', value, '0 to 1') for value in ('2', '-1', 'xx', '²')),
    *(('LOCAL_RANK', value, '0 to 1') for value in ('x', '2')),
    *(('MASTER_PORT', value, '1 to 65535') for value in ('0', '65536'))])
def test_a_variable_of_torchrun_that_cannot_be(flags, monkeypatch, refused, name, value, wanted):
    for variable, text in (SECOND_OF_TWO | {name: value}).items():
        monkeypatch.setenv(variable, text)
    assert f'{name}={value} is set, but must be a number, {wanted}: ' in refused(flags)


@pytest.mark.parametrize('module', [
    'datasets.prepare', 'utils.compare.__main__', 'utils.report.__main__', 'utils.draw.__main__',
    'utils.bench.__main__'])
def test_a_command_of_one_process_is_refused_under_torchrun_by_each(module, monkeypatch, refused):
    monkeypatch.setattr(sys, 'argv', [module, '--unknown'])
    for name, value in SECOND_OF_TWO.items():
        monkeypatch.setenv(name, value)
    error = refused(None, function=lambda _: importlib.import_module(module).main())
    assert 'is a command of one process' in error


@pytest.mark.parametrize('variables', [
    {'LOCAL_RANK': '1'}, {'RANK': '1'}, {'WORLD_SIZE': '1'},
    {'WORLD_SIZE': '1', 'RANK': '0', 'LOCAL_RANK': '1'}, {'LOCAL_RANK': 'x', 'RANK': ''}])
def test_variables_that_another_program_left(
        flags, run_folder, monkeypatch, refused, sketch_folder, tmp_path, variables):
    """As wrappers of SLURM and old shells: the process is alone, and does all that others do."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    shutil.copytree(sketch_folder, tmp_path / 'data')
    (tmp_path / 'data/train/bar/notes.txt').touch()
    with pytest.warns(UserWarning, match='1 file is left out'):
        main.main([*flags, f'--data_dir={tmp_path}/data', '--epochs=0'])
    assert json.loads((run_folder / 'history.jsonl').read_text())['processes'] == '1'
    error = refused([*flags, f'--data_dir={tmp_path}/none'])
    assert 'main.py: error: --data_dir: there is no folder ' in error


def test_more_processes_than_gpus(flags, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    for name, value in SECOND_OF_TWO.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match='give --nproc_per_node=1'):
        experiment.from_command(flags)


def test_exporting_under_torchrun_is_done_once(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(main.parallel, 'rank', lambda: 1)
    main.main(resume(trained, f'--export={tmp_path}/model.dab'))
    assert not (tmp_path / 'model.dab').exists()


# Data

def test_a_training_set_that_trains_nothing(tmp_path, flags, refused):
    for split in 'train', 'val':
        (tmp_path / split / 'only').mkdir(parents=True)
        Image.new('L', (90, 90), 255).save(tmp_path / split / 'only/1.png')
    assert 'a single image' in refused([*flags, '--nClasses=1', f'--data_dir={tmp_path}'])


def test_an_image_that_cannot_be_classified_does_not_hide_the_others(
        trained, sketch_folder, tmp_path, capsys):
    good, bad = sketch_folder / 'val/bar/0.png', tmp_path / os.fsdecode(b'bad\xff.png')
    bad.write_bytes(b'no image')
    with pytest.raises(SystemExit) as ended:
        main.main(resume(trained, '--classify', str(good), str(bad), str(good)))
    out, err = capsys.readouterr()
    assert ended.value.code == 1 and out.count(f'{good}: ') == 2
    assert err.count('\n') == 1 and 'bad' in err


def test_a_line_stays_a_line(refused, tmp_path):
    assert 'a\\nb' in refused(['--data_dir=a\nb', '--dataset=tuberlin', f'--logdir={tmp_path}'])


def test_names_that_are_no_text(flags, tmp_path):
    logs = tmp_path / os.fsdecode(b'\xff')
    main.main([*flags, '--epochs=1', f'--logdir={logs}'])
    main.main(resume(logs / 'run', '--epochs=2'))
    assert epochs_of(logs / 'run') == [0, 0, 1, 1]


def test_an_export_replaces_packed_models_only_and_no_file_beside_them(trained, tmp_path, refused):
    mine = {'model.dab.tmp', 'model.tmp', 'model.dab.part', 'other.dab'}
    for name in mine:
        (tmp_path / name).write_bytes(b'mine')
    for _ in range(2):
        main.main(resume(trained, f'--export={tmp_path}/model.dab', '--overwrite'))
    main.main(resume(trained, f'--export={tmp_path}/model.pt'))
    error = refused(resume(trained, f'--export={tmp_path}/other.dab', '--overwrite'))
    assert 'is not a packed model' in error
    assert {path.name for path in tmp_path.iterdir() if path.read_bytes() == b'mine'} == mine


# What a start may remove

def test_going_back_retires_the_later_epochs_first(copied, start):
    """Killed at any moment, what last.pth.tar holds is what the records say."""
    shutil.copy(copied / 'last.pth.tar', copied / 'epoch1.pth.tar')
    main.main(resume(copied, '--epochs=2'))
    back = [f'--resume={copied}/epoch1.pth.tar', '--overwrite', '--epochs=2']
    code, _, err = start(Dying('record', 'record_epoch', 1), back).wait()
    assert code == -signal.SIGKILL, err
    for name in 'last.pth.tar', 'best.pth.tar':
        assert read_checkpoint(copied / name)['epoch'] == 1
    main.main(resume(copied, '--epochs=2'))
    assert epochs_of(copied) == [0, 0, 1, 1]


def test_overwrite_does_not_remove_what_it_reads(trained, run_folder, flags, refused):
    folder = shutil.copytree(trained, run_folder)
    error = refused([*flags, '--overwrite', f'--pretrained_file={folder}/best.pth.tar'])
    assert '--pretrained_file' in error
    assert (folder / 'best.pth.tar').exists() and (folder / 'last.pth.tar').exists()


def test_a_refused_folder_stays_as_it_is(flags, run_folder, refused):
    run_folder.mkdir(parents=True)
    for name in 'lock', 'other', 'x.tmp':
        (run_folder / name).write_text('mine')
    assert 'holds something else' in refused(flags)
    assert sorted(path.name for path in run_folder.iterdir()) == ['lock', 'other', 'x.tmp']


def test_fewer_epochs_than_there_are(copied, refused):
    before = (copied / 'flags.json').read_bytes()
    assert '1 epochs already' in refused(resume(copied, '--epochs=0'))
    assert (copied / 'flags.json').read_bytes() == before


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
    for name in 'last.pth.tar', 'best.pth.tar':
        assert read_checkpoint(run_folder / name)['epoch'] == 1


def test_a_checkpoint_that_is_a_link(copied, tmp_path):
    (tmp_path / 'big').mkdir()
    shutil.move(copied / 'last.pth.tar', tmp_path / 'big/last.pth.tar')
    (copied / 'last.pth.tar').symlink_to(tmp_path / 'big/last.pth.tar')
    main.main(resume(copied, '--epochs=2'))
    assert epochs_of(copied) == [0, 0, 1, 1]


def test_a_damaged_best_names_the_remedy(copied, refused):
    (copied / 'best.pth.tar').write_bytes(b'half')
    assert 'move it away' in refused(resume(copied, '--epochs=2'))

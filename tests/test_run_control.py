"""Starting a run, resuming it, and its progress: --config, --resume=auto, the time left."""
import json
import os
import signal
import subprocess
import sys
import types

import pytest
import torch
from conftest import ROOT, flags_of

import main
import opts
from utils import experiment
from utils.compare.__main__ import parse as parse_comparison
from utils.flags import resolve
from utils.flags.config import config_flags
from utils.record import progress
from utils.system.errors import InputError
from utils.training import parallel
from utils.training.checkpoint import read_checkpoint

TINY = [
    '--dataset=tuberlin', '--workers=0', '--batch-size=12', '--model_def=smallwbin', '--inpsize=32',
    '--binaryWeight', '--dataOn=device']


@pytest.fixture
def command(sketch_folder, tmp_path):
    """Runs main with TINY and more flags; the runs are in tmp_path."""
    def run(*flags):
        main.main([*TINY, f'--data_dir={sketch_folder}', f'--logdir={tmp_path}', *flags])
    return run


@pytest.fixture(scope='module')
def trained(sketch_folder, tmp_path_factory):
    """The folder of a run of one epoch with xnor."""
    logs = tmp_path_factory.mktemp('trained')
    main.main([
        *TINY, f'--data_dir={sketch_folder}', f'--logdir={logs}', '--name=run', '--epochs=1',
        '--binarizer=xnor', '--maxlr=0.01'])
    return logs / 'run'


def weights(folder):
    return read_checkpoint(folder / 'last.pth.tar')['model']


def config(tmp_path, text):
    path = tmp_path / 'config.json'
    path.write_bytes(text if isinstance(text, bytes) else json.dumps(text).encode())
    return f'--config={path}'


# --config

def test_the_command_wins_over_the_file_in_any_order(tmp_path):
    file = config(
        tmp_path, {
            'maxlr': 1, 'batch-size': 7, 'epochs': 3, 'tenCrop': True, 'amp': None,
            'signLayers': None, 'data_dir': 'a b'})
    for arguments in ([file, '--epochs=4', '--no-tenCrop'], ['--epochs=4', '--no-tenCrop', file]):
        flags = flags_of(*arguments)
        assert (flags.maxlr, flags.batch_size, flags.epochs, flags.tenCrop, flags.amp,
                flags.data_dir) == (1.0, 7, 4, False, 'off', 'a b')
        assert type(flags.maxlr) is float


@pytest.mark.parametrize('text, says', [
    (b'{"epochs": 3', 'not a JSON object of flags: '), (b'\x80', 'not a JSON object'),
    (b'[' * 100000, 'not a JSON object'), ([1], 'not a JSON object'),
    ({'epohs': 3}, '--epohs is not a flag of this program: did you mean --epochs?'),
    ({'help': True}, '--help is not a flag'),
    ({'epochs': 'x'}, "argument --epochs: 'x' is not a whole number"),
    ({'epochs': True}, '--epochs cannot be true'), ({'maxlr': [1]}, '--maxlr cannot be'),
    ({'tenCrop': 'yes'}, '--tenCrop must be true or false, not "yes"'),
    ({'bnnModel': 'false'}, "--bnnModel must be true or false, not 'false'"),
    ({'bnnModel': True, 'binarizer': 'dab'}, '--bnnModel contradicts --binarizer=dab'),
    ({'model_def': 'x'}, "argument --model_def: unknown name 'x'"),
    ({'amp': 'int8'}, 'argument --amp: ')])
def test_a_file_that_is_wrong(tmp_path, text, says):
    with pytest.raises(InputError) as error:
        flags_of(config(tmp_path, text))
    assert str(error.value).startswith(f'--config: {tmp_path}/config.json: {says}')
    assert '\n' not in str(error.value)


def test_a_file_that_is_missing_or_a_folder(tmp_path):
    for path, says in ((tmp_path / 'x', 'there is no file'), (tmp_path, 'is a folder, not a file'),
                       ('', 'must not be empty')):
        with pytest.raises(InputError, match=f'^--config:? ?.*{says}') as error:
            flags_of(f'--config={path}')
        assert str(error.value).count(str(tmp_path)) <= 1


def test_a_run_again_from_its_flags(trained, tmp_path, capsys):
    again = [f'--config={trained}/flags.json', f'--logdir={tmp_path}']
    with pytest.raises(SystemExit):
        main.main(again[:1])
    assert 'already holds a run: give another --name' in capsys.readouterr().err
    main.main([*again, '--name=same'])
    a, b = weights(trained), weights(tmp_path / 'same')
    assert all(torch.equal(a[key], b[key]) for key in a)
    first, second = (json.loads((folder / 'flags.json').read_text())
                     for folder in (trained, tmp_path / 'same'))
    assert {key for key in first if first[key] != second[key]} == {'name', 'logdir', 'config'}


def test_other_weights_than_those_of_the_file(tmp_path):
    binary = config(tmp_path, {'binaryWeight': True, 'binarizer': 'xnor', 'bnnModel': False})
    assert flags_of(binary, '--no-binaryWeight').binaryWeight is False
    assert flags_of(binary, '--bnnModel').binarizer == 'bnn'
    assert flags_of(binary).binarizer == 'xnor'
    bnn = config(tmp_path, {'binaryWeight': True, 'binarizer': 'bnn', 'bnnModel': True})
    assert flags_of(bnn, '--binarizer=dab').binarizer == 'dab'
    bnn = config(tmp_path, {'binaryWeight': True, 'binarizer': None, 'bnnModel': True})
    assert flags_of(bnn).binarizer == 'bnn'
    real = config(
        tmp_path,
        {'binaryWeight': False, 'binarizer': 'dab'})  # as a run of real weights records it
    assert flags_of(real).binaryWeight is False
    assert flags_of(real, '--binaryWeight', '--binarizer=xnor').binarizer == 'xnor'


def test_what_concerns_one_command_is_not_taken_from_a_file(tmp_path):
    file = config(tmp_path, {
        'resume': 'x', 'overwrite': True, 'evaluate': False, 'config': 'y', 'pretrained_file': 'z'})
    taken, notes = config_flags(file.partition('=')[2], {})
    assert taken == {'pretrained_file': 'z'}
    assert notes == [
        f'{tmp_path}/config.json: ignored --resume and --overwrite, which only the command line '
        'gives'
    ]


def test_the_file_wins_over_a_checkpoint_but_for_what_that_fixes(trained, tmp_path):
    resume = f'--resume={trained}/last.pth.tar'
    assert flags_of(resume).maxlr == 0.01
    assert flags_of(resume, config(tmp_path, {'maxlr': 0.5})).maxlr == 0.5
    with pytest.raises(InputError,
                       match='was trained with --binarizer=xnor, not with --binarizer=dab'):
        flags_of(resume, config(tmp_path, {'binarizer': 'dab'}))


def test_a_comparison_from_the_flags_of_a_run(trained):
    options, common = parse_comparison([
        f'--config={trained}/flags.json', '--epochs=5', '--name=compared'])
    flags = types.SimpleNamespace(**dict.fromkeys(opts.FLAGS) | common)
    assert (options.model_def, options.name, options.logdir) == ('smallwbin', 'compared', 'logs')
    assert (flags.maxlr, flags.epochs, flags.inpsize, flags.binarizer, flags.name,
            flags.config) == (0.01, 5, 32, None, None, None)
    assert parse_comparison([f'--config={trained}/flags.json',
                             '--model_def=nin'])[0].model_def == 'nin'
    assert parse_comparison([])[0].model_def == 'sketchanet'


# --binarizer without --binaryWeight


@pytest.mark.parametrize(
    'flags', [['--binarizer=dab'], ['--bnnModel'], ['--binarizer=xnor', '--no-binaryWeight']])
def test_a_binarizer_needs_binary_weights(flags, tmp_path):
    with pytest.raises(InputError, match='^--binarizer=.* needs --binaryWeight'):
        flags_of(*flags)
    with pytest.raises(InputError, match='needs --binaryWeight'):
        flags_of(config(tmp_path, {'binarizer': 'xnor'}))


def test_a_run_of_real_weights_goes_on(command, tmp_path):
    command('--no-binaryWeight', '--name=real', '--epochs=1')
    command(f'--resume={tmp_path}/real/last.pth.tar', '--no-binaryWeight', '--evaluate')
    command(f'--resume={tmp_path}/real/last.pth.tar', '--no-binaryWeight', '--binarizer=dab',
            '--epochs=1')


# --resume=auto

def test_one_command_starts_a_run_and_goes_on_after_sigterm(sketch_folder, tmp_path, start, capsys):
    flags = [
        *TINY, f'--data_dir={sketch_folder}', f'--logdir={tmp_path}', '--epochs=4', '--resume=auto']
    broken = tmp_path / 'tuberlin-smallwbin-dab'
    main.main([*flags, '--epochs=0'])       # as one that is stopped before the first checkpoint
    assert (broken / 'history.jsonl').exists() and not (broken / 'last.pth.tar').exists()
    first = start(main.main, flags)
    first.wait_for((broken / 'last.pth.tar').exists)
    first.send(signal.SIGTERM)
    code, _, err = first.wait()
    assert (code, err) == (143, 'main.py: stopped by SIGTERM\n')
    assert read_checkpoint(broken / 'last.pth.tar')['epoch'] < 4
    capsys.readouterr()
    main.main(flags)
    out = capsys.readouterr().out
    assert '4 of 4 epochs done' in out and 'Train: epoch 1 ' not in out
    main.main([*flags, '--name=whole'])
    a, b = weights(broken), weights(tmp_path / 'whole')
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_finished_run_and_one_that_was_moved(command, tmp_path, capsys):
    auto = ['--name=group/run', '--resume=auto', '--nClasses=3']
    command(*auto, '--epochs=1')
    capsys.readouterr()
    command(*auto, '--epochs=1')
    assert '1 of 1 epochs done' in capsys.readouterr().out
    folder = tmp_path / 'group/run'
    assert len((folder / 'history.jsonl').read_text().splitlines()) == 2
    assert not (tmp_path / 'group/group').exists()
    (folder / 'flags.json').unlink()        # the folder is that of the command, whatever lies in it
    folder.rename(tmp_path / 'moved')
    command('--name=moved', '--resume=auto', '--epochs=2')
    assert read_checkpoint(tmp_path / 'moved/last.pth.tar')['epoch'] == 2 and not folder.exists()


@pytest.mark.parametrize('flags, says',
                         [(['--evaluate'], 'none has no last.pth.tar, which --evaluate needs'),
                          (['--export=x.dab'], 'which --export needs'),
                          (['--classify', 'x.png'], 'which --classify needs'),
                          (['--overwrite'], 'give one of them'),
                          (['--packed=x.dab'], 'give one of them')])
def test_what_needs_a_checkpoint(tmp_path, flags, says):
    with pytest.raises(InputError, match=says):
        flags_of(f'--logdir={tmp_path}', '--name=none', '--resume=auto', *flags)
    assert not any(tmp_path.iterdir())


def test_a_checkpoint_that_does_not_fit_or_is_damaged(trained, tmp_path):
    auto = [f'--logdir={trained.parent}', '--name=run', '--resume=auto']
    assert flags_of(*auto).resume == f'{trained}/last.pth.tar'
    assert flags_of(*auto, '--evaluate').binarizer == 'xnor'
    with pytest.raises(InputError,
                       match='was trained with --binarizer=xnor, not with --binarizer=dab'):
        flags_of(*auto, '--binarizer=dab')
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/last.pth.tar').write_bytes((trained / 'last.pth.tar').read_bytes()[:-100])
    with pytest.raises(InputError, match='^--resume: .*run/last.pth.tar is truncated, damaged'):
        flags_of(f'--logdir={tmp_path}', '--name=run', '--resume=auto')
    with pytest.raises(InputError, match="no checkpoint ./auto"):
        flags_of('--resume=./auto')


def test_processes_that_found_different_checkpoints(trained, monkeypatch):
    monkeypatch.setattr(parallel, 'processes', lambda: 2)
    for others, fits in ((2, True), (0, False), (3, False)):  # what the other has done, plus one
        monkeypatch.setattr(parallel, 'sum_', lambda tensor, others=others: tensor + others)
        command = [f'--resume={trained}/last.pth.tar', '--classify', 'x.png']
        if fits:
            experiment.from_command(command)
        else:
            with pytest.raises(InputError, match='different checkpoints'):
                experiment.from_command(command)


def test_a_restart_by_torchrun_does_not_read_what_the_one_before_left(monkeypatch):
    store = torch.distributed.HashStore()
    store.set('address', 'old')
    monkeypatch.setattr(parallel.distributed, 'rendezvous', lambda _: iter([(store, 1, 2)]))
    for restarts, machines, fresh in (('0', '1', False), ('1', '2', False), ('2', '1', True)):
        monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', restarts)
        monkeypatch.setenv('GROUP_WORLD_SIZE', machines)
        assert bool(parallel.fresh_store()) is fresh
    found = parallel.fresh_store()
    assert (found['rank'], found['world_size']) == (1, 2) and not found['store'].check(['address'])


def test_where_the_weights_came_from_is_known_after_resuming(trained, command, tmp_path):
    command('--name=run', '--epochs=1', f'--pretrained_file={trained}/best.pth.tar')
    command(f'--resume={tmp_path}/run/last.pth.tar', '--epochs=1')
    assert json.loads(
        (tmp_path / 'run/flags.json').read_text())['pretrained_file'] == f'{trained}/best.pth.tar'


# Progress

class Clock:
    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(progress.time, 'monotonic', lambda: self.now)


@pytest.mark.parametrize('seconds, text', [(0.4, '0 s'), (59.4, '59 s'), (59.6, '1 min'),
                                           (3569, '59 min'), (3599, '1 h'), (12000, '3 h 20 min'),
                                           (35990, '10 h'), (72000, '20 h'), (172000, '2 d'),
                                           (370000, '4 d 7 h')])
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


def test_the_time_left_of_a_run(monkeypatch):
    clock = Clock(monkeypatch)
    left = progress.TimeLeft(4)
    clock.now = 100
    assert left.within_epoch(50) == 50 + 3 * 150
    clock.now = 400
    assert left.after_epoch() == ', about 20 min left'
    clock.now = 500
    assert left.within_epoch(10) == 300 + 2 * 400       # of the only epoch so far, 400 s
    assert left.after_epoch() == ', about 3 min left'   # without the first one
    clock.now = 600
    left.after_epoch()
    assert left.after_epoch() == ''


def test_lines_where_there_is_no_terminal(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    monkeypatch.setattr('sys.stderr.isatty', lambda: False, raising=False)
    bar = progress.Progress('epoch 1/2', 10, progress.TimeLeft(2))
    for number in bar(range(10)):
        clock.now += 100
        if number == 4:
            bar.show({'loss': 1.2345, 'top1': 41.2})
    assert capsys.readouterr().out.splitlines() == [
        'epoch 1/2, batch 3/10, about 28 min left',
        'epoch 1/2, batch 6/10, loss 1.2345, top-1 41.20, about 23 min left',
        'epoch 1/2, batch 9/10, loss 1.2345, top-1 41.20, about 18 min left']
    list(progress.Progress('validation', 10)(range(10)))
    monkeypatch.setattr(parallel, 'rank', lambda: 1)
    for _ in bar(range(10)):
        clock.now += 1000
    assert capsys.readouterr() == ('', '')


def test_a_batch_job_says_where_it_is(command, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(progress, 'INTERVAL', 0)
    monkeypatch.setattr('sys.stderr.isatty', lambda: False, raising=False)
    command('--name=run', '--epochs=2', '--testbatchsize=6', '--printfreq=1')
    out = capsys.readouterr().out
    assert 'epoch 2/2, batch 2/3, loss ' in out and 'validation, batch 1/2, about ' in out
    first, last = (line for line in out.splitlines() if line.startswith('best'))
    assert first.endswith(' left') and 'left' not in last
    assert 'batch 2/3' not in (tmp_path / 'run/log.txt').read_text()


def test_a_config_leaves_what_follows_from_other_flags(tmp_path, sketch_folder):
    """The recorded binEnd, inpsize and normalization of the data are not those of others."""
    def flags_of_run(*words):
        typed = opts.parse(words)
        return dict.fromkeys(opts.FLAGS) | config_flags(typed['config'], typed)[0] | typed

    recorded = vars(
        resolve.complete(
            flags_of('--binaryWeight', '--dataset=folder', '--channels=1',
                     f'--data_dir={sketch_folder}', '--mean=0.1', '--std=0.2'), ['a', 'b', 'c'], 1,
            torch.device('cpu')))
    file = tmp_path / 'flags.json'
    file.write_text(json.dumps(recorded))
    config = f'--config={file}'
    same = flags_of_run(config, '--maxlr=0.5')
    assert (same['binEnd'], same['mean'], same['maxlr']) == (7, '0.1', 0.5)
    assert same['dataset'].startswith('folder:')
    taken, notes = config_flags(str(file), {'model_def': 'resnetwbin18'})
    assert 'binEnd' not in taken
    assert '--inpsize and --binEnd, which can follow from other flags given' in notes[-1]
    moved = flags_of_run(config, f'--data_dir={tmp_path}')
    assert (moved['mean'], moved['nClasses'], moved['dataset'], moved['channels']) == (None, None,
                                                                                       'folder', 1)
    other = flags_of_run(config, '--dataset=tuberlin', '--binEnd=5')
    assert (other['mean'], other['channels'], other['binEnd']) == (None, None, 5)
    file.write_text('{"binEnd": 3, "binaryWeight": true}')      # a person's own: all is meant
    assert flags_of_run(config, '--model_def=resnetwbin18')['binEnd'] == 3
    file.write_text('{"binaryWeight": true, "binarizer": "xnor", "bnnModel": true}')
    with pytest.raises(InputError, match='contradicts'):
        flags_of(config)


def test_a_signal_in_a_callback_is_not_reported_but_kept(monkeypatch):
    """Python drops what a destructor raises; the next check() ends the command."""
    code = '''
import os, signal, sys
sys.path.insert(0, '.')
from utils.system import interrupt
interrupt.listen()
class Thing:
    def __init__(self, error): self.error = error
    def __del__(self):
        os.kill(os.getpid(), self.error) if isinstance(self.error, int) else 1 / 0
Thing(signal.SIGTERM)
try:
    interrupt.check()
except interrupt.Stopped as stopped:
    print(stopped, stopped.exit_code)
Thing('other')
'''
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == 'stopped by SIGTERM 143\n'
    assert 'Stopped' not in done.stderr and 'ZeroDivisionError' in done.stderr


@pytest.mark.parametrize('module', ['datasets.prepare', 'utils.report'])
def test_ctrl_c_while_a_command_imports_torch_is_silent(tmp_path, module):
    (tmp_path / 'torch.py').write_text('import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n')
    done = subprocess.run([sys.executable, '-m', module], cwd=ROOT,
                          env=os.environ | {'PYTHONPATH': str(tmp_path)}, capture_output=True,
                          text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, '', '')


def test_importing_the_library_leaves_ctrl_c_to_its_program():
    code = 'import signal, datasets; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler'
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


def test_more_signals_than_one_leave_the_exit_code_of_the_first():
    code = '''
import atexit, os, signal, sys
sys.path.insert(0, '.')
from utils.system import interrupt
interrupt.end_silently()
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
from utils.system.errors import reported
with reported('main.py'):
    os.kill(os.getpid(), signal.SIGTERM)
'''
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                          timeout=20)
    assert (done.returncode, done.stderr) == (143, 'main.py: stopped by SIGTERM\n')


def test_a_signal_skips_destructors_that_wait():
    """As those of NCCL and CUDA, which run when Python has ended."""
    code = '''
import ctypes, os, signal, sys
sys.path.insert(0, '.')
from utils.system import interrupt
interrupt.end_silently()
from utils.system.errors import reported
class Group:
    def __del__(self, lock=ctypes.CDLL(None).pthread_mutex_lock,
                mutex=ctypes.create_string_buffer(64)):
        lock(mutex), lock(mutex)
group = Group()
with reported('main.py'):
    print('printed')
    os.kill(os.getpid(), signal.SIGTERM)
'''
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                          timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (143, 'printed\n',
                                                           'main.py: stopped by SIGTERM\n')


def test_a_pipe_that_nobody_reads_any_more_ends_a_command_in_silence():
    """As of `--evaluate | head`, where several prints follow on the last line that was read."""
    code = '''
import sys, time
sys.path.insert(0, '.')
from utils.system.errors import reported
with reported('main.py'):
    while True:
        print('line', flush=True)
        time.sleep(0.01)
'''
    process = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'line\n'
    process.stdout.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (1, '')

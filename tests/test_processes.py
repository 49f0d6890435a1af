"""Calls in new processes; this module is imported by them and stays light."""
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import pytest

from datasets.made_once import made_once
from utils.system import interrupt, locks, processes
from utils.system.errors import InputError, RunError, explained, reported
from utils.system.files import write_atomically
from utils.system.interrupt import Stopped, listen
from utils.system.processes import call_in_new_process, side_by_side


class Awkward(Exception):
    """Cannot be pickled and read again: its constructor takes other arguments than Exception's."""

    def __init__(self, one, two):
        super().__init__(f'{one} and {two}')


def fail(kind):
    if kind == 'killed':
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == 'awkward':
        raise Awkward('this', 'that')
    if kind == 'local':
        class Local(Exception):
            pass
        raise Local('of a local class')
    if kind == 'input':
        raise InputError('--flag')
    listen()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)


@pytest.mark.parametrize('kind, error, part', [('killed', BrokenProcessPool, 'terminated'),
                                               ('awkward', RuntimeError, 'Awkward: this and that'),
                                               ('local', RuntimeError, 'Local: of a local class'),
                                               ('input', InputError, '--flag'),
                                               ('stopped', RunError, 'stopped by SIGTERM')])
def test_what_ends_the_process_is_raised_here(kind, error, part):
    with pytest.raises(error, match=part):
        call_in_new_process(fail, kind)


def linger(path):
    listen()
    with open(path, 'w') as file:
        file.write(str(os.getpid()))
    try:
        time.sleep(60)
    except KeyboardInterrupt as stopped:
        with open(path, 'a') as file:
            file.write(f' {stopped}')
        raise


@pytest.mark.parametrize('number, said', [(signal.SIGINT, 'Ctrl-C'), (signal.SIGTERM, 'SIGTERM')])
def test_a_signal_ends_both_processes(tmp_path, number, said):
    before = interrupt.handlers()
    listen()

    def stop():
        while not (tmp_path / 'pid').exists() or not (tmp_path / 'pid').read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), number)
    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Stopped, match=said):
        call_in_new_process(linger, tmp_path / 'pid')
    interrupt.restore(before)
    pid, *last_words = (tmp_path / 'pid').read_text().split(maxsplit=1)
    assert last_words == ['stopped by SIGTERM']
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


@pytest.mark.parametrize('message, remedy', [
    ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "
     'workers are out of shared memory.', '--workers=0'),
    ('DataLoader worker (pid(s) 7, 8) exited unexpectedly', '--workers=0'),
    ('unable to write to file </torch_7_8>: No space left on device (28)', '--workers=0'),
    ('unable to open shared memory object </torch_7_8> in read-write mode: '
     'Too many open files (24)',
     '--workers'),
    ('CUDA out of memory. Tried to allocate 2.00 GiB', '--batch-size'),
    ("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried",
     '--batch-size'),
    ("can't start new thread", '--workers'),
    ('avg_pool2d_backward does not have a deterministic implementation, but you set', 'avg_pool2d'),
    ('[../third_party/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1',
     'another process'), ])
def test_what_libraries_say_when_something_ran_out(message, remedy):
    assert isinstance(explained(RuntimeError(message)), RunError)
    assert remedy in str(explained(RuntimeError(message)))


@pytest.mark.parametrize('error', [
    RuntimeError('Caught RuntimeError in DataLoader worker process 0.\n\na bug'),
    RuntimeError('mat1 and mat2 shapes cannot be multiplied'),
    KeyError('memory')])
def test_a_bug_is_not_explained_away(error):
    assert explained(error) is error


# Loading workers

class StartedBy:
    """main.main, whose loading workers start by another method than 'fork'; it can be pickled."""

    def __init__(self, method):
        self.method = method

    def __call__(self, arguments):
        import main
        multiprocessing.set_start_method(self.method, force=True)
        main.main(arguments)


def command(sketch_folder, tmp_path, *more):
    return [
        '--dataset=tuberlin', f'--data_dir={sketch_folder}', f'--logdir={tmp_path}',
        '--model_def=smallwbin', '--inpsize=32', '--batch-size=12', '--binaryWeight',
        '--dataOn=workers', *more]


def tensors(path):
    from utils.training.checkpoint import read_checkpoint
    return read_checkpoint(path)['model']


def test_workers_change_nothing_spawned_and_resumed_ones_neither(sketch_folder, tmp_path, start):
    import main
    spawning = start(
        StartedBy('spawn'),
        command(sketch_folder, tmp_path, '--name=spawned', '--epochs=2', '--workers=1'))
    main.main(command(sketch_folder, tmp_path, '--name=alone', '--epochs=2', '--workers=0'))
    main.main(command(sketch_folder, tmp_path, '--name=resumed', '--epochs=1', '--workers=1'))
    main.main([f'--resume={tmp_path}/resumed/last.pth.tar', '--epochs=2', '--workers=2'])
    code, _, err = spawning.wait(200)
    assert (code, err) == (0, '')
    alone, spawned, resumed = (tensors(tmp_path / name / 'last.pth.tar')
                               for name in ('alone', 'spawned', 'resumed'))
    for other in spawned, resumed:
        assert all((alone[key] == other[key]).all() for key in alone)


@pytest.mark.soak
@pytest.mark.parametrize('method', ['spawn', 'forkserver'])
def test_ctrl_c_ends_the_workers_under_other_start_methods(method, sketch_folder, tmp_path, start):
    run = start(StartedBy(method),
                command(sketch_folder, tmp_path, '--name=run', '--epochs=1000', '--workers=1'))
    run.wait_for(lambda: (tmp_path / 'run/last.pth.tar').exists(), 200)
    group = run.process.pid
    run.send(signal.SIGINT)
    code, _, err = run.wait()
    assert code == 130 and err.count('\n') == 1 and 'stopped by Ctrl-C' in err, err
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError('processes live on')


def test_workers_start_once(sketch_folder, tmp_path):
    from utils import experiment
    loaders = experiment.from_command(command(sketch_folder, tmp_path,
                                              '--workers=2')).make_loaders()
    workers = []
    for loader in (*loaders, *loaders):
        list(loader)
        workers.append({process.pid for process in multiprocessing.active_children()})
    assert len(workers[1]) == 4 and workers[1] == workers[2] == workers[3]
    del loaders, loader
    assert not multiprocessing.active_children()


def answer(value):
    if value < 0:
        raise ValueError(value)
    return value


def test_calls_side_by_side_fail_alone():
    calls = {value: partial(call_in_new_process, answer, value) for value in (1, -2, 3)}
    found = dict(pair for ended in side_by_side(calls, 2) for pair in ended)
    assert found[1]() == 1 and found[3]() == 3
    with pytest.raises(ValueError, match='-2'):
        found[-2]()


def test_calls_side_by_side_end_with_their_caller(tmp_path):
    calls = {0: partial(call_in_new_process, answer, 0)}
    calls |= {
        place: partial(call_in_new_process, linger, tmp_path / str(place)) for place in (1, 2, 3)}
    for ended in side_by_side(calls, 3):
        assert [place for place, _ in ended] == [0]
        while not all((tmp_path / str(place)).exists() and (tmp_path / str(place)).read_text()
                      for place in (1, 2)):
            time.sleep(0.05)
        break
    for place in (1, 2):
        pid, *last_words = (tmp_path / str(place)).read_text().split(maxsplit=1)
        assert last_words == ['stopped by SIGTERM']
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
    assert not multiprocessing.active_children()


# Signals that find a process waiting

def block():
    """Wait in C for ever, as for another process in Gloo: no handler of Python's runs."""
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def write_slowly(folder):
    def write(temporary):
        for _ in range(10):
            with open(temporary, 'a') as file:
                file.write('part ')
            (folder / 'begun').touch()
            time.sleep(0.1)
    write_atomically(folder / 'file', write)


def block_while_a_file_is_written(folder):
    interrupt.PATIENCE = 0.2
    with reported('main.py'):
        threading.Thread(target=write_slowly, args=[folder], daemon=True).start()
        block()


def test_a_signal_in_c_ends_the_process_when_what_it_writes_is_whole(tmp_path, start):
    command = start(block_while_a_file_is_written, tmp_path)
    command.wait_for((tmp_path / 'begun').exists)
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGTERM:    # the first one counts
        command.send(number)
    code, _, err = command.wait(10)
    assert (code, err) == (143, 'main.py: stopped by SIGTERM\n')
    assert (tmp_path / 'file').read_text() == 10 * 'part '
    assert {path.name for path in tmp_path.glob('*file*')} == {'file'}


def block_with_an_output_that_nobody_reads(folder):
    interrupt.PATIENCE = 0.2
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    sys.stderr = open(writing, 'w', 1)
    with reported('main.py'):
        (folder / 'begun').touch()
        block()


def test_an_output_that_nobody_reads_does_not_keep_the_process(tmp_path, start):
    command = start(block_with_an_output_that_nobody_reads, tmp_path)
    command.wait_for((tmp_path / 'begun').exists)
    command.send(signal.SIGINT)
    assert command.wait(10)[0] == 130


def make_what_another_process_makes(path):
    with reported('main.py'):
        made_once(path, Path.read_bytes, lambda temporary: temporary.write_bytes(b'made'))


def test_a_signal_ends_a_process_that_waits_for_the_cache(tmp_path, start):
    with open(tmp_path / 'file.part', 'wb') as lock:
        locks.wait(lock)        # as a process that was stopped holds it
        command = start(make_what_another_process_makes, tmp_path / 'file')
        inode = str(os.fstat(lock.fileno()).st_ino)
        command.wait_for(lambda: any('->' in line and inode in line
                                     for line in Path('/proc/locks').read_text().splitlines()))
        command.send(signal.SIGTERM)
        code, _, err = command.wait(3)
    assert (code, err) == (143, 'main.py: stopped by SIGTERM\n')
    assert not (tmp_path / 'file').exists()


def build_with(compiler, folder):
    os.environ['CXX'] = str(compiler)
    from utils.native import cpu
    with reported('main.py'):
        cpu.library()


def test_a_signal_ends_a_process_that_compiles_and_its_compiler(tmp_path, start, monkeypatch):
    compiler = tmp_path / 'slow-g++'
    compiler.write_text(
        f'#!/bin/sh\ntouch {tmp_path}/begun\nsleep 100\n')  # a process of its own, as cc1plus
    compiler.chmod(0o755)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    command = start(build_with, compiler, tmp_path)
    command.wait_for((tmp_path / 'begun').exists)
    os.kill(command.process.pid, signal.SIGTERM)
    code, _, err = command.wait(3)
    assert (code, err) == (143, 'main.py: stopped by SIGTERM\n')
    assert_nothing_left(command)


def children(pid):
    return [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


def assert_nothing_left(command, seconds=8):
    """No process of its session is left, such as a loading worker."""
    deadline, left = time.monotonic() + seconds, [0]
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [
            pid for pid in map(int, filter(str.isdigit, os.listdir('/proc')))
            if session(pid) == command.process.pid]
    assert not left


def session(pid):
    with contextlib.suppress(ProcessLookupError):
        return os.getsid(pid)


def main_of_its_own(arguments):
    """main.py as a command: its process has to end with it."""
    import main
    interrupt.end_silently()
    interrupt.PATIENCE = 1
    main.main(arguments)


def test_a_signal_ends_a_run_whose_loading_workers_are_halted(sketch_folder, tmp_path, start):
    run = start(main_of_its_own,
                command(sketch_folder, tmp_path, '--name=run', '--epochs=1000', '--workers=2'))
    run.wait_for(lambda: len(children(run.process.pid)) == 4 and (tmp_path / 'run/last.pth.tar').
                 exists())
    for worker in children(run.process.pid):
        os.kill(worker, signal.SIGSTOP)
    time.sleep(0.5)
    os.kill(run.process.pid, signal.SIGTERM)
    code, _, err = run.wait(10)
    assert (code, err) == (143, 'main.py: stopped by SIGTERM\n')
    assert_nothing_left(run)


def stop_with_a_halted_call(path):
    """In a process of its own, which gives the halted one a second."""
    processes.PATIENCE = 1
    with reported('main.py'):
        call_in_new_process(linger, path)


def test_a_signal_ends_a_call_whose_process_is_halted(tmp_path, start):
    """As the cells of a comparison."""
    command = start(stop_with_a_halted_call, tmp_path / 'pid')
    command.wait_for(lambda: (tmp_path / 'pid').exists() and (tmp_path / 'pid').read_text())
    os.kill(int((tmp_path / 'pid').read_text()), signal.SIGSTOP)
    os.kill(command.process.pid, signal.SIGTERM)
    code, _, err = command.wait(10)
    assert (code, err) == (143, 'main.py: stopped by SIGTERM\n')
    assert_nothing_left(command)

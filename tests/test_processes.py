"""Calls in new processes; this module is imported by them and stays light."""
import os
import signal
import threading
import time
from concurrent.futures.process import BrokenProcessPool

import pytest

from utils.errors import InputError, RunError
from utils.interrupt import Stopped, listen
from utils.processes import call_in_new_process


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


@pytest.mark.parametrize('kind, error, part', [
    ('killed', BrokenProcessPool, 'terminated'), ('awkward', RuntimeError, 'Awkward: this and that'),
    ('local', RuntimeError, 'Local: of a local class'), ('input', InputError, '--flag'),
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
    listen()

    def stop():
        while not (tmp_path / 'pid').exists() or not (tmp_path / 'pid').read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), number)
    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Stopped, match=said):
        call_in_new_process(linger, tmp_path / 'pid')
    pid, *last_words = (tmp_path / 'pid').read_text().split(maxsplit=1)
    assert last_words == ['stopped by SIGTERM']
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)

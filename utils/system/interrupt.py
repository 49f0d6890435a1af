"""Signals that ask a command to end: never lost, never a traceback, never waited for in vain.

Python runs a signal handler only between two of its own instructions, so never while the main
thread waits inside C++, such as for another process of torchrun. A thread then ends the process.
Python drops exceptions that are raised in a fork hook or in a destructor; check() raises them
later.
"""
import atexit
import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker

SENTENCES = {signal.SIGINT: 'stopped by Ctrl-C', signal.SIGTERM: 'stopped by SIGTERM'}

PATIENCE = 5    # seconds from a signal until the process is made to end

_requested: signal.Signals | None = None
_exit_code: int | None = None   # after a signal has ended the command
_deferred = False
_is_command = False             # whether the process ends when the command does
_to_finish: list[None] = []     # one entry for each must_finish() block, in any thread
_watch: 'Watch | None' = None


class Stopped(KeyboardInterrupt):
    """A signal of SENTENCES arrived; str() is its sentence."""

    def __init__(self, number: int):
        super().__init__(SENTENCES[signal.Signals(number)])
        self.exit_code = 128 + number


class Watch:
    """A thread that ends the process where a signal has not ended the command within PATIENCE.

    last_words is called with the Stopped first.
    """

    def __init__(self, last_words: Callable[[Stopped], object]):
        self.last_words = last_words
        self.is_over = threading.Event()
        self.arrivals, self.written = socket.socketpair()
        self.written.setblocking(False)
        # Where Python's own C handler writes the number of each signal, in whichever thread.
        signal.set_wakeup_fd(self.written.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._wait, daemon=True).start()

    def stop(self):
        """The command is over; a process that is its own has to end too, if a signal arrived."""
        signal.set_wakeup_fd(-1)
        with contextlib.suppress(OSError):      # the thread has ended, or has much to read
            self.written.send(b'\0')
        self.written.close()
        self.is_over.set()

    def _wait(self):
        number = None
        with self.arrivals:     # open as long as signals are written
            while number not in SENTENCES:
                arrived = self.arrivals.recv(1)
                if arrived in (b'', b'\0'):     # stop() was called
                    return
                number = arrived[0]
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                time.sleep(0.05)
                if self.is_over.is_set() and not _is_command:
                    return
                if _to_finish:
                    deadline = time.monotonic() + PATIENCE
            self._end_process(Stopped(number))

    def _end_process(self, stopped):
        if not self.is_over.is_set():   # in a thread: an output that nobody reads blocks
            speaker = threading.Thread(target=self._say, args=(stopped,), daemon=True)
            speaker.start()
            speaker.join(1)
        for process in multiprocessing.active_children():
            process.kill()
        os._exit(stopped.exit_code)

    def _say(self, stopped):
        with contextlib.suppress(Exception):
            self.last_words(stopped)


def end_silently():
    """Until listen(), Ctrl-C ends the process at once: an import has nothing to clean up."""
    global _is_command
    _is_command = True
    atexit.register(_leave)     # runs last, since it is registered first
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def exit_after(stopped: Stopped):
    """sys.exit, for a command that a signal ended and that has said so."""
    global _exit_code
    _exit_code = stopped.exit_code
    sys.exit(_exit_code)


def _leave():
    """Skip the destructors of C++, which can wait for other processes and for a GPU."""
    if _exit_code is not None:
        for stream in sys.stdout, sys.stderr:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(_exit_code)


def listen(last_words: Callable[[Stopped], object] = lambda _: None):
    """From now on Ctrl-C and SIGTERM raise Stopped, at the latest at the next check().

    Where that does not end the command, the process ends without it, after last_words(Stopped). A
    closed terminal (SIGHUP) ends nothing. Worker processes that are forked afterwards ignore
    Ctrl-C.
    """
    global _requested, _watch
    _requested, process = None, os.getpid()

    def stop(number, _):
        global _requested
        if os.getpid() != process or _requested is not None:    # once: the process is ending
            return
        _requested = signal.Signals(number)
        if hasattr(signal, 'SIGCHLD'):      # not on Windows, as below
            signal.signal(signal.SIGCHLD, lambda *_: None)  # worker processes may end now
        if not _deferred:
            raise Stopped(number)

    if sys.unraisablehook is not _report_unraisable:
        _unraisable.append(sys.unraisablehook)
        sys.unraisablehook = _report_unraisable
    if _watch:
        _watch.stop()
    _watch = Watch(last_words)
    for number in SENTENCES:
        signal.signal(number, stop)
    if hasattr(signal, 'SIGHUP'):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if hasattr(signal, 'pthread_sigmask'):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SENTENCES)


def handlers() -> dict:
    """Return the current handlers of SIGINT and SIGTERM."""
    return {number: signal.getsignal(number) for number in SENTENCES}


def restore(before: dict):
    """Let them do what they did, as handlers() found: where a command is over, nothing is raised.

    After end_silently() one more signal then ends the process at once, with the code of the first.
    """
    global _requested, _watch
    if _watch:
        _watch.stop()
    if _is_command and _requested is not None:
        code = 128 + _requested
        before = dict.fromkeys(before, lambda *_: os._exit(code))
    for number, handler in before.items():
        signal.signal(number, handler or signal.SIG_DFL)
    _requested = _watch = None


_unraisable: list = []      # the hook before ours


def _report_unraisable(found):
    """Stopped that a callback raised, which Python drops, is raised again by check()."""
    if not isinstance(found.exc_value, Stopped):
        _unraisable[-1](found)


def _forget_watch():
    """In a forked process, which would report its own signals to the watch of this one."""
    global _watch
    _to_finish.clear()
    if _watch:
        signal.set_wakeup_fd(-1)
        _watch.arrivals.close()
        _watch.written.close()
        _watch = None


if hasattr(os, 'register_at_fork'):     # not on Windows
    os.register_at_fork(after_in_child=_forget_watch)


def check():
    """Raise Stopped if a signal arrived since listen()."""
    if _requested is not None:
        raise Stopped(_requested)


@contextlib.contextmanager
def deferred():
    """A block in which a signal takes effect only at its end, such as the forking of workers."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False
        check()


@contextlib.contextmanager
def must_finish() -> Iterator[None]:
    """A block, in any thread, that no signal cuts off by the end of the process."""
    _to_finish.append(None)
    try:
        yield
    finally:
        _to_finish.pop()


@contextlib.contextmanager
def out_of_reach() -> Iterator[None]:
    """Ctrl-C does not reach the processes that the block starts, by whichever start method.

    On Windows it does.
    """
    if not hasattr(signal, 'pthread_sigmask'):
        yield
        return
    if multiprocessing.get_start_method() != 'fork':
        resource_tracker.ensure_running()   # here: where it starts, it unblocks signals
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})   # inherited by the new process
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

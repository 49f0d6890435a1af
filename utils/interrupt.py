"""Signals that ask a command to end, never lost and never a traceback.

Python drops exceptions that are raised in a fork hook or in a destructor; check() raises them
later.
"""
import contextlib
import os
import signal
import sys
import time

SENTENCES = {signal.SIGINT: 'stopped by Ctrl-C', signal.SIGTERM: 'stopped by SIGTERM'}

PATIENCE = 3    # seconds in which one more signal changes nothing: the process is ending

_requested: signal.Signals | None = None
_since = 0.0
_deferred = False


class Stopped(KeyboardInterrupt):
    """A signal of SENTENCES arrived; str() is its sentence."""

    def __init__(self, number: int):
        super().__init__(SENTENCES[signal.Signals(number)])
        self.exit_code = 128 + number


def end_silently():
    """Until listen(), Ctrl-C ends the process at once: an import has nothing to clean up."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def listen():
    """From now on Ctrl-C and SIGTERM raise Stopped, at the latest at the next check().

    A closed terminal (SIGHUP) ends nothing. Worker processes that are forked afterwards ignore
    Ctrl-C.
    """
    global _requested
    _requested, process = None, os.getpid()

    def stop(number, _):
        global _requested, _since
        if os.getpid() != process:
            return
        again = _requested is not None and time.monotonic() < _since + PATIENCE
        if not again:
            _requested, _since = signal.Signals(number), time.monotonic()
            if hasattr(signal, 'SIGCHLD'):      # not on Windows, as below
                signal.signal(signal.SIGCHLD, lambda *_: None)  # worker processes may end now
        if not (_deferred or again):
            raise Stopped(number)

    if sys.unraisablehook is not _report_unraisable:
        _unraisable.append(sys.unraisablehook)
        sys.unraisablehook = _report_unraisable
    for number in SENTENCES:
        signal.signal(number, stop)
    if hasattr(signal, 'SIGHUP'):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if hasattr(signal, 'pthread_sigmask'):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SENTENCES)


def handlers() -> dict:
    """What SIGINT and SIGTERM do now."""
    return {number: signal.getsignal(number) for number in SENTENCES}


def restore(before: dict):
    """Let them do what they did, as handlers() found: where a command is over, nothing is raised.

    After end_silently() one more Ctrl-C then ends the process at once.
    """
    global _requested
    _requested = None
    for number, handler in before.items():
        signal.signal(number, handler or signal.SIG_DFL)


_unraisable: list = []      # the hook before ours


def _report_unraisable(found):
    """Stopped that a callback raised, which Python drops, is raised again by check()."""
    if not isinstance(found.exc_value, Stopped):
        _unraisable[-1](found)


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

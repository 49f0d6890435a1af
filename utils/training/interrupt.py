"""Ctrl-C that is never lost: Python drops exceptions raised in a fork hook or in a destructor."""
import contextlib
import os
import signal

_requested = _deferred = False


def listen():
    """From now on Ctrl-C raises KeyboardInterrupt, at the latest at the next check().

    Worker processes that are forked afterwards ignore it.
    """
    global _requested
    _requested, process = False, os.getpid()

    def interrupt(*_):
        global _requested
        if os.getpid() == process:
            _requested = True
            if not _deferred:
                raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)


def check():
    """Raise KeyboardInterrupt if Ctrl-C was pressed since listen()."""
    if _requested:
        raise KeyboardInterrupt


@contextlib.contextmanager
def deferred():
    """A block in which Ctrl-C takes effect only at its end, such as the forking of workers."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False
        check()

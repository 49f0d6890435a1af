"""Ctrl-C that is not lost: Python drops an exception which is raised in a hook of a fork or in a destructor."""
import contextlib
import os
import signal

_asked = _postponed = False


def listen():
    """From now on Ctrl-C raises KeyboardInterrupt, and again at the next check(). Forked workers ignore it."""
    global _asked
    _asked, process = False, os.getpid()

    def interrupt(*_):
        global _asked
        if os.getpid() == process:
            _asked = True
            if not _postponed:
                raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)


def check():
    """Raise KeyboardInterrupt if Ctrl-C was pressed since listen()."""
    if _asked:
        raise KeyboardInterrupt


@contextlib.contextmanager
def postponed():
    """A block at whose end Ctrl-C takes effect, as when workers are forked."""
    global _postponed
    _postponed = True
    try:
        yield
    finally:
        _postponed = False
        check()

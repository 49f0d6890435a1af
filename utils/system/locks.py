"""Locks on open files: fcntl's, on Windows msvcrt's. They end with the process that holds them."""
import contextlib
import errno
import os
import time
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:     # Windows
    fcntl = None        # type: ignore[assignment]
try:
    import msvcrt
except ImportError:     # every other system
    msvcrt = None       # type: ignore[assignment]

BYTE = 2 ** 30      # the one that msvcrt locks: others cannot read it, but all before it
INTERVAL = 0.1      # seconds between two attempts, where the system does not wait


def take(file: IO):
    """Lock a writable file for this process alone: those forked from it do not hold the lock.

    Raises BlockingIOError where another process has it, OSError where the file system has no locks.
    """
    if fcntl is None:
        return _lock_byte(file)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:    # what POSIX allows too
        raise BlockingIOError(error.errno, error.strerror) from error


def wait(file: IO):
    """Lock a writable file, as soon as no other process holds it, until it is closed everywhere."""
    if fcntl is not None:
        return fcntl.flock(file, fcntl.LOCK_EX)
    while True:
        try:
            return _lock_byte(file)
        except BlockingIOError:
            time.sleep(INTERVAL)


def keep(file: IO):
    """Spare the file from remove_unless_in_use, as long as it is open or mapped anywhere.

    Windows spares every such file.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_SH)


def remove(file: IO):
    """Remove and close a file that this process has locked, before another one can lock it.

    Windows removes closed files only, and not those that another process has opened since.
    """
    if fcntl is None:
        file.close()
    with contextlib.suppress(FileNotFoundError if fcntl else OSError):
        os.unlink(file.name)
    file.close()


def remove_unless_in_use(path: Path, *more: Path) -> bool:
    """Whether the file was removed, and those beside it: no process holds its lock."""
    with contextlib.suppress(OSError):
        if fcntl is None:
            for each in path, *more:
                each.unlink(missing_ok=True)
            return True
        with open(path, 'r+b') as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for each in *more, path:
                each.unlink(missing_ok=True)
            return True
    return False


def _lock_byte(file):
    """Lock one byte far behind the content of a file, by msvcrt."""
    if msvcrt is None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    descriptor = file.fileno()
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except PermissionError as error:    # another process has it
        raise BlockingIOError(error.errno, error.strerror) from error
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)

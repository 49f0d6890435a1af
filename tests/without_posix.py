"""What this process takes from Windows, as far as Linux can: importing this module simulates it.

No fcntl, signals, /proc, user numbers, poll and compilers; locks by a msvcrt; and files that are
open or mapped can neither be replaced nor removed. To be used in a process of its own."""
import builtins
import contextlib
import ctypes
import errno
import fcntl as real_fcntl
import io
import os
import select
import signal
import sys
import types

import torchvision.transforms.v2  # noqa: F401  (libraries know better which system this is)

LK_NBLCK = 2


def locking(descriptor, mode, count):
    """Of a file that is open in two places only one has the lock, also within a process."""
    assert mode == LK_NBLCK and count == 1 and os.lseek(descriptor, 0, os.SEEK_CUR) > 2 ** 20
    try:
        real_fcntl.flock(descriptor, real_fcntl.LOCK_EX | real_fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, 'Permission denied') from None


msvcrt = types.SimpleNamespace(locking=locking, LK_NBLCK=LK_NBLCK)


def is_open(path):
    """Whether this process has a file open, or mapped."""
    path = os.path.realpath(path)
    for number in os.listdir('/proc/self/fd'):
        with contextlib.suppress(OSError):
            if os.readlink(f'/proc/self/fd/{number}') == path:
                return True
    with real_open('/proc/self/maps') as maps:
        return any(line.rstrip('\n').endswith(f' {path}') for line in maps)


real_open = builtins.open


def refusing_open_files(function):
    def refusing(*paths, **options):
        for path in paths:
            if not options and is_open(path):
                raise PermissionError(errno.EACCES, 'Access is denied', os.fspath(path))
        return function(*paths, **options)
    return refusing


def fsync(descriptor, sync=os.fsync):
    if real_fcntl.fcntl(descriptor, real_fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, 'Bad file descriptor')
    sync(descriptor)


def memory_status(status):
    assert status[0] == ctypes.sizeof(status) == 64
    status[2] = 2 ** 33


def without_proc(file, *arguments, **options):
    if str(file).startswith('/proc/'):
        raise FileNotFoundError(errno.ENOENT, 'No such file or directory', str(file))
    return real_open(file, *arguments, **options)


def simulate():
    sys.modules['fcntl'], sys.modules['msvcrt'] = None, msvcrt
    for module, names in ((signal, ('SIGHUP', 'SIGCHLD', 'SIGQUIT', 'SIGKILL', 'pthread_sigmask')),
                          (select, ('poll',)),
                          (os, ('getuid', 'sysconf', 'sched_getaffinity', 'fork', 'killpg',
                                'setsid'))):
        for name in names:
            delattr(module, name)
    for name in 'replace', 'unlink', 'remove', 'rename':
        setattr(os, name, refusing_open_files(getattr(os, name)))
    ctypes.windll = types.SimpleNamespace(
        kernel32=types.SimpleNamespace(GlobalMemoryStatusEx=memory_status))
    os.fsync, builtins.open, io.open = fsync, without_proc, without_proc
    os.environ.pop('XDG_CACHE_HOME', None)
    os.environ['PATH'] = ''

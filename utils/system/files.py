"""Where the program keeps files of its own, and how it reads and writes the user's."""
import contextlib
import datetime
import functools
import os
import socket
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from utils.system import interrupt, locks
from utils.system.errors import InputError

LOCK = '.lock'
TEMPORARY = '.dab-*.tmp'    # files that are being written, or were when the process was killed
IS_WINDOWS = os.name == 'nt'
PATIENCE = 10   # seconds for other programs to close a file, such as a scanner for viruses
NO_FILES = {stat.S_IFDIR: 'folder', stat.S_IFIFO: 'pipe', stat.S_IFSOCK: 'socket',
            stat.S_IFCHR: 'device', stat.S_IFBLK: 'device'}


def cache_folder() -> Path:
    """The folder of everything that can be made again: $XDG_CACHE_HOME/dab, or ~/.cache/dab.

    On Windows %LOCALAPPDATA%\\dab comes second. For a user without a home it is a private folder
    among the temporary files.
    """
    chosen = os.environ.get('XDG_CACHE_HOME') or os.environ.get('LOCALAPPDATA')
    parent = os.path.expanduser(chosen or '~/.cache')
    return (private_folder() if parent.startswith('~') else Path(parent)) / 'dab'


@functools.cache
def private_folder() -> Path:
    """The same folder for all processes of this user, which no other user can enter."""
    if not hasattr(os, 'getuid'):       # Windows, where that of temporary files is the user's own
        return Path(tempfile.gettempdir())
    path = Path(tempfile.gettempdir(), f'dab-{os.getuid()}')
    path.mkdir(0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o77:
        return Path(tempfile.mkdtemp(prefix='dab-'))    # another user was faster
    return path


def check_file(path: str | Path, kind: str = 'file'):
    """Raise InputError where no file lies at `path`, before it is opened: a pipe can wait forever.

    kind: what the file should be, which the sentence says.
    """
    try:
        found = NO_FILES.get(stat.S_IFMT(os.stat(path).st_mode))
    except (FileNotFoundError, NotADirectoryError, ValueError):     # ValueError: a null byte
        raise InputError(f'there is no {kind} {path}') from None
    except OSError as error:
        raise InputError(f'{path}: {error.strerror}') from error
    if found:
        raise InputError(f'{path} is a {found}, not a {kind if found == "folder" else "file"}')


def has_file(path: str | Path) -> bool:
    """Whether a file lies at `path`, where the program looks by itself; see check_file."""
    if not os.path.exists(path):
        return False
    check_file(path)
    return True


def check_writable_in_place(path: Path):
    """Raise InputError where what is written to `path` would not go to a file of this folder."""
    if path.is_symlink():
        raise InputError(f'{path} is a symbolic link, through which the program does not write: '
                         'move it away')
    has_file(path)


def check_numbers(tensors: Mapping[str, Any], path: str | Path):
    """Raise InputError where a tensor read from `path` has numbers that no training leaves."""
    for name, tensor in tensors.items():
        if not tensor.float().isfinite().all():
            raise InputError(f'{path} has numbers that are not finite, in {name}')
        if name.endswith('running_var') and (tensor < 0).any():
            raise InputError(f'{path} has a variance below 0, in {name}')


def are_class_names(value: object) -> bool:
    """Whether `value`, read from a file, is a list of one or more different texts."""
    return (isinstance(value, list) and len(value) > 0
            and all(isinstance(name, str) for name in value) and len(set(value)) == len(value))


def write_atomically(path: Path, write: Callable[[Path], object], sync: bool = True,
                     temporary: Path | None = None):
    """Call write(temporary) and rename that file to `path`, which is never half written.

    sync: wait for the disk, so that this holds for a power failure too. temporary: its name, in a
    folder where only this program writes, so that a next call replaces what a killed process left;
    elsewhere it is one that no file of the user has.
    """
    has_file(path)
    temporary = temporary or path.with_name(TEMPORARY.replace('*', uuid.uuid4().hex))
    try:
        with interrupt.must_finish():
            temporary.unlink(missing_ok=True)
            write(temporary)
            if sync:
                with open(temporary, 'r+b') as file:    # writable, for Windows
                    os.fsync(file.fileno())
            replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace(source: Path, target: Path):
    """os.replace; Windows refuses it while any program has the target open, so that it waits."""
    end = time.monotonic() + (PATIENCE if IS_WINDOWS else 0)
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.1)


def write_text(path: Path, text: str):
    """Write `text` to `path` in UTF-8, atomically; bytes of names that are not text as escapes."""
    data = text.encode(errors='backslashreplace')
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


class InUse(InputError):
    """Another process has a folder."""


def claim(folder: Path) -> TextIO:
    """Take a folder for this process alone, until release() or the end of the process.

    Raises InUse, which says who has it. The claim is a lock on the file LOCK in the folder;
    processes that are forked later do not hold it.
    """
    while True:
        check_writable_in_place(folder / LOCK)
        file = open(folder / LOCK, 'a+', encoding='utf-8')
        try:
            locks.take(file)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or 'another process'
            raise InUse(f'{folder} is in use by {owner}') from None
        except OSError:
            return file     # a file system without locks
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(file.name)):
                break       # not one that its last owner has just removed
    file.truncate(0)
    date = datetime.datetime.now().astimezone().isoformat(timespec='seconds')
    print(f'process {os.getpid()} on {socket.gethostname()}, since {date}', file=file, flush=True)
    return file


def release(file: TextIO):
    """Give up what claim() returned."""
    locks.remove(file)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """A block in which the folder, made where it is missing, is this process's alone; see claim."""
    folder.mkdir(parents=True, exist_ok=True)
    file = claim(folder)
    try:
        yield
    finally:
        release(file)

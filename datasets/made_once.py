"""Files in cache_folder() that one process makes, while others that need them wait for it."""
import os
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from utils.system import locks
from utils.system.files import has_file, write_atomically

Content = TypeVar('Content')
LIMIT = 20 * 10 ** 9    # bytes in the folder, where no more are in use
SUFFIXES = '.sketches', '.content', '.broken', '.so'    # of the files that the limit may remove


def made_once(path: Path, read: Callable[[Path], Content],
              write: Callable[[Path], object]) -> Content:
    """read(path); where that raises OSError or ValueError, one process makes the file first.

    write(temporary) makes it under another name: a file is never changed once it has its own.
    Raises what write does, OSError where there can be no such file, InputError where a pipe or
    the like has its name.
    """
    part, temporary = Path(f'{path}.part'), Path(f'{path}.tmp')
    for each in path, part:
        has_file(each)
    with suppress(OSError, ValueError):
        return read(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(part):
        with suppress(OSError, ValueError):
            return read(path)       # another process has made it
        write_atomically(path, write, temporary=temporary)
    return read(path)


def open_in_use(path: Path) -> BinaryIO:
    """The file, open for reading: make_room keeps it while it is open or mapped anywhere."""
    file = open(path, 'rb')
    with suppress(OSError):     # no locks here, or a file of another user
        locks.keep(file)
        os.utime(path)
    return file


def make_room(folder: Path, size: int):
    """Remove what killed processes left, and the least recently used files for `size` new bytes."""
    for part in folder.glob('*.part'):
        locks.remove_unless_in_use(part, part.with_suffix('.tmp'))
    files = [(path, path.stat()) for path in folder.iterdir() if path.suffix in SUFFIXES]
    total = size + sum(stat.st_size for _, stat in files)
    for path, stat in sorted(files, key=lambda file: max(file[1].st_atime, file[1].st_mtime)):
        if total <= LIMIT:
            break
        if locks.remove_unless_in_use(path):
            total -= stat.st_size


@contextmanager
def _locked(path):
    """Hold the lock of the file `path`, which is made for it and which its owner removes."""
    while True:
        with open(path, 'ab') as file:
            locks.wait(file)
            if not _has_name(file, path):
                continue    # its last owner removed it before this process had the lock
            try:
                yield
            finally:
                locks.remove(file)
            return


def _has_name(file, path):
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    return False

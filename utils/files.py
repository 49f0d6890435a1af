"""Where the program keeps files of its own, and how it writes the user's."""
import functools
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    """The folder of everything that can be made again: $XDG_CACHE_HOME/dab, or ~/.cache/dab.

    For a user without a home it is a private folder among the temporary files.
    """
    parent = os.path.expanduser(os.environ.get('XDG_CACHE_HOME') or '~/.cache')
    return (private_folder() if parent.startswith('~') else Path(parent)) / 'dab'


@functools.cache
def private_folder() -> Path:
    """The same folder for all processes of this user, which no other user can enter."""
    path = Path(tempfile.gettempdir(), f'dab-{os.getuid()}')
    path.mkdir(0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o77:
        return Path(tempfile.mkdtemp(prefix='dab-'))    # another user was faster
    return path


def write_atomically(path: Path, write: Callable[[Path], object], sync: bool = True):
    """Call write(temporary) and rename that file to `path`, which is never half written.

    sync: wait for the disk, so that this holds for a power failure too.
    """
    temporary = path.with_name(path.name + '.tmp')
    try:
        write(temporary)
        if sync:
            with open(temporary, 'rb') as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str):
    """Write `text` to `path` in UTF-8, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding='utf-8'))

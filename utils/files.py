"""Where the program keeps files of its own, and how it writes the user's."""
import os
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    """The folder of everything that can be made again: $XDG_CACHE_HOME/dab, or ~/.cache/dab."""
    return Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'dab'


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

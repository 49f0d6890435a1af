"""Compiled libraries, built at their first use and kept in $XDG_CACHE_HOME or ~/.cache, under dab/."""
import hashlib
import os
import tempfile
from pathlib import Path


def library(name, identity, build):
    """The path of the library that build(folder) makes and returns the path of, unless it was made before.

    identity: all that decides what is built. Written whole or not at all, so that processes may build at once.
    """
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'dab'
    path = cache / f'{name}-{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}.so'
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            os.replace(build(Path(folder)), path)
    return path

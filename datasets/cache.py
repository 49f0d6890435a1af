"""Sketches decoded once: the pixels of a folder in one file, which all workers map into memory."""

import fcntl
import hashlib
import os
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.folders import Folder
from datasets.transforms import square


class Cached:
    """A sequence of (PIL image of mode 'L', label) from the cache file `path`.

    The file holds the pixels of all squares, then their sides as int32, last `key`, the fingerprint
    of what it was made from. Raises OSError or ValueError where it is absent, not whole or stale.
    A pickled copy, as a spawned worker gets it, maps the same file.
    """

    def __init__(self, path, key, labels):
        self.path, self.key, self.labels = path, key, labels
        file = np.memmap(path, np.uint8, 'r').view(np.ndarray)
        self.pixels, end = np.split(file, [-4 * len(labels) - len(key)])
        self.sides = np.frombuffer(end, np.int32, len(labels)).astype(int)
        self.ends = np.cumsum(self.sides ** 2)
        if end[4 * len(labels):].tobytes() != key or self.ends[-1] != len(self.pixels):
            raise ValueError(f'{path} is stale')

    def __reduce__(self):
        return Cached, (self.path, self.key, self.labels)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        side, end = int(self.sides[index]), self.ends[index]
        pixels = self.pixels[end - side ** 2:end]
        return Image.frombuffer('L', (side, side), pixels, 'raw', 'L', 0, 1), self.labels[index]


def cached(images, side):
    """The Folder `images`, from its cache file, which is made where it is absent or stale.

    Each image is padded to a square and shrunk to `side`, as the transforms of sketches begin.
    Raises ImageError where one is damaged. Where no file can be made, `images` as they are.
    """
    if not isinstance(images, Folder):  # drawn, not decoded
        return images
    key, labels = fingerprint(images, side), [label for _, label in images.samples]
    path = place(images.root, side)
    try:
        with suppress(OSError, ValueError):
            return Cached(path, key, labels)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(f'{path}.part', 'ab') as file:
            fcntl.flock(file, fcntl.LOCK_EX)    # of several processes one makes it, the others wait
            with suppress(OSError, ValueError):
                return Cached(path, key, labels)
            fill(file, images, side, key)
            os.replace(file.name, path)
        return Cached(path, key, labels)
    except OSError as error:
        warnings.warn('every epoch decodes the sketches anew, for there is no cache of them in '
                      f'{path.parent}: {error.strerror or error}')
        return images


def place(root, side):
    """The cache file of the images below `root`."""
    home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    name = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:16]
    return Path(home).expanduser() / 'dab' / f'{name}-{side}.sketches'


def fingerprint(images, side):
    """Another one for other files, or other sizes or times of them."""
    stats = [(os.path.relpath(path, images.root), os.stat(path)) for path, _ in images.samples]
    files = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    return hashlib.sha256(repr((1, side, files)).encode()).digest()  # 1: the format of the file


def fill(file, images, side, key):
    """Write all of a cache to the file, open for appending, or leave it empty."""
    sides = []
    try:
        file.truncate(0)    # what a killed process left
        for image, _ in tqdm(images, 'decoding the sketches once', disable=None, unit=' images'):
            image = square(image, side)
            sides.append(image.width)
            file.write(image.tobytes())
        file.write(np.array(sides, np.int32).tobytes() + key)
        file.flush()
        os.fsync(file.fileno())
    except BaseException:
        file.truncate(0)
        raise

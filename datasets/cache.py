"""Sketches decoded once: the pixels of a folder in one file, which all workers map into memory."""
import fcntl
import hashlib
import os
import warnings
from contextlib import suppress

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.folders import Folder
from datasets.transforms import fit_in_square
from utils.files import cache_folder

FORMAT = 1  # of the cache file


class CachedSketches:
    """A sequence of (PIL image of mode 'L', label) from the cache file `path`.

    The file holds the pixels of all squares, then their sides as int32, then `key`, the fingerprint
    of the images it was made from. Raises OSError or ValueError where the file is absent, truncated
    or stale. A pickled copy, as a spawned worker gets it, maps the same file.
    """

    def __init__(self, path, key, labels):
        self.path, self.key, self.labels = path, key, labels
        file = np.memmap(path, np.uint8, 'r').view(np.ndarray)
        self.pixels, footer = np.split(file, [-4 * len(labels) - len(key)])
        self.sides = np.frombuffer(footer, np.int32, len(labels)).astype(int)
        self.ends = np.cumsum(self.sides ** 2)
        if footer[4 * len(labels):].tobytes() != key or self.ends[-1] != len(self.pixels):
            raise ValueError(f'{path} is stale')

    def __reduce__(self):
        return CachedSketches, (self.path, self.key, self.labels)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        side, end = int(self.sides[index]), self.ends[index]
        pixels = self.pixels[end - side ** 2:end]
        return Image.frombuffer('L', (side, side), pixels, 'raw', 'L', 0, 1), self.labels[index]


def open_or_make(images, side):
    """The Folder `images`, from its cache file, which is made where it is absent or stale.

    Each image is padded to a square and shrunk to `side` pixels, as the transforms of sketches
    begin. Raises ImageError where one is damaged. Where no file can be made, warns and returns
    `images`, as it does silently for anything but a Folder.
    """
    if not isinstance(images, Folder):  # drawn, not decoded
        return images
    key, labels = fingerprint(images, side), [label for _, label in images.samples]
    path = cache_path(images.root, side)
    try:
        if sketches := open_cache(path, key, labels):
            return sketches
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(f'{path}.part', 'ab') as file:
            fcntl.flock(file, fcntl.LOCK_EX)    # one process makes the file, the others wait for it
            if sketches := open_cache(path, key, labels):
                return sketches
            write_cache(file, images, side, key)
            os.replace(file.name, path)
        return CachedSketches(path, key, labels)
    except OSError as error:
        warnings.warn(f'the sketches cannot be cached in {path.parent} '
                      f'({error.strerror or error}), so every epoch decodes them again')
        return images


def open_cache(path, key, labels):
    """The sketches in the cache file `path`; None where it is absent, truncated or stale."""
    with suppress(OSError, ValueError):
        return CachedSketches(path, key, labels)
    return None


def cache_path(root, side):
    """The cache file of the images below `root`."""
    name = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:16]
    return cache_folder() / f'{name}-{side}.sketches'


def fingerprint(images, side):
    """A hash of the side and of the path, size and modification time of every file."""
    stats = [(os.path.relpath(path, images.root), os.stat(path)) for path, _ in images.samples]
    files = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    return hashlib.sha256(repr((FORMAT, side, files)).encode()).digest()


def write_cache(file, images, side, key):
    """Write the cache to `file`, open for appending; after an error it is left empty."""
    sides = []
    try:
        file.truncate(0)    # what a killed process left
        for image, _ in tqdm(images, 'decoding the sketches once', disable=None, unit=' images'):
            image = fit_in_square(image, side)
            sides.append(image.width)
            file.write(image.tobytes())
        file.write(np.array(sides, np.int32).tobytes() + key)
        file.flush()
        os.fsync(file.fileno())
    except BaseException:
        file.truncate(0)
        raise

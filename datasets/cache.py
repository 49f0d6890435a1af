"""What decoding all images once tells: the pixels of sketches, and which images are broken.

The pixels of a folder lie in one file, which all workers map into memory.
"""
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.folders import Folder, warn
from datasets.images import ImageError
from datasets.made_once import made_once, make_room, open_in_use
from datasets.transforms import fit_in_square
from utils.files import cache_folder

FORMAT = 2  # of the cache files, and of how images are read


class CachedSketches:
    """A sequence of (PIL image of mode 'L', label) from the cache file `path`.

    The file holds the pixels of all squares, then their sides as int32, 0 for a broken image, then
    `key`, the fingerprint of the images it was made from. `labels` are those of all images; the
    sequence is without the broken ones. Raises OSError or ValueError where the file is absent,
    truncated or stale. A pickled copy, as a spawned worker gets it, maps the same file.
    """

    def __init__(self, path, key, labels):
        self.path, self.key, self.labels = path, key, labels
        with open_in_use(path) as opened:
            file = np.memmap(opened, np.uint8, 'r').view(np.ndarray)
        self.pixels, footer = np.split(file, [-4 * len(labels) - len(key)])
        self.sides = np.frombuffer(footer, np.int32, len(labels)).astype(int)
        self.ends = np.cumsum(self.sides ** 2)
        if footer[4 * len(labels):].tobytes() != key or self.ends[-1] != len(self.pixels):
            raise ValueError(f'{path} is stale')
        self.whole = np.flatnonzero(self.sides)

    def __reduce__(self):
        return CachedSketches, (self.path, self.key, self.labels)

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, index):
        index = self.whole[index]
        side, end = int(self.sides[index]), self.ends[index]
        pixels = self.pixels[end - side ** 2:end]
        return Image.frombuffer('L', (side, side), pixels, 'raw', 'L', 0, 1), self.labels[index]


def sketches(images: Folder, side: int, skipBroken: bool) -> CachedSketches | Folder:
    """The Folder `images`, from its cache file, which is made where it is absent.

    Each image is padded to a square and shrunk to `side` pixels, as the transforms of sketches
    begin. Broken images raise ImageError; with skipBroken they are left out. Where no file can be
    made, warns and returns a Folder.
    """
    labels = [label for _, label in images.samples]
    try:
        key = hashlib.sha256(f'{content(images)} {side} {skipBroken}'.encode()).digest()
        path = cache_folder() / f'{key.hex()[:32]}.sketches'
        cached = made_once(path, lambda path: CachedSketches(path, key, labels),
                           partial(write_sketches, images, side, skipBroken, key))
    except OSError as error:
        warn_not_cached(error, 'so every epoch decodes the sketches again')
        return readable(images) if skipBroken else images
    images.without(np.flatnonzero(cached.sides == 0).tolist())
    return cached


def readable(images: Folder) -> Folder:
    """The Folder without its broken images, which are searched once and then remembered."""
    def write(path):
        path.write_text(json.dumps(list(broken(images))))

    try:
        path = cache_folder() / f'{fingerprint(images)}.broken'
        indices = made_once(path, lambda path: json.loads(path.read_bytes()), write)
    except OSError as error:
        warn_not_cached(error, 'so every start decodes the images once')
        indices = list(broken(images))
    return images.without(indices)


def warn_not_cached(error, consequence):
    warn(f'nothing can be cached in {cache_folder()} ({error.strerror or error}), {consequence}')


def fingerprint(images: Folder) -> str:
    """A hash of the path, size, and times of modification and of change of every file."""
    stats = [(os.path.abspath(path), os.stat(path)) for path, _ in images.samples]
    files = [(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats]
    return hashlib.sha256(repr((FORMAT, files)).encode()).hexdigest()[:32]


def content(images: Folder) -> str:
    """A hash of the path and the bytes of every file, remembered for their fingerprint.

    Copies on other hosts, whose time stamps differ, have the same.
    """
    def write(path):
        digest = hashlib.sha256(repr(FORMAT).encode())
        for image, _ in images.samples:
            digest.update(repr(os.path.relpath(image, images.root)).encode() + file_digest(image))
        path.write_text(digest.hexdigest())

    def read(path):
        if len(text := path.read_text()) != 64:
            raise ValueError(f'{path} is not whole')
        return text
    return made_once(cache_folder() / f'{fingerprint(images)}.content', read, write)


def file_digest(path: str) -> bytes:
    """The SHA-256 of a file; empty where it cannot be read, which decoding it tells better."""
    try:
        with open(path, 'rb') as file:
            return hashlib.file_digest(file, 'sha256').digest()
    except OSError:
        return b''


def broken(images: Folder) -> Iterator[int]:
    """The indices of the images that cannot be read."""
    results = decoded(images, lambda image: None, 'searching for broken images once')
    return (index for index, result in enumerate(results) if isinstance(result, ImageError))


def decoded(images: Folder, prepare: Callable[[Image.Image], object],
            title: str) -> Iterator[object]:
    """prepare(image), or the ImageError, of each image in order; threads decode them."""
    def decode(index):
        try:
            return prepare(images[index][0])
        except ImageError as error:
            return error

    count = os.cpu_count() or 1
    indices = iter(tqdm(range(len(images)), title, disable=None, unit=' images'))
    with ThreadPoolExecutor(count) as pool:     # threads, since Pillow releases the GIL
        while chunk := list(itertools.islice(indices, 16 * count)):     # memory stays small
            yield from pool.map(decode, chunk)


def write_sketches(images: Folder, side: int, skipBroken: bool, key: bytes, path: Path):
    """Write the file that CachedSketches reads. Raises ImageError, with skipBroken never."""
    make_room(path.parent, len(images) * side ** 2)
    squares = decoded(images, partial(fit_in_square, side=side), 'decoding the sketches once')
    sides = []
    with open(path, 'wb') as file:
        for square in squares:
            if not isinstance(square, ImageError):
                sides.append(square.width)
                file.write(square.tobytes())
            elif skipBroken:
                sides.append(0)
            else:
                raise square
        file.write(np.array(sides, np.int32).tobytes() + key)

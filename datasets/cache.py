"""Cache what decoding all images once finds: squares of sketches, and which images are broken.

The squares of a folder lie in one file, which all processes map into memory.
"""
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.files import first_names, warn
from datasets.folders import Folder
from datasets.images import HINTS, ImageError, is_blank, is_dark
from datasets.items import Squares, in_threads
from datasets.made_once import made_once, make_room, open_in_use
from datasets.transforms import SquareTransform
from utils.system.errors import explained
from utils.system.files import cache_folder

BROKEN, WHOLE, BLANK, DARK = range(4)   # an image; see is_blank and is_dark


class CachedSquares:
    """Squares from the cache file `path`, mapped into memory.

    The file holds the pixels of the squares, then a byte for each image, such as BROKEN for one
    without a square, then `key`, the fingerprint of the images it was made from. `images` are all
    of these, the attribute those with a square; `shape` is that of a square. Raises OSError or
    ValueError where the file is absent, truncated or stale. A pickled copy, as a spawned worker
    gets it, maps the same file.
    """

    def __init__(self, path: Path, key: bytes, images: Folder, shape: tuple[int, int, int]):
        self.arguments, self.key = (path, key, images, shape), key
        with open_in_use(path) as opened:       # a private map: PyTorch takes no read-only one
            file = np.memmap(opened, np.uint8, 'c').view(np.ndarray)
        pixels, kinds, stored_key = np.split(file, [-len(images) - len(key), -len(key)])
        self.broken, self.kinds = np.flatnonzero(kinds == BROKEN), kinds[kinds != BROKEN]
        self.images = images.without(self.broken)
        self.labels = [label for _, label in self.images.samples]
        if stored_key.tobytes() != key or len(pixels) != len(self.labels) * math.prod(shape):
            raise ValueError(f'{path} is stale')
        self.pixels = torch.from_numpy(pixels).view(-1, *shape)

    def __reduce__(self):
        return CachedSquares, self.arguments

    def __len__(self):
        return len(self.labels)

    def take(self, indices: Sequence[int]) -> tuple[Tensor, list[int]]:
        """See Squares."""
        labels = [self.labels[index] for index in indices]
        return self.pixels.index_select(0, torch.tensor(indices)), labels

    def all(self) -> tuple[Tensor, list[int]]:
        """See Squares; the pixels are those of the file."""
        return self.pixels, self.labels


def squares(images: Folder, transform: SquareTransform,
            skipBroken: bool) -> CachedSquares | Squares:
    """The squares of the Folder `images`, from its cache file, which is made where it is absent.

    Broken images raise ImageError; with skipBroken they are left out. Warns of sketches without ink
    and of many that are dark. Where no file can be made, warns and returns Squares.
    """
    try:
        side = transform.shape[-1]
        made_from = f'{content(images)} {side} {skipBroken} {images.ink} {code()}'
        key = hashlib.sha256(made_from.encode()).digest()
        path = cache_folder() / f'{key.hex()[:32]}.sketches'
        cached = made_once(path, lambda path: CachedSquares(path, key, images, transform.shape),
                           partial(write_squares, images, transform, skipBroken, key))
    except OSError as error:
        warn_not_cached(error, 'so every start or epoch decodes the sketches again')
        return Squares(readable(images) if skipBroken else images, transform)
    images.report_broken(cached.broken)
    warn_of_ink(cached.images, cached.kinds)
    return cached


def warn_of_ink(images: Folder, kinds: np.ndarray):
    """Warn of sketches without ink, and where more than a tenth are mostly dark."""
    faults = (BLANK, 'have hardly any ink', 0), (DARK, 'are mostly dark', len(images) / 10)
    for kind, fault, most in faults:
        paths = [images.samples[index][0] for index in np.flatnonzero(kinds == kind)]
        if len(paths) > most:
            warn(f'{images.root}: {len(paths)} of {len(images)} sketches {fault}: '
                 f'{first_names(images.root, paths)}{HINTS[images.ink]}')


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
    images.report_broken(indices)
    return images.without(indices)


def warn_not_cached(error, consequence):
    if explained(error) is not error:       # such as too many open files: what follows fails too
        raise error
    warn(f'nothing can be cached in {cache_folder()} ({error.strerror or error}), {consequence}')


@functools.cache
def code() -> str:
    """A hash of the source of how images become squares: what an edit of it made is made anew."""
    digest = hashlib.sha256()
    for name in 'cache.py', 'images.py', 'transforms.py':
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:16]


def fingerprint(images: Folder) -> str:
    """A hash of code(), and of path, size, times of modification and of change of every file."""
    stats = [(os.path.abspath(path), os.stat(path)) for path, _ in images.samples]
    files = [(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats]
    return hashlib.sha256(repr((code(), files)).encode()).hexdigest()[:32]


def content(images: Folder) -> str:
    """A hash of the path and the bytes of every file, remembered for their fingerprint.

    Copies on other hosts, whose time stamps differ, have the same.
    """
    def write(path):
        digest = hashlib.sha256()
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
    """prepare(image), or the ImageError, of each image in order."""
    def decode(index):
        try:
            return prepare(images[index][0])
        except ImageError as error:
            return error
    return in_threads(decode, len(images), title)


def write_squares(images: Folder, transform: SquareTransform, skipBroken: bool, key: bytes,
                  path: Path):
    """Write the file that CachedSquares reads. Raises ImageError, with skipBroken never."""
    def prepare(image):
        kind = BLANK if is_blank(image) else DARK if is_dark(image) else WHOLE
        return kind, transform.square(image).numpy().tobytes()

    make_room(path.parent, len(images) * math.prod(transform.shape))
    kinds = bytearray()
    with open(path, 'wb') as file:
        for result in decoded(images, prepare, 'decoding the sketches once'):
            if isinstance(result, ImageError):
                if not skipBroken:
                    raise result
                kinds.append(BROKEN)
            else:
                kind, square = result
                kinds.append(kind)
                file.write(square)
        file.write(kinds + key)

"""The items (tensor, label) of a split, transformed one by one or in batches, and their names.

Squares are images of uint8, all of the same side, of which batches are cropped or augmented.
"""
import hashlib
import itertools
import os
import random
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from datasets.transforms import SquareTransform


class Transformed(Dataset):
    """Items (tensor, label) from a sequence of (PIL image, label), one by one.

    All randomness in an item is drawn from (seed, epoch, index), whichever process makes it, and
    the global random state is left alone. The epoch is in shared memory, so that persistent workers
    see it change.
    """

    def __init__(self, images, transform, seed):
        self.images, self.transform, self.seed = images, transform, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, label = self.images[index]
        rng = random.Random(f'{self.seed} {int(self.epoch)} {index}')
        with torch.random.fork_rng(devices=[]):     # torch.manual_seed would reseed the GPUs too
            torch.default_generator.manual_seed(rng.getrandbits(63))
            return self.transform(image), label


class TransformedSquares(Transformed):
    """Transformed, from a sequence of squares (see Squares) in batches, by a SquareTransform.

    The random numbers of an image are a function of (seed, epoch, index) here too.
    """

    def draw(self, indices: Sequence[int]) -> Tensor:
        """Draw the random numbers of these images in this epoch; see SquareTransform."""
        return self.transform.draw(self.seed, int(self.epoch), indices)

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        """The items of these indices, which a DataLoader asks for at once."""
        squares, labels = self.images.take(indices)
        return list(zip(self.transform(squares, self.draw(indices)), labels))


class Squares:
    """The squares of a sequence of (PIL image, label), made when they are asked for."""

    def __init__(self, images: Sequence[tuple[Image.Image, int]], transform: SquareTransform):
        self.images, self.transform = images, transform

    def __len__(self):
        return len(self.images)

    def take(self, indices: Sequence[int]) -> tuple[Tensor, list[int]]:
        """(pixels, labels) of these indices: uint8 (N, C, side, side), and class numbers."""
        squares, labels = zip(*map(self._square, indices))
        return torch.stack(squares), list(labels)

    def all(self) -> tuple[Tensor, list[int]]:
        """take(range(len(self))), with a progress bar. Raises ImageError for a broken image."""
        pixels = torch.empty(len(self), *self.transform.shape, dtype=torch.uint8)
        labels = []
        for square, label in in_threads(self._square, len(self), 'preparing the images once'):
            pixels[len(labels)] = square
            labels.append(label)
        return pixels, labels

    def _square(self, index):
        image, label = self.images[index]
        return self.transform.square(image), label


def in_threads(function: Callable[[int], object], count: int, title: str) -> Iterator:
    """Yield function(0), function(1), … in order, by threads, since Pillow releases the GIL."""
    threads = os.cpu_count() or 1
    indices = iter(tqdm(range(count), title, disable=None, unit=' images'))
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(itertools.islice(indices, 16 * threads)):   # memory stays small
            yield from pool.map(function, chunk)


def folder_of(images):
    """The datasets.folders.Folder that the images come from.

    None for the program's drawings and for official files.
    """
    while hasattr(images, 'images'):    # of Transformed, and of Squares or CachedSquares
        images = images.images
    return images if hasattr(images, 'read_as') else None


def image_names(images: Transformed, below: bool = False) -> list[str]:
    """The paths of the images, or their numbers, from 0, where they are not files of their own.

    below: the paths below the folder of their split.
    """
    folder = folder_of(images)
    if folder is None:
        return [str(number) for number in range(len(images))]
    paths = [os.fspath(path) for path, _ in folder.samples]
    root = f'{folder.root}{os.sep}' if below else ''
    return [path.removeprefix(root) for path in paths]


def names_digest(images: Transformed, form: str = 'NFC') -> str:
    """A hash of the names of the images in their folder, which stays where the folder is moved.

    form: the Unicode form of the names; older versions took that of the files.
    """
    names = '\0'.join(image_names(images, below=True)).replace(os.sep, '/')
    names = unicodedata.normalize(form, names)
    return hashlib.sha256(names.encode(errors='surrogateescape')).hexdigest()[:16]

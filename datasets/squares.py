"""Images as squares of uint8, all of the same side, from which batches are cropped or augmented."""
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from datasets.transforms import SquareTransform

Result = TypeVar('Result')


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


def in_threads(function: Callable[[int], Result], count: int, title: str) -> Iterator[Result]:
    """function(0), function(1), … in order, by threads, since Pillow releases the GIL."""
    threads = os.cpu_count() or 1
    indices = iter(tqdm(range(count), title, disable=None, unit=' images'))
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(itertools.islice(indices, 16 * threads)):   # memory stays small
            yield from pool.map(function, chunk)

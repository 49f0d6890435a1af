"""The augmentation of training images in batches, on any device.

An augmentation is made for one size of the network's input and has

    side                                    of the uint8 squares (N, C, side, side) that it takes
    draw(seed, epoch, indices)              random numbers of each image: float32 (N, numbers)
    augment(squares, drawn)                 float32 images (N, C, inpsize, inpsize), values 0..255

The distribution is that of torchvision's transforms of these names, to which tests compare it.
"""
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

MIN_CROP, RATIO, ATTEMPTS = 0.08, (3 / 4, 4 / 3), 10    # of torchvision's RandomResizedCrop
DEGREES = 10
GOLDEN = 0x9e3779b97f4a7c15


class SketchAugmentation:
    """RandomResizedCrop, a mirror image if `flip`, a rotation of up to ±10°, in one sampling.

    minCrop: the smallest share of the area that a crop keeps. It does not smooth where it shrinks,
    but that is by 8 / 7 at most. Paper has to be 0: what a rotation uncovers is paper.
    """

    def __init__(self, inpsize: int, side: int, flip: bool = True, minCrop: float = MIN_CROP):
        self.inpsize, self.side, self.flip, self.minCrop = inpsize, side, flip, minCrop

    def draw(self, seed: int, epoch: int, indices: Sequence[int]) -> np.ndarray:
        """(left, top, width, height, flip, angle) each: whole pixels, 0 or 1, radians."""
        chance = uniform(seed, epoch, indices, 4 * ATTEMPTS + 2)
        flip, angle = chance[:, -2] < (0.5 if self.flip else 0), chance[:, -1]
        boxes = crop_boxes(chance[:, :-2], self.side, self.minCrop)
        return np.stack([*boxes, flip, np.radians(DEGREES * (2 * angle - 1))], 1).astype(np.float32)

    def augment(self, squares: Tensor, drawn: Tensor) -> Tensor:
        left, top, width, height, flip, angle = drawn[:, :, None, None].unbind(1)
        centers = (2 * torch.arange(self.inpsize, device=drawn.device) + 1) / self.inpsize - 1
        # From the centers of the output's pixels into the crop, then into the square; the sides of
        # each of the three lie at -1 and 1.
        along, across = angle.cos() * centers, angle.sin() * centers
        grid = torch.empty(len(squares), 2, self.inpsize, self.inpsize, device=drawn.device)
        x, y = grid.unbind(1)
        torch.sub(along, across.mT, out=x)
        torch.add(across, along.mT, out=y)
        uncovered = torch.maximum(x.abs(), y.abs()) > 1
        x.mul_(width * (1 - 2 * flip) / self.side).add_((2 * left + width) / self.side - 1)
        y.mul_(height / self.side).add_((2 * top + height) / self.side - 1)
        images = grid_sample(squares.float(), grid.permute(0, 2, 3, 1), align_corners=False)
        return images.masked_fill_(uncovered[:, None], 0)


class ThumbnailAugmentation:
    """RandomCrop of squares that are padded already, and a mirror image."""

    def __init__(self, inpsize: int, side: int):
        self.inpsize, self.side = inpsize, side

    def draw(self, seed: int, epoch: int, indices: Sequence[int]) -> np.ndarray:
        """(left, top, flip) each: whole pixels, 0 or 1."""
        left, top, flip = uniform(seed, epoch, indices, 3).T
        places = self.side - self.inpsize + 1
        return np.stack([left * places // 1, top * places // 1, flip < 0.5], 1).astype(np.float32)

    def augment(self, squares: Tensor, drawn: Tensor) -> Tensor:
        left, top, flip = drawn.long()[:, :, None].unbind(1)
        places = torch.arange(self.inpsize, device=drawn.device)
        rows = top + places
        columns = left + torch.where(flip == 1, self.inpsize - 1 - places, places)
        image, channel = (torch.arange(size, device=drawn.device) for size in squares.shape[:2])
        return squares[image[:, None, None, None], channel[:, None, None], rows[:, None, :, None],
                       columns[:, None, None]].float()


def crop_boxes(chance: np.ndarray, side: int, minCrop: float) -> list[np.ndarray]:
    """[left, top, width, height] of RandomResizedCrop in squares of `side` pixels.

    minCrop: the smallest share of the area. chance: uniform numbers in [0, 1), (N, 4 * ATTEMPTS).
    Where no attempt fits, the box is the whole square.
    """
    area, ratio, left, top = chance.reshape(len(chance), ATTEMPTS, 4).transpose(2, 0, 1)
    area = side ** 2 * (minCrop + (1 - minCrop) * area)
    low, high = map(math.log, RATIO)
    ratio = np.exp(low + (high - low) * ratio)
    width, height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (0 < width) & (width <= side) & (0 < height) & (height <= side)
    first = np.arange(len(chance)), fits.argmax(1)
    any_fits, whole = fits[first], (0, 0, side, side)
    left, top = left * (side - width + 1) // 1, top * (side - height + 1) // 1
    return [np.where(any_fits, numbers[first], otherwise)
            for numbers, otherwise in zip((left, top, width, height), whole)]


def uniform(seed: int, epoch: int, indices: Sequence[int], count: int) -> np.ndarray:
    """(len(indices), count) float64 numbers in [0, 1), a stream for each index.

    They depend on (seed, epoch, index) alone, so that neither the batch size nor the number of
    processes or workers changes an image, and a GPU gets the numbers of the CPU.

    SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), whose
    state is a hash of seed, epoch and index.
    """
    state = np.zeros(1, np.uint64)
    for value in seed, epoch, indices:
        state = _mix((state + GOLDEN) ^ np.asarray(value, np.uint64))
    steps = GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    return (_mix(state[:, None] + steps) >> 11) * 2.0 ** -53


def _mix(z):
    """SplitMix64's bijective finalizer, modulo 2^64."""
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb
    return z ^ (z >> 31)

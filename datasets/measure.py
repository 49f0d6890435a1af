"""Measure the normalization of a user's own images."""
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from datasets.items import in_threads
from datasets.transforms import Steps, before_crop
from utils.system.errors import InputError

MEASURED = 2000     # images
DECIMALS = 4


def measured(spec, steps: Steps, train: Sequence, val: Sequence) -> tuple:
    """The DatasetSpec with the normalization of the training images, and how many were measured."""
    if not steps.in_batches:    # decoded like validation's, which are not cropped
        train = replace(train, enough=val.enough)
    mean, std, count = measure(train, steps)
    return replace(spec, mean=tuple(mean), std=tuple(std), is_measured=True), count


def measure(images: Sequence, steps: Steps) -> tuple[list[float], list[float], int]:
    """(mean, std) of each channel, and of how many images: at most MEASURED, evenly spaced.

    images: Squares, or items (PIL image, label). Pixels in [0, 1] of what validation crops are
    measured; every image counts the same. Raises InputError where a channel has no deviation.
    """
    count, to_square = min(len(images), MEASURED), before_crop(steps)

    def moments(number):
        index = number * len(images) // count
        square = (images.take([index])[0][0] if hasattr(images, 'take') else
                  to_square(images[index][0]))
        pixels = square.double().div_(255).flatten(1)
        return torch.stack([pixels.mean(1), pixels.square().mean(1)])

    total: Sequence | Tensor = sum(in_threads(moments, count, 'measuring the normalization once'))
    mean, square = total / count
    std = (square - mean.square()).clamp(min=0).sqrt()
    rounded = [[round(value, DECIMALS) for value in values.tolist()] for values in (mean, std)]
    if min(rounded[1]) < 10 ** (1 - DECIMALS):
        raise InputError('the normalization cannot be measured: all pixels of the training images '
                         'have the same value in a channel')
    return *rounded, count

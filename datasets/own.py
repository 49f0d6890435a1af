"""One's own images in folders: what their data is called, and the normalization measured of them.

Their dataset is called 'folder:NAME', NAME being that of the folder, so that a run, a checkpoint
or a packed model says what it was trained on wherever the data lies later.
"""
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from datasets.squares import in_threads
from utils.system.errors import InputError

OWN = 'folder'
MAX_NAME = 50       # characters, which leaves room in the name of a run's folder
MEASURED = 2000     # images
DECIMALS = 4
KINDS = {1: 'sketches, dark on light', 3: 'photographs'}    # by channels
KINDS_LISTED = ', '.join(f'{channels} for {kind}' for channels, kind in KINDS.items())


def is_own(dataset: str) -> bool:
    """Whether the dataset is 'folder' or 'folder:NAME'."""
    return dataset.partition(':')[0] == OWN


def data_name(dataset: str) -> str:
    """What people call the dataset: NAME of 'folder:NAME', the dataset's own name otherwise."""
    return dataset.partition(':')[2] or dataset if is_own(dataset) else dataset


def name_of_folder(data_dir: str) -> str:
    """'folder:NAME' of the images in data_dir, NAME without what cannot be printed."""
    name = os.path.basename(os.path.abspath(os.path.expanduser(data_dir))) or 'root'
    name = ''.join(character if character.isprintable() else '_' for character in name)
    return f'{OWN}:{name[:MAX_NAME]}'


def measure(squares: Callable[[int], Tensor], images: int) -> tuple[list[float], list[float], int]:
    """(mean, std) of each channel, and of how many images: at most MEASURED, evenly spaced.

    squares(index) is an image as uint8 (C, height, width), of which pixels in [0, 1] are measured.
    Every image counts the same. Raises InputError where a channel has no deviation.
    """
    count = min(images, MEASURED)

    def moments(number):
        pixels = squares(number * images // count).double().div_(255).flatten(1)
        return torch.stack([pixels.mean(1), pixels.square().mean(1)])

    total: Sequence | Tensor = sum(in_threads(moments, count, 'measuring the normalization once'))
    mean, square = total / count
    std = (square - mean.square()).clamp(min=0).sqrt()
    rounded = [[round(value, DECIMALS) for value in values.tolist()] for values in (mean, std)]
    if min(rounded[1]) < 10 ** (1 - DECIMALS):
        raise InputError('the normalization cannot be measured: all pixels of the training images '
                         'have the same value in a channel')
    return *rounded, count

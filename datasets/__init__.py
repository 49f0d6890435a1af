"""From the name of a dataset to images and labels.

    data = datasets.load('tuberlin', 'data/tuberlin', inpsize=225)
    image, label = data.train[0]    # float32 (1, 225, 225), int

A new dataset is one more row of DATASETS: its transforms, its normalization and the function that
finds its images, which is from_folders(...) for images in train/<class>/ and val/<class>/. Flags
and help take the names from there. One channel means sketches, black on white.

Images are turned upright as their EXIF orientation says, except those in the folders of imagenet12,
since the published pipeline ignores it; a picture that a network of imagenet12 is to classify
(--classify, experiment.load) is turned.
"""
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from datasets import cache, cifar, doodles, folders, transforms
from datasets.folders import image_files
from datasets.images import ImageError, as_channels, paper_fault, read_image
from datasets.squares import Squares
from utils.errors import InputError

__all__ = ['Data', 'ImageError', 'as_channels', 'fingerprint', 'image_files', 'load', 'names',
           'normalization', 'paper_fault', 'read_image', 'transform']


@dataclass(frozen=True)
class DatasetSpec:
    steps: Callable     # inpsize -> transforms.Steps; of sketches (inpsize, ink=) -> Steps
    mean: tuple[float, ...]     # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    find: Callable      # (data_dir, channels) -> (train, val, classes); items (PIL image, label)

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def is_sketch(self) -> bool:
        """Sketches in folders are cached."""
        return self.channels == 1

    def steps_for(self, inpsize: int, ink: str) -> transforms.Steps:
        """ink: how sketches are drawn, see --ink; of no effect on other images."""
        return self.steps(inpsize, ink=ink) if self.is_sketch else self.steps(inpsize)


@dataclass(frozen=True)
class Data:
    train: transforms.Transformed   # items (tensor, label); call set_epoch(epoch) before each epoch
    val: transforms.Transformed
    classes: list[str]  # in the order of the labels
    channels: int
    in_folders: bool    # image files in folders, to which skipBroken applies


def from_folders(*names: str, upright: bool = True) -> Callable:
    """The `find` of a dataset that lies in data_dir or in its subfolder of one of `names`.

    upright: whether the EXIF orientation of its images is honoured.
    """
    return partial(folders.find, names=names, upright=upright)


DATASETS = {
    'tuberlin': DatasetSpec(
        transforms.sketches, (0.06,), (0.93,), from_folders('tuberlin')),
    'sketchyrecognition': DatasetSpec(
        partial(transforms.sketches, flip=False), (0.0465,), (0.9,),
        from_folders('sketchyrecognition', 'sketchy_recognition', 'sketchy')),
    'imagenet12': DatasetSpec(
        transforms.photographs, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
        from_folders('imagenet12', 'imagenet', upright=False)),    # as published
    'cifar10': DatasetSpec(
        transforms.thumbnails, (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261),
        partial(cifar.find, name='cifar10', official='CIFAR10')),
    'cifar100': DatasetSpec(
        transforms.thumbnails,
        (129.3 / 255, 124.1 / 255, 112.4 / 255), (68.2 / 255, 65.4 / 255, 70.4 / 255),
        partial(cifar.find, name='cifar100', official='CIFAR100')),
    'doodles': DatasetSpec(transforms.sketches, (0.06,), (0.93,), doodles.find),
}


def names() -> list[str]:
    """The names of all datasets."""
    return list(DATASETS)


def normalization(name: str) -> tuple[list[float], list[float]]:
    """(mean, std) of the dataset `name`: a number per channel each, of pixels in [0, 1]."""
    spec = _spec(name)
    return list(spec.mean), list(spec.std)


def transform(name: str, inpsize: int, train: bool = False, tenCrop: bool = False,
              plain: bool = False, ink: str = 'dark') -> Callable[[Image.Image], Tensor]:
    """The callable from a PIL image, as read_image returns it, to a normalized float32 tensor.

    The tensor is (C, inpsize, inpsize), or (10, C, inpsize, inpsize) with `tenCrop`, which training
    ignores. Training draws from PyTorch's random state; with `plain`, all images go through one
    torchvision transform after another. ink: see images.INK.
    """
    spec = _spec(name)
    steps = spec.steps_for(inpsize, ink)
    if train and steps.batched and not plain:
        return partial(_augmented, transforms.SquareTransform(steps, inpsize, spec.mean, spec.std,
                                                              train))
    return transforms.compose(steps, inpsize, spec.mean, spec.std, train, tenCrop)


def _augmented(transform, image):
    drawn = transform.draw(int(torch.randint(2 ** 63 - 1, ())), 0, [0])
    return transform(transform.square(image)[None], drawn)[0]


def load(name: str, data_dir: str | Path, inpsize: int, tenCrop: bool = False, seed: int = 0,
         plain: bool = False, skipBroken: bool = False, ink: str = 'dark') -> Data:
    """The training and validation images of the dataset `name`, transformed.

    `seed` determines the augmentation, not the doodles, so that runs with other seeds see the same
    drawings. Raises InputError where `data_dir` does not hold the dataset, OSError where a folder
    cannot be read, ImageError where a sketch is damaged; other images raise it when they are read.
    With `skipBroken`, images in folders that cannot be read are left out instead, and a warning
    names them. ink: of sketches, see images.INK. With `plain`, the reference of tests and
    measurements, all images go one by one through torchvision's transforms and no sketches are
    cached.
    """
    spec = _spec(name)
    train, val, classes = spec.find(data_dir, spec.channels)
    in_folders = isinstance(train, folders.Folder)
    are_cached = in_folders and spec.is_sketch and not plain
    if in_folders and skipBroken and not are_cached:
        train, val = (cache.readable(images) for images in (train, val))
    steps = spec.steps_for(inpsize, ink)
    if steps.enough and not plain:
        train.enough, val.enough = steps.enough
    transformed = []
    for images, is_train in (train, True), (val, False):
        options = steps, inpsize, spec.mean, spec.std, is_train, tenCrop
        if plain or steps.batched is None:
            transformed.append(transforms.Transformed(images, transforms.compose(*options), seed))
            continue
        batched = transforms.SquareTransform(*options)
        images = (cache.squares(images, batched, skipBroken, ink) if are_cached
                  else Squares(images, batched))
        transformed.append(transforms.TransformedSquares(images, batched, seed))
    return Data(*transformed, classes, spec.channels, in_folders)


def fingerprint(images: transforms.Transformed) -> str:
    """A key of the images, which changes where their files do."""
    source = images.images
    if isinstance(source, cache.CachedSquares):
        return source.key.hex()
    if isinstance(source, Squares):
        source = source.images
    if isinstance(source, folders.Folder):
        return cache.fingerprint(source)
    return str(len(source))     # the program's drawings, or official files


def _spec(name):
    if name not in DATASETS:
        raise InputError(f"there is no dataset '{name}'; the datasets are {', '.join(DATASETS)}")
    return DATASETS[name]

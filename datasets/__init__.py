"""From the name of a dataset to images and labels.

    data = datasets.load('tuberlin', 'data/tuberlin', inpsize=225)
    image, label = data.train[0]    # float32 (1, 225, 225), int

    birds = datasets.spec('folder:birds', channels=3)       # a user's own images
    data = datasets.load(birds, 'data/birds', inpsize=224)
    data.spec       # birds with the normalization measured of its training images

A new dataset is one more row of DATASETS: its transforms, its normalization and the function that
finds its images, which is from_folders(...) for images in train/<class>/ and val/<class>/. One
channel means sketches, read as dark on light.

Images are turned as their EXIF orientation says, except in the folders of imagenet12, as published;
what a network of imagenet12 is to classify (--classify, experiment.load) is turned.
"""
from utils.system.errors import InputError      # first: utils prepares for signals and for torch

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from PIL import Image
from torch import Tensor

from datasets import doodles, transforms
from datasets.augmentation import MIN_CROP
from datasets.items import (Squares, Transformed, TransformedSquares, folder_of, image_names,
                            names_digest)
from datasets.items import OWN, data_name, is_own, name_of_folder, nfc
from datasets.transforms import center, pixels

# Names of modules that are imported when they are needed: doodles need none of them.
IN_MODULES = {'ImageError': 'images', 'as_channels': 'images', 'paper_fault': 'images',
              'read_image': 'images', 'image_files': 'files', 'shown': 'folders'}
__all__ = ['INK', 'KINDS', 'KINDS_LISTED', 'MIN_CROP', 'OWN', 'SPLITS', 'Data', 'DatasetSpec',
           'center', 'crops_a_share', 'data_name', 'fingerprint', 'folder_of', 'image_names',
           'is_own', 'load', 'name_of_folder', 'names', 'names_digest', 'nfc', 'normalization',
           'pixels', 'spec', 'transform', *IN_MODULES]

INK = 'auto', 'dark', 'light'   # how sketches in files are drawn; see images.as_channels
KINDS = {1: 'sketches, dark on light', 3: 'photographs'}    # by channels
KINDS_LISTED = ', '.join(f'{channels} for {kind}' for channels, kind in KINDS.items())
SPLITS = 'train', 'val', 'test'


def __getattr__(name):
    if name not in IN_MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'datasets.{IN_MODULES[name]}'), name)


@dataclass(frozen=True)
class DatasetSpec:
    steps: Callable     # (inpsize, minCrop) -> transforms.Steps
    mean: tuple[float, ...]     # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    find: Callable      # (data_dir, channels, split=) -> (train, images of the split, classes);
                        # items (PIL image, label)
    is_measured: bool = True    # else mean and std are 0 and 1 until load has measured them
    ink: str = 'dark'           # of INK, how sketches in files are drawn
    minCrop: float = MIN_CROP   # the smallest share of its area that a training crop keeps

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def is_sketch(self) -> bool:
        return self.channels == 1


@dataclass(frozen=True)
class Data:
    train: Transformed  # items (tensor, label); call set_epoch(epoch) before each epoch
    val: Transformed    # of the split that load was asked for
    classes: list[str]  # in the order of the labels
    spec: DatasetSpec
    in_folders: bool    # image files in folders, to which skipBroken applies
    measured: int = 0   # images that the normalization was measured of, 0 where it was known

    @cached_property
    def training_images(self) -> str:
        """Their names_digest, which checkpoints record."""
        return names_digest(self.train)

    @property
    def channels(self) -> int:
        return self.spec.channels


def find_by(module: str, *arguments, **options):
    """Import a module of datasets, and call its `find`."""
    return importlib.import_module(f'datasets.{module}').find(*arguments, **options)


def from_folders(*names: str, upright: bool = True) -> Callable:
    """The `find` of a dataset in data_dir or in a subfolder of these names; upright: see Folder."""
    return partial(find_by, 'folders', names=names, upright=upright)


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
        partial(find_by, 'cifar', name='cifar10', official='CIFAR10')),
    'cifar100': DatasetSpec(
        transforms.thumbnails,
        (129.3 / 255, 124.1 / 255, 112.4 / 255), (68.2 / 255, 65.4 / 255, 70.4 / 255),
        partial(find_by, 'cifar', name='cifar100', official='CIFAR100')),
    'doodles': DatasetSpec(transforms.sketches, (0.06,), (0.93,), doodles.find),
}


def names() -> list[str]:
    """The names of all datasets, without that of a user's own images, OWN."""
    return list(DATASETS)


def spec(name: str, channels: int | None = None, mean: Sequence[float] | None = None,
         std: Sequence[float] | None = None, ink: str = 'dark',
         minCrop: float = MIN_CROP) -> DatasetSpec:
    """The DatasetSpec of a dataset. channels, mean and std are for a user's own, 'folder:NAME'.

    channels: 1 for sketches, 3 for photographs. mean, std: a number per channel each; None where
    load is to measure them. ink, minCrop: see DatasetSpec. Raises InputError.
    """
    return replace(_own_spec(name, channels, mean, std) if is_own(name) else _spec(name),
                   ink=ink, minCrop=minCrop)


def crops_a_share(name: str) -> bool:
    """Whether minCrop decides the training crops of a dataset: not of CIFAR's thumbnails."""
    return is_own(name) or _spec(name).steps is not transforms.thumbnails


def _own_spec(name, channels, mean, std):
    if channels not in KINDS:
        raise InputError(f'the dataset {name} needs a number of channels: {KINDS_LISTED}')
    steps = transforms.sketches if channels == 1 else transforms.photographs
    if mean is None or std is None:
        return DatasetSpec(steps, (0.,) * channels, (1.,) * channels, from_folders(), False)
    if (len(mean), len(std)) != (channels, channels) or min(std) <= 0:
        raise InputError(f'the dataset {name} needs a mean, and a std above 0, of each channel')
    return DatasetSpec(steps, tuple(mean), tuple(std), from_folders())


def normalization(dataset: str | DatasetSpec) -> tuple[list[float], list[float]]:
    """(mean, std) of the dataset: a number per channel each, of pixels in [0, 1]."""
    spec = _measured_spec(dataset)
    return list(spec.mean), list(spec.std)


def transform(dataset: str | DatasetSpec, inpsize: int, train: bool = False,
              tenCrop: bool = False) -> Callable[[Image.Image], Tensor]:
    """Return the callable from a PIL image, as read_image returns it, to a normalized tensor.

    The tensor is float32 (C, inpsize, inpsize), or (10, C, inpsize, inpsize) with `tenCrop`, which
    training ignores. Training draws from PyTorch's random state.
    """
    spec = _measured_spec(dataset)
    steps = spec.steps(inpsize, spec.minCrop)
    return transforms.compose(steps, inpsize, spec.mean, spec.std, train, tenCrop)


def load(dataset: str | DatasetSpec, data_dir: str | Path, inpsize: int, tenCrop: bool = False,
         seed: int = 0, plain: bool = False, skipBroken: bool = False, split: str = 'val',
         classes: Sequence[str] = ()) -> Data:
    """Load the training and validation images of the dataset, transformed.

    `seed` determines the augmentation, not the doodles, so that runs with other seeds see the same
    drawings. Raises InputError where `data_dir` does not hold the dataset, OSError where a folder
    cannot be read, ImageError where a sketch is damaged; other images raise it when they are read.
    With `skipBroken`, images in folders that cannot be read are left out instead, and a warning
    names them. With `plain`, the reference of tests and measurements, all images go one by one from
    their files through the transforms and no sketches are cached. With another `split`, 'train' or
    'test', its images, transformed as validation's, take the place of validation's. Labels follow
    the sorted names of the folders, or `classes` where these are the same in another order.
    """
    spec = _spec(dataset)
    *images, found = spec.find(data_dir, spec.channels, split=split)    # of training, of the split
    in_folders, order = folder_of(images[0]) is not None, found
    if in_folders:
        order = list(classes) if sorted(classes) == found else found
        images = [part.read_as(spec.ink, found, order) for part in images]
    steps = spec.steps(inpsize, spec.minCrop)
    in_batches, measured = steps.in_batches and not plain, 0
    if in_folders and skipBroken and not (in_batches and spec.is_sketch):
        from datasets import cache
        images = [cache.readable(part) for part in images]
    if in_batches:
        images = [_squares(part, steps, spec, inpsize, skipBroken) for part in images]
    elif in_folders and steps.enough and not plain:
        images = [replace(part, enough=enough) for part, enough in zip(images, steps.enough)]
    if not spec.is_measured:
        from datasets import measure
        spec, measured = measure.measured(spec, steps, *images)
    items, transform = ((TransformedSquares, transforms.SquareTransform) if in_batches else
                        (Transformed, transforms.compose))
    options = steps, inpsize, spec.mean, spec.std
    return Data(items(images[0], transform(*options, True), seed),
                items(images[1], transform(*options, False, tenCrop), seed),
                order, spec, in_folders, measured)


def _squares(images, steps, spec, inpsize, skipBroken):
    """The squares of the images, from a cache file where they are sketches in folders."""
    transform = transforms.SquareTransform(steps, inpsize, spec.mean, spec.std)
    if folder_of(images) is None or not spec.is_sketch:
        return Squares(images, transform)
    from datasets import cache
    return cache.squares(images, transform, skipBroken)


def fingerprint(images: Transformed) -> str:
    """A key of the images, which changes where their files do."""
    if hasattr(images.images, 'key'):       # of the cache file
        return images.images.key.hex()
    if folder_of(images) is None:
        return str(len(images))
    from datasets import cache
    return cache.fingerprint(folder_of(images))


def _spec(dataset):
    if isinstance(dataset, DatasetSpec):
        return dataset
    if dataset not in DATASETS:
        raise InputError(f"there is no dataset '{dataset}'; the datasets are "
                         f'{", ".join(DATASETS)}, and {OWN} for your own images in '
                         'train/<class>/ and val/<class>/')
    return DATASETS[dataset]


def _measured_spec(dataset):
    spec = _spec(dataset)
    if not spec.is_measured:
        raise InputError('the normalization of these images has not been measured')
    return spec

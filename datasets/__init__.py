"""From --dataset to images and labels. A dataset is a row of ROWS and nothing else.

    data = datasets.load('tuberlin', 'data/tuberlin', inpsize=225)
    image, label = data.train[0]    # float32 (1, 225, 225), int
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100

from datasets import cache, cifar, doodles, folders, transforms
from datasets.folders import image_files
from datasets.images import ImageError, read_image

__all__ = ['Data', 'ImageError', 'image_files', 'load', 'names', 'normalization', 'read_image',
           'transform']


@dataclass(frozen=True)
class Row:
    kind: Callable      # of transforms: inpsize -> (augment, frame)
    mean: tuple         # per channel, of values in [0, 1]
    std: tuple
    source: Callable    # (data_dir, channels) -> (train, val, classes) with PIL images

    @property
    def channels(self):
        return len(self.mean)

    @property
    def sketches(self):
        """Sketches have a cache, if in folders, and fused transforms."""
        return self.channels == 1


@dataclass(frozen=True)
class Data:
    train: Dataset      # items (tensor, label); set_epoch(epoch) before each epoch
    val: Dataset
    classes: list       # names in the order of the labels
    channels: int


def drawn(data_dir, channels):
    """The doodles: the same whatever the seed of a run, so that runs compare."""
    return doodles.Doodles('train'), doodles.Doodles('val'), doodles.CLASSES


def folder(*names):
    return partial(folders.load, names=names)


ROWS = {
    'tuberlin': Row(transforms.sketches, (0.06,), (0.93,), folder('tuberlin')),
    'sketchyrecognition': Row(
        partial(transforms.sketches, flip=False), (0.0465,), (0.9,),
        folder('sketchyrecognition', 'sketchy_recognition', 'sketchy')),
    'imagenet12': Row(
        transforms.photographs, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
        folder('imagenet12', 'imagenet')),
    'cifar10': Row(
        transforms.thumbnails, (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261),
        partial(cifar.load, name='cifar10', official=CIFAR10)),
    'cifar100': Row(
        transforms.thumbnails,
        (129.3 / 255, 124.1 / 255, 112.4 / 255), (68.2 / 255, 65.4 / 255, 70.4 / 255),
        partial(cifar.load, name='cifar100', official=CIFAR100)),
    'doodles': Row(transforms.sketches, (0.06,), (0.93,), drawn),
}


def names():
    return list(ROWS)


def normalization(name):
    """(mean, std) of `name`, a list of a number for each channel, of pixels in [0, 1]."""
    return list(ROWS[name].mean), list(ROWS[name].std)


def transform(name, inpsize, train=False, tenCrop=False, plain=False):
    """The callable from a PIL image, as read_image gives it, to a float32 tensor.

    (C, inpsize, inpsize), or (10, C, inpsize, inpsize) with tenCrop, which training ignores. With
    `plain`, sketches for training go through one torchvision transform after the other.
    """
    row = ROWS[name]
    fused = row.sketches and not plain
    return transforms.compose(row.kind, inpsize, row.mean, row.std, train, tenCrop, fused)


def load(name, data_dir, inpsize, tenCrop=False, seed=0, plain=False):
    """The training and validation images of `name`, transformed, as Data.

    Raises ValueError or FileNotFoundError with one sentence about what is wrong in `data_dir`, as
    does ImageError where a sketch is damaged; other images raise it when they are read. With
    `plain`, the reference of tests and measurements, sketches are not cached, their transforms
    not fused.
    """
    row = ROWS[name]
    train, val, classes = row.source(data_dir, row.channels)
    if row.sketches and not plain:
        train, val = (cache.cached(split, transforms.side(inpsize)) for split in (train, val))
    augment = transform(name, inpsize, train=True, plain=plain)
    return Data(
        transforms.Transformed(train, augment, seed),
        transforms.Transformed(val, transform(name, inpsize, tenCrop=tenCrop), seed),
        classes, row.channels)

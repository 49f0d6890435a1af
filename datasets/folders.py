"""Images in folders: train/<class>/*, val/<class>/* (or test/<class>/*)."""
import os
from collections.abc import Iterable
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from datasets.images import read_image
from utils.errors import InputError, naming


class Folder:
    """A sequence of (PIL image, label) from a list of (path, label), the paths below `root`."""

    def __init__(self, root, samples, channels):
        self.root, self.samples, self.channels = root, samples, channels

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        path, label = self.samples[index]
        return read_image(path, self.channels), label


def find(data_dir, channels, names):
    """(train, val, classes) of the images in `data_dir` or in its subfolder of one of `names`.

    Classes are the sorted names of the class folders. Raises InputError where the folders do not
    hold the same classes, each with an image.
    """
    root = next((f for f in candidates(data_dir, names) if (f / 'train').is_dir()), None)
    if root is None:
        raise InputError(f'there is no folder train/ in {data_dir}, nor in a subfolder of it named '
                         f'{" or ".join(names)}')
    train = root / 'train'
    val = next((root / name for name in ('val', 'test') if (root / name).is_dir()), None)
    if val is None:
        raise InputError(f'{root} has train/, but neither val/ nor test/')
    classes = _class_names(train)
    if not classes:
        raise InputError(f'{train} contains no class folders')
    _require_same(train, set(classes), val, set(_class_names(val)))
    splits = (Folder(split, _samples(split, classes), channels) for split in (train, val))
    return *splits, classes


def image_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files among `paths` and, sorted, the images at any depth of the folders among them.

    Raises InputError for a path that does not exist and for a folder without images.
    """
    files = []
    for path in map(Path, paths):
        with naming(str(path)):
            exists = path.exists()
            found = sorted(f for f in path.rglob('*') if _is_image(f)) if path.is_dir() else [path]
        if not exists:
            raise InputError(f'there is no image {path}')
        if not found:
            raise InputError(f'there are no images in {path}')
        files += found
    return files


def candidates(data_dir, names):
    """The folders in which a dataset may lie: `data_dir`, then its subfolders `names`."""
    if not data_dir:
        raise InputError('no folder is given; name the one that holds the dataset')
    root = Path(os.path.expanduser(data_dir))
    if not root.exists():
        raise InputError(f'there is no folder {data_dir}')
    if not root.is_dir():
        raise InputError(f'{data_dir} is a file, not the folder of a dataset')
    return [root, *(root / name for name in names)]


def _class_names(split):
    return sorted(f.name for f in split.iterdir() if f.is_dir() and not f.name.startswith('.'))


def _require_same(train, train_classes, val, val_classes):
    only = {train: train_classes - val_classes, val: val_classes - train_classes}
    found = [f'only {split} has {_summary(names)}' for split, names in only.items() if names]
    if found:
        raise InputError('train and validation must have the same classes, '
                         f'but {" and ".join(found)}')


def _samples(split, classes):
    """[(path, label)] of all images below the class folders of `split`."""
    samples = make_dataset(split, {name: label for label, name in enumerate(classes)},
                           is_valid_file=_is_image, allow_empty=True)
    filled = {label for _, label in samples}
    empty = [name for label, name in enumerate(classes) if label not in filled]
    if empty:
        raise InputError(f'there are no images in the class folder {split}/{_summary(empty)}')
    return samples


def _is_image(path):
    name = Path(path).name
    return name.lower().endswith(IMG_EXTENSIONS) and not name.startswith('.')


def _summary(names):
    first, *others = sorted(names)
    return f'{first} (and {len(others)} more)' if others else first

"""Images in folders: train/<class>/*, val/<class>/* (or test/<class>/*)."""

from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from datasets.images import read_image


class Folder:
    """A sequence of (PIL image, label) from a list of (path, label), the paths below `root`."""

    def __init__(self, root, samples, channels):
        self.root, self.samples, self.channels = root, samples, channels

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        path, label = self.samples[index]
        return read_image(path, self.channels), label


def load(data_dir, channels, names):
    """(train, val, classes) of the folder set in `data_dir` or in its subfolder of one of `names`.

    Classes are the sorted names of the class folders. Raises ValueError or FileNotFoundError with
    one sentence where the folders do not hold the same classes, each with an image.
    """
    root = next((f for f in candidates(data_dir, names) if (f / 'train').is_dir()), None)
    if root is None:
        raise FileNotFoundError(f'--data_dir: there is no folder train/ in {data_dir}, nor in a '
                                f'subfolder of it named {" or ".join(names)}')
    train = root / 'train'
    val = next((root / name for name in ('val', 'test') if (root / name).is_dir()), None)
    if val is None:
        raise FileNotFoundError(f'--data_dir: {root} has train/, but neither val/ nor test/')
    classes = _classes(train)
    _require_same(train, classes, val, _classes(val))
    splits = (Folder(split, _samples(split, classes), channels) for split in (train, val))
    return *splits, classes


def image_files(paths):
    """The files among `paths` and the images in the folders among them, at any depth, sorted there.

    Raises FileNotFoundError for a path that does not exist and ValueError for a folder without images.
    """
    files = []
    for path in map(Path, paths):
        found = sorted(f for f in path.rglob('*') if _is_image(f)) if path.is_dir() else [path]
        if not path.exists():
            raise FileNotFoundError(f'there is no image {path}')
        if not found:
            raise ValueError(f'there are no images in {path}')
        files += found
    return files


def candidates(data_dir, names):
    """The folders in which a dataset may lie: `data_dir`, then its subfolders `names`."""
    if not data_dir:
        raise ValueError('--data_dir is empty: give the folder that holds the dataset')
    root = Path(data_dir).expanduser()
    if not root.exists():
        raise FileNotFoundError(f'--data_dir: there is no folder {data_dir}')
    if not root.is_dir():
        raise ValueError(f'--data_dir: {data_dir} is a file; give the folder of the dataset')
    return [root, *(root / name for name in names)]


def _classes(split):
    return sorted(f.name for f in split.iterdir() if f.is_dir() and not f.name.startswith('.'))


def _require_same(train, train_classes, val, val_classes):
    if not train_classes:
        raise ValueError(f'--data_dir: {train} holds no class folders')
    train_classes, val_classes = set(train_classes), set(val_classes)
    only = {train: train_classes - val_classes, val: val_classes - train_classes}
    found = [f'only {split} has {_several(names)}' for split, names in only.items() if names]
    if found:
        raise ValueError('--data_dir: train and validation must have the same classes, '
                         f'but {" and ".join(found)}')


def _samples(split, classes):
    """[(path, label)] of all images below the class folders of `split`."""
    samples = make_dataset(split, {name: label for label, name in enumerate(classes)},
                           is_valid_file=_is_image, allow_empty=True)
    filled = {label for _, label in samples}
    empty = [name for label, name in enumerate(classes) if label not in filled]
    if empty:
        raise ValueError(f'--data_dir: no images in the class folder {split}/{_several(empty)}')
    return samples


def _is_image(path):
    name = Path(path).name
    return name.lower().endswith(IMG_EXTENSIONS) and not name.startswith('.')


def _several(names):
    first, *others = sorted(names)
    return f'{first} (and {len(others)} more)' if others else first

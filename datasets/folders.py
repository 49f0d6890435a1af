"""Images in folders: train/<class>/*, val/<class>/* and, as a third split, test/<class>/*.

Validation takes val/, or test/ where there is no val/. Only the folders of training and of the
split that is asked for are looked at.
"""
import os
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from datasets.files import (files_below, holds, images_and_others, is_hidden, is_image_file, warn,
                            warn_left_out)
from datasets.images import LONGEST, ImageError, read_image
from datasets.items import nfc
from utils.system.errors import InputError


@dataclass(frozen=True)
class Folder:
    """A sequence of (PIL image, label) from a list of (path, label), the paths below `root`."""

    root: Path
    samples: list[tuple[str, int]]
    channels: int
    upright: bool = True    # whether the EXIF orientation of the images is honoured
    enough: int = LONGEST   # see read_image
    ink: str = 'dark'       # see as_channels

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        path, label = self.samples[index]
        try:
            return read_image(path, self.channels, self.upright, self.enough, self.ink), label
        except ImageError as error:
            raise ImageError(f'{error} (--skipBroken leaves such images out)') from None

    def read_as(self, ink: str, classes: Sequence[str], order: Sequence[str]) -> 'Folder':
        """The Folder with this ink, and with the labels of its classes in another order."""
        labels = [order.index(name) for name in classes]
        samples = [(path, labels[label]) for path, label in self.samples]
        return replace(self, ink=ink, samples=sorted(samples, key=lambda sample: sample[1]))

    def without(self, broken: Collection[int]) -> 'Folder':
        """The Folder without the images of these indices."""
        left_out = set(broken)
        return replace(self, samples=[sample for index, sample in enumerate(self.samples)
                                      if index not in left_out])

    def report_broken(self, broken: Collection[int]):
        """Warn in one line that the images of these indices are left out.

        Raises InputError where a class loses all its images.
        """
        filled = {label for _, label in self.without(broken).samples}
        for path, label in self.samples:
            if label not in filled:
                name = os.path.relpath(path, self.root).split(os.sep)[0]
                raise InputError(f'no image in the class folder {self.root}/{name} can be read')
        warn_left_out(self.root, [self.samples[index][0] for index in sorted(broken)],
                      'cannot be read')


def find(data_dir, channels, names=(), upright=True, split='val'):
    """(train, images of the split, classes) in `data_dir` or in its subfolder of one of `names`.

    Classes are the sorted names of the class folders in NFC; both are Folders, to which `upright`
    is passed. Warns of files that are not images. Raises InputError where the folders do not hold
    the same classes, each with an image, and where the split does not exist.
    """
    root = next((f for f in candidates(data_dir, names) if (f / 'train').is_dir()), None)
    if root is None:
        nor = f', nor in a subfolder of it named {" or ".join(names)}' if names else ''
        raise InputError(f'there is no folder train/ in {data_dir}{nor}')
    train, other = root / 'train', split_folder(root, split)
    classes = _class_folders(train)
    if not classes:
        raise InputError(f'{train} contains no class folders')
    others = classes if other == train else _class_folders(other)
    require_same(train, set(classes), other, set(others))
    samples = [_samples(train, classes)]
    samples.append(samples[0] if other == train else _samples(other, others))
    found = (Folder(folder, of_split, channels, upright)
             for folder, of_split in zip((train, other), samples))
    return *found, list(classes)


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split in `root`. Raises InputError where it does not exist.

    A test/ without val/ is what validation uses, by which the best checkpoint is chosen: it is not
    a third split, so that its score is not taken for one on unseen images.
    """
    if split == 'train':
        return root / split
    of_validation = next((name for name in ('val', 'test') if (root / name).is_dir()), None)
    if of_validation is None:
        raise InputError(f'{root} has train/, but neither val/ nor test/')
    if split == 'val':
        return root / of_validation
    if of_validation == 'test':
        raise InputError(f'{root} has train/ and test/, but no val/: validation uses its test/, on '
                         'which the best checkpoint was chosen, so measure it as --split=val')
    if not (root / split).is_dir():
        raise InputError(f'{root} has no third split, {split}/, beside train/ and val/')
    return root / split


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


def _class_folders(split):
    """{class: name of its folder}, sorted by class. Raises InputError where two are the same."""
    with os.scandir(split) as entries:
        names = sorted(entry.name for entry in entries if holds(entry.is_dir))
    hidden = [name for name in names if is_hidden(name)]
    found = by_class([name for name in names if name not in hidden], split)
    if lost := [name for name in hidden if _has_images(os.path.join(split, name))]:
        warn(f'{split}: {len(lost)} folders with images are left out, since systems give such '
             f'names to folders of their own: {", ".join(lost)}' if len(lost) > 1 else
             f'{split}: the folder {lost[0]}, which has images, is left out, since systems give '
             'such names to folders of their own')
    return dict(sorted(found.items()))


def _has_images(folder):
    with suppress(OSError):
        return any(map(is_image_file, files_below(folder)))
    return False


def _samples(split, classes):
    """[(path, label)] of all images below the class folders {class: name of its folder}."""
    samples, others = [], []
    for label, folder in enumerate(classes.values()):
        images, rest = images_and_others(os.path.join(split, folder))
        samples += [(path, label) for path in images]
        others += rest
    filled = {label for _, label in samples}
    empty = [folder for label, folder in enumerate(classes.values()) if label not in filled]
    if empty:
        raise InputError(f'there are no images in the class folder {split}/{summary(empty)}')
    warn_left_out(split, others, 'not an image')
    with os.scandir(split) as entries:
        loose = [entry.path for entry in entries
                 if is_image_file(entry) and not is_hidden(entry.name)]
    warn_left_out(split, sorted(loose), 'in no class folder')
    return samples


def by_class(folders: Iterable[str], place: str | Path) -> dict[str, str]:
    """{class: name of its folder in `place`}. Raises InputError where two are the same class."""
    found: dict[str, str] = {}
    for folder in folders:
        if (other := found.setdefault(nfc(folder), folder)) != folder:
            raise InputError(f'{place} has the class {nfc(folder)} twice, in the folders '
                             f'{ascii(other)} and {ascii(folder)}, which are the same letters in '
                             'two Unicode forms: put their images into one')
    return found


def require_same(train: Path, train_classes: set[str], other: Path, other_classes: set[str]):
    """Raise InputError where two splits, named by their folders, have different classes."""
    only = train_classes - other_classes, other_classes - train_classes
    found = [f'only {split} has {summary(names, others)}'
             for split, names, others in zip((train, other), only, reversed(only)) if names]
    if found:
        what = 'test' if other.name == 'test' else 'validation'
        raise InputError(f'train and {what} must have the same classes, '
                         f'but {" and ".join(found)}')


def summary(names: Collection[str], others: Collection[str] = ()) -> str:
    """The first of the names and how many more there are; see shown."""
    first, *more = sorted(names)
    return shown(first, others) + (f' (and {len(more)} more)' if more else '')


def shown(name: str, others: Collection[str]) -> str:
    """The name as a sentence shows it: with escapes where one of the others looks like it."""
    return ascii(name) if any(looks_like(name, other) for other in others) else name


def looks_like(one: str, other: str) -> bool:
    """Whether two different names may look alike: by invisible characters, or other scripts."""
    if one == other:
        return False
    one, other = (''.join(character for character in unicodedata.normalize('NFKC', name)
                          if unicodedata.category(character)[0] not in 'CZ')
                  for name in (one, other))
    return len(one) == len(other) and all(
        a == b or not (a + b).isascii() and script(a) != script(b) for a, b in zip(one, other))


def script(character: str) -> str:
    """LATIN, CYRILLIC, GREEK, …"""
    return unicodedata.name(character, '').partition(' ')[0]

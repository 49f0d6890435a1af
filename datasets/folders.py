"""Images in folders: train/<class>/*, val/<class>/* and, as a third split, test/<class>/*.

Validation takes val/, or test/ where there is no val/. Only the folders of training and of the
split that is asked for are looked at.
"""
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from datasets.classes import by_class, nfc, require_same, summary
from datasets.images import LONGEST, ImageError, has_image_name, is_hidden, read_image
from utils.system.errors import InputError, naming, speaks_for_all
from utils.system.files import check_file


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
        """The Folder without the images of these indices, about which it warns in one line.

        Raises InputError where a class loses all its images.
        """
        broken = set(broken)
        kept = [sample for index, sample in enumerate(self.samples) if index not in broken]
        filled = {label for _, label in kept}
        for path, label in self.samples:
            if label not in filled:
                name = os.path.relpath(path, self.root).split(os.sep)[0]
                raise InputError(f'no image in the class folder {self.root}/{name} can be read')
        warn_left_out(self.root, [self.samples[index][0] for index in sorted(broken)],
                      'cannot be read')
        return replace(self, samples=kept)


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


def image_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files among `paths` and, sorted, the images at any depth of the folders among them.

    Warns of files in the folders that are not images. Raises InputError for a path that does not
    exist and for a folder without images.
    """
    files = []
    for path in map(Path, paths):
        with naming(str(path)):
            is_folder = path.is_dir()
            found, others = _images_and_others(path) if is_folder else ([path], [])
        if not is_folder:
            check_file(path, 'image')
        if not found:
            raise InputError(f'there are no images in {path}')
        warn_left_out(path, others, 'not an image')
        files += sorted(map(Path, found))
    return files


def files_below(folder: str | Path,
                parents: frozenset[tuple[int, int]] = frozenset()) -> Iterator[os.DirEntry]:
    """The files at any depth of `folder`, but no hidden ones and none in hidden folders.

    Links are followed, except from a folder back to one of its `parents` (device, inode). Raises
    OSError where a folder cannot be read.
    """
    status = os.stat(folder)
    here = status.st_dev, status.st_ino
    if here in parents:
        return
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not is_hidden(entry.name)]
    for entry in visible:
        if _holds(entry.is_dir):
            yield from files_below(entry.path, parents | {here})
        else:
            yield entry


def is_image_file(entry: os.DirEntry) -> bool:
    """Whether it is named like an image and can be opened: no pipe, no link that leads nowhere."""
    return has_image_name(entry.name) and _holds(entry.is_file)


def warn_left_out(root: str | Path, paths: Sequence[str], why: str):
    """Warn in one line that files below `root` are left out."""
    if paths:
        files = 'file is' if len(paths) == 1 else 'files are'
        warn(f'{root}: {len(paths)} {files} left out ({why}): {first_names(root, paths)}')


def first_names(root: str | Path, paths: Sequence[str]) -> str:
    """Three of the paths, below `root`, and how many more there are."""
    names = [os.path.relpath(path, root) for path in paths[:3]]
    names += [f'and {len(paths) - 3} more'] if len(paths) > 3 else []
    return ', '.join(names)


def warn(sentence: str):
    """Warn, of the processes that torchrun starts on a machine in the first only."""
    if speaks_for_all():
        warnings.warn(sentence)


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
        names = sorted(entry.name for entry in entries if _holds(entry.is_dir))
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
        images, rest = _images_and_others(os.path.join(split, folder))
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


def _images_and_others(folder):
    """The paths of the images and of the other files at any depth of `folder`, in order."""
    images, others = [], []
    for entry in files_below(folder):
        (images if is_image_file(entry) else others).append(entry.path)
    return [sorted(paths, key=lambda path: os.path.split(nfc(path))) for paths in (images, others)]


def _holds(test: Callable[[], bool]) -> bool:
    """test(), False where a link leads in a circle or where no one may look."""
    try:
        return test()
    except OSError:
        return False

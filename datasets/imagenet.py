"""ImageNet as people have it, for datasets.prepare: both tars, Kaggle's folders, class folders."""
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath

from datasets.splits import ArchivedImage
from datasets.files import files_below, is_hidden, is_image_file
from datasets.images import reason
from utils.system.errors import InputError, RunError, naming
from utils.system.files import check_file, has_file

TRAIN_TAR, VAL_TAR = 'ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'
IMAGES_IN_TARS = 1_281_167 + 50_000
KAGGLE = 'ILSVRC', 'Data', 'CLS-LOC'    # folders in each other, around train/ and val/
LABELS = ('LOC_val_solution.csv',       # Kaggle's, then the devkit's
          'ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt')


def find_images(source: Path, val_labels: str | None
                ) -> tuple[Iterator[ArchivedImage], int, Iterable[str]]:
    """The images in `source`, whatever its layout, how many there are, and what tells their places.

    The last are lines, which differ where an image goes elsewhere. Raises InputError where files
    are missing.
    """
    tars = source / TRAIN_TAR, source / VAL_TAR
    with naming('--source'):
        missing = [tar for tar in tars if not has_file(tar)]
        folders = [source.joinpath(*KAGGLE[start:]) for start in reversed(range(len(KAGGLE) + 1))]
        folder = next((folder for folder in folders if all(
            (folder / split).is_dir() for split in ('train', 'val'))), None)
    if missing == list(tars) and folder:
        places = in_folders(folder, val_labels)
        images = (ArchivedImage(target, path, partial(open, path, 'rb'))
                  for path, target in places.items())
        return images, len(places), places.values()
    if missing == list(tars):
        raise InputError(f'--source: {source} holds neither {TRAIN_TAR} and {VAL_TAR}, nor the '
                         f'folders train/ and val/, nor {"/".join(KAGGLE)} with them')
    if missing:
        raise InputError(f'--source: there is no file {missing[0]}')
    wnids = read_val_labels(labels_file(val_labels, [source]))
    return in_tars(*tars, wnids), IMAGES_IN_TARS, map(' '.join, wnids.items())


def in_tars(train: Path, val: Path, wnids: dict[str, str]) -> Iterator[ArchivedImage]:
    """The training tar contains one tar per class; the validation tar contains images only."""
    for wnid, open_inner in tar_members(train):
        for name, open_ in tar_members(train / f'{wnid}.tar', open_inner()):
            source = f'{train}/{wnid}.tar/{name}'
            yield ArchivedImage(f'train/{wnid}/{name}', source, open_)
    for name, open_ in tar_members(val):
        if name not in wnids:
            raise RunError(f'--val_labels: the class of {name} in {val} is missing')
        yield ArchivedImage(f'val/{wnids.pop(name)}/{name}', f'{val}/{name}', open_)
    if wnids:
        raise RunError(f'--source: {val} lacks {len(wnids)} images that --val_labels names')


def tar_members(path, file=None):
    """Yield (name without suffix, function that opens it) of a tar, open as `file` or not yet."""
    with naming('--source', RunError):
        try:
            with tarfile.open(path, 'r:', file) as archive:
                for member in archive:
                    name = PurePosixPath(member.name).stem
                    if member.isfile() and not is_hidden(name):
                        yield name, partial(archive.extractfile, member)
        except tarfile.TarError as error:
            raise RunError(f'{path} is not a complete tar archive: {error}') from None


def in_folders(folder: Path, val_labels: str | None) -> dict[str, str]:
    """{path: target of an ArchivedImage} of the images in train/<wnid>/, and in val/ or below it.

    Those that lie in val/ itself get their classes from the labels.
    """
    with naming('--source'):
        train, val = (sorted(entry.path for entry in files_below(folder / split)
                             if is_image_file(entry)) for split in ('train', 'val'))
    for split, paths in ('train', train), ('val', val):
        if not paths:
            raise InputError(f'--source: there are no images in {folder / split}')
    if any(os.path.dirname(path) != str(folder / 'val') for path in val):
        if val_labels:
            raise InputError(f'--val_labels: the images in {folder}/val lie in class folders '
                             'already; leave the flag out')
        val_places = in_class_folders(folder, val)
    else:
        wnids = read_val_labels(labels_file(val_labels, [folder, *folder.parents[:len(KAGGLE)]]))
        val_places = by_labels(folder / 'val', val, wnids)
    places = in_class_folders(folder, train) | val_places
    if len(set(places.values())) < len(places):
        raise InputError(f'--source: {folder} holds images of one name twice, with different '
                         'suffixes')
    classes = [{target.split('/')[1] for target in places.values() if target.startswith(split)}
               for split in ('train/', 'val/')]
    for wnid in sorted(classes[0] ^ classes[1]):
        split = 'train' if wnid in classes[0] else 'val'
        raise InputError(f'--source: only {folder}/{split} has images of class {wnid}')
    return places


def in_class_folders(folder: Path, paths: list[str]) -> dict[str, str]:
    """{path: target} of images that lie in class folders of train/ or val/, at any depth."""
    places = {}
    for path in paths:
        target = os.path.splitext(path)[0].removeprefix(f'{folder}{os.sep}')
        if target.count('/') < 2:
            raise InputError(f'--source: {path} lies in no class folder')
        places[path] = target
    return places


def by_labels(folder: Path, paths: list[str], wnids: dict[str, str]) -> dict[str, str]:
    """{path: target} of the images that lie in the folder val/ itself."""
    names = {Path(path).stem: path for path in paths}
    for name, path in names.items():
        if name not in wnids:
            raise InputError(f'--val_labels: the class of {path} is missing')
    if missing := wnids.keys() - names:
        raise InputError(f'--source: {folder} lacks {len(missing)} images that --val_labels names')
    return {path: f'val/{wnids[name]}/{name}' for name, path in names.items()}


def labels_file(val_labels: str | None, folders: list[Path]) -> Path:
    """The file --val_labels, where it is not given one of LABELS in one of these folders."""
    if not val_labels:
        for path in chain(*([folder / name for name in LABELS] for folder in folders)):
            if path.is_file():
                return path
        raise InputError('imagenet12 needs --val_labels, a text file with the class of each '
                         'validation image: the images do not contain it')
    path = Path(os.path.expanduser(val_labels))
    with naming('--val_labels'):
        check_file(path)
    return path


def read_val_labels(path: Path) -> dict[str, str]:
    """{name of a validation image: wnid} from a text file.

    Its lines hold both, as in Kaggle's LOC_val_solution.csv, or, in the order of the images'
    numbers, a wnid alone or the number of a class alone, as in the devkit.
    """
    with naming('--val_labels'):
        text = path.read_text(encoding='utf-8', errors='replace')
    wnids = dict(re.findall(r'(ILSVRC2012_val_\d{8})\b.*?\b(n\d{8})\b', text))
    if wnids:
        return wnids
    lines = re.findall(r'^(n\d{8})\s*$', text, re.MULTILINE)
    if not lines and re.fullmatch(r'(\s*\d{1,4}\s*\n)*\s*\d{1,4}\s*', text, re.ASCII):
        lines = named_by_devkit(text.split(), path)
    if not lines:
        raise InputError(f'--val_labels: {path} names no class (such as n01440764)')
    return {f'ILSVRC2012_val_{number:08}': wnid for number, wnid in enumerate(lines, 1)}


def named_by_devkit(numbers: list[str], labels: Path) -> list[str]:
    """The wnids of ILSVRC2012_IDs, by the meta.mat that lies beside their file in the devkit.

    The IDs are not the order of sorted wnids. Of the synsets, those without children are classes.
    """
    meta = labels.with_name('meta.mat')
    if not meta.is_file():
        raise InputError(f'--val_labels: {labels} holds ILSVRC2012_IDs, and the meta.mat of the '
                         'devkit, which says their classes, does not lie beside it')
    try:
        from scipy.io import loadmat
    except ImportError:
        raise InputError(f'--val_labels: {meta} says the classes of the ILSVRC2012_IDs, and '
                         'reading it needs SciPy: pip install scipy') from None
    try:
        wnids = {int(number): str(wnid) for number, wnid, _, _, children, *_
                 in loadmat(meta, squeeze_me=True)['synsets'] if children == 0}
    except Exception as error:  # of a damaged file, SciPy raises many types
        raise InputError(f'--val_labels: cannot read {meta}: {reason(error)}') from None
    for line, number in enumerate(numbers, 1):
        if int(number) not in wnids:
            raise InputError(f'--val_labels: {number}, in line {line} of {labels}, is not the '
                             f'ILSVRC2012_ID of a class in {meta}')
    return [wnids[int(number)] for number in numbers]

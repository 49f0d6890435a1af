"""The images in the official archives of the datasets, for datasets.prepare."""
import os
import random
import re
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from datasets.folders import files_below, is_image_file
from datasets.images import has_image_name, is_hidden
from utils.errors import InputError, RunError, naming

SKETCH_PATH = {  # where an archive keeps its sketches: class, name (and not '..')
    'tuberlin': re.compile(r'(?:.*/)?([^/.][^/]*)/([^/.][^/]*)', re.DOTALL),
    'sketchyrecognition': re.compile(
        r'(?:(?:.*/)?sketch/)?tx_000000000000/([^/.][^/]*)/([^/.][^/]*)', re.DOTALL),
}
IMAGENET_TRAIN, IMAGENET_VAL = 'ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'
IMAGENET_IMAGES = 1_281_167 + 50_000


class ArchivedImage(NamedTuple):
    target: str     # train|val/<class>/<name>, without a suffix
    source: str     # where it lies, for errors
    read: Callable[[], bytes]


def split_sketches(dataset, source, val_fraction, seed):
    """The list of ArchivedImages in the folder or zip archive `source`; `seed` makes the split.

    In every class, `val_fraction` of the photographs that were sketched goes to val/, with all
    their sketches (in Sketchy <photograph>-<number>.png; in TU-Berlin each has its own).
    """
    classes = defaultdict(lambda: defaultdict(list))
    for path, read in sorted(files(source).items()):
        if match := SKETCH_PATH[dataset].fullmatch(os.path.splitext(path)[0]):
            label, name = match.groups()
            photograph = name.rsplit('-', 1)[0]
            classes[label][photograph].append((f'{label}/{name}', f'{source}/{path}', read))
    if not classes:
        raise InputError(f'{source} does not hold the sketches of {dataset}')
    images = []
    for label, groups in classes.items():
        if len(groups) == 1:
            raise InputError(f'class {label} in {source} is too small to be split')
        count = min(max(round(val_fraction * len(groups)), 1), len(groups) - 1)
        rng = random.Random(f'{seed} {label}'.encode(errors='surrogateescape'))
        val = set(rng.sample(list(groups), count))
        for group, members in groups.items():
            split = 'val' if group in val else 'train'
            images += [ArchivedImage(f'{split}/{target}', *rest) for target, *rest in members]
    if len({image.target for image in images}) < len(images):
        raise InputError(f'{source} holds sketches twice; give the folder of one copy')
    return images


def files(source):
    """{path inside the folder or zip archive `source`: function that reads its bytes}

    Those of images only, none of them hidden.
    """
    if source.is_dir():
        paths = [Path(entry.path) for entry in files_below(source) if is_image_file(entry)]
        return {path.relative_to(source).as_posix(): path.read_bytes for path in paths}
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError):
        raise InputError(f'{source} is neither a folder nor a complete zip archive') from None
    return {path: partial(archive.read, path) for path in archive.namelist()
            if has_image_name(path) and not any(map(is_hidden, path.split('/')))}


def imagenet(source, val_labels):
    """An iterator of the ArchivedImages in both tars, after a check that all files exist."""
    train, val = source / IMAGENET_TRAIN, source / IMAGENET_VAL
    labels = Path(os.path.expanduser(val_labels))
    for flag, path in ('--source', train), ('--source', val), ('--val_labels', labels):
        with naming(flag):
            if not path.is_file():
                raise InputError(f'there is no file {path}')
    return imagenet_images(train, val, read_val_labels(labels))


def imagenet_images(train, val, wnids):
    """The training tar contains one tar per class; the validation tar contains images only."""
    for wnid, inner in tar_members(train):
        for name, file in tar_members(train / f'{wnid}.tar', inner):
            source = f'{train}/{wnid}.tar/{name}'
            yield ArchivedImage(f'train/{wnid}/{name}', source, file.read)
    for name, file in tar_members(val):
        if name not in wnids:
            raise RunError(f'--val_labels: the class of {name} in {val} is missing')
        yield ArchivedImage(f'val/{wnids.pop(name)}/{name}', f'{val}/{name}', file.read)
    if wnids:
        raise RunError(f'--source: {val} lacks {len(wnids)} images that --val_labels names')


def tar_members(path, file=None):
    """Yield (name without suffix, open file) from the tar at `path`, or already open as `file`."""
    with naming('--source', RunError):
        try:
            with tarfile.open(path, 'r:', file) as archive:
                for member in archive:
                    name = PurePosixPath(member.name).stem
                    if member.isfile() and not is_hidden(name):
                        yield name, archive.extractfile(member)
        except tarfile.TarError as error:
            raise RunError(f'{path} is not a complete tar archive: {error}') from None


def read_val_labels(path):
    """{name of a validation image: wnid} from a text file.

    Its lines hold both, as in Kaggle's LOC_val_solution.csv, or a wnid alone, in the order of the
    images' numbers.
    """
    with naming('--val_labels'):
        text = path.read_text(errors='replace')
    wnids = dict(re.findall(r'(ILSVRC2012_val_\d{8})\b.*?\b(n\d{8})\b', text))
    if not wnids:
        lines = re.findall(r'^(n\d{8})\s*$', text, re.MULTILINE)
        wnids = {f'ILSVRC2012_val_{number:08}': wnid for number, wnid in enumerate(lines, 1)}
    if not wnids:
        raise InputError(f'--val_labels: {path} names no class (such as n01440764)')
    return wnids

"""The sketches of an official archive, and which go to train/, val/ and test/."""
import hashlib
import os
import random
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from datasets.files import files_below, has_image_name, is_hidden, is_image_file
from datasets.folders import by_class
from datasets.items import nfc
from utils.system.errors import InputError, naming
from utils.system.files import check_file

NAMES = 'train', 'val', 'test'
VAL_FRACTION = 0.2
LISTED = re.compile(r'(.+?)[\s,]+([^\s,]+)')    # a path, which may have spaces, and a split
SKETCH_PATH = {  # where an archive keeps its sketches: class, name (and not '..')
    'tuberlin': re.compile(r'(?:.*/)?([^/.][^/]*)/([^/.][^/]*)', re.DOTALL),
    'sketchyrecognition': re.compile(
        r'(?:(?:.*/)?sketch/)?tx_000000000000/([^/.][^/]*)/([^/.][^/]*)', re.DOTALL),
}


class ArchivedImage(NamedTuple):
    target: str     # train|val|test/<class>/<name>, without a suffix
    source: str     # where it lies, for errors
    open: Callable[[], BinaryIO]


class ArchivedSketch(NamedTuple):
    path: str       # in the archive
    label: str
    name: str       # without a suffix; a class has each name once
    open: Callable[[], BinaryIO]

    @property
    def photograph(self) -> str:
        """The sketched object: in Sketchy <photograph>-<number>.png; in TU-Berlin each its own."""
        return self.name.rsplit('-', 1)[0]


def find_sketches(dataset: str, source: Path) -> list[ArchivedSketch]:
    """The sketches in the folder or zip archive `source`, sorted by their paths."""
    sketches = []
    for path, open_ in sorted(files(source).items()):
        if match := SKETCH_PATH[dataset].fullmatch(os.path.splitext(path)[0]):
            sketches.append(ArchivedSketch(path, *match.groups(), open_))
    if not sketches:
        raise InputError(f'{source} does not hold the sketches of {dataset}')
    by_class(sorted({sketch.label for sketch in sketches}), source)
    if len({(sketch.label, sketch.name) for sketch in sketches}) < len(sketches):
        raise InputError(f'{source} holds sketches twice; give the folder of one copy')
    return sketches


def files(source):
    """{path inside the folder or zip archive `source`: function that opens it}

    Those of images only, none of them hidden.
    """
    if source.is_dir():
        paths = [Path(entry.path) for entry in files_below(source) if is_image_file(entry)]
        return {path.relative_to(source).as_posix(): partial(open, path, 'rb') for path in paths}
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError):
        raise InputError(f'{source} is neither a folder nor a complete zip archive') from None
    return {path: partial(archive.open, path) for path in archive.namelist()
            if has_image_name(path) and not any(map(is_hidden, path.split('/')))}


def targets_digest(targets: Iterable[str]) -> str:
    """The values that distinguish two splits."""
    text = '\n'.join(sorted(targets)).encode(errors='surrogateescape')
    return f'SHA-256 {hashlib.sha256(text).hexdigest()[:16]}'


class Split(NamedTuple):
    """How to split: the flags of datasets.prepare."""

    val_fraction: float | None = None   # None: VAL_FRACTION
    test_fraction: float = 0
    folds: int | None = None
    fold: int | None = None     # from 1
    split_list: str | None = None
    seed: int = 0

    @property
    def share_of_val(self) -> float:
        return self.val_fraction or VAL_FRACTION

    def check(self):
        """Raise InputError for flags that contradict each other."""
        for name, others in (('split_list', ('folds', 'fold', 'test_fraction', 'val_fraction')),
                             ('folds', ('val_fraction',))):
            for other in others:
                if getattr(self, name) and getattr(self, other):
                    raise InputError(f'--{name} and --{other} exclude each other')
        if (self.folds is None) != (self.fold is None):
            raise InputError('--folds=K and --fold=I, from 1 to K, need each other')
        if self.folds and self.fold > self.folds:
            raise InputError(f'--fold={self.fold} must not be above --folds={self.folds}')
        if not self.folds and self.share_of_val + self.test_fraction >= 1:
            raise InputError(f'--test_fraction={self.test_fraction:g} and --val_fraction='
                             f'{self.share_of_val:g} leave nothing for train/')

    def settings(self, images: Sequence[ArchivedImage]) -> dict:
        """Return the values that determine the split of these images."""
        if self.split_list:
            settings = {'split_list': targets_digest(image.target for image in images)}
        elif self.folds:
            settings = {'folds': self.folds, 'fold': self.fold, 'seed': self.seed}
        else:
            settings = {'val_fraction': self.share_of_val, 'seed': self.seed}
        if self.test_fraction:
            settings['test_fraction'] = self.test_fraction
        return settings | {'images': len(images)}


def split_sketches(sketches: Sequence[ArchivedSketch], split: Split,
                   source: Path) -> list[ArchivedImage]:
    """The ArchivedImages of the sketches in `source`, without those that a list does not name."""
    places = (listed(sketches, split.split_list, source) if split.split_list
              else drawn(sketches, split, source))
    return [ArchivedImage(f'{places[path]}/{label}/{name}', f'{source}/{path}', read)
            for path, label, name, read in sketches if path in places]


def drawn(sketches: Sequence[ArchivedSketch], split: Split, source: Path) -> dict[str, str]:
    """{path: 'train', 'val' or 'test'}; all sketches of a photograph go to the same."""
    classes: dict = defaultdict(lambda: defaultdict(list))
    for sketch in sketches:
        classes[sketch.label][sketch.photograph].append(sketch.path)
    places, in_folds = {}, 0
    needed = (split.folds or 2) + (split.test_fraction > 0)
    for label, photographs in classes.items():
        if len(photographs) < needed:
            raise InputError(f'--source: class {label} in {source} is too small to be split: it '
                             f'needs {needed} sketches of different photographs and has '
                             f'{len(photographs)}')
        place = draw_class(label, list(photographs), split, in_folds)
        in_folds += sum(name != 'test' for name in place.values())
        places |= {path: place[photograph]
                   for photograph, paths in photographs.items() for path in paths}
    return places


def draw_class(label: str, photographs: list[str], split: Split, in_folds: int) -> dict[str, str]:
    """{photograph: 'train', 'val' or 'test'} of a class.

    The choice of test/ does not depend on --fold or --val_fraction, nor on --folds where a class
    has enough photographs for both. in_folds: photographs of the classes before; where they end the
    next class goes on, so that all folds are of one size.
    """
    total, test = len(photographs), set()
    if split.test_fraction:
        count = min(max(round(split.test_fraction * total), 1), total - (split.folds or 2))
        test = set(generator(split.seed, label, 'test').sample(photographs, count))
    rest = [photograph for photograph in photographs if photograph not in test]
    if split.folds:
        shuffled = generator(split.seed, label, 'folds').sample(rest, len(rest))
        val = {photograph for number, photograph in enumerate(shuffled, in_folds)
               if number % split.folds == split.fold - 1}
    else:
        count = min(max(round(split.share_of_val * total), 1), len(rest) - 1)
        val = set(generator(split.seed, label).sample(rest, count))
    return {photograph: 'test' if photograph in test else 'val' if photograph in val else 'train'
            for photograph in photographs}


def generator(*key: object) -> random.Random:
    return random.Random(' '.join(map(str, key)).encode(errors='surrogateescape'))


def listed(sketches: Sequence[ArchivedSketch], file: str, source: Path) -> dict[str, str]:
    """{path: 'train', 'val' or 'test'} of the sketches that the text file names.

    It may leave out the first folders of a path, as TU-Berlin's lists do, but not the class, and
    may have another Unicode form.
    """
    with naming('--split_list'):
        check_file(os.path.expanduser(file))
        text = Path(os.path.expanduser(file)).read_text('utf-8-sig', 'surrogateescape')
    named = {}
    for sketch in sketches:
        parts = sketch.path.split('/')
        named |= {'/'.join(parts[start:]): sketch for start in range(len(parts) - 1)}
    named = {nfc(path): sketch for path, sketch in named.items()} | named
    places, lines = {}, {}
    classes: dict = {name: set() for name in NAMES}
    for number, line in enumerate(text.split('\n'), 1):
        if not line.strip():
            continue
        where = f'--split_list: line {number} of {file}'
        match = LISTED.fullmatch(line.strip())
        if not match:
            raise InputError(f'{where} is not a path and a split: {line.strip()}')
        name, place = match.groups()
        if place not in NAMES:
            raise InputError(f'{where}: the split {place} is not train, val or test')
        path = re.sub(r'^(\./+)+', '', name)
        sketch = named.get(path) or named.get(nfc(path))
        if sketch is None:
            raise InputError(f'{where}: {source} has no sketch {name}')
        if sketch.path in lines:
            raise InputError(f'{where} names {name} again, after line {lines[sketch.path]}')
        lines[sketch.path], places[sketch.path] = number, place
        classes[place].add(sketch.label)
    if not places:
        raise InputError(f'--split_list: {file} names no image')
    check_classes(classes, file)
    return places


def check_classes(classes: dict[str, set[str]], file: str):
    """Raise InputError where a class cannot be trained or validated on.

    Where no image goes to val/, training validates on test/.
    """
    validated = 'val' if classes['val'] else 'test'
    for label in sorted(set().union(*classes.values())):
        for name in 'train', validated:
            if label not in classes[name]:
                raise InputError(f'--split_list: {file} puts no image of class {label} into '
                                 f'{name}/')

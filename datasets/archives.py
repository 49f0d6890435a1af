"""The sketches in the official archives of the datasets, for datasets.prepare."""
import os
import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from datasets.classes import by_class
from datasets.folders import files_below, is_image_file
from datasets.images import has_image_name, is_hidden
from utils.system.errors import InputError

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
        """What was sketched: in Sketchy <photograph>-<number>.png; in TU-Berlin each its own."""
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

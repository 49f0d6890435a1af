"""Turn the official archive of a dataset into the folders train/<class>/ and val/<class>/.

    python3 -m datasets.prepare tuberlin --source sketches_png.zip --out data/tuberlin
    python3 -m datasets.prepare sketchyrecognition --source rendered_256x256 --out data/sketchy
    python3 -m datasets.prepare imagenet12 --source tars --val_labels val.csv --out data/imagenet

Sketches are split by chance within each class, with --folds for cross-validation, or as
--split_list says; --test_fraction makes a third folder, test/. Images are shrunk once, so that
training does not spend its time on decoding large files. Sketches are turned upright by their EXIF
orientation and keep their transparent parts, for which --ink of training decides what is behind
them; ImageNet, as published, ignores the orientation. The work is done in <out>.part, which is
renamed to <out> when all images are there. To resume after an interruption, run the same command
again; once finished, it does nothing.
"""
from utils.system import interrupt  # before torch

if __name__ == '__main__':
    interrupt.end_silently()

import argparse
import io
import json
import os
import tarfile
import zipfile
import zlib
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from datasets import imagenet, splits
from datasets.images import ImageError, decode, reason
from datasets.splits import NAMES, VAL_FRACTION, Split, split_sketches, targets_digest
from utils.flags.parser import Parser, at_least, check_not_empty
from utils.system import console
from utils.system.errors import InputError, RunError, explained, naming, reported
from utils.system.files import check_file, write_atomically

PROGRAM = 'datasets.prepare'
MARKER = 'prepared.json'
MOST_BYTES = 2 ** 28    # of an image file, and of those that wait to be decoded
CHUNK = 2 ** 12         # bytes that are read at once; of bzip2 these are up to 100 MB of an image
READ_ERRORS = (OSError, EOFError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error)


def prepare(dataset: str, source: str, out: str, size: int, split: Split,
            val_labels: str | None = None) -> None:
    """Make the folder `out`; the parameters are the flags of the command.

    Raises InputError where a flag is wrong, RunError where the work cannot go on; it is an
    ImageError where an image is damaged.
    """
    archive, folder = (Path(os.path.realpath(os.path.expanduser(path))) for path in (source, out))
    part = Path(f'{folder}.part')
    with naming('--source'):
        if not archive.is_dir():
            check_file(archive, 'file or folder')
    if archive in (folder, *folder.parents):
        raise InputError(f'--out: {folder} lies in --source; choose a folder elsewhere')
    settings, not_named = {'dataset': dataset, 'source': str(archive), 'size': size}, 0
    if dataset == 'imagenet12':
        images, total, places = imagenet.find_images(archive, val_labels)
        channels, suffix = 3, '.jpg'
    else:
        with naming('--source'):
            sketches = splits.find_sketches(dataset, archive)
        images = split_sketches(sketches, split, archive)
        channels, suffix, total = 1, '.png', len(images)
        settings, not_named = settings | split.settings(images), len(sketches) - total
        places = [image.target for image in images]
    settings['places'] = targets_digest(places)

    with naming('--out'):
        if is_prepared(folder, settings):
            return console.show(f'{folder} is already prepared')
        if not is_prepared(part, settings):
            part.mkdir(parents=True, exist_ok=True)
            write_bytes(part / MARKER, json.dumps(settings, indent=2).encode())
    with tqdm(images, dataset, total, disable=None, unit=' images') as bar:
        counts = shrink_all(bar, part, suffix, channels, size)
    with naming('--out', RunError):
        if folder.is_dir():
            folder.rmdir()      # an empty one, which Windows would not replace
        os.replace(part, folder)
    console.show(f'{folder}: {summary(counts, not_named)}')


def summary(counts, not_named):
    """Describe the result; {'train', 'val', 'test': number of images}."""
    others = [f', {counts[name]} in {name}/' for name in ('val', 'test') if counts[name]]
    left_out = f'; {not_named} that --split_list does not name left out' if not_named else ''
    return f'{counts["train"]} images in train/{"".join(others)}{left_out}'


def is_prepared(folder, settings):
    """Whether `folder` was made with `settings`; InputError where it holds anything else."""
    if folder.is_file():
        raise InputError(f'{folder} is a file, not a folder')
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return False
    made = None
    if (folder / MARKER).is_file():
        with suppress(json.JSONDecodeError, UnicodeDecodeError):
            made = json.loads((folder / MARKER).read_text())
    if not isinstance(made, dict):
        raise InputError(f'{folder} was not made by this command; choose a new folder')
    made = {'places': settings['places']} | made     # of an older version, which has none
    differ = [key for key in made | settings if made.get(key) != settings.get(key)]
    if differ:
        was, wanted = (', '.join(f'{key} {s.get(key, "as by default")}' for key in differ
                                 if key != 'places') for s in (made, settings))
        how = f'with {was}, not {wanted}' if was else 'from other images, or with other labels'
        raise InputError(f'{folder} was prepared {how}; choose a new folder or remove that one')
    return True


def shrink_all(images, folder, suffix, channels, size):
    """Shrink the images that `folder` lacks; how many there are of each split in all."""
    counts, pending = Counter(), deque()    # (bytes, what becomes of them)
    with ThreadPoolExecutor(os.cpu_count()) as pool:    # threads, since Pillow releases the GIL
        for image in images:
            counts[split_of(image)] += 1
            target = folder / f'{image.target}{suffix}'
            if not target.exists():
                data = read_data(image)
                shrunk = pool.submit(shrink, data, image.source, target, channels, size)
                pending.append((len(data), shrunk))
            while (len(pending) > 4 * os.cpu_count()
                   or sum(length for length, _ in pending) > MOST_BYTES):
                pending.popleft()[1].result()
        for _, last in pending:
            last.result()
    return counts


def split_of(image):
    """Where an image goes: train, val or test. Raises RunError where that is in no class folder."""
    split, *names = image.target.replace('\\', '/').split('/')
    if split not in NAMES or len(names) < 2 or {'', '.', '..'} & {*names} or '\0' in image.target:
        raise RunError(f'{image.source} has a name that leads out of its class: {image.target}')
    return split


def read_data(image):
    data = bytearray()
    try:
        with image.open() as file:
            while len(data) <= MOST_BYTES and (part := file.read(CHUNK)):
                data += part
    except READ_ERRORS as error:
        if explained(error) is not error:
            raise
        raise ImageError(f'cannot read the image {image.source}: {reason(error)}') from None
    if len(data) > MOST_BYTES:
        raise ImageError(f'cannot read the image {image.source}: it has more than '
                         f'{MOST_BYTES / 1e6:.0f} MB')
    return bytes(data)


def shrink(data, name, target, channels, size):
    """Write the image file `data` to `target` with its shorter side at most `size` pixels.

    Sketches (1 channel) are turned upright; photographs, as published, are not.
    """
    try:
        image = decode(io.BytesIO(data), channels, name, upright=channels == 1, ink=None)
        scale = size / min(image.size)
        if scale < 1:
            image = image.resize([round(scale * side) for side in image.size], Image.LANCZOS)
    except MemoryError:
        raise RunError(f'memory ran out while {name} was shrunk') from None
    encoded = io.BytesIO()
    with naming(f'cannot write {target}', RunError):
        image.save(encoded, 'PNG' if channels == 1 else 'JPEG', quality=95)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, encoded.getvalue())


def write_bytes(target, data):
    """Write a file of <out>.part, where the next run replaces what a killed one left."""
    write_atomically(target, lambda temporary: temporary.write_bytes(data), sync=False,
                     temporary=target.with_name(f'{target.name}.tmp'))


def fraction(above):
    """The type of a flag that takes a number from 0 (above: more than it) to less than 1."""
    def number(text):
        value = at_least(0, float, above=above)(text)
        if value >= 1:
            raise argparse.ArgumentTypeError(f'must be less than 1, not {text}')
        return value
    return number


def parse():
    """The parameters of prepare, from the flags of this command."""
    parser = Parser(f'python3 -m {PROGRAM}', description=__doc__,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('dataset', choices=[*splits.SKETCH_PATH, 'imagenet12'])
    parser.add_argument('--source', required=True,
                        help='sketches: the archive (zip) or the folder it unpacks to; imagenet12: '
                             f'the folder of {imagenet.TRAIN_TAR} and {imagenet.VAL_TAR}, what '
                             "Kaggle's archive unpacks to, or a folder with train/ and val/")
    parser.add_argument('--out', required=True, help='the folder to make')
    parser.add_argument('--size', type=at_least(1), default=256,
                        help='pixels of the shorter side; smaller images stay (default 256)')
    sketches = parser.add_argument_group('the split of sketches')
    sketches.add_argument('--val_fraction', type=fraction(above=True), metavar='X',
                          help=f'the share of each class for val/ (default {VAL_FRACTION})')
    sketches.add_argument('--test_fraction', type=fraction(above=False), default=0,
                          metavar='X',
                          help='the share of each class for test/ (default: none)')
    sketches.add_argument('--folds', type=at_least(2), metavar='K',
                          help='cross-validation: each class in K parts, one of them for val/')
    sketches.add_argument('--fold', type=at_least(1), metavar='I',
                          help='with --folds: which part goes to val/, from 1 to K')
    sketches.add_argument('--seed', type=at_least(0), default=0,
                          help='which images go where (default 0)')
    sketches.add_argument('--split_list', metavar='FILE',
                          help='a text file with the path of an image in the archive, and train, '
                               'val or test, on each line; other images are left out')
    parser.add_argument('--val_labels', metavar='FILE',
                        help='imagenet12: a text file with the class (such as n01440764) of each '
                             'validation image: one a line in the order of the image numbers, or '
                             "beside the image's name, as in Kaggle's LOC_val_solution.csv, or "
                             "the devkit's numbers, with meta.mat beside them")
    options = parser.parse_args()
    check_not_empty(options, 'source', 'out', 'split_list', 'val_labels')
    flags = vars(options)
    split = Split(**{name: flags.pop(name) for name in Split._fields})
    if options.dataset == 'imagenet12':
        check_published(split)
    split.check()
    return {**flags, 'split': split}


def check_published(split):
    """Raise InputError where ImageNet should be split in another way than it is."""
    for name, value in split._asdict().items():
        if value and name != 'seed':
            raise InputError(f'--{name} is for sketches: the split of imagenet12 is published')


def main():
    with reported(PROGRAM, '; run the same command again to resume'):
        prepare(**parse())


if __name__ == '__main__':
    main()

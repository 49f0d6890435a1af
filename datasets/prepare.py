"""Turn the official archive of a dataset into the folders train/<class>/ and val/<class>/.

    python3 -m datasets.prepare tuberlin --source sketches_png.zip --out data/tuberlin
    python3 -m datasets.prepare sketchyrecognition --source rendered_256x256 --out data/sketchy
    python3 -m datasets.prepare imagenet12 --source tars --val_labels val.csv --out data/imagenet

Images are shrunk once, so that training does not spend its time on decoding large files. Sketches
are turned upright by their EXIF orientation; ImageNet, as published, ignores it. The work
is done in <out>.part, which is renamed to <out> when all images are there. To resume after an
interruption, run the same command again; once finished, it does nothing.
"""
from utils import interrupt     # before torch

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

from datasets import archives
from datasets.images import ImageError, decode, reason
from utils.arguments import Parser, at_least, check_not_empty
from utils.errors import InputError, RunError, naming, reported
from utils.files import write_atomically

PROGRAM = 'datasets.prepare'
MARKER = 'prepared.json'
READ_ERRORS = (OSError, EOFError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error)


def prepare(dataset: str, source: str, out: str, val_fraction: float, seed: int, size: int,
            val_labels: str | None) -> None:
    """Make the folder `out`; the parameters are the flags of the command.

    Raises InputError where a flag is wrong, RunError where the work cannot go on; it is an
    ImageError where an image is damaged.
    """
    archive, folder = (Path(os.path.realpath(os.path.expanduser(path))) for path in (source, out))
    part = Path(f'{folder}.part')
    with naming('--source'):
        if not archive.exists():
            raise InputError(f'there is no {archive}')
    if archive in (folder, *folder.parents):
        raise InputError(f'--out: {folder} lies in --source; choose a folder elsewhere')
    settings = {'dataset': dataset, 'source': str(archive), 'size': size}
    if dataset == 'imagenet12':
        images, total = archives.imagenet(archive, val_labels), archives.IMAGENET_IMAGES
        channels, suffix = 3, '.jpg'
    else:
        with naming('--source'):
            images = archives.split_sketches(dataset, archive, val_fraction, seed)
        channels, suffix, total = 1, '.png', len(images)
        settings |= {'val_fraction': val_fraction, 'seed': seed, 'images': total}

    with naming('--out'):
        if is_prepared(folder, settings):
            return print(f'{folder} is already prepared')
        if not is_prepared(part, settings):
            part.mkdir(parents=True, exist_ok=True)
            write_bytes(part / MARKER, json.dumps(settings, indent=2).encode())
    with tqdm(images, dataset, total, disable=None, unit=' images') as bar:
        counts = shrink_all(bar, part, suffix, channels, size)
    with naming('--out', RunError):
        os.replace(part, folder)
    print(f'{folder}: {counts["train"]} images in train/, {counts["val"]} in val/')


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
    if made != settings:
        differ = [key for key in made | settings if made.get(key) != settings.get(key)]
        made, wanted = ({key: s.get(key) for key in differ} for s in (made, settings))
        raise InputError(f'{folder} was prepared with {made}, not {wanted}; choose a new folder or '
                         'remove that one')
    return True


def shrink_all(images, folder, suffix, channels, size):
    """Shrink the images that `folder` lacks; how many there are in {'train', 'val'} in all."""
    counts, pending = Counter(), deque()
    with ThreadPoolExecutor(os.cpu_count()) as pool:    # threads, since Pillow releases the GIL
        for image in images:
            counts[image.target.split('/')[0]] += 1
            target = folder / f'{image.target}{suffix}'
            if not target.exists():
                data = read_data(image)
                pending.append(pool.submit(shrink, data, image.source, target, channels, size))
            if len(pending) > 4 * os.cpu_count():   # so that memory never holds a whole archive
                pending.popleft().result()
        for last in pending:
            last.result()
    return counts


def read_data(image):
    try:
        return image.read()
    except READ_ERRORS as error:
        raise ImageError(f'cannot read the image {image.source}: {reason(error)}') from None


def shrink(data, name, target, channels, size):
    """Write the image file `data` to `target` with its shorter side at most `size` pixels.

    Sketches (1 channel) are turned upright; photographs, as published, are not.
    """
    image = decode(io.BytesIO(data), channels, name, upright=channels == 1)
    scale = size / min(image.size)
    if scale < 1:
        image = image.resize([round(scale * side) for side in image.size], Image.LANCZOS)
    encoded = io.BytesIO()
    with naming(f'cannot write {target}', RunError):
        image.save(encoded, 'PNG' if channels == 1 else 'JPEG', quality=95)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, encoded.getvalue())


def write_bytes(target, data):
    """Write a file of <out>.part, where the next run replaces what a killed one left."""
    write_atomically(target, lambda temporary: temporary.write_bytes(data), sync=False,
                     temporary=target.with_name(f'{target.name}.tmp'))


def fraction(text):
    value = at_least(0, float, above=True)(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f'must be less than 1, not {text}')
    return value


def parse():
    parser = Parser(f'python3 -m {PROGRAM}', description=__doc__,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('dataset', choices=[*archives.SKETCH_PATH, 'imagenet12'])
    parser.add_argument('--source', required=True,
                        help='sketches: the archive (zip) or the folder it unpacks to; imagenet12: '
                             f'the folder of {archives.IMAGENET_TRAIN} and {archives.IMAGENET_VAL}')
    parser.add_argument('--out', required=True, help='the folder to make')
    parser.add_argument('--size', type=at_least(1), default=256,
                        help='pixels of the shorter side; smaller images stay (default 256)')
    parser.add_argument('--val_fraction', type=fraction, default=0.2,
                        help='sketches: the share of each class that goes to val/ (default 0.2)')
    parser.add_argument('--seed', type=at_least(0), default=0,
                        help='sketches: which images go to val/ (default 0)')
    parser.add_argument('--val_labels',
                        help='imagenet12: a text file with the class (such as n01440764) of each '
                             'validation image: one a line in the order of the image numbers, or '
                             "beside the image's name, as in Kaggle's LOC_val_solution.csv")
    options = parser.parse_args()
    check_not_empty(options, 'source', 'out')
    if options.dataset == 'imagenet12' and not options.val_labels:
        parser.error('imagenet12 needs --val_labels, a text file with the class of each validation '
                     'image: the archives do not contain it')
    return options


def main():
    with reported(PROGRAM, '; run the same command again to resume'):
        prepare(**vars(parse()))


if __name__ == '__main__':
    main()

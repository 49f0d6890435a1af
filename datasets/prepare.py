"""Turn the official archive of a dataset into the folders train/<class>/ and val/<class>/.

    python3 -m datasets.prepare tuberlin --source sketches_png.zip --out data/tuberlin
    python3 -m datasets.prepare sketchyrecognition --source rendered_256x256 --out data/sketchy
    python3 -m datasets.prepare imagenet12 --source tars --val_labels val.csv --out data/imagenet

Images are shrunk once, so that training does not spend its time on decoding large files. The work
is done in <out>.part, which becomes <out> when all is there: <out> is whole or absent. Stopped, the
same command goes on where it was; finished, it does nothing.
"""

import argparse
import io
import json
import os
import random
import re
import sys
import tarfile
import zipfile
import zlib
from collections import Counter, defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image
from tqdm import tqdm

from datasets.images import ImageError, decode

MARKER = 'prepared.json'
SKETCH = {  # where an archive keeps its sketches: class, name
    'tuberlin': re.compile(r'(?:.*/)?([^/.][^/]*)/([^/.][^/]*)\.png'),
    'sketchyrecognition': re.compile(
        r'(?:(?:.*/)?sketch/)?tx_000000000000/([^/.][^/]*)/([^/.][^/]*)\.png'),
}
IMAGENET_TRAIN, IMAGENET_VAL = 'ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'
IMAGENET_IMAGES = 1_281_167 + 50_000
DAMAGED = (EOFError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error)


def prepare(dataset, source, out, val_fraction, seed, size, val_labels):
    """Raises ImageError, ValueError, OSError, or one of DAMAGED, each with one sentence."""
    source, out = Path(source).expanduser().resolve(), Path(out).expanduser().resolve()
    part = out.with_name(out.name + '.part')
    if not source.exists():
        raise FileNotFoundError(f'--source: there is no {source}')
    if source in (out, *out.parents):
        raise ValueError(f'--out: {out} lies in --source; choose a folder elsewhere')
    settings = {'dataset': dataset, 'source': str(source), 'size': size}
    if dataset == 'imagenet12':
        images, total = imagenet(source, val_labels), IMAGENET_IMAGES
        channels, suffix = 3, '.jpg'
    else:
        images = split_sketches(dataset, source, val_fraction, seed)
        channels, suffix, total = 1, '.png', len(images)
        settings |= {'val_fraction': val_fraction, 'seed': seed, 'images': total}

    if is_prepared(out, settings):
        return print(f'{out} is already prepared')
    if not is_prepared(part, settings):
        part.mkdir(parents=True, exist_ok=True)
        write(part / MARKER, json.dumps(settings, indent=2).encode())
    counts = Counter()
    waiting = deque()
    with (ThreadPoolExecutor(os.cpu_count()) as pool,  # threads do: Pillow frees the GIL
          tqdm(images, dataset, total, disable=None, unit=' images') as bar):
        for place, name, read in bar:
            counts[place.split('/')[0]] += 1
            target = part / f'{place}{suffix}'
            if not target.exists():
                waiting.append(pool.submit(shrink, load(name, read), name, target, channels, size))
            if len(waiting) > 4 * os.cpu_count():  # so many wait in memory, not a whole archive
                waiting.popleft().result()
        for last in waiting:
            last.result()
    os.replace(part, out)
    print(f'{out}: {counts["train"]} images in train/, {counts["val"]} in val/')


def is_prepared(folder, settings):
    """Whether `folder` was made with `settings`; ValueError where it holds anything else."""
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return False
    if not (folder / MARKER).is_file():
        raise ValueError(f'--out: {folder} was not made by this command; choose a new one')
    made = json.loads((folder / MARKER).read_text())
    if made != settings:
        differ = [key for key in made | settings if made.get(key) != settings.get(key)]
        made, wanted = ({key: s.get(key) for key in differ} for s in (made, settings))
        raise ValueError(f'--out: {folder} was prepared with {made}, not {wanted}; choose a new '
                         'folder or remove that one')
    return True


def split_sketches(dataset, source, val_fraction, seed):
    """[(train|val/<class>/<name>, name for errors, read)], the same for the same seed.

    Of every class the fraction goes to val/. Sketches of one photograph (in Sketchy
    <photograph>-<number>.png) stay together.
    """
    classes = defaultdict(lambda: defaultdict(list))
    for path, read in sorted(files(source).items()):
        if match := SKETCH[dataset].fullmatch(path):
            label, name = match.groups()
            photograph = name.rsplit('-', 1)[0]
            classes[label][photograph].append((f'{label}/{name}', f'{source}/{path}', read))
    if not classes:
        raise ValueError(f'--source: {source} does not hold the sketches of {dataset}')
    images = []
    for label, groups in classes.items():
        if len(groups) == 1:
            raise ValueError(f'--source: class {label} in {source} is too small to be split')
        count = min(max(round(val_fraction * len(groups)), 1), len(groups) - 1)
        val = set(random.Random(f'{seed} {label}').sample(list(groups), count))
        for group, members in groups.items():
            split = 'val' if group in val else 'train'
            images += [(f'{split}/{place}', name, read) for place, name, read in members]
    if len({place for place, *_ in images}) < len(images):
        raise ValueError(f'--source: {source} holds sketches twice; give the folder of one copy')
    return images


def files(source):
    """{path inside the folder or zip archive `source`: function that reads its bytes}"""
    if source.is_dir():
        return {p.relative_to(source).as_posix(): p.read_bytes for p in source.rglob('*.png')}
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile:
        raise ValueError(f'--source: {source} is not a folder, nor a whole zip archive') from None
    return {path: partial(archive.read, path) for path in archive.namelist()}


def imagenet(source, val_labels):
    """An iterator of (train|val/<wnid>/<name>, name for errors, read) through both tars."""
    train, val = source / IMAGENET_TRAIN, source / IMAGENET_VAL
    for flag, path in ('source', train), ('source', val), ('val_labels', Path(val_labels)):
        if not path.is_file():
            raise FileNotFoundError(f'--{flag}: there is no file {path}')
    return imagenet_images(train, val, read_val_labels(Path(val_labels)))


def imagenet_images(train, val, wnids):
    """The training tar holds one tar for each class; the validation tar holds images only."""
    for wnid, inner in tar_members(train):
        for name, file in tar_members(train / f'{wnid}.tar', inner):
            yield f'train/{wnid}/{name}', f'{train}/{wnid}.tar/{name}', file.read
    for name, file in tar_members(val):
        if name not in wnids:
            raise ValueError(f'--val_labels: the class of {name} in {val} is not named')
        yield f'val/{wnids.pop(name)}/{name}', f'{val}/{name}', file.read
    if wnids:
        raise ValueError(f'--source: {val} lacks {len(wnids)} images that --val_labels names')


def tar_members(path, file=None):
    """Yield (name without suffix, open file) from the tar at `path`, or already open as `file`."""
    try:
        with tarfile.open(path, 'r:', file) as archive:
            for member in archive:
                name = PurePosixPath(member.name).stem
                if member.isfile() and not name.startswith('.'):
                    yield name, archive.extractfile(member)
    except tarfile.TarError as error:
        raise ValueError(f'--source: {path} is not a whole tar archive: {error}') from None


def read_val_labels(path):
    """{name of a validation image: wnid} from a text that has both on one line, as Kaggle's
    LOC_val_solution.csv, or else a wnid on each line, in the order of the images' numbers.
    """
    text = path.read_text(errors='replace')
    wnids = dict(re.findall(r'(ILSVRC2012_val_\d{8})\b.*?\b(n\d{8})\b', text))
    if not wnids:
        lines = re.findall(r'^(n\d{8})\s*$', text, re.MULTILINE)
        wnids = {f'ILSVRC2012_val_{number:08}': wnid for number, wnid in enumerate(lines, 1)}
    if not wnids:
        raise ValueError(f'--val_labels: {path} names no class (such as n01440764)')
    return wnids


def load(name, read):
    try:
        return read()
    except DAMAGED as error:
        raise ImageError(f'cannot read {name}: {error}') from None


def shrink(data, name, target, channels, size):
    """Write the image file `data` to `target` with its shorter side `size` pixels, or as it is."""
    image = decode(io.BytesIO(data), channels, name)
    scale = size / min(image.size)
    if scale < 1:
        image = image.resize([round(scale * side) for side in image.size], Image.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, 'PNG' if channels == 1 else 'JPEG', quality=95)
    target.parent.mkdir(parents=True, exist_ok=True)
    write(target, encoded.getvalue())


def write(target, data):
    """All of `data` or nothing, even if killed."""
    unfinished = target.with_name(f'.{target.name}')
    unfinished.write_bytes(data)
    os.replace(unfinished, target)


def fraction(text):
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} does not lie between 0 and 1')
    return float(text)


def pixels(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a positive number')
    return int(text)


def main():
    parser = argparse.ArgumentParser(
        'python3 -m datasets.prepare', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('dataset', choices=[*SKETCH, 'imagenet12'])
    parser.add_argument('--source', required=True,
                        help='sketches: the archive (zip) or the folder it unpacks to; imagenet12: '
                             f'the folder of {IMAGENET_TRAIN} and {IMAGENET_VAL}')
    parser.add_argument('--out', required=True, help='the folder to make')
    parser.add_argument('--size', type=pixels, default=256,
                        help='pixels of the shorter side; smaller images stay (default 256)')
    parser.add_argument('--val_fraction', type=fraction, default=0.2,
                        help='sketches: the share of each class that goes to val/ (default 0.2)')
    parser.add_argument('--seed', type=int, default=0,
                        help='sketches: which images go to val/ (default 0)')
    parser.add_argument('--val_labels',
                        help='imagenet12: a text file with the class (such as n01440764) of each '
                             'validation image: one a line in the order of the image numbers, or '
                             "beside the image's name, as in Kaggle's LOC_val_solution.csv")
    args = parser.parse_args()
    if args.dataset == 'imagenet12' and not args.val_labels:
        parser.error('imagenet12 needs --val_labels, a text file with the class of each validation '
                     'image: the archives do not tell it')
    try:
        prepare(**vars(args))
    except (ImageError, ValueError, OSError, *DAMAGED) as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        print('stopped; the same command goes on from here', file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    main()

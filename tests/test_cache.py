"""The cache of decoded sketches: made once, shared, made anew when stale, or done without."""

import fcntl
import os
import pickle
import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import datasets
from datasets import cache, folders
from utils.errors import RunError


def drawing(width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'dab'


@pytest.fixture
def root(tmp_path):
    """Two classes of sketches, large, small, and not square."""
    sizes = (90, 90), (30, 30), (70, 50)
    for split in 'train', 'val':
        for name in 'ant', 'bee':
            (tmp_path / 'data' / split / name).mkdir(parents=True)
            for number, size in enumerate(sizes):
                drawing(*size, number).save(tmp_path / 'data' / split / name / f'{number}.png')
    return tmp_path / 'data'


@pytest.fixture
def decoded(monkeypatch):
    """The paths that were decoded, in this process."""
    paths, read = [], folders.read_image

    def counted(path, channels):
        paths.append(path)
        return read(path, channels)

    monkeypatch.setattr(folders, 'read_image', counted)
    return paths


def load(root, inpsize=32, **options):
    return datasets.load('tuberlin', root, inpsize, **options)


def images(split):
    return torch.stack([image for image, _ in split])


def inode(home):
    return sorted((file.name, file.stat().st_ino) for file in home.iterdir())


def test_made_once(root, home, decoded):
    first = load(root)
    assert len(decoded) == 12
    files = inode(home)
    assert len(files) == 2 and not any(name.endswith('.part') for name, _ in files)
    again = load(root)
    for data in first, again:
        images(data.train), images(data.val)
    assert len(decoded) == 12 and inode(home) == files
    assert torch.equal(images(first.train), images(again.train))


def test_items_are_those_of_the_files(root):
    """Validation to the bit what plain gives; training what the transform makes of each file."""
    data, plain = load(root), load(root, plain=True)
    assert torch.equal(images(data.val), images(plain.val))
    assert [label for _, label in data.train] == [0, 0, 0, 1, 1, 1]
    for tenCrop in True, False:
        assert torch.equal(images(load(root, tenCrop=tenCrop).val),
                           images(load(root, tenCrop=tenCrop, plain=True).val))
    plain.train.transform = data.train.transform
    assert torch.equal(images(data.train), images(plain.train))


def test_sides(root):
    """Squares of at most 40 pixels for crops of 32: nothing is enlarged."""
    sizes = [image.size for image, _ in load(root).train.images]
    assert sizes == 2 * [(40, 40), (30, 30), (40, 40)]


def test_each_inpsize_has_its_own(root, home):
    load(root, 32), load(root, 64), load(root, 33)
    assert len(list(home.iterdir())) == 4   # the sides before the crop are 40, 72, 40


@pytest.mark.parametrize('change', ['touched', 'size', 'added', 'removed', 'renamed'])
def test_stale(root, home, decoded, change):
    load(root)
    names, path = [name for name, _ in inode(home)], root / 'train' / 'ant' / '0.png'
    stat = path.stat()
    if change == 'touched':
        drawing(90, 90, 9).save(path, compress_level=1)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    elif change == 'size':
        drawing(20, 20, 9).save(path)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == 'added':
        drawing(20, 20, 9).save(path.with_name('00.png'))
    elif change == 'removed':
        path.unlink()
    else:
        path.rename(path.with_name('7.png'))
    decoded.clear()
    data = load(root)
    assert len(decoded) == {'added': 7, 'removed': 5}.get(change, 6)    # of train/ only
    assert [name for name, _ in inode(home)] == names   # in place of the old one
    plain = load(root, plain=True).train
    plain.transform = data.train.transform
    assert torch.equal(images(data.train), images(plain))


@pytest.mark.parametrize('spoil', [
    lambda whole: b'', lambda whole: whole[:9], lambda whole: whole[:-1], lambda whole: whole[1:],
    lambda whole: whole[:-1] + bytes([whole[-1] ^ 1])])
def test_a_file_that_is_not_whole_is_made_anew(root, home, spoil):
    expected = images(load(root).train)
    for file in home.iterdir():
        file.write_bytes(spoil(file.read_bytes()))
        file.with_name(f'{file.name}.part').write_bytes(b'what a killed process left')
    assert torch.equal(images(load(root).train), expected)
    assert not list(home.glob('*.part'))


@pytest.mark.parametrize('how', ['file', 'full', 'lock'])
def test_done_without_where_it_cannot_be_made(root, home, decoded, monkeypatch, how):
    def full(*_):
        raise OSError(28, 'No space left on device')

    if how == 'file':
        home.parent.write_text('no folder')
    else:
        monkeypatch.setattr(*{'full': (os, 'fsync'), 'lock': (fcntl, 'flock')}[how], full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('default')
        data = load(root)
    warning, = caught
    assert str(home) in str(warning.message) and '\n' not in str(warning.message)
    plain = load(root, plain=True)
    assert torch.equal(images(data.val), images(plain.val))
    decoded.clear()
    images(data.train), images(data.train)
    assert len(decoded) == 12
    assert how == 'file' or not any(file.stat().st_size for file in home.iterdir())


@pytest.mark.parametrize('split', ['train', 'val'])
def test_a_damaged_image_is_named_at_once(root, home, split):
    path = root / split / 'bee' / '1.png'
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    for _ in range(2):
        with pytest.raises(RunError) as error:
            load(root)
        assert isinstance(error.value, datasets.ImageError)
        assert str(error.value).startswith(f'cannot read the image {path}: ')
    path.write_bytes(whole)
    assert len(images(load(root).train)) == 6


def test_workers_share_it(root):
    """Forked, they have the same map; a pickled dataset holds no pixels, but maps the same file."""
    train = load(root).train
    loader = DataLoader(train, 2, num_workers=2)
    assert torch.equal(torch.cat([batch for batch, _ in loader]), images(train))
    pickled = pickle.dumps(train.images)
    assert len(pickled) < 1000
    assert [(image.tobytes(), label) for image, label in pickle.loads(pickled)] == [
        (image.tobytes(), label) for image, label in train.images]


def test_of_several_processes_one_makes_it(root, home, decoded):
    """The second waits for the lock of the first, then finds the file whole."""
    split = folders.find(root, 1, ())[0]
    path = cache.cache_path(split.root, 40)
    path.parent.mkdir(parents=True)
    with open(f'{path}.part', 'ab') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        results = []
        waiting = threading.Thread(target=lambda: results.append(cache.open_or_make(split, 40)))
        waiting.start()
        waiting.join(.2)
        assert waiting.is_alive() and not decoded
        cache.write_cache(file, split, 40, cache.fingerprint(split, 40))
        os.replace(file.name, path)
    waiting.join()
    assert len(decoded) == 6 and isinstance(results[0], cache.CachedSketches)


def test_quiet_without_a_terminal(root, capfd):
    load(root)
    assert capfd.readouterr() == ('', '')


def test_only_sketches_in_folders_are_cached(root, home):
    datasets.load('imagenet12', root, 32), datasets.load('doodles', '', 32)
    assert not home.exists()
    load(root, plain=True)
    assert not home.exists()

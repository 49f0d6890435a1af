"""The cache of decoded sketches: made once, shared, made anew when stale, or done without."""

import errno
import fcntl
import os
import pickle
import pwd
import shutil
import tempfile
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import datasets
from datasets import cache, folders, made_once, prepare
from datasets.items import Squares
from datasets.transforms import side_before_crop
from utils.system import files
from utils.system.errors import InputError, RunError


def drawing(width, height, seed):
    # not mostly dark, which would be warned of
    pixels = np.random.default_rng(seed).integers(50, 256, (height, width), np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'dab'


@pytest.fixture
def root(tmp_path):
    """Two classes of sketches, large, small, and not square."""
    sizes = (90, 90), (30, 30), (70, 50)
    for split, first in ('train', 0), ('val', 10):
        for name in 'ant', 'bee':
            (tmp_path / 'data' / split / name).mkdir(parents=True)
            for number, size in enumerate(sizes, first):
                drawing(*size,
                        number).save(tmp_path / 'data' / split / name / f'{number - first}.png')
    return tmp_path / 'data'


@pytest.fixture
def decoded(monkeypatch):
    """The paths that were decoded, in this process."""
    paths, read = [], folders.read_image

    def counted(path, *arguments):
        paths.append(path)
        return read(path, *arguments)

    monkeypatch.setattr(folders, 'read_image', counted)
    return paths


def load(root, inpsize=32, **options):
    return datasets.load('tuberlin', root, inpsize, **options)


def images(split):
    return torch.stack([image for image, _ in split])


def inode(home):
    return {file.name: file.stat().st_ino for file in home.glob('*.sketches')}


def test_made_once(root, home, decoded):
    first = load(root)
    assert len(decoded) == 12
    files = inode(home)
    assert len(files) == 2 and not list(home.glob('*.part'))
    again = load(root)
    for data in first, again:
        images(data.train), images(data.val)
    assert len(decoded) == 12 and inode(home) == files
    assert torch.equal(images(first.train), images(again.train))


def test_made_anew_after_an_edit_of_how_images_are_read(root, home, decoded, monkeypatch):
    load(root)
    source = Path(cache.__file__)
    cache.code.cache_clear()
    read = Path.read_bytes
    monkeypatch.setattr(Path, 'read_bytes',
                        lambda path: read(path) + b'# edited'
                        * (path == source.with_name('transforms.py')))
    load(root)
    cache.code.cache_clear()
    assert len(decoded) == 24 and len(inode(home)) == 4


def pixels(split):
    """The squares of all images."""
    return split.images.all()[0]


def uncached(root, inpsize=32):
    """The squares of the files, decoded now."""
    files = folders.find(root, 1, ())[0]
    return Squares(files, load(root, inpsize).train.transform).all()


def test_items_are_those_of_the_files(root):
    """Validation to the bit what plain gives; training what the transform makes of each file."""
    data, plain = load(root), load(root, plain=True)
    assert torch.equal(images(data.val), images(plain.val))
    assert [label for _, label in data.train] == [0, 0, 0, 1, 1, 1]
    for tenCrop in True, False:
        assert torch.equal(images(load(root, tenCrop=tenCrop).val),
                           images(load(root, tenCrop=tenCrop, plain=True).val))
    assert pixels(data.train).shape == (6, 1, 40, 40)
    assert torch.equal(pixels(data.train), uncached(root)[0])


def test_each_inpsize_has_its_own(root, home):
    load(root, 32), load(root, 64), load(root, 33)
    assert len(inode(home)) == 4   # the sides before the crop are 40, 72, 40


def arguments_of(path, inpsize=32):
    """Arguments that open a cache file of 6 images, 3 of each of 2 classes."""
    side = side_before_crop(inpsize)
    images = folders.Folder(path.parent, [(str(number), number // 3) for number in range(6)], 1)
    return path, path.read_bytes()[-32:], images, (1, side, side)


def side(path):
    return round(((path.stat().st_size - 6 - 32) / 6) ** .5)


@pytest.mark.parametrize('change', ['touched', 'size', 'added', 'removed', 'renamed'])
def test_stale(root, home, decoded, change):
    load(root)
    files, path = inode(home), root / 'train' / 'ant' / '0.png'
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
    # others may have mapped the old one
    assert len(inode(home)) == 3 and files.items() <= inode(home).items()
    assert torch.equal(pixels(data.train), uncached(root)[0])


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
    copy = pickle.loads(pickled)
    assert torch.equal(copy.pixels, train.images.pixels) and copy.labels == train.images.labels


def test_the_file_is_never_written_through_the_map(root, home):
    train = load(root).train
    path = train.images.arguments[0]
    before = path.read_bytes()
    train.images.pixels.zero_()
    assert path.read_bytes() == before


def test_of_several_processes_one_makes_it(root, home, decoded):
    """The second waits for the lock of the first, then finds the file whole."""
    split = folders.find(root, 1, ())[0]
    transform = load(root).train.transform
    path = cache.squares(split, transform, False).arguments[0]
    whole = path.read_bytes()
    path.unlink()
    decoded.clear()
    with open(f'{path}.part', 'ab') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        results = []
        waiting = threading.Thread(target=lambda: results.append(cache.squares(split, transform,
                                                                               False)), daemon=True)
        waiting.start()
        waiting.join(.2)
        assert waiting.is_alive() and not decoded
        path.write_bytes(whole)
        # the first trains on, with the file in use
        mapped = cache.CachedSquares(*arguments_of(path))
        os.unlink(file.name)
    waiting.join(60)
    assert not waiting.is_alive()
    assert len(mapped) == 6
    assert not decoded
    assert isinstance(results[0], cache.CachedSquares)
    assert not list(home.glob('*.part')) and path.read_bytes() == whole


def test_a_copy_with_other_time_stamps_is_not_decoded_anew(root, home, decoded, tmp_path):
    """Two hosts with staged copies share a cache: neither replaces the other's file."""
    first = load(root)
    files = inode(home)
    decoded.clear()
    copy = shutil.copytree(root, tmp_path / 'copy', copy_function=shutil.copyfile)
    for data_dir in copy, root, copy:
        assert torch.equal(images(load(data_dir).val), images(first.val))
    assert not decoded and inode(home) == files


def test_the_folder_has_a_bound(root, home, monkeypatch):
    """Files that are open, or not the program's, stay."""
    for inpsize in 32, 48, 64:
        load(root, inpsize)
    old = {each: {path for path in inode(home) if side(home / path) == each}
           for each in (40, 56, 72)}
    for name in 'old.so', 'thesis.txt', 'killed.sketches.part', 'killed.sketches.tmp':
        (home / name).write_bytes(b'1234')
    kept = cache.CachedSquares(*arguments_of(home / next(iter(old[72])), 64))
    monkeypatch.setattr(made_once, 'LIMIT', 0)
    load(root, 40)
    names = {path.name for path in home.iterdir()}
    assert kept.arguments[0].name in names and 'thesis.txt' in names
    assert not names & (old[40] | old[56]
                        | {'old.so', 'killed.sketches.part', 'killed.sketches.tmp'})


def test_use_is_marked_and_what_was_used_last_stays(root, home, monkeypatch):
    load(root, 32), load(root, 64)
    older, newer = ({name for name in inode(home) if side(home / name) == each}
                    for each in (40, 72))
    for path in home.iterdir():
        os.utime(path, (1, 1))
    load(root, 32)
    monkeypatch.setattr(made_once, 'LIMIT',
                        sum(map(os.path.getsize, home.iterdir())) + 6 * 32 ** 2 - 9)
    load(root, 28)
    assert older <= inode(home).keys() and newer - inode(home).keys()


def test_a_lock_file_that_its_owner_removes_is_no_lock(home, monkeypatch):
    """Between opening and locking, the owner renames or removes the file: then it is opened
    anew."""
    home.mkdir(parents=True)
    part, flock, calls = home / 'x.part', fcntl.flock, []

    def late(file, operation):
        flock(file, operation)
        if not calls:
            part.unlink()
        calls.append(file)
    monkeypatch.setattr(fcntl, 'flock', late)
    assert made_once.made_once(home / 'x', Path.read_bytes,
                               lambda path: path.write_bytes(b'5')) == b'5'
    assert len(calls) == 2 and [path.name for path in home.iterdir()] == ['x']


# --skipBroken

@pytest.fixture(params=['tuberlin', 'imagenet12', 'cifar10'])
def name(request):
    return request.param


def damage(*paths):
    for path in paths:
        path.write_bytes(path.read_bytes()[:60])


def load_readable(name, root, inpsize=32):
    """The data, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        data = datasets.load(name, root, inpsize, skipBroken=True)
    return data, [str(warning.message) for warning in caught]


def contents(split):
    """The bytes of each photograph or square."""
    photographs = isinstance(split.images, folders.Folder)
    return [image.tobytes()
            for image, _ in split.images] if photographs else pixels(split).numpy().tolist()


def test_broken_images_are_left_out_and_remembered(name, root, decoded):
    expected = contents(datasets.load(name, root, 32).train)
    path = root / 'train' / 'bee' / '1.png'
    damage(path, root / 'val' / 'ant' / '0.png')
    (root / 'val' / 'ant' / '1.png').write_bytes(b'')
    decoded.clear()
    for _ in range(2):
        data, said = load_readable(name, root)
        assert said == [f'{root}/train: 1 file is left out (cannot be read): bee/1.png',
                        f'{root}/val: 2 files are left out (cannot be read): ant/0.png, ant/1.png']
        assert len(decoded) == 12       # once
        assert (len(data.train), len(data.val)) == (5, 4)
    assert contents(data.train) == expected[:4] + expected[5:]
    assert [label for _, label in data.train] == [0, 0, 0, 1, 1]
    assert [label for _, label in data.val] == [0, 1, 1, 1]
    with pytest.raises(datasets.ImageError,
                       match='bee/1.png: .* .--skipBroken leaves such images out.$'):
        list(datasets.load(name, root, 32).train)


@pytest.mark.parametrize('error, raised', [
    (MemoryError(), MemoryError),
    (OSError(errno.EMFILE, 'Too many open files'), (OSError, RunError))])
def test_what_runs_out_while_reading_breaks_no_image(name, root, monkeypatch, error, raised):
    def no_room(*_):
        raise error
    with monkeypatch.context() as patch:
        patch.setattr(Image, 'open', no_room)
        with pytest.raises(raised):
            datasets.load(name, root, 32, skipBroken=True)
    data, said = load_readable(name, root)
    assert len(data.train) == 6 and said == []


def test_an_image_too_long_to_be_a_square_is_broken(name, root):
    Image.new('L', (2 ** 15 + 1, 1)).save(root / 'train' / 'bee' / '1.png')
    data, said = load_readable(name, root)
    assert len(data.train) == 5 and 'bee/1.png' in said[0]


def test_images_in_no_class_folder_are_named(name, root):
    drawing(20, 20, 0).save(root / 'train' / 'loose.png')
    _, said = load_readable(name, root)
    assert said == [f'{root}/train: 1 file is left out (in no class folder): loose.png']


def test_a_repaired_image_is_back(name, root):
    path = root / 'train' / 'bee' / '1.png'
    whole = path.read_bytes()
    damage(path)
    assert len(load_readable(name, root)[0].train) == 5
    path.write_bytes(whole)
    data, said = load_readable(name, root)
    assert len(data.train) == 6 and said == []


def test_a_class_that_loses_all_images(name, root):
    damage(*(root / 'train' / 'bee').iterdir())
    with pytest.raises(InputError,
                       match=f'^no image in the class folder {root}/train/bee can be read$'):
        load_readable(name, root)


def test_many_broken_images_are_counted_and_some_named(name, root):
    damage(*(root / 'train' / 'bee').iterdir(), root / 'train' / 'ant' / '0.png')
    drawing(30, 30, 0).save(root / 'train' / 'bee' / 'whole.png')
    _, said = load_readable(name, root)
    assert said == [
        f'{root}/train: 4 files are left out (cannot be read): ant/0.png, bee/0.png, bee/1.png, '
        'and 1 more']


def test_broken_images_are_left_out_without_a_cache(name, root, home):
    home.parent.write_text('no folder')
    damage(root / 'train' / 'bee' / '1.png')
    data, said = load_readable(name, root)
    assert len(data.train) == 5 and any('bee/1.png' in line for line in said)
    assert any(f'nothing can be cached in {home}' in line for line in said)


def test_processes_leave_out_the_same(root, home):
    """If two start at once, one searches; both have the same images."""
    damage(root / 'train' / 'bee' / '1.png')
    split, results = folders.find(root, 3, ())[0], []
    searching = [threading.Thread(target=lambda: results.append(cache.readable(split).samples))
                 for _ in range(4)]
    with warnings.catch_warnings(action='ignore'):
        for thread in searching:
            thread.start()
        for thread in searching:
            thread.join()
    assert results == 4 * [[sample
                            for sample in split.samples if not sample[0].endswith('bee/1.png')]]
    assert [path.suffix for path in home.iterdir()] == ['.broken']


def test_doodles_have_no_files(home):
    assert not datasets.load('doodles', '', 32, skipBroken=True).in_folders and not home.exists()


def test_quiet_without_a_terminal(root, capfd):
    load(root)
    assert capfd.readouterr() == ('', '')


def test_only_sketches_in_folders_are_cached(root, home):
    datasets.load('imagenet12', root, 32), datasets.load('doodles', '', 32)
    assert not home.exists()
    load(root, plain=True)
    assert not home.exists()


# Where the cache lies

@pytest.fixture
def homeless(tmp_path, monkeypatch):
    """As in docker run -u 12345: no HOME, and no entry in /etc/passwd."""
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.delenv('HOME')
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    monkeypatch.setattr(pwd, 'getpwuid', lambda uid: {}[uid])
    files.private_folder.cache_clear()
    yield tmp_path / f'dab-{os.getuid()}'
    files.private_folder.cache_clear()


def test_a_user_without_a_home_has_a_private_folder(homeless, root):
    assert files.cache_folder() == files.cache_folder() == homeless / 'dab'
    assert homeless.stat().st_mode & 0o777 == 0o700
    load(root)
    assert list(homeless.glob('dab/*.sketches'))


@pytest.mark.parametrize('how', ['open to all', 'link', 'of another user'])
def test_a_folder_that_is_not_private_is_not_used(homeless, how, monkeypatch, tmp_path):
    if how == 'link':
        (tmp_path / 'other').mkdir(0o700)
        homeless.symlink_to(tmp_path / 'other')
    else:
        homeless.mkdir()
        homeless.chmod(0o777 if how == 'open to all' else 0o700)
    if how == 'of another user':
        other = os.getuid() + 1
        homeless.rename(tmp_path / f'dab-{other}')
        monkeypatch.setattr(os, 'getuid', lambda: other)
    folder = files.cache_folder()
    assert folder == files.cache_folder() and folder.parent.parent == tmp_path
    assert folder.parent.name not in (homeless.name, f'dab-{os.getuid()}')
    assert folder.parent.stat().st_mode & 0o777 == 0o700


def test_the_chosen_folder_may_begin_with_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('XDG_CACHE_HOME', '~/caches')
    assert files.cache_folder() == tmp_path / 'caches' / 'dab'


def test_an_error_while_the_file_is_made_leaves_nothing(home):
    def write(path):
        raise FileNotFoundError(2, 'No such file or directory', 'image')
    with pytest.raises(FileNotFoundError, match='image'):
        made_once.made_once(home / 'x', Path.read_bytes, write)
    assert not list(home.iterdir())


@pytest.mark.parametrize('kind', ['sketches', 'content', 'broken'])
def test_a_pipe_in_the_folder_is_named(root, home, at_once, kind):
    def read():
        return cache.readable(folders.find(root, 1, ())[0]) if kind == 'broken' else load(root)
    read()
    for path in home.glob(f'*.{kind}'):
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(InputError, match=f'{kind} is a pipe, not a file'):
        read()
    for path in home.glob(f'*.{kind}'):
        path.unlink()
        os.mkfifo(f'{path}.part')
    with pytest.raises(InputError, match=f'{kind}.part is a pipe, not a file'):
        read()


def die_writing(function, *arguments):
    """In a process of its own: be killed before the temporary file gets its name."""
    os.replace = lambda *_: os._exit(9)
    function(*arguments)


@pytest.mark.parametrize('kind', ['cache', 'prepare'])
def test_a_killed_process_leaves_nothing_for_ever(tmp_path, start, kind):
    path = tmp_path / 'mine' / 'x.sketches'
    path.parent.mkdir()
    function, *arguments = {'cache': (made_once.made_once, path, Path.read_text, write_x),
                            'prepare': (prepare.write_bytes, path, b'x')}[kind]
    assert start(die_writing, function, *arguments).wait()[0] == 9
    assert len(list(path.parent.iterdir())) == {'cache': 2, 'prepare': 1}[kind]
    assert not path.exists()
    function(*arguments)
    assert list(path.parent.iterdir()) == [path] and path.read_text() == 'x'


def write_x(path):
    path.write_text('x')

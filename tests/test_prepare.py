"""python3 -m datasets.prepare, on small archives in the official layouts."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

import datasets
from datasets import imagenet as archives_of_imagenet
from datasets import prepare

ROOT = Path(__file__).resolve().parents[1]


def picture(number, size=(40, 30), mode='L', kind='PNG'):
    pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def write_zip(path, members):
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def write_folder(path, members):
    for name, data in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def tar(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


TUBERLIN = {f'png/{label}/{80 * i + number}.png': picture(80 * i + number)
            for i, label in enumerate(['ant', 'bee', 'hot air balloon']) for number in range(10)}
SKETCHY = {f'256x256/sketch/tx_000000000000/{label}/n{i}{photo}_{photo}-{number}.png':
           picture(photo)
           for i, label in enumerate(['ant', 'bee']) for photo in range(5) for number in (1, 2, 3)}
OTHERS = {f'256x256/{path}': picture(0) for path in (
    'sketch/tx_000100000000/ant/n00_0-1.png', 'photo/tx_000000000000/ant/n00_0.png', 'README.png')}
WNIDS = ['n01440764', 'n01443537']


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """run('tuberlin', flag=value, ...) -> (exit code, stdout, stderr), with --out in tmp_path."""
    def run(dataset, **flags):
        flags = {'out': tmp_path / 'out', 'size': 16, **flags}
        words = [f'--{flag}={value}' for flag, value in flags.items()]
        monkeypatch.setattr(sys, 'argv', ['prepare', dataset, *words])
        code = 0
        try:
            prepare.main()
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err
    return run


def tree(folder):
    """{path: (content, time of the last change)} of all files."""
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in sorted(folder.rglob('*')) if path.is_file()}


def images(folder):
    return sorted(path.removesuffix('.png').removesuffix('.jpg') for path in tree(folder)
                  if path != 'prepared.json')


@pytest.fixture
def tuberlin(tmp_path):
    return write_zip(tmp_path / 'sketches.zip', TUBERLIN | {'png/filelist.txt': b'ant/1.png'})


def test_tuberlin(tuberlin, tmp_path, run):
    code, out, err = run('tuberlin', source=tuberlin)
    assert code == 0 and err == '' and '24 images in train/, 6 in val/' in out
    made = images(tmp_path / 'out')
    assert len(made) == 30
    for label in 'ant', 'bee', 'hot air balloon':
        in_val = [path for path in made if path.startswith(f'val/{label}/')]
        in_train = [path for path in made if path.startswith(f'train/{label}/')]
        assert (len(in_train), len(in_val)) == (8, 2)
    assert sorted('png/' + path.split('/', 1)[1] + '.png' for path in made) == sorted(TUBERLIN)
    data = datasets.load('tuberlin', tmp_path / 'out', 16)
    assert data.classes == ['ant', 'bee', 'hot air balloon'] and len(data.train) == 24


def test_images_are_shrunk_never_enlarged(tmp_path, run):
    members = {'a/1.png': picture(1, (300, 100)), 'a/2.png': picture(2, (100, 300), 'RGB'),
               'b/3.png': picture(3, (9, 20)), 'b/4.png': picture(4, (16, 16))}
    assert run('tuberlin', source=write_folder(tmp_path / 'png', members))[0] == 0
    sizes = {path.name: Image.open(path).size for path in (tmp_path / 'out').rglob('*.png')}
    assert sizes == {'1.png': (48, 16), '2.png': (16, 48), '3.png': (9, 20), '4.png': (16, 16)}
    assert {Image.open(path).mode for path in (tmp_path / 'out').rglob('*.png')} == {'L'}
    three = next((tmp_path / 'out').rglob('3.png'))
    assert np.array_equal(Image.open(three), Image.open(io.BytesIO(members['b/3.png'])))


@pytest.mark.parametrize('parent', ['', 'png/', 'sketches/png/'])
def test_folder_and_zip_give_the_same(tuberlin, tmp_path, run, parent):
    members = {parent + path.removeprefix('png/'): data for path, data in TUBERLIN.items()}
    folder = write_folder(tmp_path / 'unpacked', members)
    assert run('tuberlin', source=folder, out=tmp_path / 'a')[0] == 0
    assert run('tuberlin', source=tuberlin, out=tmp_path / 'b')[0] == 0
    assert images(tmp_path / 'a') == images(tmp_path / 'b')


@pytest.mark.parametrize('val_fraction, in_val', [(0.5, 5), (0.34, 3), (0.001, 1), (0.999, 9)])
def test_val_fraction(tuberlin, tmp_path, run, val_fraction, in_val):
    assert run('tuberlin', source=tuberlin, val_fraction=val_fraction)[0] == 0
    assert len(list((tmp_path / 'out' / 'val' / 'bee').iterdir())) == in_val


@pytest.mark.parametrize('write', [write_zip, write_folder])
def test_sketches_of_one_photograph_stay_together(tmp_path, run, write):
    assert run('sketchyrecognition', source=write(tmp_path / 'sketchy', SKETCHY | OTHERS))[0] == 0
    made = images(tmp_path / 'out')
    assert len(made) == 30
    train, val = ({path.split('/', 1)[1].rsplit('-')[0] for path in made if path.startswith(split)}
                  for split in ('train', 'val'))
    assert len(train) == 8 and len(val) == 2 and not train & val


@pytest.mark.parametrize('inside', ['256x256', '256x256/sketch'])
def test_sketchy_from_a_folder_further_in(tmp_path, run, inside):
    source = write_folder(tmp_path / 'sketchy', SKETCHY | OTHERS)
    assert run('sketchyrecognition', source=source / inside)[0] == 0
    assert len(images(tmp_path / 'out')) == 30


@pytest.mark.parametrize('write', [write_zip, write_folder])
@pytest.mark.parametrize('dataset, prefix', [
    ('tuberlin', 'png'), ('sketchyrecognition', '256x256/sketch/tx_000000000000')])
def test_one_rule_for_what_is_an_image(tmp_path, run, write, dataset, prefix):
    """The same as in class folders: any suffix of an image, none of what is hidden or foreign."""
    kinds = {'1.PNG': 'PNG', '2.jpg': 'JPEG', '3.Gif': 'GIF', '4.jfif': 'JPEG'}
    members = {f'{prefix}/ant/{name}': picture(0, kind=kind) for name, kind in kinds.items()}
    paths = (f'{prefix}/ant/._1.png', f'__MACOSX/{prefix}/ant/1.png', f'{prefix}/.git/x.png',
             f'.trash/{prefix}/ant/5.png', f'{prefix}/ant/.old/1.png')
    hidden = {path: picture(0) for path in paths}
    source = write(tmp_path / 'source', members | hidden | {f'{prefix}/ant/notes.txt': b'none'})
    code, out, err = run(dataset, source=source)
    assert (code, err) == (0, '') and '3 images in train/, 1 in val/' in out
    assert sorted(path.split('/', 1)[1]
                  for path in images(tmp_path / 'out')) == [f'ant/{n}' for n in '1234']


def lying(kind, mode):
    """A picture of 40 x 30 pixels that is to be shown as 30 x 40."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    Image.open(io.BytesIO(picture(0, mode=mode))).save(file, kind, exif=exif)
    return file.getvalue()


def test_orientation(tmp_path):
    """Sketches are turned upright, ImageNet as published is not; nothing that is written has the
    tag."""
    for name, data, channels, size in [('sketch.png', lying('PNG', 'L'), 1, (30, 40)),
                                       ('photo.jpg', lying('JPEG', 'RGB'), 3, (40, 30))]:
        for side in 256, 16:
            prepare.shrink(data, name, tmp_path / name, channels, side)
            with Image.open(tmp_path / name) as image:
                assert (image.width > image.height) == (channels == 3)
                assert image.size == size or side == 16
                assert not image.getexif()


def test_names_that_are_not_utf_8(tmp_path, run):
    odd = os.fsdecode(b'caf\xe9')
    members = {f'{label}/{name}.png': picture(0) for label in (odd, 'bee')
               for name in (odd, '1', '2')}
    try:
        source = write_folder(tmp_path / 'png', members)
    except OSError:
        pytest.skip('this file system takes UTF-8 only')
    assert run('tuberlin', source=source)[0] == 0
    assert sorted(path.split('/', 1)[1] + '.png'
                  for path in images(tmp_path / 'out')) == sorted(members)


def imagenet(folder, labels='lines'):
    folder.mkdir()
    train = {f'{wnid}.tar': tar({f'{wnid}_{number}.JPEG': picture(number, mode='RGB', kind='JPEG')
                                 for number in (3, 40, 500)}) for wnid in WNIDS}
    val = {f'ILSVRC2012_val_{number:08}.JPEG': picture(number, mode='RGB', kind='JPEG')
           for number in (1, 2, 3)}
    (folder / 'ILSVRC2012_img_train.tar').write_bytes(tar(train))
    (folder / 'ILSVRC2012_img_val.tar').write_bytes(tar(val))
    wnids = [WNIDS[1], WNIDS[0], WNIDS[1]]
    (folder / 'labels').write_text({
        'lines': '\n'.join(wnids),
        'kaggle': 'ImageId,PredictionString\n' + ''.join(
            f'ILSVRC2012_val_{n:08},{wnids[n - 1]} 1 2 3 4 n0 5\n' for n in (3, 1, 2)),
        'moves': ''.join(f'mkdir -p {wnid}\n' for wnid in WNIDS) + ''.join(
            f'mv ILSVRC2012_val_{n:08}.JPEG {wnid}/\n' for n, wnid in enumerate(wnids, 1)),
    }[labels])
    return {'source': folder, 'val_labels': folder / 'labels'}


@pytest.mark.parametrize('labels', ['lines', 'kaggle', 'moves'])
def test_imagenet(tmp_path, run, labels):
    code, out, err = run('imagenet12', **imagenet(tmp_path / 'tars', labels))
    assert code == 0 and err == '' and '6 images in train/, 3 in val/' in out
    assert images(tmp_path / 'out') == sorted(
        [f'train/{wnid}/{wnid}_{number}' for wnid in WNIDS for number in (3, 40, 500)]
        + [f'val/{WNIDS[1]}/ILSVRC2012_val_00000001', f'val/{WNIDS[0]}/ILSVRC2012_val_00000002',
           f'val/{WNIDS[1]}/ILSVRC2012_val_00000003'])
    data = datasets.load('imagenet12', tmp_path / 'out', 14)
    assert data.classes == WNIDS and data.val[0][0].shape == (3, 14, 14)


# Again, and after an interruption

def test_a_second_run_changes_nothing(tuberlin, tmp_path, run):
    run('tuberlin', source=tuberlin)
    before = tree(tmp_path / 'out')
    code, out, _ = run('tuberlin', source=tuberlin)
    assert code == 0 and 'already prepared' in out
    assert tree(tmp_path / 'out') == before


@pytest.mark.parametrize('dataset', ['tuberlin', 'imagenet12'])
def test_after_an_interruption_the_same_run_goes_on(dataset, tuberlin, tmp_path, run, monkeypatch):
    flags = {'source': tuberlin} if dataset == 'tuberlin' else imagenet(tmp_path / 'tars')
    assert run(dataset, **flags, out=tmp_path / 'whole')[0] == 0
    shrink, calls = prepare.shrink, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return shrink(*arguments)

    monkeypatch.setattr(prepare, 'shrink', interrupted)
    code, _, err = run(dataset, **flags)
    assert code == 130 and 'run the same command again to resume' in err
    assert not (tmp_path / 'out').exists()
    done = tree(tmp_path / 'out.part')
    assert 4 <= len(done) - len(['prepared.json']) < len(images(tmp_path / 'whole'))

    monkeypatch.setattr(prepare, 'shrink', shrink)
    assert run(dataset, **flags)[0] == 0
    made = tree(tmp_path / 'out')
    assert done.items() <= made.items()  # what was finished was not touched
    whole = tree(tmp_path / 'whole')
    assert {path: data for path, (data, _) in made.items()} == {
        path: data for path, (data, _) in whole.items()}
    assert not (tmp_path / 'out.part').exists()


def test_a_file_is_whole_or_absent(tmp_path, monkeypatch):
    target = tmp_path / 'image.png'
    monkeypatch.setattr(os, 'replace', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare.shrink(picture(1), 'picture', target, channels=1, size=16)
    assert not target.exists()


@pytest.mark.parametrize('change', [{'size': 8}, {'seed': 1}, {'val_fraction': 0.5}])
@pytest.mark.parametrize('finished', [True, False])
def test_another_preparation_is_refused(tuberlin, tmp_path, run, change, finished):
    run('tuberlin', source=tuberlin)
    if not finished:
        (tmp_path / 'out').rename(tmp_path / 'out.part')
    place = tmp_path / ('out' if finished else 'out.part')
    before = tree(place)
    code, _, err = run('tuberlin', source=tuberlin, **change)
    assert code == 2 and f'--out: {place} was prepared with' in err and next(iter(change)) in err
    assert tree(place) == before


def test_a_folder_of_something_else_is_refused(tuberlin, tmp_path, run):
    write_folder(tmp_path / 'out', {'thesis.tex': b'!'})
    code, _, err = run('tuberlin', source=tuberlin)
    assert code == 2 and f'--out: {tmp_path}/out was not made by this command' in err
    assert list(tree(tmp_path / 'out')) == ['thesis.tex']


# Bad input

def check(result, *parts, code=2):
    """One line on stderr with all `parts`."""
    assert result[0] == code
    assert all(part in result[2] for part in parts), result[2]
    assert result[2].startswith('datasets.prepare: error: ') and len(result[2].splitlines()) == 1


@pytest.mark.parametrize('data', [b'no image', picture(1)[:200], b''])
def test_a_corrupt_image_is_named(tmp_path, run, data):
    source = write_zip(tmp_path / 'x.zip', TUBERLIN | {'png/bee/85.png': data})
    result = run('tuberlin', source=source)
    check(result, f'error: cannot read the image {source}/png/bee/85.png: ', code=1)
    assert result[2].count('85.png') == 1 and 'BytesIO' not in result[2]
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('write', [write_zip, write_folder])
def test_one_class_in_two_unicode_forms_is_refused(tmp_path, run, write):
    source = write(tmp_path / 'png',
                   {f'{label}/{number}.png': picture(number) for label in ('caf\xe9', 'cafe\u0301')
                    for number in range(3)})
    check(run('tuberlin', source=source),
          f'--source: {source} has the class caf\xe9 twice, in the folders ',
          "'cafe\\u0301' and 'caf\\xe9', which are the same letters in two Unicode forms")
    assert not (tmp_path / 'out.part').exists()


def test_no_memory_for_an_image(tuberlin, run, monkeypatch):
    def no_memory(*_, **__):
        raise MemoryError
    monkeypatch.setattr(prepare, 'decode', no_memory)
    result = run('tuberlin', source=tuberlin)
    check(result, f'error: memory ran out while {tuberlin}/png/', code=1)
    assert '--batch-size' not in result[2]


def test_a_corrupt_member_of_a_zip_is_named(tuberlin, run):
    data = bytearray(tuberlin.read_bytes())
    data[data.index(TUBERLIN['png/bee/85.png']) + 100] ^= 255
    tuberlin.write_bytes(data)
    check(run('tuberlin', source=tuberlin), f'{tuberlin}/png/bee/85.png', code=1)


def test_bad_sources(tuberlin, tmp_path, run):
    check(run('tuberlin', source=tmp_path / 'none'),
          f'--source: there is no file or folder {tmp_path}/none')
    check(run('sketchyrecognition', source=tuberlin), 'does not hold the sketches of')
    check(run('tuberlin', source=tmp_path, out=tmp_path / 'out'), '--out', 'lies in --source')
    tuberlin.write_bytes(tuberlin.read_bytes()[:-500])
    check(run('tuberlin', source=tuberlin), f'--source: {tuberlin} is neither a folder nor')


def test_a_class_too_small_and_sketches_twice(tmp_path, run):
    one = write_zip(tmp_path / 'one.zip', TUBERLIN | {'png/cat/1.png': picture(1)})
    check(run('tuberlin', source=one), 'class cat')
    twice = write_zip(tmp_path / 'twice.zip', TUBERLIN | {'copy/ant/1.png': picture(1)})
    check(run('tuberlin', source=twice), f'{twice} holds sketches twice')


def test_members_never_leave_the_folder(tmp_path, run):
    evil = {f'../../{label}/{number}.png': picture(number)
            for label in ('..', 'escaped') for number in range(2)}
    source = write_zip(tmp_path / 'evil.zip', evil)
    assert run('tuberlin', source=source, out=tmp_path / 'a' / 'b' / 'out')[0] == 0
    assert {path.split('/')[1] for path in images(tmp_path / 'a' / 'b' / 'out')} == {'escaped'}
    assert {path.name for path in tmp_path.iterdir()} == {'evil.zip', 'a'}
    assert [path.name for path in (tmp_path / 'a' / 'b').iterdir()] == ['out']


@pytest.mark.parametrize('kind', ['zip', 'folder'])
def test_a_file_too_large_for_an_image_is_refused_before_it_fills_the_memory(tmp_path, run,
                                                                             monkeypatch, kind):
    monkeypatch.setattr(prepare, 'MOST_BYTES', 2 ** 20)
    if kind == 'zip':
        source = tmp_path / 'bomb.zip'
        with zipfile.ZipFile(source, 'w', zipfile.ZIP_DEFLATED) as archive:
            for name, data in {**TUBERLIN, 'png/bee/85.png': bytes(2 ** 25)}.items():
                archive.writestr(name, data)
    else:
        source = write_folder(tmp_path / 'sketches', TUBERLIN)
        os.truncate(source / 'png/bee/85.png', 2 ** 25)
    tracemalloc.start()
    result = run('tuberlin', source=source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    check(result, f'cannot read the image {source}/png/bee/85.png: it has more than 1 MB', code=1)
    assert peak < 2 ** 24


def test_images_that_wait_do_not_fill_the_memory(tuberlin, tmp_path, run, monkeypatch):
    """A few large ones are as much as many small ones."""
    monkeypatch.setattr(prepare, 'MOST_BYTES', max(map(len, TUBERLIN.values())))
    assert run('tuberlin', source=tuberlin)[0] == 0 and len(images(tmp_path / 'out')) == 30


@pytest.mark.parametrize('inner, name',
                         [('..', 'a.JPEG'), ('n01440764.tar', '..'), ('n01440764.tar', 'x/..'),
                          ('n01440764.tar', '/'),
                                         ('n01440764.tar', 'x\\..\\..\\a.JPEG'),
                          ('x\\..\\..\\y.tar', 'a.JPEG')])
def test_no_member_of_a_tar_leaves_its_class(tmp_path, run, inner, name):
    source = write_folder(tmp_path / 'tars', {
        'ILSVRC2012_img_train.tar': tar({inner: tar({name: picture(1, kind='JPEG')})}),
        'ILSVRC2012_img_val.tar': tar({})})
    (tmp_path / 'labels.txt').write_text(WNIDS[0])
    code, _, error = run('imagenet12', source=source, val_labels=tmp_path / 'labels.txt',
                         out=tmp_path / 'a/b/out')
    assert code == 1
    assert 'has a name that leads out of its class' in error
    assert error.count('\n') == 1
    assert {path.name for path in tmp_path.iterdir()} == {'tars', 'labels.txt', 'a'}
    assert [path.name for path in (tmp_path / 'a/b').rglob('*')] == ['out.part', 'prepared.json']


@pytest.mark.parametrize('missing',
                         [archives_of_imagenet.TRAIN_TAR, archives_of_imagenet.VAL_TAR, 'labels'])
def test_missing_files_of_imagenet(tmp_path, run, missing):
    flags = imagenet(tmp_path / 'tars')
    (tmp_path / 'tars' / missing).unlink()
    check(run('imagenet12', **flags), f'there is no file {tmp_path}/tars/{missing}')
    assert not (tmp_path / 'out.part').exists()  # nothing was begun


@pytest.mark.parametrize('name', ['train', 'val'])
@pytest.mark.parametrize('share', [0, 0.1, 0.5, 0.7])
def test_truncated_tars_of_imagenet(tmp_path, run, name, share):
    flags = imagenet(tmp_path / 'tars')
    path = tmp_path / 'tars' / f'ILSVRC2012_img_{name}.tar'
    data = path.read_bytes()
    path.write_bytes(data[:int(share * data.rindex(b'\xff\xd9'))])
    check(run('imagenet12', **flags), str(path), code=1)
    assert not (tmp_path / 'out').exists()


def test_val_labels(tmp_path, run):
    flags = imagenet(tmp_path / 'tars')
    labels = flags['val_labels']
    labels.write_text('\n'.join(WNIDS))
    check(run('imagenet12', **flags), '--val_labels', 'ILSVRC2012_val_00000003', code=1)
    labels.write_text('\n'.join(2 * WNIDS))
    check(run('imagenet12', **flags),
          'out.part was prepared from other images, or with other labels')
    shutil.rmtree(tmp_path / 'out.part')
    check(run('imagenet12', **flags), 'lacks 1 images that --val_labels names', code=1)
    labels.write_bytes(b'\xff\xfe garbage')
    check(run('imagenet12', **flags), f'--val_labels: {labels} names no class')


@pytest.mark.parametrize('flags', [
    {'val_fraction': 0}, {'val_fraction': 1}, {'val_fraction': 'nan'}, {'val_fraction': 'x'},
    {'val_fraction': -1}, {'val_fraction': 1e300}, {'val_fraction': ''}, {'size': 0}, {'size': 'x'},
    {'size': 10 ** 20}, {'size': ''}, {'seed': 'x'}, {'seed': -1}, {'seed': 0.5}, {'seed': ''},
    {'out': ''}, {'source': ''},
    {'nonsense': 1}])
def test_wrong_flags(tuberlin, run, flags):
    result = run('tuberlin', **{'source': tuberlin} | flags)
    check(result, f'--{next(iter(flags))}')
    assert 'invalid' not in result[2]      # what argparse says: invalid fraction value


@pytest.mark.parametrize('flag', ['source', 'out'])
@pytest.mark.parametrize('how', ['below a file', 'too long', 'circle'])
def test_paths_that_lead_nowhere(tuberlin, tmp_path, run, flag, how):
    (tmp_path / 'file').touch()
    (tmp_path / 'circle').symlink_to('circle')
    path = tmp_path / {'below a file': 'file/x', 'too long': 300 * 'x', 'circle': 'circle/x'}[how]
    check(run('tuberlin', **{'source': tuberlin, flag: path}), f'--{flag}: ', str(path))


def test_a_file_as_out(tuberlin, run, tmp_path):
    (tmp_path / 'out').write_text('thesis')
    check(run('tuberlin', source=tuberlin), f'--out: {tmp_path}/out is a file, not a folder')
    assert (tmp_path / 'out').read_text() == 'thesis'


@pytest.mark.parametrize('flag', ['source', 'out'])
def test_folders_without_permission(tmp_path, run, flag, monkeypatch):
    source = write_folder(tmp_path / 'png',
                          {path.removeprefix('png/'): data for path, data in TUBERLIN.items()})

    def refuse(call):       # also where the tests run as root, who may do everything
        def refused(path, *arguments, **options):
            if str(path) == str({'source': source / 'bee', 'out': tmp_path / 'out.part'}[flag]):
                raise PermissionError(13, 'Permission denied', str(path))
            return call(path, *arguments, **options)
        return refused
    with monkeypatch.context() as patch:
        patch.setattr(*{'source': (os, 'scandir', refuse(os.scandir)),
                        'out': (os, 'mkdir', refuse(os.mkdir))}[flag])
        check(run('tuberlin', source=source), f'--{flag}: {tmp_path}', 'Permission denied')


def test_wrong_commands(tmp_path, run):
    check(run('mnist', source=tmp_path), 'tuberlin', 'sketchyrecognition', 'imagenet12')
    source = tmp_path / 'tars'
    source.mkdir()
    check(run('imagenet12', source=source), '--source: ', 'ILSVRC2012_img_train.tar',
          'train/ and val/', 'ILSVRC/Data/CLS-LOC')
    (source / 'ILSVRC2012_img_train.tar').touch()
    (source / 'ILSVRC2012_img_val.tar').touch()
    check(run('imagenet12', source=source), 'imagenet12 needs --val_labels')


def test_as_a_command(tmp_path):
    flags = ['tuberlin', '--source', tmp_path / 'none', '--out', tmp_path / 'out']
    done = subprocess.run([sys.executable, '-m', 'datasets.prepare', *flags],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr == ('datasets.prepare: error: --source: there is no file or folder '
                           f'{tmp_path}/none\n')


def test_files_that_change_between_two_starts_are_not_mixed(tmp_path, run):
    """As many images of other names are another split: files of the first must not stay."""
    tuberlin = tmp_path / 'sketches'
    write_folder(tuberlin, TUBERLIN)
    run('tuberlin', source=tuberlin)
    marker = tmp_path / 'out/prepared.json'
    made = json.loads(marker.read_text())
    old = {key: value for key, value in made.items() if key != 'places'}
    (tmp_path / 'out').rename(tmp_path / 'out.part')
    first = next(path for path in sorted(tuberlin.rglob('*.png')))
    first.rename(first.with_name('zz.png'))
    before = tree(tmp_path / 'out.part')
    check(run('tuberlin', source=tuberlin),
          'out.part was prepared from other images, or with other labels')
    assert tree(tmp_path / 'out.part') == before
    first.with_name('zz.png').rename(first)
    (tmp_path / 'out.part/prepared.json').write_text(json.dumps(old))      # of an older version
    assert run('tuberlin', source=tuberlin)[0] == 0

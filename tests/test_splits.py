"""Which images datasets.prepare puts where: fractions, folds, lists, and the layouts of
ImageNet."""
import io
import json
import random
import sys
import types
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from datasets import prepare
from datasets.splits import ArchivedSketch, Split, split_sketches
from utils.system.errors import InputError

SOURCE = Path('archive.zip')


def sketches(**photographs):
    """For 'ant=4, bee=5': two sketches each of so many photographs."""
    return [ArchivedSketch(f'png/{label}/n{photo:03}-{number}.png', label, f'n{photo:03}-{number}',
                           bytes)
            for label, count in photographs.items() for photo in range(count) for number in (1, 2)]


def split(images, **choices):
    """{class/photograph: split}; the sketches of a photograph lie in one."""
    places = {}
    for image in split_sketches(images, Split(**choices), SOURCE):
        place, name = image.target.split('/', 1)
        assert places.setdefault(name.rsplit('-')[0],
                                 place) == place, 'sketches of a photograph are torn apart'
    return places


def count(places, label, place):
    return sum(name.startswith(f'{label}/') and found == place for name, found in places.items())


def of_split(places, split):
    return {name for name, place in places.items() if place == split}


# By chance

@pytest.mark.parametrize('seed, val_fraction', [(0, None), (3, 0.34)])
def test_the_default_split_stays_as_it_was(seed, val_fraction):
    """As the version before there was another: folders that it prepared must not change."""
    names = [f'n{number:03}' for number in range(80)]
    val = random.Random(f'{seed} ant').sample(names, round((val_fraction or 0.2) * 80))
    places = split(sketches(ant=80), seed=seed, val_fraction=val_fraction)
    assert of_split(places, 'val') == {f'ant/{name}' for name in val}
    assert set(places.values()) == {'train', 'val'}


@pytest.mark.parametrize('K', [2, 3, 5])
@pytest.mark.parametrize('test_fraction', [0, 0.2])
def test_folds(K, test_fraction):
    images = sketches(ant=10, bee=7, cat=5 + (test_fraction > 0))
    folds = [split(images, folds=K, fold=fold, test_fraction=test_fraction)
             for fold in range(1, K + 1)]
    test = of_split(folds[0], 'test')
    assert len(test) == (2 + 1 + 1 if test_fraction else 0)
    for places in folds:
        assert of_split(places, 'test') == test
    times_in_val = Counter(name for places in folds
                           for name, place in places.items() if place == 'val')
    assert times_in_val == dict.fromkeys(folds[0].keys() - test, 1)
    for label in 'ant', 'bee', 'cat':
        sizes = [count(places, label, 'val') for places in folds]
        assert max(sizes) - min(sizes) <= 1
    sizes = [list(places.values()).count('val') for places in folds]
    # as the remainders of classes do not all fall into fold 1
    assert max(sizes) - min(sizes) <= 1
    assert folds[0] == split(images, folds=K, fold=1, test_fraction=test_fraction)
    assert folds[0] != split(images, folds=K, fold=1, test_fraction=test_fraction, seed=1)


def test_a_third_split():
    images = sketches(ant=10, bee=20)
    places = split(images, test_fraction=0.2, val_fraction=0.3)
    assert [count(places, 'ant', place) for place in ('train', 'val', 'test')] == [5, 3, 2]
    assert [count(places, 'bee', place) for place in ('train', 'val', 'test')] == [10, 6, 4]
    test = of_split(places, 'test')
    others = [split(images, test_fraction=0.2, val_fraction=0.5),
              split(images, test_fraction=0.2, folds=3, fold=2)]
    assert all(of_split(other, 'test') == test for other in others)
    assert test != of_split(split(images, test_fraction=0.2, seed=1), 'test')
    assert [count(split(sketches(ant=3), test_fraction=0.9, val_fraction=0.05), 'ant', place)
            for place in ('train', 'val', 'test')] == [1, 1, 1]


@pytest.mark.parametrize('photographs, choices, needed', [
    (1, {}, 2), (2, {'test_fraction': 0.1}, 3), (2, {'folds': 3, 'fold': 1}, 3),
    (3, {'folds': 3, 'fold': 1, 'test_fraction': 0.1}, 4)])
def test_a_class_too_small(photographs, choices, needed):
    sentence = f'class bee in archive.zip .*needs {needed} .* has {photographs}'
    with pytest.raises(InputError, match=f'^--source: {sentence}'):
        split(sketches(ant=9, bee=photographs), **choices)
    assert split(sketches(ant=9, bee=needed), **choices)


# By a list

def listed(tmp_path, text, images=None):
    path = tmp_path / 'list.txt'
    path.write_text(text) if isinstance(text, str) else path.write_bytes(text)
    made = split_sketches(images or BOTH, Split(split_list=str(path)), SOURCE)
    return {f'{image.source}': image.target for image in made}


BOTH = [ArchivedSketch(f'png/{label}/{name}.png', label, name, bytes)
        for label in ('ant', 'hot air balloon') for name in ('1', '2', 'a b')]
BALLOON = 'png/hot air balloon/1.png train\npng/hot air balloon/2.png val\n'


@pytest.mark.parametrize('line',
                         ['png/ant/a b.png train', './png/ant/a b.png\ttrain', 'ant/a b.png,train',
                          'png/ant/a b.png , train  '])
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_a_list(tmp_path, line, end):
    text = f'\ufeff{BALLOON}\n{line}\npng/ant/1.png test\nant/2.png val'.replace('\n', end)
    assert listed(tmp_path, text.encode()) == {
        'archive.zip/png/hot air balloon/1.png': 'train/hot air balloon/1',
        'archive.zip/png/hot air balloon/2.png': 'val/hot air balloon/2',
        'archive.zip/png/ant/a b.png': 'train/ant/a b', 'archive.zip/png/ant/1.png': 'test/ant/1',
        'archive.zip/png/ant/2.png': 'val/ant/2'}


@pytest.mark.parametrize('archived, listed_as', [('NFC', 'NFD'), ('NFD', 'NFC'), ('NFD', 'NFD')])
def test_a_list_in_another_unicode_form(tmp_path, archived, listed_as):
    label, listed_label = (unicodedata.normalize(form, 'caf\xe9') for form in (archived, listed_as))
    sketches = [ArchivedSketch(f'png/{label}/{name}.png', label, name, bytes) for name in '12']
    assert listed(tmp_path, f'png/{listed_label}/1.png train\n{listed_label}/2.png val\n',
                  sketches) == {
        f'archive.zip/png/{label}/1.png': f'train/{label}/1',
        f'archive.zip/png/{label}/2.png': f'val/{label}/2'}


def test_a_list_of_names_in_both_unicode_forms(tmp_path):
    """An archive may have both, as different files."""
    names = [unicodedata.normalize(form, '\xe9') for form in ('NFC', 'NFD')]
    sketches = [ArchivedSketch(f'ant/{name}.png', 'ant', name, bytes) for name in names]
    assert listed(tmp_path, f'ant/{names[0]}.png train\nant/{names[1]}.png val\n', sketches) == {
        f'archive.zip/ant/{names[0]}.png': f'train/ant/{names[0]}',
        f'archive.zip/ant/{names[1]}.png': f'val/ant/{names[1]}'}


@pytest.mark.parametrize('text, says', [
    (BALLOON + 'ant/3.png train', 'line 3 of .*: archive.zip has no sketch ant/3.png'),
    ('1.png train', 'has no sketch 1.png'),
    (BALLOON + '\nhot air balloon/1.png val',
     'line 4 of .* names hot air balloon/1.png again, after line 1'),
    ('ant/1.png valid', 'line 1 of .*: the split valid is not train, val or test'),
    ('ant/1.png', 'line 1 of .* is not a path and a split: ant/1.png'),
    ('', 'names no image'), ('\n \n', 'names no image'), (b'\xff\xfe\x00', 'line 1 of'),
    (BALLOON + 'ant/1.png train', 'no image of class ant into val/'),
    (BALLOON + 'ant/1.png val', 'no image of class ant into train/'),
    (BALLOON.replace('val', 'test') + 'ant/1.png train', 'no image of class ant into test/')])
def test_a_wrong_list(tmp_path, text, says):
    with pytest.raises(InputError, match=f'^--split_list: .*{says}') as error:
        listed(tmp_path, text)
    assert 'list.txt' in str(error.value) and '\n' not in str(error.value)


# As a command

def picture(side=20):
    file = io.BytesIO()
    Image.new('RGB', (side, side), 'white').save(file, 'JPEG')
    return file.getvalue()


def write(root, paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture())
    return root


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """run('tuberlin', flag=value, ...) -> (exit code, output), with --out=tmp_path/out."""
    def run(dataset, **flags):
        words = [f'--{flag}={value}'
                 for flag, value in {'out': tmp_path / 'out', 'size': 16, **flags}.items()]
        monkeypatch.setattr(sys, 'argv', ['prepare', dataset, *words])
        try:
            prepare.main()
        except SystemExit as end:
            error = capsys.readouterr().err
            assert error.startswith('datasets.prepare: error: ') and error.count('\n') == 1
            return end.code, error
        return 0, capsys.readouterr().out
    return run


def images(folder):
    return sorted(path.relative_to(folder).as_posix()
                  for path in folder.rglob('*') if path.suffix in ('.png', '.jpg'))


@pytest.fixture
def tuberlin(tmp_path):
    return write(tmp_path / 'png',
                 [f'{label}/{number}.png' for label in ('ant', 'bee') for number in range(6)])


def test_a_listed_folder(tuberlin, tmp_path, run):
    path = tmp_path / 'split.txt'
    lines = [f'{label}/{number}.png {place}' for label in ('ant', 'bee')
             for number, place in enumerate(['train', 'train', 'val', 'test'])]
    path.write_text('\n'.join(lines))
    code, out = run('tuberlin', source=tuberlin, split_list=path)
    assert code == 0
    assert out.endswith('out: 4 images in train/, 2 in val/, 2 in test/; 4 that --split_list does '
                        'not name left out\n')
    assert images(tmp_path / 'out') == sorted(f'{place}/{name}'
                                              for name, place in (line.split() for line in lines))
    path.write_text('\n'.join(reversed(lines)))     # the same split
    assert 'already prepared' in run('tuberlin', source=tuberlin, split_list=path)[1]
    path.write_text('\n'.join(lines[:-1]))          # another one
    code, error = run('tuberlin', source=tuberlin, split_list=path)
    assert code == 2 and "was prepared with split_list SHA-256 " in error
    code, error = run('tuberlin', source=tuberlin, split_list=tmp_path / 'none')
    assert code == 2 and f'--split_list: there is no file {tmp_path}/none' in error


def test_another_split_is_never_mixed_in(tuberlin, tmp_path, run):
    assert run('tuberlin', source=tuberlin)[0] == 0
    assert set(json.loads((tmp_path / 'out' / 'prepared.json').read_text())) == {
        # the last is new
        'dataset', 'source', 'size', 'val_fraction', 'seed', 'images', 'places'}
    for flags in {'folds': 3, 'fold': 1}, {'test_fraction': 0.2}, {'val_fraction': 0.5}:
        code, error = run('tuberlin', source=tuberlin, **flags)
        assert code == 2 and 'was prepared with' in error and next(iter(flags)) in error
    assert 'already prepared' in run('tuberlin', source=tuberlin, test_fraction=0)[1]
    fold = {'source': tuberlin, 'out': tmp_path / 'folds', 'folds': 3}
    assert '8 images in train/, 4 in val/' in run('tuberlin', **fold, fold=1)[1]
    assert 'already prepared' in run('tuberlin', **fold, fold=1)[1]
    code, error = run('tuberlin', **fold, fold=2)
    assert code == 2 and "was prepared with fold 1, not fold 2;" in error


@pytest.mark.parametrize('flags, says', [
    ({'folds': 3}, '--folds=K and --fold=I, from 1 to K, need each other'),
    ({'fold': 3}, 'need each other'),
    ({'folds': 3, 'fold': 4}, '--fold=4 must not be above --folds=3'),
    ({'folds': 1, 'fold': 1}, 'argument --folds: must be at least 2'),
    ({'folds': 3, 'fold': 0}, 'argument --fold: must be at least 1'),
    ({'folds': 2, 'fold': 1, 'val_fraction': 0.2}, '--folds and --val_fraction exclude'),
    ({'folds': 2, 'fold': 1, 'split_list': 'x'}, '--split_list and --folds exclude each other'),
    ({'split_list': 'x', 'val_fraction': 0.1}, 'exclude'),
    ({'split_list': 'x', 'test_fraction': 0.1}, 'exclude'),
    ({'split_list': ''}, '--split_list must not be empty'),
    ({'test_fraction': 0.8}, '--test_fraction=0.8 and --val_fraction=0.2 leave nothing for train/'),
    ({'test_fraction': 1}, 'must be less than 1'),
    ({'test_fraction': -0.1}, 'at least 0'), ({'test_fraction': 'x'}, 'is not a number')])
def test_wrong_flags(run, tuberlin, flags, says):
    code, error = run('tuberlin', source=tuberlin, **flags)
    assert code == 2 and says in error


# ImageNet

WNIDS = ['n01440764', 'n01443537']
VAL = [f'ILSVRC2012_val_{number:08}' for number in (1, 2, 3)]
TRAIN = [f'train/{wnid}/{wnid}_{number}' for wnid in WNIDS for number in (3, 40)]
OF_VAL = [WNIDS[1], WNIDS[0], WNIDS[1]]
MADE = sorted(f'{path}.jpg'
              for path in [*TRAIN, *(f'val/{wnid}/{name}' for wnid, name in zip(OF_VAL, VAL))])


@pytest.fixture
def kaggle(tmp_path):
    root = tmp_path / 'kaggle'
    write(root / 'ILSVRC/Data/CLS-LOC',
          [f'{path}.JPEG'
           for path in [*TRAIN, *(f'val/{name}' for name in VAL), 'test/ILSVRC2012_test_00000001']])
    lines = [f'{name},{wnid} 1 2 3 4 {wnid} 5 6 7 8\n' for name, wnid in zip(VAL, OF_VAL)]
    (root / 'LOC_val_solution.csv').write_text('ImageId,PredictionString\n'
                                               + ''.join(reversed(lines)))
    return root


@pytest.mark.parametrize('source', ['', 'ILSVRC', 'ILSVRC/Data', 'ILSVRC/Data/CLS-LOC'])
def test_kaggles_folders(kaggle, tmp_path, run, source):
    code, out = run('imagenet12', source=kaggle / source)
    assert code == 0
    assert out.endswith('out: 4 images in train/, 3 in val/\n')
    assert images(tmp_path / 'out') == MADE
    assert 'already prepared' in run('imagenet12', source=kaggle / source)[1]
    made = json.loads((tmp_path / 'out' / 'prepared.json').read_text())
    assert set(made) == {'dataset', 'source', 'size', 'places'}


def test_wrong_labels_of_kaggles_folders(kaggle, tmp_path, run):
    labels = kaggle / 'LOC_val_solution.csv'
    text = labels.read_text()
    val = f'{kaggle}/ILSVRC/Data/CLS-LOC/val'
    for changed, says in [
            (text.replace(VAL[0], 'x'),
             f'--val_labels: the class of {val}/{VAL[0]}.JPEG is missing'),
            (text + f'ILSVRC2012_val_00000004,{WNIDS[0]} 1 2 3 4',
             'lacks 1 images that --val_labels names'),
            (text.replace(WNIDS[0], 'n00000001'), f'only {val} has images of class n00000001')]:
        labels.write_text(changed)
        code, error = run('imagenet12', source=kaggle)
        assert code == 2
        assert says in error
        assert error.count('--') == 1 + ('that --val_labels' in says)
    labels.rename(tmp_path / 'elsewhere')
    code, error = run('imagenet12', source=kaggle)
    assert code == 2 and 'imagenet12 needs --val_labels' in error
    (tmp_path / 'elsewhere').write_text(text)
    assert run('imagenet12', source=kaggle, val_labels=tmp_path / 'elsewhere')[0] == 0


def test_class_folders_are_only_shrunk(tmp_path, run):
    source = write(tmp_path / 'imagenet', [path.replace('.jpg', '.JPEG') for path in MADE])
    assert run('imagenet12', source=source)[0] == 0 and images(tmp_path / 'out') == MADE
    code, error = run('imagenet12', source=source, val_labels=tmp_path / 'x')
    assert code == 2 and '--val_labels' in error and 'class folders already' in error
    write(source, ['train/loose.JPEG'])
    code, error = run('imagenet12', source=source)
    assert code == 2 and f'{source}/train/loose.JPEG lies in no class folder' in error


def test_imagenet_is_not_split(tmp_path, run):
    for flags in ({'folds': 2, 'fold': 1}, {'test_fraction': 0.1}, {'split_list': 'x'},
                  {'val_fraction': 0.1}):
        code, error = run('imagenet12', source=tmp_path, **flags)
        assert code == 2 and 'the split of imagenet12 is published' in error


@pytest.fixture
def devkit(kaggle, monkeypatch):
    """The devkit's labels beside Kaggle's folders, and a SciPy that reads its meta.mat: number 1 is
    the last of the sorted wnids."""
    (kaggle / 'LOC_val_solution.csv').unlink()
    data = kaggle / 'ILSVRC2012_devkit_t12' / 'data'
    data.mkdir(parents=True)
    (data / 'ILSVRC2012_validation_ground_truth.txt').write_text('1\n2\n1\n')
    (data / 'meta.mat').write_bytes(b'')
    synsets = [(1, WNIDS[1], 'goldfish', '', 0, [], 0, 1300),
               (2, WNIDS[0], 'tench', '', 0, [], 0, 1300),
               (1001, 'n00001740', 'entity', '', 2, [1, 2], 9, 0)]
    monkeypatch.setitem(sys.modules, 'scipy', types.ModuleType('scipy'))
    monkeypatch.setitem(sys.modules, 'scipy.io',
                        types.SimpleNamespace(loadmat=lambda path,
                                              squeeze_me: {'synsets': synsets}))
    return data / 'ILSVRC2012_validation_ground_truth.txt'


@pytest.mark.parametrize('named', [True, False])
def test_the_devkits_labels(devkit, kaggle, tmp_path, run, named):
    code, out = run('imagenet12', source=kaggle, **({'val_labels': devkit} if named else {}))
    assert code == 0 and images(tmp_path / 'out') == MADE


def test_what_the_devkits_labels_need(devkit, kaggle, run, monkeypatch):
    flags = {'source': kaggle, 'val_labels': devkit}
    devkit.write_text('1\n2\n1001\n')
    assert '--val_labels: 1001, in line 3 of ' in run('imagenet12', **flags)[1]
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules['scipy.io'], 'loadmat', lambda *_,
                      **__: (_ for _ in ()).throw(ValueError('Unknown mat file type')))
        assert f'cannot read {devkit.parent}/meta.mat: Unknown mat file type' in run(
            'imagenet12', **flags)[1]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'scipy.io', None)
        assert 'needs SciPy: pip install scipy' in run('imagenet12', **flags)[1]
    (devkit.parent / 'meta.mat').unlink()
    assert 'meta.mat' in run('imagenet12', **flags)[1] and run('imagenet12', **flags)[0] == 2

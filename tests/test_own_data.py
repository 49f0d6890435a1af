"""One's own images: --dataset=folder, its recorded normalization, and the third split test/."""
import json
import os
import shutil
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import datasets
import main
import opts
from datasets import measure as measuring
from utils import experiment, packed
from utils.compare import __main__ as compare
from utils.compare import output
from utils.flags import parser
from utils.report.network import facts
from utils.source import checkpoint_source
from utils.system import processes
from utils.system.errors import InputError
from utils.training.checkpoint import read_checkpoint

FLAGS = ['--dataset=folder', '--channels=1', '--workers=0', '--batch-size=6',
         '--model_def=sketchanetwbin',
         '--inpsize=81', '--binaryWeight']


def noise(seed, size=(90, 90), mode='RGB'):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3),
                                                                np.uint8)).convert(mode)


def write(root, splits=('train', 'val', 'test'), classes=('ant', 'bee'), each=3, **options):
    for number, split in enumerate(splits):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(each):
                noise([number, *name.encode(), index],
                      **options).save(root / split / name / f'{index}.png')
    return root


@pytest.fixture(scope='module')
def birds(tmp_path_factory):
    """A folder of three classes with 12 images in train/, 6 in val/ and 5 in test/."""
    root = tmp_path_factory.mktemp('own') / 'birds'
    for split, each in ('train', 4), ('val', 2), ('test', 2):
        write(root, [split], ('bar', 'box', 'ring'), each)
    (root / 'test' / 'bar' / '0.png').unlink()
    return root


@pytest.fixture(scope='module')
def run(birds, tmp_path_factory):
    """The folder of a run of two epochs, trained while test/ could not be read."""
    logs = tmp_path_factory.mktemp('logs')
    shutil.move(birds / 'test', birds.parent / 'test')
    (birds / 'test' / 'wasp').mkdir(parents=True)
    (birds / 'test' / 'wasp' / 'broken.png').write_text('not an image')
    main.main([*FLAGS, f'--data_dir={birds}/', f'--logdir={logs}', '--epochs=2'])
    shutil.rmtree(birds / 'test')
    shutil.move(birds.parent / 'test', birds / 'test')
    return logs / 'birds-sketchanetwbin-dab'


@pytest.fixture(scope='module')
def model(run, tmp_path_factory):
    path = tmp_path_factory.mktemp('exported') / 'birds.dab'
    main.main([f'--resume={run}/last.pth.tar', f'--export={path}'])
    return path


@pytest.fixture
def never_measured(monkeypatch):
    monkeypatch.setattr(measuring, 'measure', None)


@pytest.fixture
def refused(capsys):
    def refusal(*flags):
        with pytest.raises(SystemExit) as exit_:
            main.main([str(flag) for flag in flags])
        assert exit_.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith('main.py: error: ')
        assert error.count('\n') == 1
        assert 'Traceback' not in error
        return error
    return refusal


# Names and flags

@pytest.mark.parametrize('data_dir, name', [
    ('birds', 'birds'), ('birds/', 'birds'), ('birds//.', 'birds'), ('birds/train/..', 'birds'),
    ('.', 'here'), ('./', 'here'),
    ('/', 'root'), ('~/my birds', 'my birds'), ('vögel', 'vögel'), ('a\nb\x1b[c\udcff', 'a_b_[c_'),
    ('x' * 90, 'x' * 50), ('a:b', 'a:b')])
def test_data_is_named_after_its_folder(data_dir, name, tmp_path, monkeypatch):
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    dataset = datasets.name_of_folder(data_dir)
    assert dataset == f'folder:{name}' == parser.dataset(dataset)
    assert datasets.data_name(dataset) == name


@pytest.mark.parametrize('text, canonical', [
    ('0.5', '0.5'), ('.5', '0.5'), ('0.4850,+.456, 4.06e-1', '0.485,0.456,0.406'), ('0', '0.0'),
    ('-0', '0.0'), ('1', '1.0')])
def test_numbers_have_one_spelling(text, canonical):
    assert parser.per_channel(0)(text) == canonical == parser.per_channel(0)(canonical)
    assert opts.parse([f'--mean={text}']) == {'mean': canonical}


@pytest.mark.parametrize('flags, part', [
    (['--channels'], 'needs --channels: 1 for sketches, dark on light, 3 for photographs'),
    (['--data_dir'], 'needs --data_dir'),
    (['--channels=2'], '--channels'), (['--mean=0.5'], '--mean and --std go together'),
    (['--std=0.5'], 'go together'),
    (['--mean=0.5', '--std=0'], 'at least 0.001'), (['--mean=0.5', '--std=nan'], '--std'),
    (['--mean=127', '--std=1'], 'pixels lie in 0..1'),
    (['--mean=0.5,0.5,0.5', '--std=1'],
     '--mean=0.5,0.5,0.5 must have as many numbers as --channels=1'),
    (['--mean=', '--std=1'], 'not a number'), (['--dataset=folder:'], '--dataset'),
    (['--dataset=folder:..'], '--dataset'),
    (['--dataset=tuberlin', '--channels=3'], 'tuberlin have 1'),
    (['--dataset=tuberlin', '--mean=0.1'], '--mean goes with --dataset=folder'),
    (['--dataset=birds'], 'doodles, folder (folder is for your own images in train/<class>/'),
    (['--split=test'], '--split goes with --evaluate')])
def test_refused_flags(birds, refused, flags, part):
    base = [flag for flag in [*FLAGS, f'--data_dir={birds}'] if flag.partition('=')[0] not in flags]
    assert part in refused(*base, *(flag for flag in flags if '=' in flag))


# The normalization

def test_sketches_are_measured_after_inverting(birds):
    data = datasets.load(datasets.spec('folder:birds', 1), birds, 81)
    side = data.train.images.pixels.shape[-1]
    gray = [Image.open(path).convert('L') for path in sorted((birds / 'train').glob('*/*.png'))]
    pixels = 1 - np.stack([image.resize((side, side), Image.BILINEAR) for image in gray]) / 255
    assert data.measured == len(data.train) == 12
    assert np.allclose([*data.spec.mean, *data.spec.std], [pixels.mean(), pixels.std()], atol=0.005)
    assert data.train.transform.mean == data.val.transform.mean == data.spec.mean != (0.,)
    plain = datasets.load(datasets.spec('folder:birds', 1), birds, 81, plain=True)
    assert (plain.spec.mean, plain.spec.std) == (data.spec.mean, data.spec.std)
    assert torch.equal(plain.val[1][0], data.val[1][0])


def test_photographs_are_measured_evenly_spaced(tmp_path, monkeypatch):
    write(tmp_path, each=4, size=(40, 40))
    for name, color in ('ant', (255, 0, 51)), ('bee', (51, 102, 51)):
        for path in sorted((tmp_path / 'train' / name).iterdir()):
            Image.new('RGB', (40, 50), color).save(path)
    monkeypatch.setattr(measuring, 'MEASURED', 2)     # the first of each class
    spec = datasets.spec('folder:x', 3)
    with pytest.raises(InputError,
                       match='all pixels of the training images have the same value in a channel'):
        datasets.load(spec, tmp_path, 32)
    noise(1, (40, 40)).save(tmp_path / 'train' / 'ant' / '1.png')       # not looked at
    Image.new('RGB', (40, 50), (51, 102, 153)).save(tmp_path / 'train' / 'bee' / '0.png')
    data = datasets.load(spec, tmp_path, 32)
    assert (data.spec.mean, data.spec.std, data.measured) == ((0.6, 0.2, 0.4), (0.4, 0.2, 0.2), 2)
    normalize = data.val.transform.transforms[-1]
    assert (tuple(normalize.mean), tuple(normalize.std)) == (data.spec.mean, data.spec.std)


def test_broken_images_are_not_measured(tmp_path):
    write(tmp_path, size=(40, 40))
    (tmp_path / 'train' / 'ant' / '0.png').write_text('broken')
    for channels in 1, 3:
        spec = datasets.spec('folder:x', channels)
        with pytest.raises(InputError, match='skipBroken'):
            datasets.load(spec, tmp_path, 32)
        with pytest.warns(UserWarning, match='left out'):
            data = datasets.load(spec, tmp_path, 32, skipBroken=True)
        assert len(data.train) == data.measured == 5 and data.channels == channels


@pytest.mark.parametrize('channels, like', [(1, 'tuberlin'), (3, 'imagenet12')])
def test_transforms_are_those_of_the_kind(channels, like):
    image = noise(0, mode='L' if channels == 1 else 'RGB')
    spec = datasets.spec('folder:x', channels, *datasets.normalization(like))
    for options in {}, {'tenCrop': True}, {'train': True}:
        torch.manual_seed(0)
        expected = datasets.transform(like, 48, **options)(image)
        torch.manual_seed(0)
        assert torch.equal(datasets.transform(spec, 48, **options)(image), expected)


def test_what_was_not_measured_is_not_used():
    with pytest.raises(InputError, match='not been measured'):
        datasets.transform(datasets.spec('folder:x', 1), 32)
    with pytest.raises(InputError, match='not been measured'):
        datasets.normalization(datasets.spec('folder:x', 1))
    for wrong in (2,), (1, [0.5, 0.5], [1, 1]), (1, [0.5], [0.0]), (3, [0.5], [0.5]):
        with pytest.raises(InputError, match='the dataset folder:x needs'):
            datasets.spec('folder:x', *wrong)


# A run, wherever its data lies later

def test_a_run_records_what_it_measured(run, birds):
    log, flags = (run / 'log.txt').read_text(), json.loads((run / 'flags.json').read_text())
    said = log.split('normalized by ')[1].split(', ')[0].split()
    mean, std = (text.removeprefix(f'--{name}=') for name, text in zip(('mean', 'std'), said))
    assert (f'own images: birds (sketches, --ink=dark), normalized by --mean={mean} --std={std}, '
            'measured on 12 of 12 training') in log
    assert [flags[name]
            for name in ('dataset', 'channels', 'mean', 'std')] == ['folder:birds', 1, mean, std]
    assert 'data: 12 training images, 6 validation images, 3 classes' in log
    row = dict(facts(checkpoint_source(run / 'last.pth.tar'), 8))['data']
    assert row == f'birds, 3 classes, own images normalized by mean {mean} and std {std}'


def test_a_resumed_run_never_measures_again(run, birds, tmp_path, monkeypatch):
    main.main([*FLAGS, f'--data_dir={birds}', f'--logdir={tmp_path}', '--epochs=1', '--name=short'])
    moved = tmp_path / 'elsewhere'
    shutil.copytree(birds, moved)
    # would change what is measured
    Image.new('L', (90, 90)).save(moved / 'train' / 'bar' / 'new.png')
    (moved / 'train' / 'bar' / 'new.png').rename(tmp_path / 'new.png')
    monkeypatch.setattr(measuring, 'measure', None)
    main.main([f'--resume={tmp_path}/short/last.pth.tar', '--epochs=2', '--dataset=folder',
               f'--data_dir={moved}'])
    whole, resumed = (read_checkpoint(folder / 'last.pth.tar')
                      for folder in (run, tmp_path / 'short'))
    assert all(torch.equal(whole['model'][name], tensor)
               for name, tensor in resumed['model'].items())
    for name in 'dataset', 'mean', 'std':
        assert resumed['flags'][name] == whole['flags'][name]


def test_every_way_to_use_it_normalizes_alike(run, model, birds, tmp_path, never_measured, capsys):
    source = checkpoint_source(run / 'last.pth.tar')
    description, _ = packed.load(model)
    assert description.dataset == 'folder:birds'
    assert (description.mean, description.std) == datasets.normalization(source.spec)
    moved, file = tmp_path / 'moved.dab', tmp_path / 'ring.png'
    shutil.copy(model, moved)
    shutil.copy(birds / 'val' / 'ring' / '0.png', file)
    image, _ = datasets.load(source.spec, birds, 81).val[4]
    for path in run / 'last.pth.tar', moved:
        trained = experiment.load(path)
        assert trained.classes == ['bar', 'box', 'ring']
        assert torch.equal(trained.transform(Image.open(file)), image)
    capsys.readouterr()
    lines = []
    for flag in f'--resume={run}/last.pth.tar', f'--packed={moved}':
        for what in ['--classify', str(file)], ['--evaluate', f'--data_dir={birds}',
                                                '--split=test']:
            main.main([flag, *what])
            lines.append(capsys.readouterr().out.partition('loss')[2] or 'ring.png')
    assert lines[:2] == lines[2:] and '/5 ' in lines[1]


@pytest.mark.parametrize('flags, part', [
    (['--channels=3'], 'with --channels=1, not with --channels=3'),
    (['--mean=0.5', '--std=0.5'], 'not with --mean=0.5'),
    (['--mean=0.5'], 'not with --mean=0.5'),
    (['--dataset=tuberlin'],
     'not with --dataset=tuberlin, which normalizes images in another way')])
def test_another_normalization_is_refused(run, model, birds, refused, flags, part):
    for source in f'--resume={run}/last.pth.tar', f'--packed={model}':
        assert part in refused(source, '--evaluate', f'--data_dir={birds}', *flags)


def test_other_classes_are_refused(run, tmp_path, refused):
    write(tmp_path, classes=('bar', 'box', 'rung'))
    assert 'its ring is rung in this data' in refused(f'--resume={run}/last.pth.tar', '--evaluate',
                                                      f'--data_dir={tmp_path}')


def renamed(root, target, names):
    shutil.copytree(root, target)
    for split in target.iterdir():
        for old, new in names.items():
            (split / old).rename(split / new)
    return target


def test_classes_in_another_unicode_form(birds, tmp_path, capsys, refused):
    """A run on names in NFD, as an older version recorded it, is evaluated and resumed on names in
    either form."""
    old, new = ({'bar': 'anneau', 'box': unicodedata.normalize(form, '\xe9cole'), 'ring': 'fleur'}
                for form in ('NFD', 'NFC'))
    data = {form: renamed(birds, tmp_path / form / 'data', names)
            for form, names in (('NFD', old), ('NFC', new))}
    assert sorted(old.values()) != sorted(old.values(),
                                          key=lambda name: unicodedata.normalize('NFC', name))
    main.main([*FLAGS, f'--data_dir={data["NFD"]}', f'--logdir={tmp_path}', '--name=run',
               '--epochs=1'])
    last = tmp_path / 'run/last.pth.tar'
    stored = read_checkpoint(last)
    assert stored['classes'] == ['anneau', 'fleur', '\xe9cole']
    capsys.readouterr()
    main.main([f'--resume={last}', '--evaluate', f'--data_dir={data["NFC"]}'])
    table = capsys.readouterr().out.split('loss')[1]
    assert '\xe9cole' in table
    main.main([*FLAGS, f'--data_dir={data["NFC"]}', f'--logdir={tmp_path}', '--name=run',
               '--epochs=1', '--resume=auto'])
    assert 'other images' not in capsys.readouterr().out

    older = torch.load(last, weights_only=True)
    older['classes'] = sorted(old.values())     # the labels of an older version
    for name in [name for name in older['model'] if name.startswith('classifier.conv8.')]:
        older['model'][name] = older['model'][name][[0, 2, 1]]
    train = datasets.load(datasets.spec('folder:x', 1, [0.5], [0.5]), data['NFD'], 81, plain=True,
                          classes=['anneau', '\xe9cole', 'fleur']).train
    older['training_images'] = datasets.names_digest(train, 'NFD')
    (tmp_path / 'older').mkdir()
    torch.save(older, tmp_path / 'older/last.pth.tar')
    main.main([f'--resume={tmp_path}/older/last.pth.tar', '--evaluate',
               f'--data_dir={data["NFC"]}'])
    assert capsys.readouterr().out.split('loss')[1].splitlines()[0] == table.splitlines()[0]
    main.main([*FLAGS, f'--data_dir={data["NFD"]}', f'--logdir={tmp_path}', '--name=older',
               '--epochs=1', '--resume=auto'])
    assert 'other images' not in capsys.readouterr().out

    other = renamed(data['NFC'], tmp_path / 'other', {'fleur': 'fl\u0435ur'})
    assert "its fleur is fl\u0435ur" not in (error := refused(f'--resume={last}', '--evaluate',
                                                              f'--data_dir={other}'))
    assert "its 'fleur' is 'fl\\u0435ur' in this data" in error


def test_a_checkpoint_older_than_the_flags(run, birds, tmp_path, refused):
    stored = read_checkpoint(run / 'last.pth.tar')
    stored['flags'] = {name: value
                       for name,
                       value in stored['flags'].items()
                       if name not in ('channels', 'mean', 'std', 'split')}
    stored['flags']['dataset'] = 'tuberlin'
    torch.save(stored, tmp_path / 'old.pth.tar')
    old = f'--resume={tmp_path}/old.pth.tar'
    main.main([old, '--evaluate', '--channels=1', '--split=test'])
    assert 'not with --dataset=folder' in refused(old, '--evaluate', '--dataset=folder',
                                                  '--channels=1', f'--data_dir={birds}')


def test_a_comparison_measures_once_for_all_cells(birds, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(processes, 'call_in_new_process', lambda function,
                        *arguments: function(*arguments))
    monkeypatch.setattr(output, 'write', lambda folder, text,
                        *_: (folder / 'compare.md').write_text(text))
    measure, calls = measuring.measure, []
    monkeypatch.setattr(measuring, 'measure', lambda *arguments: calls.append(1)
                        or measure(*arguments))
    flags = ['--model_def=sketchanet', '--methods=dab', '--inputs=real', '--seeds=1', *FLAGS[:4],
             '--inpsize=81', '--epochs=1',
             f'--logdir={tmp_path}']
    compare.main([*flags, f'--data_dir={birds}'])
    cell = tmp_path / 'compare-birds-sketchanet' / 'sketchanetwbin-dab-seed0' / 'last.pth.tar'
    time, spec = cell.stat().st_mtime_ns, checkpoint_source(cell).spec
    assert spec.is_measured and calls == [1] and 'measured on 12 of 12' in capsys.readouterr().out
    assert '6 validation images of birds' in (
        tmp_path / 'compare-birds-sketchanet' / 'compare.md').read_text()
    compare.main([*flags, f'--data_dir={birds}'])
    birds.rename(tmp_path / 'gone')
    compare.main([*flags, f'--data_dir={birds}', '--collect'])
    (tmp_path / 'gone').rename(birds)
    assert cell.stat().st_mtime_ns == time
    with pytest.raises(SystemExit):
        compare.main([*flags, f'--data_dir={birds}', '--mean=0.5', '--std=0.5'])
    assert 'not with --mean=0.5' in capsys.readouterr().err


# The splits

def test_each_split_is_named_in_its_line(run, birds, capsys):
    train = datasets.load(checkpoint_source(run / 'last.pth.tar').spec, birds, 81, split='train')
    assert not torch.equal(train.train[0][0], train.val[0][0]) and len(train.val) == 12
    for split, name, images in ((None, 'Val:', 6), ('val', 'Val:', 6), ('train', 'Train:', 12),
                                ('test', 'Test:', 5)):
        capsys.readouterr()
        main.main([f'--resume={run}/last.pth.tar', '--evaluate',
                   *([f'--split={split}'] if split else [])])
        out = capsys.readouterr().out
        line, = (line for line in out.splitlines() if line.startswith(name))
        assert f'/{images} ' in line and f'{images} images of {split or "val"}' in out


def test_labels_of_a_third_split_are_those_of_training(tmp_path):
    write(tmp_path)
    test = datasets.load('tuberlin', tmp_path, 32, split='test').val
    for index, (image, label) in enumerate(test):
        path = tmp_path / 'test' / ('ant', 'bee')[label] / f'{index % 3}.png'
        assert torch.equal(image, datasets.transform('tuberlin', 32)(datasets.read_image(path, 1)))


@pytest.mark.parametrize('splits, spoil, sentence', [
    (('train', 'val'), None, r'no third split, test/, beside train/ and val/'),
    (('train', 'test'), None,
     'train/ and test/, but no val/: validation uses its test/, on which the best checkpoint was '
     'chosen'),
    (('train', 'val', 'test'), 'test/bee',
     'train and test must have the same classes, but only .*/train has bee'),
    (('train',), None, 'neither val/ nor test/')])
@pytest.mark.parametrize('name', ['tuberlin', 'cifar10', 'folder:x'])
def test_a_third_split_that_does_not_exist(tmp_path, name, splits, spoil, sentence):
    write(tmp_path, splits)
    if spoil:
        shutil.rmtree(tmp_path / spoil)
    spec = datasets.spec(name, 1, [0.5], [0.5])
    with pytest.raises(InputError, match=sentence):
        datasets.load(spec, tmp_path, 32, split='test')
    if splits[1:]:
        for split in 'val', 'train':
            assert len(datasets.load(spec, tmp_path, 32, split=split).val) == 6


def test_doodles_and_official_batches_have_no_third_split(tmp_path):
    assert len(datasets.load('doodles', '', 32, split='train').val) == 1300
    with pytest.raises(InputError, match='^doodles have train and val, but no test$'):
        datasets.load('doodles', '', 32, split='test')
    (tmp_path / 'cifar-10-batches-py').mkdir()
    with pytest.raises(InputError,
                       match='have no third split: their test batch is what validation measures'):
        datasets.load('cifar10', tmp_path, 32, split='test')


def test_the_third_split_of_a_run_whose_data_has_none(run, birds, tmp_path, refused):
    shutil.copytree(birds, tmp_path / 'data', ignore=lambda folder,
                    names: ['val'] if Path(folder).name == os.path.basename(tmp_path / 'data')
                    or folder == str(birds) else [])
    error = refused(f'--resume={run}/last.pth.tar', '--evaluate', f'--data_dir={tmp_path}/data',
                    '--split=test')
    assert '--data_dir: ' in error and 'measure it as --split=val' in error


def test_a_run_does_not_go_on_with_other_images_in_silence(tmp_path, sketch_folder, capsys,
                                                           refused):
    """Another fold, say: the images of its val/ may have been trained on."""
    for name in 'one', 'two':
        shutil.copytree(sketch_folder, tmp_path / name / 'data')
    (tmp_path / 'two/data/train/bar/0.png').rename(tmp_path / 'two/data/val/bar/new.png')
    flags = ['--dataset=tuberlin', '--model_def=sketchanetwbin', '--inpsize=81', '--batch-size=18',
             '--workers=0',
             f'--logdir={tmp_path}/logs', '--name=run']
    main.main([*flags, f'--data_dir={tmp_path}/one/data', '--epochs=1', '--resume=auto'])
    assert 'continues' not in capsys.readouterr().out
    shutil.move(tmp_path / 'one', tmp_path / 'moved')
    main.main([*flags, f'--data_dir={tmp_path}/moved/data', '--epochs=1', '--resume=auto'])
    last = f'{tmp_path}/logs/run/last.pth.tar'
    out = capsys.readouterr().out
    assert f'continues {last} after epoch 1' in out and 'other images' not in out
    error = refused(*flags, f'--data_dir={tmp_path}/two/data', '--epochs=1', '--resume=auto')
    assert 'trained on other images' in error and f'--resume={last}' in error
    main.main([f'--data_dir={tmp_path}/two/data', '--epochs=1', f'--resume={last}'])
    assert f'{last} was trained on other images than those of --data_dir' in capsys.readouterr().out
    old = torch.load(last, weights_only=True)
    del old['training_images']      # a checkpoint of an older version
    torch.save(old, last)
    main.main([*flags, f'--data_dir={tmp_path}/two/data', '--epochs=1', '--resume=auto'])


def test_validation_on_test_is_said(tmp_path, sketch_folder, capsys):
    shutil.copytree(sketch_folder, tmp_path / 'data')
    (tmp_path / 'data/val').rename(tmp_path / 'data/test')
    main.main(['--dataset=tuberlin', f'--data_dir={tmp_path}/data', '--model_def=sketchanetwbin',
               '--inpsize=81', '--epochs=0',
               '--workers=0', f'--logdir={tmp_path}/logs'])
    assert f'validation uses {tmp_path}/data/test, since val/ is missing' in capsys.readouterr().out


@pytest.mark.parametrize('dataset', ['folder', 'tuberlin'])
def test_light_and_dark_strokes_are_noticed(tmp_path, sketch_folder, dataset):
    """By a warning that says what may help: never the --ink that the run has."""
    for name in 'dark', 'light':
        shutil.copytree(sketch_folder, tmp_path / name)
    for path in (tmp_path / 'light').rglob('*.png'):
        ImageOps.invert(Image.open(path)).save(path)
    for drawn, ink, hint in (('light', 'dark', 'need --ink=light or --ink=auto'),
                             ('dark', 'light', 'need --ink=dark or --ink=auto'),
                             ('light', 'light', ''), ('light', 'auto', '')):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('default')
            main.main([f'--dataset={dataset}', f'--data_dir={tmp_path}/{drawn}', '--channels=1',
                       f'--ink={ink}', '--model_def=sketchanetwbin',
                       '--inpsize=81', '--epochs=0', '--workers=0', f'--logdir={tmp_path}/logs',
                       f'--name={drawn}-{ink}'])
        log = (tmp_path / f'logs/{drawn}-{ink}/log.txt').read_text()
        assert (f'(sketches, --ink={ink})' in log) == (dataset == 'folder')
        assert 'need --ink' not in log
        said = [str(warning.message) for warning in caught if 'sketches' in str(warning.message)]
        assert len(said) == (2 if hint else 0)
        assert all('sketches are mostly dark: ' in line and line.endswith(hint) for line in said)

"""--ink: sketches that are not dark on light, and the warning about them (datasets/images.py,
transforms.py, main.py)."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import flags_of
from PIL import Image, ImageDraw, ImageOps

import datasets
import main
from datasets import cache, prepare
from datasets.doodles import Doodles
from utils import experiment
from utils.flags import resolve
from utils.report.__main__ import choose_sketch
from utils.data import dataset_spec
from utils.source import checkpoint_source
from utils.training.checkpoint import read_checkpoint

SHARED = Path(__file__).resolve().parents[2] / 'shared' / 'data'
SMALL = ['--dataset=tuberlin', '--workers=0', '--batch-size=12', '--model_def=densenet',
         '--inpsize=16', '--binEnd=7', '--binaryWeight', '--epochs=1']
DOODLES = [Doodles('val')[index][0] for index in range(26)]
WIDE = DOODLES[0].crop((0, 20, 128, 90))
# Strokes on a transparent ground, and the --ink that reads them.
COLORS = [((0, 0, 0), 'dark'), ((255, 255, 255), 'light'), ((0, 0, 0), 'auto'),
          ((255, 255, 255), 'auto')]


def seen(name, image, ink='dark', size=32):
    """What a network of the dataset sees of an image that is drawn like that."""
    return datasets.transform(name, size)(datasets.as_channels(image, 1, ink=ink))


def paper_fault(image, ink='dark'):
    return datasets.paper_fault(datasets.as_channels(image, 1, ink=ink), ink)


def transparent(sketch, color=(255, 255, 255), mode='RGBA'):
    """The strokes of a dark sketch in this color, on a transparent ground."""
    image = Image.new('RGBA', sketch.size, (*color, 255))
    image.putalpha(ImageOps.invert(sketch))
    return image.quantize(64) if mode == 'P' else image.convert(mode)


def same(one, two):
    return torch.equal(torch.stack([image for image, _ in one]),
                       torch.stack([image for image, _ in two]))


# What a network sees

@pytest.mark.parametrize('name', ['tuberlin', 'sketchyrecognition', 'doodles'])
@pytest.mark.parametrize('sketch', [DOODLES[1], WIDE], ids=['square', 'wide'])
def test_light_and_auto_make_dark_on_light(name, sketch):
    expected = datasets.transform(name, 32)(sketch)
    negative = ImageOps.invert(sketch)
    for ink, drawn in ('dark', sketch), ('light', negative), ('auto', sketch), ('auto', negative):
        assert torch.equal(seen(name, drawn, ink), expected)
    assert not torch.equal(seen(name, sketch, 'light'), expected)
    paper = datasets.transform(name, 32)(Image.new('L', (9, 9), 255)).max()
    # the padding is paper
    assert torch.equal(expected[0, 0, :], paper.expand(32)) or sketch is not WIDE


# A transparent ground

@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P', 'PA'])
@pytest.mark.parametrize('sketch', [DOODLES[2], WIDE], ids=['square', 'wide'])
def test_strokes_on_a_transparent_ground(sketch, mode, tmp_path):
    def read(color, ink, channels=1):
        image = transparent(sketch, color, 'RGBA' if mode == 'P' else mode)
        image = image.quantize(64) if mode == 'P' else image
        path = tmp_path / f'x.{"tif" if mode == "PA" else "png"}'
        image.save(path) if mode != 'PA' else None
        image = (datasets.read_image(path, channels, ink=ink) if mode != 'PA' else
                 datasets.as_channels(image, channels, ink=ink))
        return np.asarray(image, int)
    expected = np.asarray(sketch, int)
    for color, ink in COLORS:
        assert np.abs(read(color, ink) - expected).max() <= 2, (color, ink)
    assert read((255, 255, 255), 'dark').min() == read((0, 0, 0), 'light').min() == 255
    for ink in 'dark', 'light', 'auto':     # of a photograph it is white
        assert read((255, 255, 255), ink, 3).min() == 255
        assert np.abs(read((0, 0, 0), ink, 3)[..., 0] - expected).max() <= 2


def test_16_bit_strokes_on_a_transparent_ground(tmp_path):
    values = np.where(np.asarray(WIDE) < 128, 65535, 0).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / 'x.png', transparency=0)
    for ink, darkest in ('dark', 255), ('light', 0), ('auto', 0):
        read = np.asarray(datasets.read_image(tmp_path / 'x.png', 1, ink=ink))
        assert read.min() == darkest and read.max() == 255 and read[0, 0] == 255


def drawn(fill, outline, box, paper=None):
    image = Image.new('RGBA', (128, 128), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    if paper:
        draw.rounded_rectangle((0, 0, 127, 127), 30, fill=paper)
    draw.ellipse(box, fill=fill, outline=outline, width=5)
    return image


SMALL_STICKER = drawn('white', 'black', (30, 30, 100, 100))
EYE = drawn('black', None, (4, 4, 124, 124))
ImageDraw.Draw(EYE).ellipse((50, 50, 60, 60), fill='white')
WHITE_WITH_EYE = drawn('white', None, (20, 20, 90, 90))
ImageDraw.Draw(WHITE_WITH_EYE).ellipse((50, 50, 56, 56), fill='black')


@pytest.mark.parametrize('image, dark_at, light_at', [
    (SMALL_STICKER, (32, 65), (65, 65)), (EYE, (20, 64), (55, 55)),
    (WHITE_WITH_EYE, (30, 55), (2, 2)),
    (drawn('white', None, (10, 10, 118, 118)), (64, 64), (2, 2)),
    (drawn('black', None, (10, 10, 118, 118)), (64, 64), (2, 2)),
    (drawn('white', 'black', (10, 10, 118, 118)), (12, 64), (64, 64)),
    (drawn(None, 'black', (20, 20, 90, 90), 'white'), (22, 55), (0, 0)),
    (drawn(None, 'white', (20, 20, 90, 90), 'black'), (22, 55), (0, 0)),
    (drawn(None, (255, 255, 255, 90), (20, 20, 90, 90)), (22, 55), (0, 0))],
    ids=['small sticker', 'dark shape with an eye', 'light shape with an eye', 'light silhouette',
         'dark silhouette', 'filled outline', 'paper with round corners',
         'board with round corners', 'faint'])
def test_auto_looks_at_what_is_opaque(image, dark_at, light_at):
    sketch = datasets.as_channels(image, 1, ink='auto')
    assert sketch.getpixel(dark_at) < 170 and sketch.getpixel(light_at) == 255


def test_an_opaque_alpha_channel_changes_nothing():
    for ink in datasets.INK:
        for sketch in DOODLES[3], ImageOps.invert(DOODLES[3]), lit(DOODLES[3], even(0.45)):
            assert np.array_equal(datasets.as_channels(sketch.convert('RGBA'), 1, ink=ink),
                                  datasets.as_channels(sketch, 1, ink=ink))


@pytest.fixture(scope='module')
def chalk(sketch_folder, tmp_path_factory):
    """The sketches of sketch_folder in white on a transparent ground."""
    root = tmp_path_factory.mktemp('chalk')
    for path in sketch_folder.rglob('*.png'):
        target = root / path.relative_to(sketch_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        transparent(Image.open(path)).save(target)
    return root


def test_sheets_without_ink_are_counted_and_named_at_each_start(chalk, sketch_folder, monkeypatch):
    sentence = ('{}/{}: {} of {} sketches have hardly any ink: bar/0.png, bar/1.png, bar/{}.png, '
                'and {} more; light strokes on a dark or transparent ground need --ink=light or '
                '--ink=auto')
    for _ in range(2):
        with pytest.warns(UserWarning) as caught:
            data = datasets.load('tuberlin', chalk, 32)
        assert [str(warning.message) for warning in caught] == [
            sentence.format(chalk, 'train', 36, 36, 10, 33),
            sentence.format(chalk, 'val', 12, 12, 2, 9)]
        monkeypatch.setattr(cache, 'decoded', None)     # the cache file knows it
    assert float(data.train[0][0].std()) == 0
    monkeypatch.undo()
    original = datasets.load('tuberlin', sketch_folder, 32)
    for ink in 'light', 'auto':
        # and there is no warning
        data = datasets.load(datasets.spec('tuberlin', ink=ink), chalk, 32)
        assert same(data.train, original.train) and same(data.val, original.val)


@pytest.mark.parametrize('ink, hint', [
    ('dark', '; light strokes on a dark or transparent ground need --ink=light or --ink=auto'),
    ('light', '; dark strokes on a light or transparent ground need --ink=dark or --ink=auto')])
def test_dark_sketches_are_counted_where_there_are_many(sketch_folder, negatives, ink, hint,
                                                        tmp_path):
    data = shutil.copytree({'dark': sketch_folder, 'light': negatives}[ink], tmp_path / 'data')
    spec, strange = datasets.spec('tuberlin', ink=ink), sorted((data / 'train/ring').iterdir())[:4]
    for path in strange[:3]:        # of 36
        ImageOps.invert(Image.open(path)).save(path)
    datasets.load(spec, data, 32)
    ImageOps.invert(Image.open(strange[3])).save(strange[3])
    sentence = f'4 of 36 sketches are mostly dark: ring/0.png, .*, and 1 more{hint}'
    with pytest.warns(UserWarning, match=f'^{data}/train: {sentence}$'):
        datasets.load(spec, data, 32)


def test_broken_images_are_not_without_ink(chalk, tmp_path):
    data = shutil.copytree(chalk, tmp_path / 'data')
    (data / 'train/bar/1.png').write_text('broken')
    with pytest.warns(UserWarning) as caught:
        loaded = datasets.load('tuberlin', data, 32, skipBroken=True)
    said = [str(warning.message) for warning in caught]
    assert 'cannot be read' in said[0]
    assert said[1].startswith(
        f'{data}/train: 35 of 35 sketches have hardly any ink: bar/0.png, bar/10.png, bar/11.png, '
        'and 32 more')
    assert len(loaded.train) == 35


@pytest.mark.parametrize('size', [256, 64])
def test_prepare_leaves_the_ink_of_transparent_sketches_to_training(size, tmp_path):
    """So that every --ink makes of the prepared sketch what it makes of the original."""
    for name, image in [('chalk', transparent(DOODLES[2])),
                        ('pen', transparent(DOODLES[2], (0, 0, 0))), ('sticker', SMALL_STICKER),
                        ('silhouette', drawn('white', None, (10, 10, 118, 118))),
                        ('opaque', DOODLES[2].convert('RGBA'))]:
        image.save(tmp_path / 'x.png')
        prepare.shrink((tmp_path / 'x.png').read_bytes(), name, tmp_path / f'{name}.png', 1, size)
        assert Image.open(tmp_path / f'{name}.png').mode == ('L' if name == 'opaque' else 'LA')
        for ink in datasets.INK:
            original, prepared = (datasets.read_image(tmp_path / file, 1, ink=ink)
                                  for file in ('x.png', f'{name}.png'))
            original = original.resize((size, size),
                                       Image.LANCZOS) if size < original.width else original
            assert np.abs(np.asarray(prepared, int)
                          - np.asarray(original, int)).max() <= 10, (name, ink)


def test_other_images_have_no_ink():
    image = Image.new('RGB', (40, 40), (10, 20, 30))
    for name in 'cifar10', 'imagenet12':
        assert torch.equal(datasets.transform(datasets.spec(name, ink='light'), 32)(image),
                           datasets.transform(name, 32)(image))
    flags = flags_of('--ink=light', '--dataset=cifar10', '--model_def=bincifar')
    sentences = [resolve.ignored(flags, channels, torch.device('cpu')) for channels in (1, 3)]
    assert not [line for line in sentences[0] if '--ink' in line]
    assert [line for line in sentences[1] if '--ink is ignored' in line]


@pytest.mark.parametrize('dataset, size',
                         [(['--dataset=doodles'], 97), (['--dataset=imagenet12'], 64)])
def test_minCrop_decides_the_crops(dataset, size):
    flags = flags_of('--minCrop=0.7', *dataset)
    spec = dataset_spec(vars(flags))
    steps = spec.steps(size, spec.minCrop)
    if steps.in_batches:
        boxes = steps.augment.draw(0, 0, range(500))
        assert (boxes[:, 2] * boxes[:, 3]).min() >= 0.69 * steps.augment.side ** 2
    else:
        assert (0.7, 1) in [getattr(step, 'scale', None) for step in steps.augment]
    assert not [line
                for line in resolve.ignored(flags, 1, torch.device('cpu')) if '--minCrop' in line]
    flags = flags_of('--minCrop=0.7', '--dataset=cifar10', '--model_def=bincifar')
    assert [line
            for line in resolve.ignored(flags, 3, torch.device('cpu'))
            if '--minCrop is ignored' in line]


@pytest.fixture(scope='module')
def negatives(sketch_folder, tmp_path_factory):
    """The sketches of sketch_folder as with chalk on a board."""
    root = tmp_path_factory.mktemp('negatives')
    for path in sketch_folder.rglob('*.png'):
        target = root / path.relative_to(sketch_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        ImageOps.invert(Image.open(path)).save(target)
    return root


def test_a_cached_folder_is_not_served_for_another_ink(sketch_folder, negatives):
    original = datasets.load('tuberlin', sketch_folder, 32)
    loaded = [datasets.load(datasets.spec('tuberlin', ink=ink), negatives, 32)
              for ink in ('dark', 'light', 'auto', 'dark', 'light')]
    dark, light, auto, *again = loaded
    assert same(light.train, original.train)
    assert same(light.val, original.val)
    assert same(auto.val, original.val)
    assert not same(dark.val, original.val)
    assert same(dark.val, again[0].val)
    assert same(light.val, again[1].val)
    assert len({datasets.fingerprint(data.val) for data in loaded}) == 3
    plain = datasets.load(datasets.spec('tuberlin', ink='light'), negatives, 32, plain=True)
    assert same(plain.val, original.val)


# The warning

def lit(sketch, field, noise=0.0):
    """A photograph of the sketch: `field(x, y)` is the light on the paper, x and y in 0..1."""
    values = np.asarray(sketch) / 255
    y, x = np.mgrid[0:1:values.shape[0] * 1j, 0:1:values.shape[1] * 1j]
    values = values * field(x, y) + noise * np.random.default_rng(0).standard_normal(values.shape)
    return Image.fromarray((255 * values.clip(0, 1)).astype(np.uint8))


def even(light):
    return lambda x, y: light + 0 * x


PHOTOGRAPHS = {
    'gray': even(0.6), 'light gray': even(0.85),
    'gradient': lambda x, y: 0.6 + 0.3 * (x + y) / 2,
    'bright gradient': lambda x, y: 0.7 + 0.3 * x,
    'shadow': lambda x, y: np.where(y > 0.6, 0.6, 1.0)}


@pytest.mark.parametrize('light', PHOTOGRAPHS)
@pytest.mark.parametrize('noise', [0, 0.03])
def test_paper_that_is_not_white(light, noise):
    for sketch in [*DOODLES[:8], WIDE, DOODLES[9].resize((600, 600))]:
        assert paper_fault(lit(sketch, PHOTOGRAPHS[light],
                               noise)).startswith('is not on white paper')


def test_sketches_without_a_fault():
    thick = [lit(sketch, even(1.0), 0.02) for sketch in DOODLES]
    for width in 8, 14:
        sketch = Image.new('L', (128, 128), 255)
        ImageDraw.Draw(sketch).line([(20, 20), (100, 30), (90, 100), (30, 110), (20, 20)], fill=0,
                                    width=width)
        thick.append(sketch)
    filled = Image.new('L', (128, 128), 255)
    ImageDraw.Draw(filled).ellipse((15, 15, 95, 110), fill=0)
    for sketch in [*DOODLES, *thick, filled, WIDE, DOODLES[0].resize((28, 28))]:
        assert paper_fault(sketch) is None and paper_fault(sketch, 'auto') is None
        assert paper_fault(ImageOps.invert(sketch), 'light') is None
        assert paper_fault(ImageOps.invert(sketch), 'auto') is None
        assert paper_fault(ImageOps.invert(sketch)).startswith('is mostly dark: ')
        assert '--ink=light' in paper_fault(ImageOps.invert(sketch))
        assert paper_fault(sketch, 'light').startswith(
            'is mostly dark once --ink=light has inverted it; dark strokes on a light ')


@pytest.mark.parametrize('value', [0, 128, 255])
def test_a_sheet_without_ink(value):
    for image in (Image.new('L', (1, 1), value), Image.new('L', (60, 40), value),
                  Image.new('RGBA', (40, 40), (value, value, value, 0))):
        hints = [paper_fault(image, ink) for ink in ('dark', 'light', 'auto')]
        assert [hint.partition('; ')[0] for hint in hints] == ['has hardly any ink'] * 3
        assert '--ink=light' in hints[0] and '--ink=dark' in hints[1] and '--ink' not in hints[2]


def edge(size, value):
    image = Image.new('L', size, 255)
    ImageDraw.Draw(image).rectangle((0, 0, size[0] // 25, size[1]), fill=value)
    return image


@pytest.mark.parametrize('image', [
    Image.eval(DOODLES[0], lambda value: 226 + 29 * value // 255), edge((1000, 800), 128),
    edge((100, 120), 0),
    ImageOps.expand(Image.new('L', (3, 3), 0), 100, 255)],
                         ids=['faint', 'gray scan edge', 'black scan edge', 'speck'])
def test_hardly_any_ink(image, tmp_path):
    assert paper_fault(image).startswith('has hardly any ink; ')
    assert paper_fault(ImageOps.invert(image), 'light').startswith('has hardly any ink; ')


def test_the_thinnest_strokes_are_ink():
    image = Image.new('L', (1111, 1111), 255)
    ImageDraw.Draw(image).line([(400, 400), (700, 650)], fill=120, width=1)
    assert paper_fault(image) is None


@pytest.mark.skipif(not SHARED.is_dir(), reason=f'{SHARED} is absent')
def test_real_sketches_have_no_fault():
    for path in datasets.image_files([SHARED / 'tuberlin40'])[::7]:
        assert paper_fault(Image.open(path)) is None, path


# As its user runs it

@pytest.fixture(scope='module')
def trained(sketch_folder, negatives, tmp_path_factory):
    """{'dark': a run on sketch_folder, 'light': one with --ink=light on negatives}: their last
    checkpoints."""
    logs = tmp_path_factory.mktemp('trained')
    for ink, data in ('dark', sketch_folder), ('light', negatives):
        main.main([*SMALL, f'--data_dir={data}', f'--logdir={logs}', f'--name={ink}',
                   *(['--ink=light'] if ink == 'light' else [])])
    return {ink: logs / ink / 'last.pth.tar' for ink in ('dark', 'light')}


def weights(path):
    return read_checkpoint(path)['model']


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_training_resuming_and_evaluating(trained, negatives, capsys, tmp_path):
    assert equal(weights(trained['light']), weights(trained['dark']))
    recorded = [json.loads((trained[ink].parent / 'flags.json').read_text())['ink']
                for ink in ('dark', 'light')]
    assert recorded == ['dark', 'light']
    unbroken = [*SMALL, f'--data_dir={negatives}', '--ink=light', f'--logdir={tmp_path}']
    main.main([*unbroken, '--name=unbroken', '--epochs=2'])
    main.main([f'--resume={trained["light"]}', '--epochs=2', f'--logdir={tmp_path}',
               '--name=resumed'])
    assert equal(weights(tmp_path / 'resumed/last.pth.tar'),
                 weights(tmp_path / 'unbroken/last.pth.tar'))
    capsys.readouterr()
    lines = []
    for resume, ink in (('dark', ['--ink=light']), ('dark', ['--ink=auto']), ('light', []),
                        ('light', ['--ink=dark'])):
        main.main([f'--resume={trained[resume]}', '--evaluate', f'--data_dir={negatives}', *ink])
        lines.append(capsys.readouterr().out.split('loss')[1].splitlines()[0])
    assert lines[0] == lines[1] == lines[2] != lines[3]


@pytest.fixture
def classify(capsys, tmp_path):
    """classify(image, flag, ...) -> (likeliest classes, warnings)."""
    def run(image, *flags):
        image.save(tmp_path / 'photo.png')
        capsys.readouterr()
        main.main([*map(str, flags), '--classify', f'{tmp_path}/photo.png'])
        out, err = capsys.readouterr()
        assert out.startswith(f'{tmp_path}/photo.png: ')
        return out, err
    return run


def test_classifying(trained, classify, tmp_path):
    sketch, photo = f'{tmp_path}/photo.png', f'main.py: warning: {tmp_path}/photo.png '
    resume, model = f'--resume={trained["dark"]}', tmp_path / 'model.dab'
    main.main([resume, f'--export={model}'])
    expected, warning = classify(DOODLES[2], resume)
    assert warning == ''
    wrong, warning = classify(ImageOps.invert(DOODLES[2]), resume)
    assert wrong != expected
    assert warning.startswith(f'{photo}is mostly dark: ')
    assert warning.count('\n') == 1
    for network in resume, f'--packed={model}':
        for ink, drawn in (('light', ImageOps.invert(DOODLES[2])), ('auto', DOODLES[2]),
                           ('auto', ImageOps.invert(DOODLES[2]))):
            assert classify(drawn, network, f'--ink={ink}') == (expected, ''), sketch
        out, warning = classify(DOODLES[2], network, '--ink=light')
        assert out == wrong
        assert warning.startswith(f'{photo}is mostly dark once --ink=light has inverted it')
        for color, ink in COLORS:
            assert classify(transparent(DOODLES[2], color), network,
                            f'--ink={ink}') == (expected, '')
        assert classify(transparent(DOODLES[2]), network)[1].startswith(
            f'{photo}has hardly any ink; light strokes on a dark or transparent ground need '
            '--ink=light')
    assert classify(lit(DOODLES[2], PHOTOGRAPHS['gradient']),
                    resume)[1].startswith(f'{photo}is not on white paper')
    assert classify(ImageOps.invert(DOODLES[2]), f'--resume={trained["light"]}') == (expected, '')


def test_a_packed_model_does_not_record_it(trained, tmp_path, capsys):
    for ink in 'light', 'dark':
        main.main([f'--resume={trained[ink]}', f'--export={tmp_path}/{ink}.dab'])
        note = f'{tmp_path}/{ink}.dab does not record --ink={ink}: give it with --packed'
        assert (note in capsys.readouterr().out) == (ink == 'light')
    main.main([f'--resume={trained["light"]}', f'--export={tmp_path}/light.pt'])
    note = 'light.pt does not record --ink=light: make its images dark on light'
    assert note in capsys.readouterr().out


def test_scripts_and_reports_read_as_the_checkpoint_did(trained, tmp_path):
    dark, light = (experiment.load(trained[ink]).transform for ink in ('dark', 'light'))
    expected = dark(WIDE)
    assert torch.equal(light(ImageOps.invert(WIDE)), expected)
    assert torch.equal(light(transparent(WIDE)), expected)
    ImageOps.invert(WIDE).save(tmp_path / 'wide.png')
    assert torch.equal(choose_sketch(checkpoint_source(trained['light']), None, '',
                                     f'{tmp_path}/wide.png')[0], expected)
    drawn = [choose_sketch(checkpoint_source(trained[ink]), None, 'missing', None)[0]
             for ink in ('dark', 'light')]
    assert torch.equal(*drawn)      # the program's own doodles are dark on light


def test_photographs_are_not_warned_about(tmp_path, classify):
    for split in 'train', 'val':
        for label in 'ab':
            (tmp_path / 'data' / split / label).mkdir(parents=True)
            for number in range(2):
                Image.new('RGB', (40, 40),
                          (number, 9, 9)).save(tmp_path / 'data' / split / label / f'{number}.png')
    main.main(['--dataset=cifar10', '--model_def=squeezenet', '--inpsize=33',
               f'--data_dir={tmp_path}/data', '--epochs=1', '--batch-size=2', '--workers=0',
               '--binaryWeight', f'--logdir={tmp_path}', '--name=photos'])
    assert classify(Image.new('RGB', (40, 40), (9, 9, 9)),
                    f'--resume={tmp_path}/photos/last.pth.tar')[1] == ''

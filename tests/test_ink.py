"""--ink: sketches that are not dark on light, and the warning about them (datasets/images.py, transforms.py, main.py)."""
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

import datasets
import main
import opts
from datasets.doodles import Doodles
from datasets.images import paper_fault
from utils import experiment, resolve
from utils.report.__main__ import choose_sketch
from utils.source import checkpoint_source, dataset_spec
from utils.training.checkpoint import read_checkpoint

SMALL = ['--dataset=tuberlin', '--workers=0', '--batch-size=12', '--model_def=densenet', '--inpsize=16', '--binEnd=7', '--binaryWeight', '--epochs=1']
DOODLES = [Doodles('val')[index][0] for index in range(26)]
WIDE = DOODLES[0].crop((0, 20, 128, 90))


def same(one, two):
    return torch.equal(torch.stack([image for image, _ in one]), torch.stack([image for image, _ in two]))


# What a network sees

@pytest.mark.parametrize('name', ['tuberlin', 'sketchyrecognition', 'doodles'])
@pytest.mark.parametrize('sketch', [DOODLES[1], WIDE], ids=['square', 'wide'])
def test_light_and_auto_make_dark_on_light(name, sketch):
    seen = datasets.transform(name, 32)(sketch)
    for ink, drawn in ('dark', sketch), ('light', ImageOps.invert(sketch)), ('auto', sketch), ('auto', ImageOps.invert(sketch)):
        assert torch.equal(datasets.transform(datasets.spec(name, ink=ink), 32)(drawn), seen)
    assert not torch.equal(datasets.transform(datasets.spec(name, ink='light'), 32)(sketch), seen)
    paper = datasets.transform(name, 32)(Image.new('L', (9, 9), 255)).max()
    assert torch.equal(seen[0, 0, :], paper.expand(32)) or sketch is not WIDE      # the padding is paper


@pytest.mark.parametrize('plain', [False, True])
def test_training_images(plain):
    def seen(sketch, ink):
        torch.manual_seed(1)
        return datasets.transform(datasets.spec('tuberlin', ink=ink), 32, train=True, plain=plain)(sketch)
    assert torch.equal(seen(ImageOps.invert(WIDE), 'light'), seen(WIDE, 'dark'))


def test_other_images_have_no_ink():
    image = Image.new('RGB', (40, 40), (10, 20, 30))
    for name in 'cifar10', 'imagenet12':
        assert torch.equal(datasets.transform(datasets.spec(name, ink='light'), 32)(image), datasets.transform(name, 32)(image))
    flags = resolve.complete(opts.parse(['--ink=light', '--dataset=cifar10', '--model_def=bincifar']))
    sentences = [resolve.resolve(flags, ['a', 'b'], channels, torch.device('cpu'))[1] for channels in (1, 3)]
    assert not [line for line in sentences[0] if '--ink' in line] and [line for line in sentences[1] if '--ink is ignored' in line]


@pytest.mark.parametrize('dataset, size', [(['--dataset=doodles'], 97), (['--dataset=imagenet12'], 64)])
def test_minCrop_decides_the_crops(dataset, size):
    flags = resolve.complete(opts.parse(['--minCrop=0.7', *dataset]))
    steps = dataset_spec(vars(flags)).steps_of(size)
    assert (0.7, 1) in [getattr(step, 'scale', None) for step in steps.augment]
    if steps.batched:
        boxes = steps.batched.draw(0, 0, range(500))
        assert (boxes[:, 2] * boxes[:, 3]).min() >= 0.69 * steps.batched.side ** 2
    assert not [line for line in resolve.resolve(flags, ['a', 'b'], 1, torch.device('cpu'))[1] if '--minCrop' in line]
    flags = resolve.complete(opts.parse(['--minCrop=0.7', '--dataset=cifar10', '--model_def=bincifar']))
    assert [line for line in resolve.resolve(flags, ['a', 'b'], 3, torch.device('cpu'))[1] if '--minCrop is ignored' in line]


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
    loaded = [datasets.load(datasets.spec('tuberlin', ink=ink), negatives, 32) for ink in ('dark', 'light', 'auto', 'dark', 'light')]
    dark, light, auto, *again = loaded
    assert same(light.train, original.train) and same(light.val, original.val) and same(auto.val, original.val)
    assert not same(dark.val, original.val) and same(dark.val, again[0].val) and same(light.val, again[1].val)
    assert len({datasets.fingerprint(data.val) for data in loaded}) == 3
    plain = datasets.load(datasets.spec('tuberlin', ink='light'), negatives, 32, plain=True)
    assert same(plain.val, original.val)


def test_the_files_of_before_are_still_good(sketch_folder):
    """The key of a folder of dark sketches has stayed what it was without --ink."""
    import hashlib

    from datasets import cache
    cached = datasets.load('tuberlin', sketch_folder, 32).val.images
    content = cache.content(datasets.folders.find(sketch_folder, 1, [])[1])
    assert cached.key == hashlib.sha256(f'{content} 40 False'.encode()).digest()


# The warning

def lit(sketch, field, noise=0.0):
    """A photograph of the sketch: `field(x, y)` is the light on the paper, x and y in 0..1."""
    values = np.asarray(sketch) / 255
    y, x = np.mgrid[0:1:values.shape[0] * 1j, 0:1:values.shape[1] * 1j]
    values = values * field(x, y) + noise * np.random.default_rng(0).standard_normal(values.shape)
    return Image.fromarray((255 * values.clip(0, 1)).astype(np.uint8))


PHOTOGRAPHS = {
    'gray': lambda x, y: 0.6 + 0 * x, 'light gray': lambda x, y: 0.85 + 0 * x, 'gradient': lambda x, y: 0.6 + 0.3 * (x + y) / 2,
    'bright gradient': lambda x, y: 0.7 + 0.3 * x, 'shadow': lambda x, y: np.where(y > 0.6, 0.6, 1.0)}


@pytest.mark.parametrize('light', PHOTOGRAPHS)
@pytest.mark.parametrize('noise', [0, 0.03])
def test_paper_that_is_not_white(light, noise):
    for sketch in [*DOODLES[:8], WIDE, DOODLES[9].resize((600, 600))]:
        assert paper_fault(lit(sketch, PHOTOGRAPHS[light], noise)).startswith('is not on white paper')


def test_sketches_without_a_fault():
    thick = [lit(sketch, lambda x, y: 1.0 + 0 * x, 0.02) for sketch in DOODLES]
    for width in 8, 14:
        sketch = Image.new('L', (128, 128), 255)
        ImageDraw.Draw(sketch).line([(20, 20), (100, 30), (90, 100), (30, 110), (20, 20)], fill=0, width=width)
        thick.append(sketch)
    filled = Image.new('L', (128, 128), 255)
    ImageDraw.Draw(filled).ellipse((15, 15, 95, 110), fill=0)
    for sketch in [*DOODLES, *thick, filled, WIDE, DOODLES[0].resize((28, 28)), Image.new('L', (1, 1), 255)]:
        assert paper_fault(sketch) is None and paper_fault(sketch, 'auto') is None
        assert paper_fault(ImageOps.invert(sketch), 'light') is None and paper_fault(ImageOps.invert(sketch), 'auto') is None
        assert paper_fault(ImageOps.invert(sketch)).startswith('is mostly dark: ') and '--ink=light' in paper_fault(ImageOps.invert(sketch))
        assert paper_fault(sketch, 'light') == 'is mostly dark once --ink=light has inverted it'


# As its user runs it

@pytest.fixture(scope='module')
def trained(sketch_folder, negatives, tmp_path_factory):
    """{'dark': a run on sketch_folder, 'light': one with --ink=light on negatives}: their last checkpoints."""
    logs = tmp_path_factory.mktemp('trained')
    for ink, data in ('dark', sketch_folder), ('light', negatives):
        main.main([*SMALL, f'--data_dir={data}', f'--logdir={logs}', f'--name={ink}', *(['--ink=light'] if ink == 'light' else [])])
    return {ink: logs / ink / 'last.pth.tar' for ink in ('dark', 'light')}


def weights(path):
    return read_checkpoint(path)['model']


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_training_resuming_and_evaluating(trained, negatives, capsys, tmp_path):
    assert equal(weights(trained['light']), weights(trained['dark']))
    recorded = [json.loads((trained[ink].parent / 'flags.json').read_text())['ink'] for ink in ('dark', 'light')]
    assert recorded == ['dark', 'light']
    unbroken = [*SMALL, f'--data_dir={negatives}', '--ink=light', f'--logdir={tmp_path}']
    main.main([*unbroken, '--name=unbroken', '--epochs=2'])
    main.main([f'--resume={trained["light"]}', '--epochs=2', f'--logdir={tmp_path}', '--name=resumed'])
    assert equal(weights(tmp_path / 'resumed/last.pth.tar'), weights(tmp_path / 'unbroken/last.pth.tar'))
    capsys.readouterr()
    lines = []
    for resume, ink in ('dark', ['--ink=light']), ('dark', ['--ink=auto']), ('light', []), ('light', ['--ink=dark']):
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
    assert wrong != expected and warning.startswith(f'{photo}is mostly dark: ') and warning.count('\n') == 1
    for network in resume, f'--packed={model}':
        for ink, drawn in ('light', ImageOps.invert(DOODLES[2])), ('auto', ImageOps.invert(DOODLES[2])), ('auto', DOODLES[2]):
            assert classify(drawn, network, f'--ink={ink}') == (expected, ''), sketch
        assert classify(DOODLES[2], network, '--ink=light') == (wrong, f'{photo}is mostly dark once --ink=light has inverted it\n')
    assert classify(lit(DOODLES[2], PHOTOGRAPHS['gradient']), resume)[1].startswith(f'{photo}is not on white paper')
    assert classify(ImageOps.invert(DOODLES[2]), f'--resume={trained["light"]}') == (expected, '')


def test_a_packed_model_does_not_record_it(trained, tmp_path, capsys):
    for ink in 'light', 'dark':
        main.main([f'--resume={trained[ink]}', f'--export={tmp_path}/{ink}.dab'])
        note = f'{tmp_path}/{ink}.dab does not record --ink={ink}: give it with --packed'
        assert (note in capsys.readouterr().out) == (ink == 'light')
    main.main([f'--resume={trained["light"]}', f'--export={tmp_path}/light.pt'])
    assert 'light.pt does not record --ink=light: make its images dark on light' in capsys.readouterr().out


def test_scripts_and_reports_read_as_the_checkpoint_did(trained, tmp_path):
    dark, light = (experiment.load(trained[ink]).transform for ink in ('dark', 'light'))
    expected = dark(WIDE)
    assert torch.equal(light(ImageOps.invert(WIDE)), expected)
    ImageOps.invert(WIDE).save(tmp_path / 'wide.png')
    assert torch.equal(choose_sketch(checkpoint_source(trained['light']), None, '', f'{tmp_path}/wide.png')[0], expected)
    drawn = [choose_sketch(checkpoint_source(trained[ink]), None, 'missing', None)[0] for ink in ('dark', 'light')]
    assert torch.equal(*drawn)      # the program's own doodles are dark on light


def test_photographs_are_not_warned_about(tmp_path, classify):
    for split in 'train', 'val':
        for label in 'ab':
            (tmp_path / 'data' / split / label).mkdir(parents=True)
            for number in range(2):
                Image.new('RGB', (40, 40), (number, 9, 9)).save(tmp_path / 'data' / split / label / f'{number}.png')
    main.main(['--dataset=cifar10', '--model_def=squeezenet', '--inpsize=33', f'--data_dir={tmp_path}/data', '--epochs=1', '--batch-size=2', '--workers=0',
               '--binaryWeight', f'--logdir={tmp_path}', '--name=photos'])
    assert classify(Image.new('RGB', (40, 40), (9, 9, 9)), f'--resume={tmp_path}/photos/last.pth.tar')[1] == ''

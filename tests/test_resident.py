"""Batched augmentation, its chance, and data on the device (--dataOn)."""
import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_datasets import noise, sketch, write_folders
from test_main import SMALL
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import datasets
import main
from datasets import augmentation
from datasets import items as resident
from datasets.items import DeviceLoader
from utils.bench import __main__ as bench
from utils.experiment import from_command
from utils.system.errors import InputError
from utils.training.checkpoint import read_checkpoint
from utils.training.loaders import WorkersLoader

CPU = torch.device('cpu')
DATASETS = ['tuberlin', 'sketchyrecognition', 'cifar10', 'doodles']


@pytest.fixture(autouse=True)
def few_doodles(monkeypatch):
    monkeypatch.setattr('datasets.doodles.PER_CLASS', {'train': 2, 'val': 1})


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp('images'), each=5)


def load(name, folder, inpsize=32, **options):
    return datasets.load(name, folder, inpsize, **options)


def batches(loader):
    """All images and labels of a loader."""
    images, labels = zip(*loader)
    return torch.cat(images), torch.cat(labels)


# Chance

def test_splitmix64():
    """The published stream of the seed 1234567, and numbers that are as even as chance allows."""
    steps = np.uint64(augmentation.GOLDEN) * np.arange(1, 4, dtype=np.uint64)
    assert augmentation._mix(np.uint64([1234567]) + steps).tolist() == [
        6457827717110365317, 3203168211198807973, 9817491932198370423]
    numbers = augmentation.uniform(0, 0, range(2000), 42)
    assert 0 <= numbers.min() and numbers.max() < 1 and len(np.unique(numbers)) == numbers.size
    counts = np.histogram(numbers, 100)[0]
    assert ((counts - 840) ** 2 / 840).sum() < 149      # chi squared of 99 degrees, p = .001
    off_diagonal = np.corrcoef(numbers.T) - np.eye(42)
    assert np.abs(off_diagonal).max() < 4.5 / 2000 ** .5


def test_numbers_are_a_function_of_seed_epoch_and_index():
    numbers = augmentation.uniform(1, 2, range(100), 5)
    assert np.array_equal(augmentation.uniform(1, 2, [70, 3], 5), numbers[[70, 3]])
    assert np.array_equal(augmentation.uniform(1, 2, [70], 9)[:, :5], numbers[[70]])
    others = [augmentation.uniform(*key, range(100), 5)
              for key in ((2, 1), (1, 3), (0, 2), (2 ** 63, 2))]
    assert len(np.unique(np.stack([numbers, *others]))) == 2500


def distance(a, b):
    """Of Kolmogorov and Smirnov: the largest difference of the distribution functions."""
    both = np.sort(np.concatenate([a, b]))
    return np.abs(np.searchsorted(np.sort(a), both, 'right') / len(a)
                  - np.searchsorted(np.sort(b), both, 'right') / len(b)).max()


@pytest.mark.parametrize('side, minCrop', [(256, .08), (9, .08), (256, .5)])
def test_boxes_are_those_of_torchvision(side, minCrop):
    """Each number and some of their combinations, from 4,000 boxes; at p = 1e-4 the bound is
    0.05."""
    crop, image = v2.RandomResizedCrop(side, (minCrop, 1)), Image.new('L', (side, side))
    torch.manual_seed(0)
    theirs = [crop.make_params([image]) for _ in range(4000)]
    theirs = np.array([[box[key] for key in ('left', 'top', 'width', 'height')] for box in theirs])
    sketches = augmentation.SketchAugmentation(side, side, minCrop=minCrop)
    ours = sketches.draw(0, 0, range(4000))[:, :4]
    assert (ours == ours.round()).all() and (ours[:, 2:] > 0).all() and (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= side).all()
    weights = np.concatenate([np.eye(4),
                              [[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, -1], [1, -1, 0, 0]]])
    for combination in weights:
        assert distance(ours @ combination, theirs @ combination) < .05
    for column in 0, 1:     # where a box can lie it lies evenly
        room = side - ours[:, 2 + column]
        assert abs(np.mean(ours[room > 0, column] / room[room > 0]) - .5) < .03


def test_the_whole_square_where_no_attempt_fits():
    too_wide = np.full((1, 40), .999)
    assert [value[0] for value in augmentation.crop_boxes(too_wide, 100, .08)] == [0, 0, 100, 100]
    too_wide[:, 4 * 6:] = .5, .5, 0, .999, *too_wide[0, 28:]    # the seventh fits
    left, top, width, height = (value[0] for value in augmentation.crop_boxes(too_wide, 100, .08))
    assert (left, top, width, height) == (0, 27, 73, 73)


def test_flips_and_angles():
    drawn = augmentation.SketchAugmentation(225, 256).draw(0, 0, range(4000))
    flip, angle = drawn[:, 4], np.degrees(drawn[:, 5])
    assert set(flip) == {0, 1} and abs(flip.mean() - .5) < .04
    assert distance(angle, np.linspace(-10, 10, 4000)) < .05 and np.abs(angle).max() <= 10
    unflipped = augmentation.SketchAugmentation(225, 256, flip=False)
    assert not unflipped.draw(0, 0, range(99))[:, 4].any()


def test_thumbnails_are_cropped_everywhere():
    left, top, flip = augmentation.ThumbnailAugmentation(32, 40).draw(0, 0, range(8100)).T
    counts = np.histogram2d(left, top, 9, [[-.5, 8.5], [-.5, 8.5]])[0].ravel()
    assert counts.sum() == 8100 and ((counts - 100) ** 2 / 100).sum() < 125     # of 80 degrees
    assert abs(flip.mean() - .5) < .03 and abs(np.corrcoef(left, flip)[0, 1]) < .05


# Items

@pytest.mark.parametrize('name', ['cifar10', 'tuberlin', 'doodles'])
def test_items_depend_on_nothing_but_seed_epoch_and_index(name, folder):
    """Not on the batch size, the order, the workers, nor on who loads them."""
    train = load(name, folder, seed=5).train
    train.set_epoch(3)
    indices = [7, 0, 9, 4, 3, 1, 8]
    expected = torch.stack([train[index][0] for index in indices])
    torch.manual_seed(99)       # of which they are independent too
    train = load(name, folder, seed=5).train
    train.set_epoch(3)
    for batch_size, workers in (1, 0), (3, 0), (2, 2):
        images, labels = batches(DataLoader(train, batch_size, sampler=indices,
                                            num_workers=workers))
        assert torch.equal(images, expected)
    for batch_size in 1, 3, 7:
        images, same = batches(DeviceLoader(train, batch_size, indices, CPU))
        assert torch.equal(images, expected) and torch.equal(same, labels)
    train.set_epoch(4)
    assert not torch.equal(batches(DeviceLoader(train, 7, indices, CPU))[0], expected)


def test_two_threads_make_the_same_images(folder):
    train = load('tuberlin', folder, 65).train
    expected, _ = batches(DeviceLoader(train, 5, range(10), CPU))
    torch.set_num_threads(2)
    try:
        assert torch.equal(batches(DeviceLoader(train, 5, range(10), CPU))[0], expected)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize('tenCrop', [True, False])
@pytest.mark.parametrize('name', DATASETS)
@pytest.mark.parametrize('inpsize', [32, 63])
def test_validation_is_that_of_torchvision_to_the_bit(name, tenCrop, inpsize, folder):
    options = {'inpsize': inpsize, 'tenCrop': tenCrop}
    plain, ours = (load(name, folder, **options, plain=plain).val for plain in (True, False))
    expected = torch.stack([plain[index][0] for index in range(10)])
    assert torch.equal(batches(DeviceLoader(ours, 4, range(10), CPU))[0], expected)
    assert torch.equal(batches(DataLoader(ours, 4, sampler=range(10)))[0], expected)
    image = sketch() if plain.images[0][0].mode == 'L' else noise()
    alone = datasets.transform(name, inpsize, tenCrop=tenCrop)(image)
    assert torch.equal(alone,
                       ours.transform(ours.transform.square(image)[None], torch.empty(1, 0))[0])


# The loader

def test_lengths_and_the_last_batch(folder):
    train = load('cifar10', folder).train
    for drop_last, sizes in (False, [3, 3, 3, 1]), (True, [3, 3, 3]):
        loader = DeviceLoader(train, 3, range(10), CPU, drop_last)
        assert len(loader) == len(sizes) and [len(images) for images, _ in loader] == sizes
    empty = DeviceLoader(train, 3, range(0), CPU)
    assert len(empty) == 0 and list(empty) == []


def test_images_are_prepared_once(folder, monkeypatch):
    train = load('cifar10', folder).train
    loader = DeviceLoader(train, 3, range(10), CPU)
    list(loader)
    monkeypatch.setattr(type(train.images), 'all', None)
    assert len(list(loader)) == 4


def test_sketches_on_the_cpu_are_those_of_the_mapped_file(folder):
    train = load('tuberlin', folder).train
    loader = DeviceLoader(train, 3, range(10), CPU)
    list(loader)
    assert loader.resident[0].data_ptr() == train.images.pixels.data_ptr()


class NothingFromTheHost(TorchDispatchMode):
    """Fails where values are read from tensors or come from the CPU: a GPU would be waited for."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        tensors = [each for each in tree_leaves(arguments) if isinstance(each, torch.Tensor)]
        assert all(tensor.device.type == 'meta' for tensor in tensors), function
        assert function not in (torch.ops.aten._local_scalar_dense.default,
                                torch.ops.aten.nonzero.default)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize('tenCrop', [True, False])
@pytest.mark.parametrize('name', ['tuberlin', 'cifar10'])
def test_a_batch_does_not_wait_for_the_device(name, tenCrop, folder):
    """On the meta device, where no value can be read and nothing comes from the CPU."""
    data = load(name, folder, tenCrop=tenCrop)
    for images in data.train, data.val:
        loaded = iter(DeviceLoader(images, 4, range(10), torch.device('meta')))
        next(loaded)
        with NothingFromTheHost():
            batch, labels = next(loaded)
        assert batch.device.type == labels.device.type == 'meta' and len(batch) == 4


# --dataOn

def experiment(name, folder, *flags):
    return from_command([f'--dataset={name}', f'--data_dir={folder}', '--model_def=nin',
                         '--inpsize=32', *flags])


@pytest.mark.parametrize('flags, loader, note', [
    (['--dataOn=device'], DeviceLoader, 'data on the device, without loading processes: '),
    (['--dataOn=auto', '--workers=7'], DeviceLoader,
     'data on the device, without loading processes: '),
    (['--dataOn=workers', '--workers=2'], WorkersLoader, 'data from 2 loading processes'),
    (['--dataOn=workers', '--workers=1'], WorkersLoader, 'data from 1 loading process')])
def test_what_loads_and_what_the_log_says_of_it(flags, loader, note, folder):
    made, said = experiment('cifar10', folder, *flags), []
    assert [type(each) for each in made.make_loaders(said.append)] == [loader, loader]
    assert len(said) == 1 and said[0].startswith(note)


def test_photographs_stay_in_their_files(folder):
    made, said = experiment('imagenet12', folder), []
    assert type(made.make_loaders(said.append)[0]) is WorkersLoader
    assert 'photographs stay' in said[0]
    with pytest.raises(InputError, match='^--dataOn=device: photographs are decoded anew'):
        experiment('imagenet12', folder, '--dataOn=device').make_loaders()


@pytest.mark.parametrize('share, auto, device',
                         [(3, True, True), (1.5, False, True), (.5, False, False)])
def test_what_does_not_fit(share, auto, device, folder, monkeypatch):
    """share: free memory as a multiple of the two sets."""
    data = load('cifar10', folder)
    size = 2 * 10 * 3 * 40 * 40
    monkeypatch.setattr(resident, 'free_memory', lambda _: share * size)

    def choose(wanted):
        return resident.choose(wanted, (data.train, data.val), CPU, 2)
    assert choose('auto')[0] == auto and ('would take' in choose('auto')[1]) != auto
    if device:
        assert choose('device')[0]
    else:
        sentence = r'the images take .* GB, and cpu has .* GB free'
        with pytest.raises(InputError, match=f'^--dataOn=device: {sentence}$'):
            choose('device')
    assert not choose('workers')[0]


def test_free_memory():
    assert 10 ** 7 < resident.free_memory(CPU) < 10 ** 14
    assert resident.gigabytes(1.34e9) == '1.3 GB' and resident.gigabytes(3.5e10) == '35 GB'


def train(tmp_path, name, *flags):
    main.main([*SMALL, '--dataset=doodles', f'--logdir={tmp_path}', f'--name={name}', '--epochs=2',
               '--nClasses=13', *flags])
    return read_checkpoint(tmp_path / name / 'last.pth.tar')


def test_a_run_is_the_same_however_it_is_loaded_and_resumed(tmp_path):
    whole = train(tmp_path, 'whole', '--dataOn=device')
    assert 'data on the device' in (tmp_path / 'whole/log.txt').read_text()
    by_workers = train(tmp_path, 'workers', '--dataOn=workers', '--workers=2')
    train(tmp_path, 'half', '--dataOn=device', '--epochs=1')
    main.main([f'--resume={tmp_path}/half/last.pth.tar', '--epochs=2'])
    resumed = read_checkpoint(tmp_path / 'half/last.pth.tar')
    for other in by_workers, resumed:
        assert whole['model'].keys() == other['model'].keys()
        assert all(torch.equal(value, other['model'][key]) for key, value in whole['model'].items())
    assert json.loads((tmp_path / 'half/flags.json').read_text())['dataOn'] == 'device'


def test_bench_data(folder, capsys):
    bench.main(['data', f'--data_dir={folder}', '--images=4', '--inpsize=32', '--rounds=2',
                '--json'])
    out = capsys.readouterr().out
    assert len(json.loads(out.splitlines()[-1])) == 2
    assert out.count('images/s') == 2
    assert 'peak memory' in out

"""Events for TensorBoard, warnings in the log of a run, and signals in a row."""
import contextlib
import io
import json
import os
import shutil
import signal
import struct
import sys
import time

import pytest
import torch
from PIL import Image
from tensorboardX.proto import event_pb2

import datasets
import main
from utils.record import run as record
from utils.record.logs import make_room
from utils.record.pictures import (GAP, TEXT, TILE, Pictures, filters, surest_mistakes, to_pil,
                                   with_text)
from utils.record.tensorboard import TensorBoard
from utils.system import interrupt
from utils.system.errors import InputError, reported
from utils.training import loaders, parallel
from utils.training.predictions import Predictions

TINY = [
    '--dataset=tuberlin', '--workers=0', '--batch-size=12', '--model_def=smallwbin', '--inpsize=32',
    '--binaryWeight', '--dataOn=device']


@pytest.fixture(scope='module')
def logs(sketch_folder, tmp_path_factory):
    """Runs of two epochs: whole, and resumed after the first with an unsaved second one."""
    logs = tmp_path_factory.mktemp('logs')
    flags = [*TINY, f'--data_dir={sketch_folder}', f'--logdir={logs}', '--tenCrop']
    main.main([*flags, '--name=whole', '--epochs=2'])
    main.main([*flags, '--name=resumed', '--epochs=1'])
    unsaved = TensorBoard(logs / 'resumed', 1)       # of a start that was killed
    for split in ('train', 'val'):
        unsaved.add_metrics(split, 1, {'loss': 99, 'top1': 99, 'top5': 99}, 99)
    unsaved.close()
    main.main([f'--resume={logs}/resumed/last.pth.tar', '--epochs=2'])
    return logs


def values(folder):
    """(tag, step, value) of the event files in a folder, in the order of TensorBoard."""
    for path in sorted(folder.glob('events.*')):
        data = path.read_bytes()
        while data:     # a TFRecord: length, its checksum, the event, its checksum
            length, = struct.unpack('<Q', data[:8])
            event, data = event_pb2.Event.FromString(data[12:12 + length]), data[16 + length:]
            yield from ((value.tag, event.step, value) for value in event.summary.value)


def steps(folder, tag):
    return [step for name, step, _ in values(folder) if name == tag]


def test_accuracy_and_loss_come_first_and_in_both_folders(logs):
    for split in ('train', 'val'):
        groups = sorted({tag.split('/')[0] for tag, _, _ in values(logs / 'whole' / split)})
        assert groups[:2] == ['accuracy', 'loss']
        for tag in ('accuracy', 'loss', 'top-5 accuracy'):
            assert steps(logs / 'whole' / split, tag) == [1, 2]
    rows = [json.loads(line) for line in (logs / 'whole/metrics.jsonl').read_text().splitlines()]
    logged = {(tag, step): value.simple_value for tag, step, value in values(logs / 'whole/val')}
    assert logged['accuracy', 2] == pytest.approx(rows[3]['top1'])
    assert logged['loss', 1] == pytest.approx(rows[1]['loss'])


def test_the_layers_numbers_lie_below_by_layer(logs):
    train = logs / 'whole/train'
    for number, name in ((2, 'conv2'), (3, 'conv3')):
        for measure in ('alpha', 'alpha by filter', 'beta', 'beta by filter', 'K/n',
                        'K/n by filter', 'relative error', 'flip ratio'):
            assert steps(train, f'weights {number} {name}/{measure}') == [1, 2], measure
    assert steps(train, 'optimizer/learning rate') == [1, 2]
    kinds = {tag: value.WhichOneof('value') for tag, _, value in values(train)}
    assert kinds['weights 2 conv2/alpha'] == 'simple_value'
    assert kinds['weights 2 conv2/alpha by filter'] == 'histo'
    assert kinds['weights 1 conv1/filters'] == 'image'


def test_pictures_at_each_best_epoch(logs):
    rows = [json.loads(line) for line in (logs / 'whole/metrics.jsonl').read_text().splitlines()]
    top1 = [row['top1'] for row in rows if row['split'] == 'val']
    best = [1, 2] if top1[1] > top1[0] else [1]
    assert steps(logs / 'whole/val', 'misclassified/1') == steps(logs / 'whole/train',
                                                                 'weights 1 conv1/filters') == best
    mistakes = {tag for tag, _, _ in values(logs / 'whole/val') if tag.startswith('misclassified/')}
    assert mistakes == {f'misclassified/{number}' for number in range(1, 1 + len(mistakes))}
    assert 1 <= len(mistakes) <= 6
    for split in ('train', 'val'):
        for tag, _, value in values(logs / 'whole' / split):
            if value.WhichOneof('value') == 'image':
                picture = Image.open(io.BytesIO(value.image.encoded_image_string))
                assert picture.format == 'PNG'
                assert picture.size == (value.image.width, value.image.height)
                assert picture.mode == 'L'
                assert picture.size == ((8 * 51 + 3, 51 + 3) if 'filters' in tag else (432, 200))


def test_tensorboard_reads_a_resumed_run_as_an_unbroken_one(logs):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')

    def read(folder):
        found = accumulator.EventAccumulator(str(folder))
        found.Reload()
        tags = found.Tags()
        return ([(tag, event.step, event.value) for tag in tags['scalars']
                 for event in found.Scalars(tag)],
                [(tag, event.step, event.histogram_value) for tag in tags['histograms']
                 for event in found.Histograms(tag)], [(tag, event.step, event.encoded_image_string)
                                                       for tag in tags['images']
                                                       for event in found.Images(tag)])
    for split in ('train', 'val'):
        whole, resumed = (read(logs / name / split) for name in ('whole', 'resumed'))
        assert whole == resumed and all(whole[:1 + (split == 'train')]), split


@pytest.mark.parametrize(
    'module', ['event_accumulator', 'plugin_event_accumulator'])  # of tests, of the server
def test_what_is_recorded_of_later_epochs_is_void(tmp_path, module):
    accumulator = pytest.importorskip(f'tensorboard.backend.event_processing.{module}')
    for done, value in ((0, 1.), (1, 2.), (1, 3.)):
        events = TensorBoard(tmp_path, done)
        for epoch in range(done, 3 if done == 0 else 2):
            events.add_metrics('val', epoch, {'loss': value, 'top1': 0., 'top5': 0.}, 0.1)
        events.close()
    found = accumulator.EventAccumulator(str(tmp_path / 'val'))
    found.Reload()
    read = found.Scalars('loss') if module == 'event_accumulator' else found.Tensors('loss')
    assert [event.step for event in read] == [1, 2]
    if module == 'event_accumulator':
        assert [event.value for event in read] == [1, 3]


def test_a_run_of_an_older_version_keeps_its_events_until_it_is_overwritten(
        logs, tmp_path, sketch_folder):
    folder = shutil.copytree(logs / 'whole', tmp_path / 'run')
    (folder / 'events.out.tfevents.1.vm').write_text('old')
    (folder / 'train/thesis.txt').write_text('not of this run')
    main.main([f'--resume={folder}/last.pth.tar', '--epochs=2', f'--data_dir={sketch_folder}'])
    assert (folder / 'events.out.tfevents.1.vm').exists()
    assert len([*(folder / 'train').glob('events.*')]) == 2
    make_room(folder, 0, None, False, True, None)
    assert sorted(path.name for path in folder.rglob('*')) == ['thesis.txt', 'train', 'val']
    with pytest.raises(InputError, match='holds something else, such as thesis.txt'):
        make_room(folder, 0, None, False, False, None)
    (folder / 'train/thesis.txt').unlink()
    make_room(folder, 0, None, False, False, None)      # empty folders may be replaced


# The pictures


@pytest.mark.parametrize(
    'name', ['train/events.out.tfevents.99.me', 'val/events.out.tfevents.99.me', 'metrics.jsonl'])
def test_what_no_run_has_written_is_not_removed(tmp_path, name):
    """Other tools call their folders of events train and val too."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('mine')
    with pytest.raises(InputError, match='holds something else'):
        make_room(tmp_path, 0, None, False, False, None)
    assert (tmp_path / name).read_text() == 'mine'


@pytest.mark.parametrize('overwrite', [False, True])
def test_what_is_in_the_way_of_events_is_refused_before_anything_is_removed(tmp_path, overwrite):
    folder, other = tmp_path / 'run', tmp_path / 'other'
    for place in folder, other:
        place.mkdir()
        (place / 'history.jsonl').write_text('')
    (other / 'events.out.tfevents.1').write_text('')
    for make in (lambda path: path.symlink_to(other), lambda path: path.write_text('')):
        make(folder / 'train')
        with pytest.raises(InputError, match='in the way of the events'):
            make_room(folder, 0, None, False, overwrite, None)
        (folder / 'train').unlink()
    assert (other / 'events.out.tfevents.1').exists() and (folder / 'history.jsonl').exists()


def observed(target, probabilities):
    predictions = Predictions()
    predictions.observe(torch.tensor(probabilities).log(), torch.tensor(target))
    return predictions


def test_the_surest_mistakes_one_of_each_class_first():
    surest = [.9, .8, .95, .7, .6, .99]
    predictions = observed([0, 0, 0, 1, 1, 2], [[1 - p, p, 0.0] if target != 1 else [p, 1 - p, 0.0]
                                                for p, target in zip(surest, [0, 0, 0, 1, 1, 1])])
    found = predictions.of_this_rank()     # the last one is a mistake too: class 2 taken for 0
    assert surest_mistakes(*found, 9) == [5, 2, 3, 0, 1, 4] and surest_mistakes(*found, 2) == [5, 2]
    assert surest_mistakes(*observed([0, 1], [[.9, .1], [.2, .8]]).of_this_rank(), 9) == []


@pytest.mark.parametrize('rank', [0, 1])
def test_the_images_are_those_of_this_process(monkeypatch, rank):
    monkeypatch.setattr(parallel, 'rank', lambda: rank)
    monkeypatch.setattr(parallel, 'processes', lambda: 2)
    asked = []

    class Images:
        def __getitem__(self, index):
            asked.append(index)
            return torch.zeros(1, 33, 33), 0
    pictures = Pictures(Images(), datasets.spec('doodles'), ['ant', 'bee'])
    assert pictures.mistakes(observed([0, 0, 0],
                                      [[.9, .1], [.3, .7], [.2, .8]]))[0].size == (432, 200)
    assert asked == [4 + rank, 2 + rank]
    assert pictures.mistakes(observed([0], [[.9, .1]])) == []


def test_sketches_are_dark_on_white_and_photographs_in_colour():
    doodles = datasets.load('doodles', '', 97)
    state = torch.get_rng_state()
    picture = to_pil(datasets.pixels(doodles.val[0][0], doodles.spec))
    assert picture.mode == 'L' and picture.size == (97, 97) and picture.getpixel((0, 0)) == 255
    assert picture.getextrema()[0] < 100
    crops = torch.stack([torch.full((1, 9, 9), float(number)) for number in range(10)])
    spec = datasets.spec('folder:x', 1, (0.,), (10.,))
    assert to_pil(datasets.pixels(crops / 100, spec)).getextrema() == (
        153, 153)  # the center crop, the fifth
    photograph = torch.tensor([1., 0., 0.]).view(3, 1, 1).expand(3, 8, 8)
    mean, std = (torch.tensor(numbers).view(3, 1, 1)
                 for numbers in datasets.normalization('cifar10'))
    assert to_pil(datasets.pixels((photograph - mean) / std, datasets.spec('cifar10'))).getpixel(
        (3, 3)) == (255, 0, 0)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize('side', [5, 33, 97, 200, 225])
def test_pictures_of_any_size_and_names_of_any_length_fit(side):
    page = with_text(Image.new('L', (side, side)),
                     ['x', 'a very long name of a class of sketches 100 %',
                      '字' * 40 + '\n\udc80'])
    assert page.size == (TILE + GAP + TEXT, TILE) == (432, 200) and page.getpixel((100, 100)) == 0
    assert {page.crop((left, 0, left + 4, TILE)).getextrema()
            for left in (TILE, 428)} == {(255, 255)}


def test_filters_have_a_scale_each_and_zero_is_gray():
    weight = torch.zeros(5, 1, 3, 3)
    weight[1, 0, 0, 0], weight[2, 0, 0, 0] = 5, -.001
    picture = filters(weight)
    assert picture.size == (5 * 51 + 3, 51 + 3)         # a row of 48 + 3 pixels each
    assert [picture.getpixel((10 + 51 * column, 10)) for column in range(3)] == [128, 255, 0]
    assert filters(torch.ones(400, 3, 7, 7)).size == (24 * 45 + 3, 11 * 45 + 3)
    assert picture.getpixel((52, 10)) == 255
    assert filters(torch.ones(4, 2, 3, 3)) is None


# What else a run says

def test_a_warning_is_logged_once_as_it_was_shown(sketch_folder, tmp_path, start):
    data = shutil.copytree(sketch_folder, tmp_path / 'data')
    (data / 'train/box/notes.txt').write_text('not an image')
    for _ in range(2):
        code, _, err = start(main.main, [
            *TINY, f'--data_dir={data}', f'--logdir={tmp_path}', '--name=run', '--epochs=0'
        ]).wait()
        assert code == 0 and err.startswith(f'main.py: warning: {data}/train: 1 file is left out')
        assert err.endswith(': box/notes.txt\n') and err.count('\n') == 1
    log = (tmp_path / 'run/log.txt').read_text()
    assert log.count(err) == 1 and log.count('command: ') == 2


# Several signals

def test_a_command_that_is_over_leaves_signals_as_it_found_them():
    for error in (InputError('--flag'), KeyboardInterrupt(), None):
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        with contextlib.suppress(SystemExit), reported('main.py'):
            assert signal.getsignal(signal.SIGINT) is not before[0]
            if error:
                raise error
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_while_the_record_is_closed_waits(tmp_path):
    origin = dict.fromkeys(('command', 'date', 'processes', 'commit', 'python', 'torch', 'device'),
                           '')
    with pytest.raises(interrupt.Stopped), contextlib.ExitStack() as stack:
        before = interrupt.handlers()
        stack.callback(interrupt.restore, before)
        interrupt.listen()
        with record.Run(tmp_path / 'run', {'pretrained_file': None}, origin) as run:
            shutdown = run.thread.shutdown
            run.thread.shutdown = lambda: (os.kill(os.getpid(), signal.SIGINT), shutdown())
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert (tmp_path / 'run/log.txt').read_text().endswith('ended early: stopped by Ctrl-C\n')
    assert run.log.closed
    assert not (tmp_path / 'run/.lock').exists()


def test_a_loading_process_is_silent_when_training_ends_while_it_hands_a_batch_over(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, 'excepthook', lambda kind, *_: shown.append(kind))
    loaders.end_quietly(0)
    for kind in (EOFError, ConnectionResetError, BrokenPipeError, ValueError):
        sys.excepthook(kind, kind(), None)
    assert shown == [ValueError]

"""The benchmark `epoch`: where the time of two epochs of a real training run goes."""
import argparse
import contextlib
import io
import tempfile
from typing import NamedTuple

import torch
from torch import nn

from utils import binarize
from utils.devices import moved
from utils.errors import InputError
from utils.experiment import Experiment, from_command
from utils.training import loop
from utils.training.record import Run

from .timeline import Timeline, seconds_per_mark

ADVICE = {      # what makes each part beside arithmetic shorter
    'binarization': 'a larger --batch-size, since binarization takes as long for any',
    'data': 'more --workers, or none: a set that fits on the device with --dataOn=device',
    'validation': 'a larger --testbatchsize, one crop instead of ten (--no-tenCrop) or, if it '
                  'waits for images, more --workers',
    'records': 'a faster disk for --logdir',
    'rest': 'no flag: it lies between the parts',
}
PARTS = 'arithmetic', *ADVICE
EPOCHS = 2
OTHER_WORK = 'evaluate', 'classify', 'export', 'packed', 'resume'   # flags of main.py


class Epoch(NamedTuple):
    seconds: dict[str, float]   # of each of PARTS
    metrics: dict[str, dict]    # 'train', 'val': see Meter.read

    @property
    def wall(self) -> float:
        return sum(self.seconds.values())


def bench(options: argparse.Namespace) -> list[dict]:
    """Where the time of two epochs goes, of the training run that the flags of main.py describe:
    arithmetic (forward, backward, optimizer), binarization (its share of these), data (waiting for
    batches), validation, records (logs, histograms, checkpoints) and the rest. The run is recorded
    in a folder for temporary files ($TMPDIR), which is removed."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = from_command([*options.main_flags, f'--logdir={folder}', '--name=epoch',
                                   f'--epochs={EPOCHS}'])
        other = [name for name in OTHER_WORK if getattr(experiment.flags, name)]
        if other:
            raise InputError(f'--{other[0]}: epoch measures the training of a new run')
        epochs, cost = measure(experiment)
    print_epochs(experiment, epochs, cost)
    return [{'epoch': number, 'wall': epoch.wall, 'images': epoch.metrics['train']['images'],
             **epoch.seconds} for number, epoch in enumerate(epochs, 1)]


def measure(experiment: Experiment) -> tuple[list[Epoch], float]:
    """Train as the experiment says, silently; returns its epochs, and seconds of measuring them.

    What is trained and recorded is what Experiment.train trains and records.
    """
    device = experiment.device
    timeline = Timeline(device, 'rest')
    watched: list[WatchedRun] = []

    def train(flags, model, loaders, run, *facts):
        if not flags.compile:       # hooks would break the compiled graph
            watch_binarization(model, timeline)
        watched.append(WatchedRun(run, timeline))
        train_loader, val_loader = loaders
        loaders = WatchedLoader(train_loader, device, watched[0]), val_loader
        loop.train(flags, model, loaders, watched[0], *facts)

    with contextlib.redirect_stdout(io.StringIO()):
        experiment.train(train=train)
    return watched[0].epochs, timeline.count * seconds_per_mark(device)


class WatchedLoader:
    """The training loader; an epoch begins with its iterator, and waiting for a batch is data."""

    def __init__(self, loader, device: torch.device, run: 'WatchedRun'):
        self.loader, self.device, self.run = loader, device, run

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        self.run.begin_epoch()
        self.run.timeline.enter('data')
        return self._batches(iter(self.loader))

    def _batches(self, batches):
        timeline = self.run.timeline
        for batch in batches:
            batch = [moved(tensor, self.device) for tensor in batch]
            timeline.leave()
            yield batch
            timeline.enter('data')
        timeline.leave()


class WatchedRun:
    """The Run of a training; what it does counts as records, and what it is told ends the parts."""

    def __init__(self, run: Run, timeline: Timeline):
        self.run, self.timeline = run, timeline
        self.epochs: list[Epoch] = []
        self.metrics: dict[str, dict] = {}

    def __getattr__(self, name):
        value = getattr(self.run, name)
        return self._recording(value) if callable(value) else value

    def _recording(self, method):
        def call(*arguments, **options):
            self.timeline.enter('records')
            try:
                return method(*arguments, **options)
            finally:
                self.timeline.leave()
        return call

    def begin_epoch(self):
        if not self.epochs:
            self.timeline.read()    # what comes before the first epoch
        self.timeline.switch('arithmetic')

    def record_epoch(self, split: str, epoch: int, metrics: dict, lr: float):
        self.metrics[split] = metrics
        self._recording(self.run.record_epoch)(split, epoch, metrics, lr)
        self.timeline.switch('validation' if split == 'train' else 'rest')

    def save(self, checkpoint: dict, is_best: bool):
        """The last that a run is told of an epoch."""
        self._recording(self.run.save)(checkpoint, is_best)
        seconds = dict.fromkeys(PARTS, 0.0) | self.timeline.read()
        self.epochs.append(Epoch(seconds, self.metrics))
        self.metrics = {}


def watch_binarization(model: nn.Module, timeline: Timeline):
    """Enter the part 'binarization' where a training step makes weights, or gradients, of them."""
    def in_step(layer):
        return layer.training and torch.is_grad_enabled()

    def enter(*_):
        timeline.enter('binarization')

    def leave(*_):
        timeline.leave()

    def before(layer, _):
        if in_step(layer):
            enter()

    def after(layer, _, weight):
        if in_step(layer):
            weight.grad_fn.register_prehook(enter)
            leave()

    for _, conv in binarize.binarized(model):
        layer = binarize.binarization(conv)
        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)
        conv.parametrizations.weight.original.register_hook(leave)      # its gradient is there


def print_epochs(experiment: Experiment, epochs: list[Epoch], cost: float):
    """Print the table of the parts, and which of them it is worthwhile to shorten."""
    for sentence in experiment.notes:
        print(sentence)
    print(f'{"seconds":13}' + ''.join(f'{f"epoch {number}":>12}{"":8}'
                                      for number in range(1, len(epochs) + 1)))
    for part in PARTS:
        print(f'{part:13}' + ''.join(f'{epoch.seconds[part]:12.3f}{share(epoch, part):6.1f} %'
                                     for epoch in epochs))
    print(f'{"all":13}' + ''.join(f'{epoch.wall:12.3f}{100:6.1f} %' for epoch in epochs))
    for split in 'train', 'val':
        rates = (epoch.metrics[split]['images'] / epoch.metrics[split]['time'] for epoch in epochs)
        print(f'{split:8} images/s' + ''.join(f'{rate:8.0f}{"":12}' for rate in rates))
    print(f'The first epoch warms up. Measuring took about {cost:.3f} s of both.')
    if experiment.flags.compile and experiment.flags.binaryWeight:
        print('Binarization counts as arithmetic here: --compile makes one program of both.')
    last = epochs[-1]
    largest = max(ADVICE, key=last.seconds.get)
    waiting = last.metrics['val']['data_time']
    detail = f' ({waiting:.3f} s of it waiting for images)' if largest == 'validation' else ''
    print(f'Beside arithmetic, {largest} takes most, {share(last, largest):.1f} %{detail}: '
          f'what helps is {ADVICE[largest]}.')


def share(epoch: Epoch, part: str) -> float:
    """In percent of the epoch."""
    return 100 * epoch.seconds[part] / epoch.wall

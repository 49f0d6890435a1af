"""The benchmark `epoch`: where the time of two epochs of a real training run goes."""
import argparse
import contextlib
import io
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import opts
from utils import binarize
from utils.experiment import Experiment, from_flags
from utils.record.logs import read_log
from utils.system.errors import InputError
from utils.training.loop import Observer

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
    metrics: dict[str, dict]    # 'train', 'val': the rows of metrics.jsonl

    @property
    def wall(self) -> float:
        return sum(self.seconds.values())


def bench(options: argparse.Namespace) -> list[dict]:
    """Where the time of two epochs goes, of the training run that the flags of main.py describe:
    arithmetic (forward, backward, optimizer), binarization (its share of these), data (waiting for
    batches), validation, records (logs, histograms, checkpoints) and the rest. The run is recorded
    in a folder for temporary files ($TMPDIR), which is removed."""
    typed = opts.parse(options.main_flags)
    if other := [name for name in OTHER_WORK if typed.get(name)]:
        raise InputError(f'--{other[0]}: epoch measures the training of a new run')
    with tempfile.TemporaryDirectory() as folder:
        experiment = from_flags(typed | {'logdir': folder, 'name': 'epoch', 'epochs': EPOCHS})
        epochs, cost = measure(experiment)
    print_epochs(experiment, epochs, cost)
    return [{'epoch': number, 'wall': epoch.wall, 'images': epoch.metrics['train']['images'],
             **epoch.seconds} for number, epoch in enumerate(epochs, 1)]


def measure(experiment: Experiment) -> tuple[list[Epoch], float]:
    """Train as the experiment says, silently; returns its epochs, and seconds of measuring them."""
    flags = experiment.flags
    clock = Clock(experiment.device, watches_layers=not flags.compile)  # hooks break its graph
    with contextlib.redirect_stdout(io.StringIO()):
        experiment.train(observer=clock)
    rows = read_log(Path(flags.logdir, flags.name, 'metrics.jsonl'), {'epoch', 'split', 'time'})
    epochs = [Epoch(seconds, {row['split']: row for row in rows if row['epoch'] == number})
              for number, seconds in enumerate(clock.epochs)]
    return epochs, clock.timeline.count * seconds_per_mark(experiment.device)


class Clock(Observer):
    """Divides each epoch into PARTS."""

    def __init__(self, device: torch.device, watches_layers: bool):
        self.timeline, self.watches_layers = Timeline(device, 'rest'), watches_layers
        self.epochs: list[dict[str, float]] = []

    def before_training(self, model: nn.Module):
        if self.watches_layers:
            watch_binarization(model, self.timeline)
        self.timeline.read()

    @contextlib.contextmanager
    def part(self, name: str):
        self.timeline.enter(name)
        yield
        self.timeline.leave()

    def after_epoch(self):
        self.epochs.append(dict.fromkeys(PARTS, 0.0) | self.timeline.read())


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

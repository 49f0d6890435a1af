"""The benchmark `step`: a training step on fixed random images."""
import argparse
import gc
import shlex
from collections.abc import Callable, Sequence

import torch

import opts
from utils import binarize
from utils.experiment import Experiment
from utils.flags import resolve
from utils.record.progress import Progress
from utils.data import dataset_spec
from utils.system.devices import choose
from utils.system.errors import naming
from utils.system.processes import call_in_new_process
from utils.training.epoch import train_epoch
from utils.training.loop import make_optimizer

from .timing import compare, peak_megabytes, print_header

CLASSES = [str(label) for label in range(250)]
STEPS = {'cpu': 1, 'cuda': 10}      # between two waits for the device


def bench(options: argparse.Namespace) -> list[dict]:
    """A training step of the network that the flags of main.py describe, with --binaryWeight unless
    they say otherwise, against the same with the flags of --against, in time and in memory. The
    images are random; what a step computes is what main.py trains with."""
    ours = ['--binaryWeight', *options.main_flags]
    experiment = describe(ours)
    with naming('--against'):
        baseline = ours + shlex.split(options.against)
        describe(baseline)
    title = f'step {" ".join(options.main_flags)} against {options.against}'
    print_header(len(title))
    row = compare(title, make_steps(baseline), make_steps(ours), options.rounds)
    call = call_in_new_process if experiment.device.type == 'cpu' else lambda f, *rest: f(*rest)
    before, after = (call(peak_memory, words) for words in (baseline, ours))
    weights, _ = binarize.weight_bits(experiment.make_network())
    print(f'  {weights / 1e6:.1f} M binarized weights; peak memory {before:.0f} -> {after:.0f} MB, '
          f'ratio {after / before:.3f}')
    return [row, {'case': f'peak MB {title}', 'baseline_s': before, 'ours_s': after,
                  'ratio': after / before}]


def describe(words: Sequence[str]) -> Experiment:
    """The experiment of these flags of main.py, on random images of len(CLASSES) classes."""
    flags, source, _ = resolve.resolve(opts.parse(words))
    device = choose(flags.device)
    channels = dataset_spec(vars(flags)).channels
    flags = resolve.complete(flags, CLASSES, channels, device)
    return Experiment(flags, source, None, CLASSES, channels, device)


def make_steps(words: Sequence[str]) -> Callable[[], object]:
    """A function that trains one step, on a GPU several, of the network of these flags."""
    experiment = describe(words)
    flags, device = experiment.flags, experiment.device
    model = experiment.make_network().train()
    images = torch.randn(flags.batch_size, experiment.channels, flags.inpsize, flags.inpsize)
    target = torch.arange(flags.batch_size) % len(CLASSES)
    batches = [(images.to(device), target.to(device))]
    batches *= STEPS.get(device.type, 1) * flags.accumulate
    optimizer, scaler = make_optimizer(flags, model, device)
    replica = torch.compile(model) if flags.compile else model

    def steps():
        train_epoch(replica, batches, optimizer, device, Progress('step', len(batches)),
                    len(batches) + 1, flags.amp, scaler, flags.accumulate, flags.clipGrad,
                    flags.labelSmoothing)
    return steps


def peak_memory(words: Sequence[str]) -> float:
    """Megabytes at the peak of three training steps, of the GPU or resident in this process."""
    device = describe(words).device
    if device.type == 'cuda':
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
    steps = make_steps(words)
    for _ in range(3):
        steps()
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated() / 2 ** 20
    return peak_megabytes()

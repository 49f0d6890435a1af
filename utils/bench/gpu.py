"""The benchmark `gpu`: everything that is worth knowing of a new GPU, by one command."""
import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch

import models
from datasets.doodles import Doodles
from utils import console
from utils.binarize import convolutions
from utils.devices import choose
from utils.errors import InputError, RunError
from utils.native import METHODS

from .cases import BATCH, DEFAULT, Case
from .correctness import FURTHER, Layer, check_layer, layers_of
from .step import FLAGS, compare_flag, compare_step
from .timing import print_header

ROUNDS = 9
MANY = 1_000_000        # binarized weights, from which on a network is in the table of steps
TUBERLIN = {'classes': 250, 'train': 64, 'val': 16}    # images of a class
EPOCH = ['--model_def=sketchanetwbin', '--binaryWeight', '--binEnd=7', '--batch-size=256',
         '--tenCrop']
COMPARISON = ['--model_def=sketchanet', '--methods=real,dab,xnor', '--inputs=real', '--seeds=1',
              '--epochs=11', '--maxlr=0.003', '--decayinterval=4', '--name=comparison']


def bench(options: argparse.Namespace) -> list[dict]:
    """On a GPU, in ten minutes: binarized layers against the CPU in float64 (exit code 1 where one
    fails), a training step of many networks against the real ones in float32 and bfloat16, of some
    under each flag, shares of an epoch with --data_dir or as many invented sketches, and a small
    comparison of methods on --data_dir or doodles. What is done is printed at once."""
    device = choose()
    if device.type != 'cuda':
        raise InputError('gpu: PyTorch finds no GPU on this machine')
    default = DEFAULT['gpu']
    many = [Case(name, BATCH['gpu']) for name in networks_with(MANY)]
    workers = f'--workers={min(16, os.cpu_count() or 1)}'
    with tempfile.TemporaryDirectory() as folder:
        own = options.data_dir and ['--dataset=tuberlin', f'--data_dir={options.data_dir}']
        return attempt({
            'layers': lambda: check_layers([*layers_of(default), *FURTHER], device, 60),
            'steps': lambda: compare_steps([*default, *many], device, ROUNDS, 150),
            'flags': lambda: compare_flags(default, device, ROUNDS, 100),
            'epoch': lambda: measure_epoch([*EPOCH, workers], own, Path(folder), 120),
            'comparison': lambda: compare_methods([*COMPARISON, workers], own, Path(folder), 150)})


def attempt(jobs: Mapping[str, Callable[[], list[dict]]], seconds: float = math.inf) -> list[dict]:
    """The rows of all jobs; of one that fails {case, error}, for it ends no other.

    After so many seconds no further one is begun.
    """
    end, rows = time.monotonic() + seconds, []
    for number, (name, job) in enumerate(jobs.items()):
        if time.monotonic() > end:
            print(f'left out after {seconds} s: {"; ".join([*jobs][number:])}', flush=True)
            break
        try:
            rows += job()
        except Exception as error:
            if not isinstance(error, InputError):
                console.complain(traceback.format_exc().rstrip())
            console.complain(f'{name} failed: {error}')
            rows.append({'case': name, 'error': str(error)})
    return rows


def check_layers(layers: list[Layer], device: torch.device, seconds: float) -> list[dict]:
    """A line of each layer under each method that has kernels, PASS or FAIL."""
    print('\nBinarized layers against their definition, in float64 on the CPU')
    return attempt({f'{method} {layer}': partial(check_layer, layer, method, device)
                    for layer in layers for method in METHODS['cuda']}, seconds)


def networks_with(weights: int) -> list[str]:
    """The wbin and fbin networks, and those of families without, that can binarize so many."""
    def is_large(name):
        with torch.device('meta'):
            convs = convolutions(models.build(name, 250, 1))
        return sum(conv.weight.numel() for number, _, conv in convs if number > 1) >= weights

    def is_binary(name):
        return 'wbin' in name or 'fbin' in name
    chosen = [name for name in models.names()
              if is_binary(name) or not any(map(is_binary, models.family(name)))]
    return list(filter(is_large, chosen))


def compare_steps(cases: list[Case], device: torch.device, rounds: int,
                  seconds: float) -> list[dict]:
    """The binarized step of each case against the real one, in float32 (or TF32) and bfloat16."""
    print('\nA training step of the binarized network against the real one')
    print_header()
    return attempt({f'step {case} {amp}': partial(compare_step, case, device, 'fast', rounds, amp)
                    for case in cases for amp in (None, 'bfloat16')}, seconds)


def compare_flags(cases: list[Case], device: torch.device, rounds: int, seconds: float,
                  flags: Iterable[str] = FLAGS) -> list[dict]:
    """The binarized step of each case under each flag against the one without."""
    print('\nA training step of the binarized network with a flag against the one without')
    print_header()
    return attempt({f'step {case} {flag}': partial(compare_flag, case, device, flag, 'fast', rounds)
                    for flag in flags for case in cases}, seconds)


def measure_epoch(flags: list[str], data: list[str] | None, folder: Path, seconds: float,
                  sizes: Mapping[str, int] = TUBERLIN) -> list[dict]:
    """The benchmark `epoch` of a run with these flags, of main.py.

    data: the flags that name its data, by default sketches of these sizes made in the folder.
    """
    if not data:
        make_sketches(folder / 'sketches', **sizes)
        data = ['--dataset=tuberlin', f'--data_dir={folder / "sketches"}']
    print('\nWhere the time of an epoch goes')
    run_command(['utils.bench', 'epoch', *flags, *data], seconds, folder)
    return []


def make_sketches(folder: Path, classes: int, train: int, val: int):
    """A dataset in folders with so many images in each class, which are few under many names."""
    for split, count in (('train', train), ('val', val)):
        drawn = []
        for number, (image, _) in enumerate(Doodles(split, per_class=4, side=256)):
            drawn.append(folder / f'{split}-{number}.png')
            drawn[-1].parent.mkdir(exist_ok=True)
            image.save(drawn[-1])
        for label in range(classes):
            place = folder / split / f'class{label:03}'
            place.mkdir(parents=True)
            for number in range(count):
                os.link(drawn[(label + number) % len(drawn)], place / f'{number}.png')


def compare_methods(flags: list[str], data: list[str] | None, folder: Path,
                    seconds: float) -> list[dict]:
    """utils.compare with these flags; data: those that name its data, by default doodles."""
    print('\nA small comparison of methods')
    run_command(['utils.compare', *flags, *(data or []), f'--logdir={folder}'], seconds, folder)
    return []


def run_command(arguments: list[str], seconds: float, cache: Path):
    """Run python3 -m `arguments`, stopped after so many seconds, with caches of its own in `cache`.

    What it prints is printed at once. Raises RunError where it fails.
    """
    print(f'python3 -m {" ".join(arguments)}', flush=True)
    environment = os.environ | {'XDG_CACHE_HOME': str(cache)}
    process = subprocess.Popen([sys.executable, '-m', *arguments], env=environment)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        print(f'stopped after {seconds} s', flush=True)
        return
    finally:
        process.terminate()
        process.wait()
    if code:
        raise RunError(f'exit code {code}')

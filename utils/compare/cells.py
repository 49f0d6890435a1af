"""The cells of a comparison: which runs there are, training one, evaluating one."""
import argparse
import contextlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

import models
import opts
from models.blocks import has_signs
from utils import experiment
from utils.binarize import weight_bits
from utils.flags import resolve
from utils.flags.parser import Flags
from utils.record.logs import read_log
from utils.record.progress import Progress
from utils.source import checkpoint_source, is_of_other_images
from utils.system import devices
from utils.system.errors import InputError, RunError, begin
from utils.system.files import has_file, write_text
from utils.training import epoch
from utils.training.predictions import true_class_ranks

from . import PROGRAM
from .statistics import Kind

UNCENTRED = '-uncentred'    # ends the name of a method that is trained with --no-centring


@dataclass(frozen=True)
class Cell:
    """One run of the comparison."""

    name: str
    method: str     # 'real', or that of the weights, perhaps UNCENTRED
    inputs: str     # 'real' or 'sign'
    model_def: str
    seed: int
    folder: Path    # of the whole comparison
    maxlr: float | None = None      # None: that of all cells

    @property
    def kind(self) -> Kind:
        return self.method, self.inputs

    @property
    def last(self) -> Path:
        return self.folder / self.name / 'last.pth.tar'

    def flags(self, common: Mapping[str, object]) -> dict[str, object]:
        """{name: value} of the flags of main.py of this cell; common: those of all cells."""
        own = {'model_def': self.model_def, 'manualSeed': self.seed, 'name': self.name,
               'logdir': str(self.folder), 'binaryWeight': self.method != 'real'}
        if self.method != 'real':
            binarizer = self.method.removesuffix(UNCENTRED)
            own |= {'binarizer': binarizer, 'centring': self.method == binarizer}
        if self.maxlr is not None:
            own['maxlr'] = self.maxlr
        return {**common, **own}


def resolved(typed: Mapping[str, object]) -> Flags:
    """All flags of main.py that follow from these. Raises InputError."""
    flags, *_ = resolve.resolve(typed)
    devices.choose(flags.device)    # before anything is made
    return flags


def plan(options: argparse.Namespace, folder: Path, seeds: int,
         signLayers: str | None) -> list[Cell]:
    """All cells, those of one seed before those of the next.

    Raises InputError for what the family of --model_def or the flags do not allow.
    """
    kinds = [(method, inputs, variant(options.model_def, method, inputs))
             for inputs in options.inputs for method in options.methods
             if (method, inputs) != ('real', 'sign')]
    if not kinds:
        raise InputError('there is nothing to compare: --methods=real has real inputs only')
    if signLayers and 'real' in options.inputs:
        raise InputError('--signLayers would binarize the inputs of the networks with real inputs: '
                         'add --inputs=sign')
    cells = []
    for seed in range(seeds):
        for method, inputs, name in kinds:
            title = name if method == 'real' else f'{name}-{method}'
            cells.append(Cell(f'{title}-seed{seed}', method, inputs, name, seed, folder))
    return cells


def variant(model_def: str, method: str, inputs: str) -> str:
    """The network of the family of model_def that a method and a kind of inputs ask for."""
    family = models.family(model_def)
    part = 'fbin' if inputs == 'sign' else '' if method == 'real' else 'wbin'
    named = [name for name in family if part in name]
    if not named and inputs == 'sign':
        raise InputError(f'--inputs=sign: the family of {model_def} has no fbin variant')
    name = named[0] if named else family[0]
    with torch.device('meta'):
        if inputs == 'real' and has_signs(models.build(name, nClasses=2)):
            raise InputError(f'--inputs=real: {name} has binarized inputs, and its family has no '
                             'network without')
    return name


def stored_checkpoint(cell: Cell, flags: Flags, training_images: str | None) -> dict | None:
    """The checkpoint of the cell's last epoch, None before the first.

    training_images: that of datasets.Data, None where the data is missing. Raises InputError where
    other flags or images than these trained it, RunError for a damaged checkpoint.
    """
    if not cell.last.exists():
        return None
    try:
        source = checkpoint_source(cell.last)
    except InputError as error:
        raise RunError(str(error)) from error
    if training_images and is_of_other_images(source.checkpoint, training_images):
        raise InputError(f'{cell.last.parent} was trained on other images than those of '
                         '--data_dir: give this comparison another --name')
    asked = resolve.complete(flags, source.classes, source.channels, devices.choose(flags.device))
    for name, value in source.flags.items():
        given = getattr(asked, name, None)
        is_unknown = given is None and name in ('mean', 'std')      # without the data
        if given != value and not is_unknown and resolve.changes_result(name, asked):
            raise InputError(f'{cell.last.parent} was trained {opts.spelled(name, value)}, not '
                             f'{opts.spelled(name, given)}: give this comparison another --name')
    done = source.checkpoint['epoch']
    if done > flags.epochs:
        raise InputError(f'{cell.last.parent} has {done} epochs, more than --epochs={flags.epochs}')
    return source.checkpoint


def train_cell(flags: Mapping[str, object], command: str, threads: int | None = None):
    """Train the cell of these flags; `command` is that of the comparison.

    With a number of threads, one of several at a time: silently, but for warnings and errors.
    """
    output = open(os.devnull, 'w', encoding='utf-8') if threads else None
    with output or contextlib.nullcontext(), contextlib.redirect_stdout(output or sys.stdout):
        begin(PROGRAM)
        if threads:
            torch.set_num_threads(threads)
        experiment.from_flags(flags).train(command)


# How the ranks are counted: a result.json without this is of older versions, in which a class that
# tied with the true one counted as less likely, and binarized inputs were evaluated under --amp.
COUNTING = 'ties: lower class number first; binarized inputs: float32'
RESULT = {'ranks', 'curve', 'seconds', 'bits_per_weight', 'bytes'}


def evaluate_cell(cell: Cell, stored: dict, flags: Flags, images: str | None) -> dict:
    """The result (see statistics.py) of a finished cell, kept in its result.json.

    stored: its checkpoint. flags: of the comparison. images: datasets.fingerprint of the validation
    images; a result of others, or by another COUNTING, is counted again. None is for any.
    """
    made_of = {'epoch': stored['epoch'], 'tenCrop': flags.tenCrop, 'metrics': stored['metrics'],
               'data_dir': flags.data_dir, 'counting': COUNTING,
               **({'images': images} if images else {})}
    path = cell.last.with_name('result.json')
    has_file(path)
    with contextlib.suppress(OSError, ValueError, AttributeError):      # absent or damaged
        result = json.loads(path.read_text(encoding='utf-8'))
        if made_of.items() <= result.items() and result.keys() >= RESULT:
            return result
    taken = {name: getattr(flags, name) for name in ('tenCrop', 'data_dir', 'workers', 'device')}
    trained = experiment.from_flags({'resume': str(cell.last), **taken})
    network, (_, loader) = trained.make_network(), trained.make_loaders()
    weights, bits = weight_bits(network)
    numbers = sum(tensor.numel() for tensor in network.state_dict().values()
                  if tensor.is_floating_point())
    rows = read_log(cell.last.with_name('metrics.jsonl'), {'split', 'top1', 'time'})
    result = made_of | {
        'ranks': validation_ranks(network, loader, trained.device, trained.flags.amp,
                                  f'evaluating {cell.name}'),
        'curve': [row['top1'] for row in rows if row['split'] == 'val'],
        'seconds': sum(row['time'] for row in rows if row['split'] == 'train'),
        'bits_per_weight': bits / weights if weights else 32,
        'bytes': 4 * (numbers - weights) + bits / 8}
    write_text(path, json.dumps(result))
    return result


def validation_ranks(network: torch.nn.Module, loader, device: torch.device, amp: str,
                     title: str) -> list[int]:
    """The rank of each image's true class, see true_class_ranks, as validation finds it."""
    ranks: list[int] = []
    epoch.validate(network, loader, device, Progress(title, len(loader)), amp,
                   lambda *batch: ranks.extend(true_class_ranks(*batch).tolist()))
    return ranks

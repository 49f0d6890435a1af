"""--tune: train each method at each rate on four fifths of the training images, and choose the rate
of the highest mean accuracy on the other fifth. The comparison's validation images play no part."""
import argparse
import importlib
import statistics
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
from datasets.splits import Split
from utils.flags.parser import Flags
from utils.record.describe import provenance
from utils.system import console, devices, processes
from utils.system.errors import InputError, RunError, begin, naming
from utils.system.files import write_text
from utils.training.epoch import Diverged

from . import PROGRAM, cells
from .output import heading, markdown_table, with_deviation
from .runs import Results, finish, load
from .statistics import Kind, accuracy, deviation, hits


def choose_rates(options: argparse.Namespace, common: Mapping[str, object],
                 folder: Path) -> dict[Kind, float]:
    """The best rate of --tune for each method and kind of inputs; writes folder/rates.md.

    Trains the trials that are missing. Raises RunError where one failed; a trial that diverged
    only rules out its rate.
    """
    flags = cells.resolved(common)
    images = folder / 'tuning' / 'images'
    if not options.collect:
        split_training_images(flags, images)
    common = {**common, 'dataset': flags.dataset, 'data_dir': str(images)}
    trials = [replace(cell, name=f'{cell.name}-maxlr{rate:g}', maxlr=rate)
              for cell in cells.plan(options, folder / 'tuning', options.tuningSeeds,
                                     flags.signLayers) for rate in options.tune]
    results, errors = finish(trials, common, options, partial(write, folder, options, flags))
    failed = [cell.name for cell, error in errors.items() if not isinstance(error, Diverged)]
    if failed:
        raise RunError(f'{", ".join(failed)} failed, as reported above')
    if missing := len(trials) - len(results) - len(errors):
        raise InputError(f'--collect: {missing} of {len(trials)} runs of --tune are not finished')
    chosen = best_rates(results, options.tuningSeeds)
    if without := {cell.kind for cell in trials} - chosen.keys():
        raise RunError(f'--tune: {" ".join(min(without))} diverged at every rate')
    return chosen


def split_training_images(flags: Flags, out: Path):
    """Make the folder `out` with a fifth of the training images in val/. Raises InputError."""
    data, _ = load(flags, collect=False)
    images = datasets.folder_of(data.train)
    if images is None or data.channels != 1:
        raise InputError('--tune splits a folder of sketches, which the images of '
                         f'--dataset={flags.dataset} are not: choose the rates by --rates')
    with naming('--tune'):
        processes.call_in_new_process(prepare, str(images.root), str(out))


def prepare(source: str, out: str):
    """Split the sketches by datasets.prepare, which is a command, so in a process of its own."""
    begin(PROGRAM)
    command = importlib.import_module('datasets.prepare')
    command.prepare('tuberlin', source, out, size=256, split=Split(val_fraction=0.2))


def accuracies(results: Results) -> dict[Kind, dict[float, list[float]]]:
    """{kind: {rate: top-1 of each seed, in percent}}"""
    found: dict = {}
    for cell, result in results.items():
        rates = found.setdefault(cell.kind, {})
        rates.setdefault(cell.maxlr, []).append(accuracy(hits(result)))
    return found


def best_rates(results: Results, seeds: int) -> dict[Kind, float]:
    """The rate of the highest mean accuracy among those that all seeds have finished at."""
    best = {}
    for kind, rates in accuracies(results).items():
        means = {rate: statistics.mean(values) for rate, values in rates.items()
                 if len(values) == seeds}
        if means:
            best[kind] = max(sorted(means), key=means.get)      # the smallest of equals
    return best


def write(folder: Path, options: argparse.Namespace, flags: Flags, results: Results):
    """Write rates.md and print it."""
    best, rows = best_rates(results, options.tuningSeeds), []
    tried = sorted(options.tune)
    for kind, rates in accuracies(results).items():
        row = [*kind]
        for rate in tried:
            values = rates.get(rate, [])
            mean = f'{statistics.mean(values):.2f}' if values else ''
            text = with_deviation(mean, deviation(values))
            row.append(f'**{text}**' if rate == best.get(kind) else text)
        rows.append(row)
    edges = [' '.join(kind) for kind, rate in best.items() if rate in (tried[0], tried[-1])]
    edge = (f'\nThe best rate of {", ".join(edges)} is at an edge of those tried: a further one '
            'may be better.\n') if edges else ''
    text = f'''{heading(provenance(devices.choose(flags.device), options.command))}
Top-1 accuracy in percent on a fifth of the training images of {datasets.data_name(flags.dataset)},
after the last epoch, of networks trained on the others at each learning rate (--maxlr): mean ±
standard deviation over seeds, the best of each method in bold.

{markdown_table(['weights', 'inputs', *(f'{rate:g}' for rate in tried)], rows)}
{edge}'''
    with naming(str(folder), RunError):
        write_text(folder / 'rates.md', text)
    console.say(f'{text}\n{folder}: rates.md')

"""Compare binarization methods: train a family's networks under each, test the differences.

    python3 -m utils.compare --model_def=sketchanet --methods=real,dab,xnor,bnn --inputs=real,sign …

Further flags are those of main.py; --model_def (default: sketchanet) names the family. A cell is
one run under <logdir>/<name>/ (default: logs/compare-DATA-FAMILY): the family's real network, its
wbin variant (inputs=real) and its fbin variant (inputs=sign) under each method, for the seeds 0, 1,
…; cells of one seed share data order and initialization. To resume, run the same command again. A
cell that fails does not stop the others. After every cell it writes, of all finished ones,

    compare.md, compare.csv    accuracies of the last epoch, counted image by image; of every pair
                               (md only) McNemar's test, and what differences can be seen
    curves, accuracy           accuracy per epoch; final accuracies; as .png and .svg

With --tune=RATE,RATE,… it first trains every method at each of these learning rates, on a split of
the training images, writes the accuracies to rates.md, and compares the methods at their best.
"""
from utils.system import interrupt  # before torch

if __name__ == '__main__':
    interrupt.end_silently()

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
import models
from utils.flags.parser import Flags
from utils.record.describe import provenance
from utils.system import console, devices
from utils.system.errors import InputError, RunError, naming, reported
from utils.system.files import claimed

from . import PROGRAM, cells, output, statistics, tuning
from .flags import parse
from .runs import finish


def main(arguments: Sequence[str] | None = None):
    """Train what is missing of the comparison that the arguments describe, and write its tables."""
    with reported(PROGRAM, '; run the same command again to resume'), contextlib.ExitStack() as end:
        options, common = parse(arguments, __doc__)
        flags = cells.resolved(common)
        if flags.epochs == 0:
            raise InputError('--epochs=0: there is nothing to compare without training')
        family = models.family(options.model_def)[0]
        name = options.name or f'compare-{datasets.data_name(flags.dataset)}-{family}'
        folder = Path(options.logdir, name)
        plan = cells.plan(options, folder, options.seeds, flags.signLayers)
        with naming('--logdir'):
            if options.collect and not folder.is_dir():
                raise InputError(f'{folder} does not exist, so it has no finished cells')
            end.enter_context(claimed(folder))
        if options.tune:
            rates = tuning.choose_rates(options, common, folder)
        else:
            rates = {cell.kind: options.rates.get(cell.method) for cell in plan}
        plan = [replace(cell, maxlr=rates[cell.kind]) for cell in plan]
        _, errors = finish(plan, common, options, partial(write, folder, options.command, flags))
        if errors:
            names = ', '.join(cell.name for cell in errors)
            raise RunError(f'{names} failed, as reported above')


def write(folder: Path, command: str, flags: Flags, results: dict[cells.Cell, dict]):
    """Write the tables and plots of the finished cells, and print the tables."""
    by_kind: dict = {}
    for cell, result in results.items():
        by_kind.setdefault(cell.kind, {})[cell.seed] = result
    rows = [statistics.summarize(*kind, of_seeds) for kind, of_seeds in by_kind.items()]
    pairs = [statistics.paired(a, b, by_kind) for a, b in itertools.combinations(by_kind, 2)
             if a[1] == b[1]]
    rates = {cell.kind: cell.maxlr for cell in results if cell.maxlr is not None}
    data = datasets.data_name(flags.dataset)
    text = output.markdown(provenance(devices.choose(flags.device), command), rows,
                           [pair for pair in pairs if pair], flags.tenCrop, data, rates)
    networks = ', '.join(dict.fromkeys(cell.model_def for cell in results))
    with naming(str(folder), RunError):
        output.write(folder, text, rows, by_kind, f'{networks} on {data}')
    console.say(f'{text}\n{folder}: compare.md, compare.csv, curves and accuracy as PNG and SVG')


if __name__ == '__main__':
    main()

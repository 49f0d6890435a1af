"""Compare binarization methods: train a family's networks under each, test the differences.

    python3 -m utils.compare --model_def=sketchanet --methods=real,dab,xnor,bnn --inputs=real,sign …

Further flags are those of main.py, except for what the comparison itself decides. A cell is one
run under <logdir>/<name>/: the family's real network, its wbin variant (inputs=real) and its fbin
variant (inputs=sign) under each method, for the seeds 0, 1, …; cells of one seed share the data
order and the initialization. To resume an interrupted comparison, run the same command again: a
finished cell is never trained again. A cell that fails does not stop the others. After every cell
it writes, of all finished ones,

    compare.md, compare.csv    accuracies of the last epoch; of every pair (md only) McNemar's test,
                               and what differences such a comparison can see
    curves, accuracy           accuracy per epoch; final accuracies; as .png and .svg

or, where --rates has several learning rates to choose from,

    rates.md                   the accuracy of each method at each rate, and the best ones

Accuracies are counted image by image with the checkpoint of the last epoch. --tenCrop counts with
ten crops; as it does not change what is trained, cells trained without it may be counted with it.
"""
from utils.system import interrupt  # before torch

if __name__ == '__main__':
    interrupt.end_silently()

import contextlib
import itertools
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import datasets
import models
from utils.flags.parser import Flags
from utils.record.provenance import provenance
from utils.system import console, devices, processes
from utils.system.errors import InputError, RunError, naming, reported
from utils.system.files import claimed, write_text
from utils.training.checkpoint import read_checkpoint

from . import PROGRAM, cells, output, rates, statistics
from .flags import parse
from .shared import Failures, call_beside, data_of, resolved


def main(arguments: Sequence[str] | None = None):
    """Train what is missing of the comparison that the arguments describe, and write its tables."""
    with reported(PROGRAM, '; run the same command again to resume'):
        options, common = parse(arguments, __doc__)
        flags = resolved(common)
        if flags.epochs == 0:
            raise InputError('--epochs=0: there is nothing to compare without training')
        family = models.family(options.model_def)[0]
        name = options.name or f'compare-{datasets.data_name(flags.dataset)}-{family}'
        folder = Path(options.logdir) / name
        given = sys.argv[1:] if arguments is None else arguments
        command = shlex.join(['python3', '-m', PROGRAM, *given])
        plan = cells.plan(options.model_def, options.methods, options.inputs, options.seeds,
                          folder, flags.signLayers, options.rates)
        with contextlib.ExitStack() as stack:
            with naming('--logdir'):
                if options.collect and not folder.is_dir():
                    raise InputError(f'{folder} does not exist, so it has no finished cells')
                stack.enter_context(claimed(folder))
            compare(plan, options.collect, common, command, flags, options.jobs)


def compare(plan: list[cells.Cell], collect: bool, common: Mapping[str, object], command: str,
            flags: Flags, jobs: int = 1):
    """Write the tables of the finished cells and, unless `collect`, train the others.

    jobs: how many cells are trained at the same time.
    """
    data, measured = data_of(flags, collect)
    images = datasets.fingerprint(data.val) if data else None
    common = {**common, **measured}
    failures, done, results = Failures(), {}, {}

    def evaluate(cell, stored):
        results[cell] = cells.evaluate_cell(cell, stored, flags, images)
    for cell in plan:
        with failures.of(cell):
            stored = cells.stored_checkpoint(cell, resolved(cell.flags(common)),
                                             data and data.training_images)
            done[cell] = stored['epoch'] if stored else 0
            if done[cell] == flags.epochs:
                evaluate(cell, stored)
    folder = plan[0].folder
    if results:
        write(folder, command, results, flags)
    elif collect and not failures.names:
        raise InputError(f'--collect: {folder} has no finished cells with these flags')
    missing = [cell for cell in plan if cell not in results and cell.name not in failures.names]
    calls = {}
    for number, cell in enumerate([] if collect else missing, 1 + len(plan) - len(missing)):
        # A run without a finished epoch is replaced.
        start = {'resume': str(cell.last)} if done[cell] else {'overwrite': True}
        calls[cell] = partial(train, f'cell {number} of {len(plan)}: {cell.name}', jobs,
                              cell.flags(common) | start, command)
    for ended in processes.side_by_side(calls, jobs):
        for cell, outcome in ended:
            with failures.of(cell):
                outcome()
                evaluate(cell, read_checkpoint(cell.last))
        if any(cell in results for cell, _ in ended):
            write(folder, command, {cell: results[cell] for cell in plan if cell in results}, flags)
    if failures.names:
        raise RunError(f'{", ".join(failures.names)} failed, as reported above')


def train(title: str, jobs: int, flags: Mapping[str, object], command: str):
    """Train a cell in a process of its own, one of so many at a time."""
    console.say(title)
    call_beside(jobs, cells.train_cell, flags, command)


def write(folder: Path, command: str, results: dict[cells.Cell, dict], flags: Flags):
    """Write the tables and plots of the finished cells, and print the tables."""
    origin = provenance(devices.choose(flags.device), command)
    data = datasets.data_name(flags.dataset)
    if next(iter(results)).is_trial:
        text = rates.text(origin, results, f'the validation images of {data}')
        with naming(str(folder), RunError):
            write_text(folder / 'rates.md', text)
        console.say(f'{text}\n{folder}: rates.md')
        return
    by_kind: dict = {}
    for cell, result in results.items():
        by_kind.setdefault((cell.method, cell.inputs), {})[cell.seed] = result
    rows = [statistics.summarize(*kind, of_seeds) for kind, of_seeds in by_kind.items()]
    same_inputs = [(a, b) for a, b in itertools.combinations(by_kind, 2) if a[1] == b[1]]
    pairs = [statistics.paired(a, b, by_kind) for a, b in same_inputs]
    text = output.markdown(origin, rows, [pair for pair in pairs if pair], flags.tenCrop, data)
    networks = ', '.join(dict.fromkeys(cell.model_def for cell in results))
    title = f'{networks} on {data}'
    with naming(str(folder), RunError):
        output.write(folder, text, rows, by_kind, title)
    console.say(f'{text}\n{folder}: compare.md, compare.csv, curves and accuracy as PNG and SVG')


if __name__ == '__main__':
    main()

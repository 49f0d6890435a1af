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
from utils import interrupt     # before torch

if __name__ == '__main__':
    interrupt.end_silently()

import argparse
import contextlib
import itertools
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import datasets
import models
import opts
from utils import checks, console, devices, processes, resolve
from utils.data import describe_own, load_data
from utils.errors import InputError, RunError, explained, naming, reported
from utils.files import InUse, claimed, write_text
from utils.provenance import provenance
from utils.source import dataset_spec, own_data_flags
from utils.training.checkpoint import read_checkpoint

from . import PROGRAM, cells, output, rates, statistics
from .flags import parse


def main(arguments: Sequence[str] | None = None):
    """Train what is missing of the comparison that the arguments describe, and write its tables."""
    with reported(PROGRAM, '; run the same command again to resume'):
        options, common = parse(arguments, __doc__)
        flags = complete_flags(common)
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


def compare(plan: list[cells.Cell], collect: bool, common: list[str], command: str,
            flags: argparse.Namespace, jobs: int = 1):
    """Write the tables of the finished cells and, unless `collect`, train the others.

    jobs: how many cells are trained at the same time.
    """
    data, measured = data_of(flags, collect)
    images = datasets.fingerprint(data.val) if data else None
    common = [*common, *measured]
    failures, done, results = Failures(), {}, {}

    def evaluate(cell, stored):
        results[cell] = cells.evaluate_cell(cell, stored, flags, images)
    for cell in plan:
        with failures.of(cell):
            stored = cells.stored_checkpoint(cell, complete_flags(cell.arguments(common)),
                                             data and data.training_images)
            done[cell] = stored['epoch'] if stored else 0
            if done[cell] == flags.epochs:
                evaluate(cell, stored)
    folder = plan[0].folder
    if results:
        write(folder, command, results, flags)
    elif collect and not failures.names:
        raise InputError(f'--collect: {folder} has no finished cells with these flags')
    missing = {cell: [*cell.arguments(common),
                      f'--resume={cell.last}' if done[cell] else '--overwrite']
               for cell in plan if cell not in results and cell.name not in failures.names}
    for ended in [] if collect else trained(missing, len(plan), command, jobs):
        for cell, outcome in ended:
            with failures.of(cell):
                outcome()
                evaluate(cell, read_checkpoint(cell.last))
        if any(cell in results for cell, _ in ended):
            write(folder, command, {cell: results[cell] for cell in plan if cell in results}, flags)
    if failures.names:
        raise RunError(f'{", ".join(failures.names)} failed, as reported above')


def trained(missing: dict[cells.Cell, list[str]], planned: int, command: str, jobs: int
            ) -> Iterator[list[tuple[cells.Cell, Callable]]]:
    """Train the cells by their arguments; yields those that ended together, each with a function.

    It returns or raises what the training did. A single job trains when the function is called.
    """
    def train(number, cell):
        console.say(f'cell {number} of {planned}: {cell.name}')
        how = [cells.train_cell, missing[cell], command]
        if jobs > 1:
            how = [cells.train_beside_others, *how[1:], max(1, (os.cpu_count() or 1) // jobs)]
        processes.call_in_new_process(*how)

    calls = {cell: partial(train, number, cell)
             for number, cell in enumerate(missing, 1 + planned - len(missing))}
    if jobs == 1:
        yield from ([(cell, call)] for cell, call in calls.items())
    else:
        yield from processes.side_by_side(calls, jobs)


def data_of(flags: argparse.Namespace, collect: bool) -> tuple[datasets.Data | None, list[str]]:
    """The images of all cells, and the flags of one's own data.

    The flags are what is measured of it once for all cells. None and [] where the data is missing
    and results of before are collected.
    """
    try:
        data = load_data(dataset_spec(vars(flags)), flags.data_dir, flags.inpsize,
                         skipBroken=flags.skipBroken)
    except InputError:
        if collect:
            return None, []
        raise
    measured = {}
    if data.measured:
        console.say(describe_own(flags.dataset, data))
        measured = own_data_flags(data.spec.mean, data.spec.std)
    return data, [f'--{name}={value}' for name, value in measured.items()]


class Failures:
    """The cells that failed, which the others do not depend on."""

    def __init__(self):
        self.names: list[str] = []

    @contextlib.contextmanager
    def of(self, cell: cells.Cell) -> Iterator[None]:
        """Report whatever the block raises, but for a mistake in the flags, which all share."""
        try:
            yield
        except Exception as error:
            if isinstance(error, InputError) and not isinstance(error, RunError | InUse):
                raise
            self.names.append(cell.name)
            report_failure(cell, error)


def report_failure(cell, error):
    error = explained(error)
    if not isinstance(error, InputError):
        console.complain(''.join(traceback.format_exception(error)).rstrip())
    console.complain(console.one_line(f'{PROGRAM}: error: {cell.name} failed: {error}'))


def complete_flags(arguments):
    flags = opts.parse(arguments)
    checks.check(flags)
    devices.choose(flags.device)    # before anything is made
    return resolve.complete(flags)


def write(folder: Path, command: str, results: dict[cells.Cell, dict], flags: argparse.Namespace):
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

"""Train and evaluate the cells of a comparison: those that are missing, each on its own."""
import argparse
import contextlib
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import datasets
from utils.flags.parser import Flags
from utils.data import dataset_spec, describe_own, load_data, own_data_flags
from utils.system import console, processes
from utils.system.errors import InputError, RunError, explained
from utils.system.files import InUse
from utils.training.checkpoint import read_checkpoint

from . import PROGRAM, cells
from .cells import Cell

Results = dict[Cell, dict]      # see statistics.py


def finish(plan: list[Cell], common: Mapping[str, object], options: argparse.Namespace,
           write: Callable[[Results], object]) -> tuple[Results, dict[Cell, Exception]]:
    """Evaluate the finished cells and, unless --collect, train the others.

    common: the flags of all cells; write is called with the results when there are more of them.
    Returns the results, and the errors of the cells that failed, which are reported.
    """
    flags = cells.resolved(common)
    data, measured = load(flags, options.collect)
    common = {**common, **measured}
    images = datasets.fingerprint(data.val) if data else None
    results: Results = {}
    errors: dict[Cell, Exception] = {}
    starts = {}     # flags with which the training of a cell starts or goes on
    for cell in plan:
        with reporting(cell, errors):
            stored = cells.stored_checkpoint(cell, cells.resolved(cell.flags(common)),
                                             data and data.training_images)
            if stored and stored['epoch'] == flags.epochs:
                results[cell] = cells.evaluate_cell(cell, stored, flags, images)
            else:       # a run without a finished epoch is replaced
                starts[cell] = {'resume': str(cell.last)} if stored else {'overwrite': True}
    if results:
        write(results)
    if options.collect:
        if not results and not errors:
            raise InputError(f'--collect: {plan[0].folder} has no finished cells with these flags')
        return results, errors
    calls = {cell: partial(train, f'cell {number} of {len(plan)}: {cell.name}', options,
                           cell.flags(common) | starts[cell])
             for number, cell in enumerate(starts, 1 + len(plan) - len(starts))}
    for ended in processes.side_by_side(calls, options.jobs):
        for cell, outcome in ended:
            with reporting(cell, errors):
                outcome()
                results[cell] = cells.evaluate_cell(cell, read_checkpoint(cell.last), flags, images)
        if any(cell in results for cell, _ in ended):
            write({cell: results[cell] for cell in plan if cell in results})
    return results, errors


def load(flags: Flags, collect: bool) -> tuple[datasets.Data | None, dict[str, object]]:
    """The images of all cells, and the flags of one's own data, measured once for all cells.

    None and no flags where the data is missing and finished cells are collected.
    """
    try:
        data = load_data(dataset_spec(vars(flags)), flags.data_dir, flags.inpsize,
                         skipBroken=flags.skipBroken)
    except InputError:
        if collect:
            return None, {}
        raise
    if not data.measured:
        return data, {}
    console.say(describe_own(flags.dataset, data))
    return data, own_data_flags(data.spec.mean, data.spec.std)


def train(title: str, options: argparse.Namespace, flags: Mapping[str, object]):
    """Train a cell in a process of its own; of several at a time, each has its share of cores."""
    console.say(title)
    threads = max(1, (os.cpu_count() or 1) // options.jobs) if options.jobs > 1 else None
    processes.call_in_new_process(cells.train_cell, flags, options.command, threads)


@contextlib.contextmanager
def reporting(cell: Cell, errors: dict[Cell, Exception]) -> Iterator[None]:
    """Report what the block raises and add it to `errors`, so that the other cells go on.

    A mistake in the flags, which all cells share, is raised.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) and not isinstance(error, RunError | InUse):
            raise
        errors[cell] = known = explained(error)
        if not isinstance(known, InputError):
            console.complain(''.join(traceback.format_exception(known)).rstrip())
        console.complain(console.one_line(f'{PROGRAM}: error: {cell.name} failed: {known}'))

"""Where distribution-aware binarization (dab) can gain over the naive one (xnor), while it trains.

    python3 -m utils.compare.gain --networks=sketchanetwbin,nin --measureAt=0,1,5 --epochs=5 …

Further flags are those of main.py. Each network is trained under each method. Its binarized
convolutions are measured before the first step, after the epochs of --measureAt and after the last:

    K/n         A filter of n weights becomes two values; under dab, K of its weights get the larger
                one. Where K/n = 1/2 in all filters, the two groups are of one size, as under xnor
                those of weights spread evenly around 0, and dab can hardly gain. The asymmetry is
                the mean of |K/n − 1/2| over filters.
    error       ‖W − W~‖²/‖W‖² of a layer, in float64: the share of its projected latent weights W
                that their two values W~ miss. All methods are given the same W, whichever of them
                trains the network; K/n, too, is always that of dab's split.
    gain        1 − (error of dab)/(error of xnor), the share of xnor's error that dab avoids: 0
                where they lose the same, 1 where dab loses nothing. Of a network: of the sums of
                ‖W − W~‖² over all its layers.
    flips       The share of the weights that change sides, from one of the two values to the other,
                in a step of the optimizer, mean over the steps of the last epoch.
    centring    In every step the projection subtracts, at each place of a filter's kernel, the mean
                over the input channels, then clamps to ±1. So every filter has a mean of about 0,
                around which xnor's values lie. dab-uncentred and xnor-uncentred are the methods
                trained with --no-centring, the clamp alone.

A run in <logdir>/<name>/<network>-<method>/ has its measures in gain.csv, beside what
every run records; gain.md and gain.csv in <logdir>/<name>/ are of all. To resume, run the same
command again: what is finished is not trained again. A run that fails does not stop the others.
"""
from utils import interrupt     # before torch

if __name__ == '__main__':
    interrupt.end_silently()

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import datasets
import models
import opts
from utils import console, devices, processes
from utils.arguments import Parser, at_least, check_not_empty, run_name
from utils.errors import InputError, RunError, naming, reported
from utils.files import claimed, write_text
from utils.provenance import provenance

from . import cells, gain_tables, output
from .flags import names_among, shared_flags
from .gain_runs import PROGRAM, Training, train
from .shared import Failures, call_beside, complete_flags, data_of, method_names

NETWORKS = ['bincifar', 'nin', 'mobilenet', 'densenet', *(name for name in models.names()
                                 if 'wbin' in name or 'fbin' in name)]


def main(arguments: Sequence[str] | None = None):
    """Train and measure what is missing of the runs of the arguments; write the tables."""
    with reported(PROGRAM, '; run the same command again to resume'):
        options, common = parse(arguments)
        folder = Path(options.logdir) / options.name
        given = sys.argv[1:] if arguments is None else arguments
        command = shlex.join(['python3', '-m', PROGRAM, *given])
        plan = [Training(network, method, folder) for network in options.networks
                for method in options.methods]
        with contextlib.ExitStack() as stack:
            with naming('--logdir'):
                stack.enter_context(claimed(folder))
            run_all(plan, options.measureAt, common, command, options.jobs)


def run_all(plan: list[Training], measure_at: list[int], common: list[str], command: str,
            jobs: int):
    """Train and measure what is not finished, and write the tables whenever runs end."""
    flags = complete_flags(plan[0].arguments(common))
    if flags.epochs == 0:
        raise InputError('--epochs=0: networks are measured while they train')
    data, measured = data_of(flags, collect=False)
    common = [*common, *measured]
    failures, calls, finished = Failures(PROGRAM), {}, set()
    for number, training in enumerate(plan, 1):
        with failures.of(training):
            epochs = trained_epochs(training, common, data.training_images)
            start = f'--resume={training.last}' if epochs else '--overwrite'
            if epochs == flags.epochs:
                finished.add(training)
            else:
                calls[training] = partial(
                    train_one, f'run {number} of {len(plan)}: {training.name}', jobs, training,
                    [*training.arguments(common), start], measure_at, command)
    for ended in processes.side_by_side(calls, jobs):
        for training, outcome in ended:
            with failures.of(training):
                outcome()
                finished.add(training)
        write(plan, finished, flags, command)
    if not calls:
        write(plan, finished, flags, command)
    if failures.names:
        raise RunError(f'{", ".join(failures.names)} failed, as reported above')


def train_one(title: str, jobs: int, training: Training, arguments: list[str],
              measure_at: list[int], command: str):
    """Train and measure one network in a process of its own, one of so many at a time."""
    console.say(title)
    try:
        call_beside(jobs, train, training, arguments, measure_at, command)
    except InputError as error:     # of this network: the others may do
        raise RunError(str(error)) from error


def write(plan: list[Training], finished: set[Training], flags: argparse.Namespace, command: str):
    """Write and print the tables of the finished runs, in the order of the plan."""
    rows = [row for training in plan if training in finished
            for row in gain_tables.read_rows(training.measures)]
    if not rows:
        return
    text = gain_tables.markdown(provenance(devices.choose(flags.device), command), rows,
                                datasets.data_name(flags.dataset))
    folder = plan[0].folder
    with naming(str(folder), RunError):
        write_text(folder / 'gain.md', text)
        write_text(folder / 'gain.csv', output.csv_table(rows))
    console.say(f'{text}\n{folder}: gain.md, gain.csv')


def trained_epochs(training: Training, common: list[str], training_images: str | None) -> int:
    """The epochs that are trained and, the last of them aside, measured: 0 before the first.

    Raises InputError where other flags or images than these trained them.
    """
    flags = complete_flags(training.arguments(common))
    stored = cells.stored_checkpoint(training, flags, training_images)
    rows = gain_tables.read_rows(training.measures)
    if not stored or not rows or (stored['epoch'] == flags.epochs > rows[-1]['epoch']):
        return 0
    return stored['epoch']


def epoch_numbers(text: str) -> list[int]:
    """The type of --measureAt."""
    return [at_least(0)(number) for number in text.split(',')]


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """(the command's own flags, those of main.py that all runs share)"""
    parser = Parser(prog=f'python3 -m {PROGRAM}', description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', default=','.join(NETWORKS), metavar='A,B,…',
                        type=names_among(*models.names()),
                        help='what to train, with --binaryWeight (default: %(default)s)')
    parser.add_argument('--methods', default='dab,xnor', metavar='A,B,…',
                        type=names_among(*method_names()),
                        help=f'of {", ".join(method_names())} (default: %(default)s)')
    parser.add_argument('--measureAt', default='0,1,2,5,10,20', metavar='A,B,…',
                        type=epoch_numbers, help='epochs after which to measure, 0 for before the '
                        'first step; the last always is (default: %(default)s)')
    parser.add_argument('--jobs', type=at_least(1), default=1, metavar='N',
                        help='runs at the same time; a GPU has room for several (default: 1)')
    parser.add_argument('--name', type=run_name, default='gain', help='(default: %(default)s)')
    parser.add_argument('--logdir', default='logs', metavar='DIR', help='(default: %(default)s)')
    parser.add_argument('--config', metavar='FILE', help="flags from a JSON file, like a run's "
                        'flags.json; those of the command win')
    options, common = parser.parse_known_args(arguments)
    check_not_empty(options, 'logdir', 'config')
    decided = ['model_def', *opts.fixed_by('compare')]
    return options, shared_flags(common, options.config, decided, arguments)[0]


if __name__ == '__main__':
    main()

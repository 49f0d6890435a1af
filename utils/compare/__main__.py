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

Accuracies are counted image by image with the checkpoint of the last epoch. --tenCrop counts with
ten crops; as it does not change what is trained, cells trained without it may be counted with it.
"""
from utils import interrupt     # before torch

if __name__ == '__main__':
    interrupt.end_silently()

import argparse
import contextlib
import itertools
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import models
import opts
from utils import checks, console, devices, processes, resolve
from utils.arguments import Parser, at_least, check_not_empty, one_of, run_name
from utils.binarize import METHODS
from utils.config import config_words
from utils.data import describe_own, load_data
from utils.errors import InputError, RunError, explained, naming, reported
from utils.files import InUse, claimed
from utils.provenance import provenance
from utils.source import dataset_spec, own_data_flags
from utils.training.checkpoint import read_checkpoint

from . import PROGRAM, cells, output, statistics

MODEL_DEF = 'sketchanet'


def main(arguments: Sequence[str] | None = None):
    """Train what is missing of the comparison that the arguments describe, and write its tables."""
    with reported(PROGRAM, '; run the same command again to resume'):
        options, common = parse(arguments)
        flags = complete_flags(common)
        if flags.epochs == 0:
            raise InputError('--epochs=0: there is nothing to compare without training')
        family = models.family(options.model_def)[0]
        name = options.name or f'compare-{datasets.data_name(flags.dataset)}-{family}'
        folder = Path(options.logdir) / name
        given = sys.argv[1:] if arguments is None else arguments
        command = shlex.join(['python3', '-m', PROGRAM, *given])
        plan = cells.plan(options.model_def, options.methods, options.inputs, options.seeds,
                          folder, flags.signLayers)
        with contextlib.ExitStack() as stack:
            with naming('--logdir'):
                if options.collect and not folder.is_dir():
                    raise InputError(f'{folder} does not exist, so it has no finished cells')
                stack.enter_context(claimed(folder))
            compare(plan, options.collect, common, command, flags)


def compare(plan: list[cells.Cell], collect: bool, common: list[str], command: str,
            flags: argparse.Namespace):
    """Write the tables of the finished cells and, unless `collect`, train the others."""
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
    for number, cell in enumerate([] if collect else plan, 1):
        if cell in results or cell.name in failures.names:
            continue
        console.say(f'cell {number} of {len(plan)}: {cell.name}')
        start = f'--resume={cell.last}' if done[cell] else '--overwrite'    # of less than an epoch
        with failures.of(cell):
            processes.call_in_new_process(
                cells.train_cell, [*cell.arguments(common), start], command)
            evaluate(cell, read_checkpoint(cell.last))
        if cell in results:
            write(folder, command, {cell: results[cell] for cell in plan if cell in results}, flags)
    if failures.names:
        raise RunError(f'{", ".join(failures.names)} failed, as reported above')


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

    def __init__(self, program: str = PROGRAM):
        self.program = program
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
            report_failure(self.program, cell, error)


def report_failure(program, cell, error):
    error = explained(error)
    if not isinstance(error, InputError):
        console.complain(''.join(traceback.format_exception(error)).rstrip())
    console.complain(console.one_line(f'{program}: error: {cell.name} failed: {error}'))


def complete_flags(arguments):
    flags = opts.parse(arguments)
    checks.check(flags)
    devices.choose(flags.device)    # before anything is made
    return resolve.complete(flags)


def write(folder: Path, command: str, results: dict[cells.Cell, dict], flags: argparse.Namespace):
    """Write the tables and plots of the finished cells, and print the tables."""
    by_kind: dict = {}
    for cell, result in results.items():
        by_kind.setdefault((cell.method, cell.inputs), {})[cell.seed] = result
    rows = [statistics.summarize(*kind, of_seeds) for kind, of_seeds in by_kind.items()]
    same_inputs = [(a, b) for a, b in itertools.combinations(by_kind, 2) if a[1] == b[1]]
    pairs = [statistics.paired(a, b, by_kind) for a, b in same_inputs]
    origin = provenance(devices.choose(flags.device), command)
    text = output.markdown(origin, rows, [pair for pair in pairs if pair], flags.tenCrop,
                           datasets.data_name(flags.dataset))
    networks = ', '.join(dict.fromkeys(cell.model_def for cell in results))
    title = f'{networks} on {datasets.data_name(flags.dataset)}'
    with naming(str(folder), RunError):
        output.write(folder, text, rows, by_kind, title)
    console.say(f'{text}\n{folder}: compare.md, compare.csv, curves and accuracy as PNG and SVG')


def names_among(*known: str):
    """The type of a flag that takes some of the known names, separated by commas."""
    def choose(text):
        chosen = list(dict.fromkeys(text.split(',')))
        return [one_of(known)(name) for name in chosen]
    return choose


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """(the comparison's own flags, those of main.py that all cells share)"""
    parser = Parser(prog=f'python3 -m {PROGRAM}', description=__doc__,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model_def', type=one_of(models.names()),
                        metavar='NAME', help='a network of the family to compare (default: that of '
                        f'--config, or {MODEL_DEF})')
    parser.add_argument('--methods', default=','.join(['real', *METHODS]), metavar='A,B,…',
                        type=names_among('real', *METHODS), help='of %(default)s (default: all)')
    parser.add_argument('--inputs', default='real,sign', type=names_among('real', 'sign'),
                        metavar='A,B', help='of real, sign (default: both)')
    parser.add_argument('--seeds', default=3, type=at_least(1), metavar='N',
                        help='runs per method (default: 3)')
    parser.add_argument('--name', type=run_name,
                        help='name of the comparison (default: compare-DATA-FAMILY)')
    parser.add_argument('--logdir', default='logs', metavar='DIR', help='(default: %(default)s)')
    parser.add_argument('--config', metavar='FILE',
                        help="flags from a JSON file, like a run's flags.json, but for its name, "
                        'its folder and what the comparison decides; those of the command win')
    parser.add_argument('--collect', action='store_true',
                        help='train nothing; write what the finished cells give')
    options, common = parser.parse_known_args(arguments)
    check_not_empty(options, 'logdir', 'config')
    common, from_config = shared_flags(common, options.config, opts.fixed_by('compare'), arguments)
    if options.config:
        options.model_def = options.model_def or opts.parse(from_config).model_def
    options.model_def = options.model_def or MODEL_DEF
    return options, common


def shared_flags(common: list[str], config: str | None, decided: Sequence[str],
                 arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The flags of main.py that all runs share, after those of --config; and the latter alone.

    arguments: the whole command. Raises InputError for flags that the comparison has decided.
    """
    for flag in common:
        name = flag.split('=')[0]
        if name.removeprefix('--').removeprefix('no-') in decided:
            raise InputError(f'{name} is decided by the comparison for each of its runs')
    if not config:
        return common, []
    words, sentences = config_words(config, opts.parser(),
                                    sys.argv[1:] if arguments is None else arguments,
                                    {'name', 'logdir', *decided})
    for sentence in sentences:
        console.say(sentence)
    return words + common, words


if __name__ == '__main__':
    main()

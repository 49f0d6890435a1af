"""What the runs of a comparison share: flags, images, the machine; and what failed of them."""
import contextlib
import os
import traceback
from collections.abc import Callable, Iterator, Mapping

import torch

import datasets
from utils.binarize import METHODS
from utils.flags import resolve
from utils.flags.parser import Flags
from utils.source import dataset_spec, describe_own, load_data, own_data_flags
from utils.system import console, devices, processes
from utils.system.errors import InputError, RunError, explained
from utils.system.files import InUse

from . import PROGRAM

UNCENTRED = '-uncentred'    # ends the name of a method that is trained with --no-centring


def method_names() -> list[str]:
    """The methods as comparisons call them, each with and without centring."""
    return [*METHODS, *(name + UNCENTRED for name in METHODS)]


def binarization_flags(method: str) -> dict[str, object]:
    """The flags of main.py for 'real' or a method by its name in comparisons, see method_names."""
    if method == 'real':
        return {'binaryWeight': False}
    binarizer = method.removesuffix(UNCENTRED)
    return {'binaryWeight': True, 'binarizer': binarizer, 'centring': method == binarizer}


def call_beside(jobs: int, function: Callable, *arguments):
    """function(*arguments) in a process of its own, which is one of so many that run at a time.

    Of several, each is silent but for warnings and errors, and has its share of the cores.
    """
    if jobs == 1:
        processes.call_in_new_process(function, *arguments)
    else:
        threads = max(1, (os.cpu_count() or 1) // jobs)
        processes.call_in_new_process(call_silently, threads, function, *arguments)


def call_silently(threads: int, function: Callable, *arguments):
    torch.set_num_threads(threads)
    with open(os.devnull, 'w', encoding='utf-8') as nowhere, contextlib.redirect_stdout(nowhere):
        function(*arguments)


def data_of(flags: Flags, collect: bool) -> tuple[datasets.Data | None, dict[str, object]]:
    """The images of all cells, and the flags of one's own data, measured once for all cells.

    None and no flags where the data is missing and results of before are collected.
    """
    try:
        data = load_data(dataset_spec(vars(flags)), flags.data_dir, flags.inpsize,
                         skipBroken=flags.skipBroken)
    except InputError:
        if collect:
            return None, {}
        raise
    measured = {}
    if data.measured:
        console.say(describe_own(flags.dataset, data))
        measured = own_data_flags(data.spec.mean, data.spec.std)
    return data, measured


class Failures:
    """The runs that failed, which the others do not depend on."""

    def __init__(self, program: str = PROGRAM):
        self.program = program
        self.names: list[str] = []

    @contextlib.contextmanager
    def of(self, run) -> Iterator[None]:
        """Report whatever the block raises, but for a mistake in the flags, which all share."""
        try:
            yield
        except Exception as error:
            if isinstance(error, InputError) and not isinstance(error, RunError | InUse):
                raise
            self.names.append(run.name)
            report_failure(self.program, run.name, error)


def report_failure(program, name, error):
    error = explained(error)
    if not isinstance(error, InputError):
        console.complain(''.join(traceback.format_exception(error)).rstrip())
    console.complain(console.one_line(f'{program}: error: {name} failed: {error}'))


def resolved(typed: Mapping[str, object]) -> Flags:
    """The flags of main.py that follow from these. Raises InputError."""
    flags, *_ = resolve.resolve(typed)
    devices.choose(flags.device)    # before anything is made
    return flags

"""The batches of training and validation, from loading processes or from data on the device."""
import os
import random
import sys
import traceback
from collections.abc import Callable
from functools import partial

import torch
from torch.utils.data import DataLoader, DistributedSampler

from datasets import Data
from datasets.items import DeviceLoader, choose
from utils.system.errors import InputError, RunError

from . import parallel

FILES, FILES_OF_WORKER = 32, 10     # that are open at most in a run, measured; of each worker


class WorkersLoader(DataLoader):
    """A DataLoader that ends in one sentence where the system refuses it a process."""

    def __iter__(self):
        try:
            return super().__iter__()
        except OSError as error:
            show, sys.unraisablehook = sys.unraisablehook, lambda _: None
            traceback.clear_frames(error.__traceback__)     # ends what has started, not in silence
            sys.unraisablehook = show
            raise RunError(f'a process that loads images cannot start ({error.strerror}): use '
                           'fewer --workers, or raise ulimit -n and ulimit -u') from None


def make_loaders(data: Data, device: torch.device, dataOn: str, workers: int, batch_size: int,
                 testbatchsize: int, seed: int) -> tuple:
    """Return the training loader, the validation loader and a sentence about where images lie.

    Each yields this process's share of (images, class numbers). A last training batch of one image,
    too few for BatchNorm, is left out; no validation image is. Raises InputError where dataOn
    cannot be, or where the workers would open more files than the system allows.
    """
    on_device, sentence = choose(dataOn, (data.train, data.val), device, workers)
    make: Callable = partial(DeviceLoader, device=device)
    if not on_device:
        if workers and not allow_open_files(FILES + FILES_OF_WORKER * workers):
            raise InputError(f'--workers={workers}: the system allows too few open files: use '
                             'fewer --workers, or raise ulimit -n')
        # With a generator of its own a loader draws nothing from PyTorch's, which dropout uses.
        make = partial(WorkersLoader, num_workers=workers, persistent_workers=workers > 0,
                       pin_memory=device.type == 'cuda', generator=torch.Generator(),
                       worker_init_fn=end_quietly)
    rank, processes = parallel.rank(), parallel.processes()
    sampler = DistributedSampler(data.train, processes, rank, seed=mixed(seed))
    lone = batch_size > 1 and len(sampler) % batch_size == 1
    share = range(rank, len(data.val), processes)
    return (make(data.train, batch_size, sampler=sampler, drop_last=lone),
            make(data.val, testbatchsize, sampler=share), sentence)


def allow_open_files(more: int) -> bool:
    """Raise the limit of open files so that this process can open `more`; whether it now can."""
    try:
        import resource
        needed = len(os.listdir('/dev/fd')) + more
    except (ImportError, FileNotFoundError):    # on Windows, where there is no such limit
        return True
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed <= soft or soft == resource.RLIM_INFINITY:
        return True
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (ValueError, OSError):       # it is above the hard limit
        return False
    return True


def mixed(*numbers: int) -> int:
    """A seed for PyTorch, a hash of the numbers: of a sum, seed 1 would repeat seed 0's epochs."""
    return random.Random(' '.join(map(str, numbers))).getrandbits(63)


def end_quietly(_: int):
    """Suppress a worker's tracebacks at shutdown, of its thread that hands batches over."""
    show = sys.excepthook

    def hook(kind, error, trace):
        if not issubclass(kind, (EOFError, ConnectionError)):
            show(kind, error, trace)
    sys.excepthook = hook

"""A whole split on the device as uint8 squares, from which batches are made without workers."""
import ctypes
import itertools
import math
import os
from collections.abc import Iterator, Sized
from contextlib import suppress

import torch
from torch import Tensor

from datasets.items import Transformed, TransformedSquares
from utils.system import devices
from utils.system.errors import InputError


class DeviceLoader:
    """A DataLoader's batches (images, class numbers) of a set that lies on the device.

    The images are those of the set, whichever way they are loaded; on a GPU, up to rounding. The
    set is placed by the first iteration. Only the start of an epoch waits for the device.
    """

    def __init__(self, dataset: TransformedSquares, batch_size: int, sampler: Sized,
                 device: torch.device, drop_last: bool = False):
        self.dataset, self.device, self.batch_size = dataset, device, batch_size
        self.sampler, self.drop_last = sampler, drop_last
        self.resident: tuple[Tensor, Tensor] | None = None

    def __len__(self):
        images = len(self.sampler)
        return images // self.batch_size if self.drop_last else math.ceil(images / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.resident is None:
            pixels, labels = self.dataset.images.all()
            self.resident = pixels.to(self.device), torch.tensor(labels, device=self.device)
        pixels, labels = self.resident
        indices = list(self.sampler)
        drawn = self.dataset.draw(indices).to(self.device).split(self.batch_size)
        places = torch.tensor(indices, device=self.device).split(self.batch_size)
        for here, of_batch in itertools.islice(zip(places, drawn), len(self)):
            squares = pixels.index_select(0, here)
            yield self.dataset.transform(squares, of_batch), labels.index_select(0, here)


def choose(wanted: str, sets: tuple[Transformed, ...], device: torch.device,
           workers: int) -> tuple[bool, str]:
    """Whether the sets lie on the device, as --dataOn wants it, and a sentence about it.

    Raises InputError where they should and cannot.
    """
    loaded = f'data from {workers or "no"} loading process' + ('' if workers == 1 else 'es')
    if wanted == 'workers':
        return False, loaded
    if not all(isinstance(images, TransformedSquares) for images in sets):
        if wanted == 'device':
            raise InputError('--dataOn=device: photographs are decoded anew in every epoch, since '
                             'their crops need all their pixels')
        return False, f'{loaded}: photographs stay in their files'
    size = sum(len(images) * math.prod(images.transform.shape) for images in sets)
    free = free_memory(device)
    if size > (free if wanted == 'device' else free / 2):
        sizes = f'{gigabytes(size)}, and {device} has {gigabytes(free)} free'
        if wanted == 'device':
            raise InputError(f'--dataOn=device: the images take {sizes}')
        return False, f'{loaded}: the images would take {sizes}'
    return True, (f'data on the device, without loading processes: {gigabytes(size)} of '
                  f'{gigabytes(free)} free on {device}')


def gigabytes(size: float) -> str:
    return f'{size / 1e9:.2g} GB' if size < 1e10 else f'{size / 1e9:.0f} GB'


def free_memory(device: torch.device) -> int:
    """Bytes that the device, or for the CPU the system, can still give."""
    if device.type != 'cpu':
        return devices.free_memory(device)
    with suppress(OSError, StopIteration), open('/proc/meminfo', encoding='utf-8') as lines:
        return next(int(line.split()[1]) for line in lines if 'MemAvailable' in line) * 1024
    if hasattr(os, 'sysconf'):      # macOS
        return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    status = (ctypes.c_uint64 * 8)(64)      # MEMORYSTATUSEX of Windows: 2 × 4 and 7 × 8 bytes,
    ctypes.windll.kernel32.GlobalMemoryStatusEx(status)     # its size first, ullAvailPhys third
    return status[2]

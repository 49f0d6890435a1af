"""The items (tensor, label) of a split, transformed one by one or in batches, and their names.

Squares are images of uint8, all of the same side, of which batches are cropped or augmented, by
loading processes or on the device. A user's own dataset is called 'folder:NAME', wherever its
folder lies later. Class names are compared in NFC: a Mac may store é as e and an accent (NFD).
"""
import ctypes
import hashlib
import itertools
import math
import os
import random
import unicodedata
from collections.abc import Callable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from datasets.transforms import SquareTransform
from utils.system import devices
from utils.system.errors import InputError


OWN = 'folder'
MAX_NAME = 50       # characters, which leaves room in the name of a run's folder


class Transformed(Dataset):
    """Items (tensor, label) from a sequence of (PIL image, label), one by one.

    All randomness in an item is drawn from (seed, epoch, index), whichever process makes it, and
    the global random state is left alone. The epoch is in shared memory, so that persistent workers
    see it change.
    """

    def __init__(self, images, transform, seed):
        self.images, self.transform, self.seed = images, transform, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, label = self.images[index]
        rng = random.Random(f'{self.seed} {int(self.epoch)} {index}')
        with torch.random.fork_rng(devices=[]):     # torch.manual_seed would reseed the GPUs too
            torch.default_generator.manual_seed(rng.getrandbits(63))
            return self.transform(image), label


class TransformedSquares(Transformed):
    """Transformed, from a sequence of squares (see Squares) in batches, by a SquareTransform.

    The random numbers of an image are a function of (seed, epoch, index) here too.
    """

    def draw(self, indices: Sequence[int]) -> Tensor:
        """Draw the random numbers of these images in this epoch; see SquareTransform."""
        return self.transform.draw(self.seed, int(self.epoch), indices)

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        """The items of these indices, which a DataLoader asks for at once."""
        squares, labels = self.images.take(indices)
        return list(zip(self.transform(squares, self.draw(indices)), labels))


class Squares:
    """The squares of a sequence of (PIL image, label), made when they are asked for."""

    def __init__(self, images: Sequence[tuple[Image.Image, int]], transform: SquareTransform):
        self.images, self.transform = images, transform

    def __len__(self):
        return len(self.images)

    def take(self, indices: Sequence[int]) -> tuple[Tensor, list[int]]:
        """(pixels, labels) of these indices: uint8 (N, C, side, side), and class numbers."""
        squares, labels = zip(*map(self._square, indices))
        return torch.stack(squares), list(labels)

    def all(self) -> tuple[Tensor, list[int]]:
        """take(range(len(self))), with a progress bar. Raises ImageError for a broken image."""
        pixels = torch.empty(len(self), *self.transform.shape, dtype=torch.uint8)
        labels = []
        for square, label in in_threads(self._square, len(self), 'preparing the images once'):
            pixels[len(labels)] = square
            labels.append(label)
        return pixels, labels

    def _square(self, index):
        image, label = self.images[index]
        return self.transform.square(image), label


def in_threads(function: Callable[[int], object], count: int, title: str) -> Iterator:
    """Yield function(0), function(1), … in order, by threads, since Pillow releases the GIL."""
    threads = os.cpu_count() or 1
    indices = iter(tqdm(range(count), title, disable=None, unit=' images'))
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(itertools.islice(indices, 16 * threads)):   # memory stays small
            yield from pool.map(function, chunk)


def folder_of(images):
    """The datasets.folders.Folder that the images come from.

    None for the program's drawings and for official files.
    """
    while hasattr(images, 'images'):    # of Transformed, and of Squares or CachedSquares
        images = images.images
    return images if hasattr(images, 'read_as') else None


def image_names(images: Transformed, below: bool = False) -> list[str]:
    """The paths of the images, or their numbers, from 0, where they are not files of their own.

    below: the paths below the folder of their split.
    """
    folder = folder_of(images)
    if folder is None:
        return [str(number) for number in range(len(images))]
    paths = [os.fspath(path) for path, _ in folder.samples]
    root = f'{folder.root}{os.sep}' if below else ''
    return [path.removeprefix(root) for path in paths]


def names_digest(images: Transformed, form: str = 'NFC') -> str:
    """A hash of the names of the images in their folder, which stays where the folder is moved.

    form: the Unicode form of the names; older versions took that of the files.
    """
    names = '\0'.join(image_names(images, below=True)).replace(os.sep, '/')
    names = unicodedata.normalize(form, names)
    return hashlib.sha256(names.encode(errors='surrogateescape')).hexdigest()[:16]


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


def is_own(dataset: str) -> bool:
    """Whether the dataset is 'folder' or 'folder:NAME'."""
    return dataset.partition(':')[0] == OWN


def data_name(dataset: str) -> str:
    """Return the name for people: NAME of 'folder:NAME', otherwise the dataset's own."""
    return dataset.partition(':')[2] or dataset if is_own(dataset) else dataset


def name_of_folder(data_dir: str) -> str:
    """'folder:NAME' of the images in data_dir, NAME without what cannot be printed."""
    name = os.path.basename(os.path.abspath(os.path.expanduser(data_dir))) or 'root'
    name = ''.join(character if character.isprintable() else '_' for character in name)
    return f'{OWN}:{name[:MAX_NAME]}'


def nfc(name: str) -> str:
    """The name, or path, in the Unicode form NFC, in which names are compared and recorded."""
    return unicodedata.normalize('NFC', name)

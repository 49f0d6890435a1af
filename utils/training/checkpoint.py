"""Checkpoints: written atomically, read without running code from the file."""
import copy
import os
import re
import shutil
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.system import devices
from utils.system.errors import InputError, RunError, explained, naming
from utils.system.files import are_class_names, check_file, check_numbers, write_atomically


def on_cpu(value):
    """A copy of every tensor in nested dicts and lists, on the CPU; waits for the device once."""
    copied = _copied(value)
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
    return copied


def _copied(value):
    if isinstance(value, Tensor):
        return value.detach().to('cpu', copy=True, non_blocking=value.is_cuda)
    if isinstance(value, list):
        return [_copied(item) for item in value]
    if isinstance(value, dict):
        copied = copy.copy(value)       # of its class, with the attributes of a state_dict
        copied.update({key: _copied(item) for key, item in value.items()})
        return copied
    return value


def write_checkpoint(path: Path, checkpoint: dict):
    """Save a checkpoint atomically. Raises RunError where that fails."""
    def save(temporary):
        try:
            with open(temporary, 'wb') as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:   # what torch.save makes of a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise RunError(f'{path} could not be written: {error}') from error
    with naming(str(path), RunError):
        write_atomically(path, save)


def read_file(path: str | Path, only_zip: bool = True) -> object:
    """Load what torch.save wrote, on the CPU, without running code from the file.

    only_zip: refuse what PyTorch wrote before version 1.6, without checksums. Raises InputError.
    """
    if os.path.isdir(path):
        raise InputError(f'{str(path)!r} is a folder: name the checkpoint in it, such as '
                         f'{os.path.join(path, "last.pth.tar")}')
    check_file(path, 'checkpoint')
    damaged = None
    try:
        if only_zip or zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:      # as torch.save writes it, with checksums
                damaged = archive.testzip()             # that torch.load does not check
        content = None if damaged else torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:   # a damaged file makes both raise almost anything
        if explained(error) is not error:       # memory ran out
            raise
        if isinstance(error, OSError):
            raise InputError(f'{path} cannot be read: {error.strerror or error}') from error
        if found := re.search(r'Unsupported global: GLOBAL ([\w.]+) ', str(error)):
            raise InputError(f'{path} holds an object of {found[1]}, which is not read because '
                             'that could run code: save a state_dict instead') from error
        raise InputError(f'{path} is truncated, damaged or not a checkpoint') from error
    if damaged:
        raise InputError(f'{path} is damaged: its {damaged} has another checksum than when it was '
                         'written')
    return content


def read_checkpoint(path: str | Path) -> dict:
    """The checkpoint at path as a dict, on the CPU. Raises InputError for any other file."""
    checkpoint = read_file(path)
    wrong = [key for key, valid in SCHEMA.items()
             if not isinstance(checkpoint, dict) or not valid(checkpoint.get(key))]
    if wrong:
        raise InputError(f'{path} is not a checkpoint of this program: no valid '
                         f'{", ".join(wrong)} in it')
    check_numbers(checkpoint['model'], path)
    return checkpoint


def is_count(value) -> bool:
    return type(value) is int and 0 <= value < 2 ** 32


def is_percentage(value) -> bool:
    return type(value) in (int, float) and -1 <= value <= 100       # -1: nothing was measured yet


def is_dict_of(value, kinds, keys=str) -> bool:
    """Whether value is a dict whose keys and values have these types."""
    return isinstance(value, dict) and all(
        isinstance(key, keys) and isinstance(item, kinds) for key, item in value.items())


def are_weights(value) -> bool:
    """Whether value is a dict of ordinary tensors, which can be looked into."""
    return is_dict_of(value, Tensor) and not any(
        tensor.is_meta or tensor.is_quantized or tensor.is_complex()
        or tensor.layout != torch.strided for tensor in value.values())


def is_random_state(value) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.uint8 and value.dim() == 1


CHECKPOINTS = 'last.pth.tar', 'best.pth.tar'    # of a run
SCALER_KEYS = {'scale', 'growth_factor', 'backoff_factor', 'growth_interval', '_growth_tracker'}
SCHEMA = {      # what a checkpoint must have
    'model': are_weights,
    'optimizer': lambda value: (is_dict_of(value, object)
                                and is_dict_of(value.get('state'), dict, int)),
    'epoch': is_count,
    'best': is_percentage,
    'rng': lambda value: (is_dict_of(value, object) and is_random_state(value.get('cpu'))
                          and isinstance(value.get('cuda'), list)
                          and all(map(is_random_state, value['cuda']))),
    'flags': lambda value: is_dict_of(value, object),
    'classes': are_class_names,
    'channels': lambda value: is_count(value) and value > 0,
    'training_images': lambda value: value is None or isinstance(value, str),   # of datasets.Data
    'metrics': lambda value: (is_dict_of(value, (int, float)) and is_count(value.get('images'))
                              and all(is_percentage(value.get(top)) for top in ('top1', 'top5'))
                              and all(number == number for number in value.values())),   # no NaN
    'scaler': lambda value: value is None or (      # empty but for float16
        is_dict_of(value, (int, float)) and (not value or (
            value.keys() >= SCALER_KEYS and value['scale'] > 0
            and all(number >= 0 for number in value.values())))),
}


def check_disk_space(folder: Path, model: nn.Module):
    """Raise InputError where the disk cannot hold last, best and a temporary checkpoint.

    Each is as large as the model with Adam's state; those of a resumed run are replaced.
    """
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    old = [folder / name for name in CHECKPOINTS]
    replaced = sum(path.stat().st_size for path in old if path.exists())
    needed, free = 3 * (1 + 2) * size - replaced, shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(f'--logdir: {folder} has {free / 1e6:.0f} MB of free disk, and the '
                         f'checkpoints of this run need {needed / 1e6:.0f} MB')


def load_model(model: nn.Module, checkpoint: dict, path: str | Path):
    """Load the weights of a checkpoint, read from `path`. Raises InputError if they do not fit."""
    try:
        model.load_state_dict(checkpoint['model'])
    except RuntimeError:
        raise InputError(f'the weights in {path} do not fit this network') from None


def random_state() -> dict:
    """The random state of the CPU and of every GPU."""
    return {'cpu': torch.get_rng_state(), **devices.random_states()}


def restore_random_state(state: dict):
    """Restore what random_state() returned. Raises InputError for anything else."""
    try:
        torch.set_rng_state(state['cpu'])
        devices.restore_random_states(state)
    except (RuntimeError, TypeError):
        raise InputError('the checkpoint has an invalid random state') from None

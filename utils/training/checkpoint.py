"""Checkpoints: written atomically, read without running code from the file."""
import os
import shutil
from pathlib import Path

import torch
from torch import nn

from utils.errors import InputError, RunError, naming
from utils.files import write_atomically

KEYS = {'model', 'optimizer', 'epoch', 'best', 'rng', 'flags', 'classes', 'channels', 'metrics'}


def write_checkpoint(path: Path, checkpoint: dict):
    """Save the dict `checkpoint` atomically. Raises RunError where that fails."""
    def save(temporary):
        try:
            torch.save(checkpoint, temporary)
        except RuntimeError as error:   # what torch.save makes of a full disk
            raise RunError(f'{path} could not be written: {error}') from error
    with naming(str(path), RunError):
        write_atomically(path, save)


def read_checkpoint(path: str | Path) -> dict:
    """The checkpoint at path as a dict, on the CPU. Raises InputError for any other file."""
    if not os.path.isfile(path):
        raise InputError(f'there is no checkpoint {str(path)!r}')
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error.strerror or error}') from error
    except Exception as error:   # a damaged file makes torch.load raise almost anything
        raise InputError(f'{path} is truncated, damaged or not a checkpoint') from error
    if not isinstance(checkpoint, dict) or not KEYS <= checkpoint.keys():
        raise InputError(f'{path} is not a checkpoint of this program')
    return checkpoint


def check_disk_space(folder: Path, model: nn.Module):
    """Raise InputError where the disk cannot hold last, best and a temporary checkpoint.

    Their size is that of the model with Adam's state, two numbers per weight.
    """
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    needed, free = 3 * (1 + 2) * size, shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(f'--logdir: {folder} has {free / 1e6:.0f} MB of free disk, and the '
                         f'checkpoints of this run need {needed / 1e6:.0f} MB')


def load_model(model: nn.Module, checkpoint: dict, path: str | Path):
    """Load the weights of a checkpoint, read from `path`. Raises InputError if they do not fit."""
    try:
        model.load_state_dict(checkpoint['model'])
    except RuntimeError:
        raise InputError(f'the weights in {path} do not fit this network') from None


def load_pretrained(model: nn.Module, path: str | Path) -> list[str]:
    """Copy the tensors of the checkpoint at path whose names and shapes agree.

    Real and latent weights count as the same. Returns the names of the tensors that keep their
    initial values. Raises InputError if that is all weights.
    """
    def plain(name):
        return name.replace('parametrizations.weight.original', 'weight')

    stored = {plain(name): tensor for name, tensor in read_checkpoint(path)['model'].items()}
    own = model.state_dict()
    taken = {name: stored[plain(name)] for name, tensor in own.items()
             if plain(name) in stored and stored[plain(name)].shape == tensor.shape}
    if not any(tensor.dim() for tensor in taken.values()):     # but for the counters of BatchNorm
        raise InputError(f'no tensor of {path} fits this network')
    model.load_state_dict(taken, strict=False)
    return sorted(own.keys() - taken.keys())


def random_state() -> dict:
    """The random state of the CPU and of every GPU."""
    return {'cpu': torch.get_rng_state(), 'cuda': torch.cuda.get_rng_state_all()}


def restore_random_state(state: dict):
    torch.set_rng_state(state['cpu'])
    if len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state['cuda'])

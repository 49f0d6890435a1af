"""Checkpoints: written whole or not at all, read without running code from the file."""
import os
import shutil
from pathlib import Path

import torch

KEYS = {'model', 'optimizer', 'epoch', 'best', 'rng', 'flags', 'classes', 'channels', 'metrics'}


def write_whole(path, write):
    """Call write(temporary), a Path, and then rename that file to the Path `path`, which is never half written."""
    temporary = path.with_name(path.name + '.tmp')
    try:
        write(temporary)
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_checkpoint(path, checkpoint):
    """Save the dict `checkpoint`, whole or not at all. Raises OSError where that fails."""
    def save(temporary):
        try:
            torch.save(checkpoint, temporary)
        except RuntimeError as error:   # what torch.save makes of a full disk
            raise OSError(f'{path} could not be written: {error}') from error
    write_whole(Path(path), save)


def read_checkpoint(path):
    """The checkpoint at path as a dict, on the CPU. Raises ValueError, in a sentence, for any other file."""
    if not os.path.isfile(path):
        raise ValueError(f'there is no checkpoint {path!r}')
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:   # a damaged file makes torch.load raise almost anything
        raise ValueError(f'{path} is truncated, damaged or no checkpoint') from error
    if not isinstance(checkpoint, dict) or not KEYS <= checkpoint.keys():
        raise ValueError(f'{path} is no checkpoint of this program')
    return checkpoint


def check_room(folder, model):
    """Raise OSError where the disk cannot hold last, best and a temporary checkpoint of the model with Adam's state."""
    folder = Path(folder)
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    needed, free = 3 * (1 + 2) * size, shutil.disk_usage(existing).free     # Adam keeps two numbers a weight
    if free < needed:
        raise OSError(f'--logdir: {folder} has {free / 1e6:.0f} MB of free disk, and the checkpoints of '
                      f'this run need {needed / 1e6:.0f} MB')


def load_model(model, stored, path):
    """Load the model of the checkpoint `stored`, which came from the file path; ValueError if it does not fit."""
    try:
        model.load_state_dict(stored['model'])
    except RuntimeError:
        raise ValueError(f'the weights in {path} do not fit this network') from None


def load_pretrained(model, path):
    """Copy the tensors of the checkpoint at path whose names and shapes agree; real and latent
    weights count as the same. Returns the names of the tensors that start anew; ValueError if that is all weights.
    """
    def plain(name):
        return name.replace('parametrizations.weight.original', 'weight')

    stored = {plain(name): tensor for name, tensor in read_checkpoint(path)['model'].items()}
    own = model.state_dict()
    taken = {name: stored[plain(name)] for name, tensor in own.items()
             if plain(name) in stored and stored[plain(name)].shape == tensor.shape}
    if not any(tensor.dim() for tensor in taken.values()):     # but for the counters of BatchNorm
        raise ValueError(f'--pretrained_file: no tensor of {path} fits this network')
    model.load_state_dict(taken, strict=False)
    return sorted(own.keys() - taken.keys())


def random_state():
    """The random state of the CPU and of every GPU."""
    return {'cpu': torch.get_rng_state(), 'cuda': torch.cuda.get_rng_state_all()}


def restore_random_state(state):
    torch.set_rng_state(state['cpu'])
    if len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state['cuda'])

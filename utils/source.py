"""What a network comes from: a checkpoint, a packed model, or nothing but its name."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

import datasets
import models
import opts
from utils import binarize, packed
from utils.errors import InputError, naming
from utils.flags.parser import numbers
from utils.training import checkpoint as checkpoints


@dataclass(frozen=True)
class Source:
    """What a network comes from: a checkpoint or a packed model, read from its file."""

    path: str
    flags: dict         # those that it was trained with; of a packed model only some
    classes: list[str]
    channels: int
    checkpoint: dict | None = None      # see utils.training.checkpoint
    network: nn.Module | None = None    # of a packed model
    is_found: bool = False      # by --resume=auto, not named by the user

    @property
    def spec(self) -> datasets.DatasetSpec:
        """What its images are, with the normalization that it was trained with."""
        return dataset_spec(self.flags)

    @property
    def fixes(self) -> list[str]:
        """The names of the flags in which an experiment cannot differ from it."""
        return opts.fixed_by('checkpoint' if self.checkpoint else 'packed')


def dataset_spec(flags: dict) -> datasets.DatasetSpec:
    """The DatasetSpec that the data flags describe. Raises InputError."""
    try:
        mean, std = numbers(flags['mean']), numbers(flags['std'])
    except ValueError as error:
        raise InputError(f'--mean and --std: {error}') from None
    return datasets.spec(flags['dataset'], flags['channels'], mean, std, flags['ink'],
                         flags['minCrop'])


def own_data_flags(mean: Sequence[float], std: Sequence[float]) -> dict:
    """The flags of one's own data with this normalization."""
    texts = (','.join(str(float(value)) for value in values) for values in (mean, std))
    return dict(zip(('channels', 'mean', 'std'), (len(mean), *texts)))


def checkpoint_source(path: str | Path) -> Source:
    """The Source of a checkpoint. Raises InputError."""
    if packed.is_packed(path):
        raise InputError(f'{path} is a packed model (main.py takes it as --packed): name a '
                         'checkpoint')
    stored = checkpoints.read_checkpoint(path)
    with naming(f'{path} is not a checkpoint that this program can use'):
        flags = opts.recorded(stored['flags'])
    return Source(str(path), flags, stored['classes'], stored['channels'], checkpoint=stored)


def packed_source(path: str | Path, build: Callable = models.build) -> Source:
    """The Source of a packed model; build is that of packed.load. Raises InputError."""
    description, network = packed.load(path, build)
    flags = {name: getattr(description, name)
             for name in ('model_def', 'signLayers', 'inpsize', 'dataset', 'tenCrop')}
    flags['nClasses'] = len(description.classes)
    not_in_the_file = 'channels', 'mean', 'std', 'ink', 'minCrop'
    flags |= {name: opts.default(name) for name in not_in_the_file}
    if datasets.is_own(description.dataset):
        flags |= own_data_flags(description.mean, description.std)
        with naming(str(path)):
            dataset_spec(flags)
    elif description.dataset not in datasets.names():
        raise InputError(f'{path} was made for the dataset {description.dataset}, which this '
                         'program does not have')
    elif datasets.normalization(description.dataset) != (description.mean, description.std):
        raise InputError(f'{path} normalizes images in another way than the dataset '
                         f'{description.dataset} does here')
    return Source(str(path), flags, description.classes, description.channels, network=network)


def new_network(name: str, nClasses: int, channels: int, inpsize: int | None = None,
                signLayers: str | None = None, binarized: tuple | None = None,
                build: Callable = models.build) -> nn.Module:
    """The network `name`, initialized; `binarized` are the further arguments of binarize.wrap."""
    model = build(name, nClasses, channels, inpsize, signLayers)
    return binarize.wrap(model, *binarized) if binarized else model


def wrap_arguments(flags: dict) -> tuple:
    """What binarize.wrap takes beside the model, as the flags say."""
    names = 'binStart', 'binEnd', 'binarizer', 'binSearch', 'centring'
    return tuple(flags[name] for name in names)


def stored_network(source: Source, build: Callable = models.build,
                   binSearch: str | None = None) -> nn.Module:
    """The network of a checkpoint or a packed model with its weights."""
    if source.network is not None:
        return source.network
    flags = source.flags | ({'binSearch': binSearch} if binSearch else {})
    model = new_network(flags['model_def'], len(source.classes), source.channels,
                        flags['inpsize'], flags['signLayers'],
                        wrap_arguments(flags) if flags['binaryWeight'] else None, build)
    checkpoints.load_model(model, source.checkpoint, source.path)
    return model

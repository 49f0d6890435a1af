"""The sources of an experiment: a checkpoint or packed model for its network, and its images."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

import datasets
import models
import opts
from utils import binarize
from utils.flags.parser import numbers
from utils.system.errors import InputError, naming
from utils.training import checkpoint as checkpoints


@dataclass(frozen=True)
class Source:
    """A checkpoint or a packed model, read from its file."""

    path: str
    flags: dict         # that it was trained with; a packed model has only some
    classes: list[str]
    channels: int
    checkpoint: dict | None = None      # see utils.training.checkpoint
    network: nn.Module | None = None    # of a packed model
    is_found: bool = False      # by --resume=auto instead of by name

    @property
    def spec(self) -> datasets.DatasetSpec:
        """The dataset and normalization that it was trained with."""
        return dataset_spec(self.flags)

    @property
    def fixes(self) -> list[str]:
        """The names of the flags that it determines."""
        return opts.fixed_by('checkpoint' if self.checkpoint else 'packed')


def dataset_spec(flags: dict) -> datasets.DatasetSpec:
    """Return the DatasetSpec of the data flags. Raises InputError."""
    try:
        mean, std = numbers(flags['mean']), numbers(flags['std'])
    except ValueError as error:
        raise InputError(f'--mean and --std: {error}') from None
    return datasets.spec(flags['dataset'], flags['channels'], mean, std, flags['ink'],
                         flags['minCrop'])


def own_data_flags(mean: Sequence[float], std: Sequence[float]) -> dict:
    """Return the flags that describe a folder with this normalization."""
    texts = (','.join(str(float(value)) for value in values) for values in (mean, std))
    return dict(zip(('channels', 'mean', 'std'), (len(mean), *texts)))


def checkpoint_source(path: str | Path) -> Source:
    """Read a checkpoint. Raises InputError."""
    from utils import packed
    if packed.is_packed(path):
        raise InputError(f'{path} is a packed model (main.py takes it as --packed): name a '
                         'checkpoint')
    stored = checkpoints.read_checkpoint(path)
    with naming(f'{path} is not a checkpoint that this program can use'):
        flags = opts.recorded(stored['flags'])
    return Source(str(path), flags, stored['classes'], stored['channels'], checkpoint=stored)


def packed_source(path: str | Path, build: Callable = models.build) -> Source:
    """Read a packed model; build: see packed.load. Raises InputError."""
    from utils import packed
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
    """Build and initialize a network; `binarized`: arguments of binarize.wrap after the model."""
    model = build(name, nClasses, channels, inpsize, signLayers)
    return binarize.wrap(model, *binarized) if binarized else model


def wrap_arguments(flags: dict) -> tuple:
    """Return the arguments of binarize.wrap after the model, from the flags."""
    names = 'binStart', 'binEnd', 'binarizer', 'binSearch', 'centring'
    return tuple(flags[name] for name in names)


def stored_network(source: Source, build: Callable = models.build,
                   binSearch: str | None = None) -> nn.Module:
    """Return the network of a source, with its weights."""
    if source.network is not None:
        return source.network
    flags = source.flags | ({'binSearch': binSearch} if binSearch else {})
    model = new_network(flags['model_def'], len(source.classes), source.channels,
                        flags['inpsize'], flags['signLayers'],
                        wrap_arguments(flags) if flags['binaryWeight'] else None, build)
    checkpoints.load_model(model, source.checkpoint, source.path)
    return model


def load_data(spec: datasets.DatasetSpec, data_dir: str, inpsize: int,
              source: Source | None = None, tenCrop: bool = False, seed: int = 0,
              skipBroken: bool = False, split: str = 'val') -> datasets.Data:
    """Load images; they must have the classes and channels of the source. Raises InputError."""
    with naming('--data_dir'):
        classes = [datasets.nfc(name) for name in source.classes] if source else []
        data = datasets.load(spec, data_dir, inpsize, tenCrop, seed, skipBroken=skipBroken,
                             split=split, classes=classes)
        if source:
            check_same_data(source, data)
    return data


def check_same_data(source: Source, data: datasets.Data):
    """Raise InputError if the source was trained on other classes or channels."""
    had, has = ((len(some.classes), some.channels) for some in (source, data))
    if had != has:
        raise InputError(f'{source.path} was trained on other classes or channels: on {had[0]} '
                         f'classes and {had[1]} channels, and this data has {has[0]} classes and '
                         f'{has[1]} channels')
    for name, here in zip(map(datasets.nfc, source.classes), data.classes):
        if name != here:
            raise InputError(f'{source.path} was trained on other classes: its '
                             f'{datasets.shown(name, [here])} is {datasets.shown(here, [name])} '
                             'in this data')


def describe_own(dataset: str, data: datasets.Data) -> str:
    """Describe a folder for the log: its name, kind and normalization."""
    flags = own_data_flags(data.spec.mean, data.spec.std)
    is_sketch = data.channels == 1
    kind = f'sketches, --ink={data.spec.ink}' if is_sketch else datasets.KINDS[data.channels]
    origin = ''
    if data.measured:
        origin = f', measured on {data.measured} of {len(data.train)} training images'
    return (f'own images: {datasets.data_name(dataset)} ({kind}), normalized by '
            f'--mean={flags["mean"]} --std={flags["std"]}{origin}')


def about_training(source: Source | None, data: datasets.Data, folder: Path) -> list[str]:
    """Return notes for the log of a run in `folder`: what it continues, on which images.

    Raises InputError if --resume=auto found a checkpoint of other training images.
    """
    sentences = []
    images = datasets.folder_of(data.val)
    if images and images.root.name == 'test':
        sentences.append(f'validation uses {images.root}, since val/ is missing: the best '
                         'checkpoint is chosen on it')
    if source:
        sentences.append(f'continues {source.path} after epoch {source.checkpoint["epoch"]}, in '
                         f'{folder}')
    if source and is_of_other_images(source.checkpoint, data.training_images,
                                     datasets.names_digest(data.train, 'NFD')):     # once, on a Mac
        sentence = f'{source.path} was trained on other images than those of --data_dir'
        if source.is_found:
            raise InputError(f'{sentence}: give another --name or, to go on all the same, '
                             f'--resume={source.path}')
        sentences.append(sentence)
    return sentences


def is_of_other_images(checkpoint: dict, *training_images: str) -> bool:
    """Whether it records digests of training images, but none of these."""
    return checkpoint.get('training_images') not in (None, *training_images)

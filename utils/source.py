"""--resume and --packed: the checkpoint or packed model that the network comes from."""
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

import datasets
import models
import opts
from utils import binarize
from utils.data import dataset_spec, own_data_flags
from utils.flags.parser import Flags
from utils.system.errors import InputError, naming
from utils.system.files import has_file
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

    def check_data(self, data: datasets.Data):
        """Raise InputError if it was trained on other classes or channels than these."""
        had, has = ((len(some.classes), some.channels) for some in (self, data))
        if had != has:
            raise InputError(f'{self.path} was trained on other classes or channels: on {had[0]} '
                             f'classes and {had[1]} channels, and this data has {has[0]} classes '
                             f'and {has[1]} channels')
        for name, here in zip(map(datasets.nfc, self.classes), data.classes):
            if name != here:
                raise InputError(f'{self.path} was trained on other classes: its '
                                 f'{datasets.shown(name, [here])} is '
                                 f'{datasets.shown(here, [name])} in this data')

    def note_training(self, data: datasets.Data, folder: Path) -> list[str]:
        """Return notes for the log of a run in `folder`: what it continues, on which images.

        Raises InputError if --resume=auto found a checkpoint of other training images.
        """
        notes = [f'continues {self.path} after epoch {self.checkpoint["epoch"]}, in {folder}']
        digests = data.training_images, datasets.names_digest(data.train, 'NFD')   # once, on a Mac
        if is_of_other_images(self.checkpoint, *digests):
            sentence = f'{self.path} was trained on other images than those of --data_dir'
            if self.is_found:
                raise InputError(f'{sentence}: give another --name or, to go on all the same, '
                                 f'--resume={self.path}')
            notes.append(sentence)
        return notes


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


def stored_network(source: Source, build: Callable = models.build,
                   binSearch: str | None = None) -> nn.Module:
    """Return the network of a source, with its weights."""
    if source.network is not None:
        return source.network
    flags = source.flags | ({'binSearch': binSearch} if binSearch else {})
    model = build(flags['model_def'], len(source.classes), source.channels, flags['inpsize'],
                  flags['signLayers'])
    if flags['binaryWeight']:
        names = 'binStart', 'binEnd', 'binarizer', 'binSearch', 'centring'
        binarize.wrap(model, *(flags[name] for name in names))
    checkpoints.load_model(model, source.checkpoint, source.path)
    return model


def is_of_other_images(checkpoint: dict, *training_images: str) -> bool:
    """Whether it records digests of training images, but none of these."""
    return checkpoint.get('training_images') not in (None, *training_images)


def find_source(chosen: Mapping[str, object],
                is_found: bool) -> tuple[dict[str, object], Source | None]:
    """Read what --resume or --packed names; return the flags with its run's folder, and it.

    is_found: whether --resume=auto found the checkpoint.
    """
    if not chosen.get('resume'):
        with naming('--packed'):
            return dict(chosen), packed_source(chosen['packed'])
    with naming('--resume'):
        source = replace(checkpoint_source(chosen['resume']), is_found=is_found)
    return where_it_lies(chosen['resume']) | chosen, source


def where_it_lies(checkpoint: str) -> dict[str, str]:
    """Return --logdir and --name of the run folder that holds the checkpoint, {} if none does.

    What the checkpoint recorded does not count: its folder may have been moved, and a downloaded
    file must not decide where this program writes.
    """
    folder = Path(checkpoint).parent
    if not has_file(folder / 'flags.json'):
        return {}
    if folder.name in ('', '..'):
        folder = folder.resolve()
    return {'logdir': str(folder.parent), 'name': folder.name}


def keep_own_data(flags: Flags, source: Source) -> Flags:
    """Give --dataset=folder the name that the source recorded; --data_dir may have moved.

    Raises InputError if only one of the two is a folder, or if the data is described differently.
    """
    recorded = source.flags['dataset']
    if datasets.is_own(recorded) != datasets.is_own(flags.dataset):
        raise InputError(f'{source.path} was trained with --dataset={recorded}, not with '
                         f'--dataset={flags.dataset}, which normalizes images in another way: '
                         'leave --dataset out')
    if datasets.is_own(recorded):
        refuse_other(flags, source, ('channels', 'mean', 'std'))
    return flags.replace(dataset=recorded) if flags.dataset == datasets.OWN else flags


def refuse_other(flags: Flags, source: Source, names: Iterable[str]):
    """Raise InputError if one of these flags differs from the source."""
    for name in names:      # a checkpoint older than a flag has its default
        fixed, value = source.flags.get(name, opts.default(name)), getattr(flags, name)
        if fixed != value:
            raise InputError(f'{source.path} was trained {opts.spelled(name, fixed)}, not '
                             f'{opts.spelled(name, value)}')


def check_source(flags: Flags, source: Source):
    """Raise InputError if the flags contradict what the source fixes."""
    refuse_other(flags, source, source.fixes)
    if flags.pretrained_file not in (None, source.flags.get('pretrained_file')):
        raise InputError(f'{source.path} has all weights: --pretrained_file would change nothing')

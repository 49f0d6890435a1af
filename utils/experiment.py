"""From flags to data, network and loaders; load() is for scripts.

    experiment = from_command(['--resume=logs/NAME/best.pth.tar', '--evaluate'])
    experiment.make_network(), experiment.make_loaders()

    trained = load('logs/NAME/best.pth.tar')    # in your own script: network, classes, transform
"""
import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import datasets
import models
import opts
from models.blocks import has_signs
from utils import binarize
from utils.data import dataset_spec, describe_own, load_data, note_validation, own_data_flags
from utils.record.describe import arithmetic, describe, describe_data
from utils.flags import resolve
from utils.flags.parser import Flags
from utils.record.pictures import Pictures
from utils.record.describe import provenance
from utils.record.run import Run, SilentRun
from utils.system.devices import train_channels_last
from utils.system.errors import InputError, naming
from utils.training import checkpoint as checkpoints
from utils.training import epoch, loaders, loop, parallel

if TYPE_CHECKING:
    from utils.source import Source


@dataclass(frozen=True)
class Experiment:
    """All flags, and the data and device that they select."""

    flags: Flags
    source: 'Source | None'
    data: datasets.Data | None      # None for --classify and --export
    classes: list[str]
    channels: int
    device: torch.device
    notes: tuple[str, ...] = ()     # for the log, such as flags without effect

    @property
    def spec(self) -> datasets.DatasetSpec:
        """The dataset and its normalization."""
        return dataset_spec(vars(self.flags))

    def make_network(self, say: Callable[[str], object] = str) -> nn.Module:
        """Build the network on the device, with the weights of the source if there is one.

        Seeds PyTorch. say is called with notes about --pretrained_file.
        """
        flags = self.flags
        torch.manual_seed(flags.manualSeed)
        if self.source:
            from utils.source import stored_network
            model = stored_network(self.source, binSearch=flags.binSearch)
        else:
            model = models.build(flags.model_def, flags.nClasses, self.channels, flags.inpsize,
                                 flags.signLayers)
            if flags.pretrained_file:   # before methods start from the weights
                from utils.pretrained import load_pretrained
                with naming('--pretrained_file'):
                    for sentence in load_pretrained(model, flags.pretrained_file):
                        say(sentence)
            if flags.binaryWeight:
                binarize.wrap(model, flags.binStart, flags.binEnd, flags.binarizer,
                              flags.binSearch, flags.centring)
        if flags.channelsLast:      # in training; evaluation rounds as the packed network does
            train_channels_last(model, self.device)
        if flags.calculateBinarizationLosses and not has_signs(model):
            raise InputError('--calculateBinarizationLosses: '
                             f'{flags.model_def} has no sign layers')
        return model.to(self.device)

    def make_loaders(self, say: Callable[[str], object] = str) -> tuple:
        """Return the training and validation loaders, see utils.training.loaders.

        say is called with a note about where the images are.
        """
        flags = self.flags
        train, val, note = loaders.make_loaders(
            self.data, self.device, flags.dataOn, flags.workers, flags.batch_size,
            flags.testbatchsize, flags.manualSeed)
        say(note)
        return train, val

    def train(self, command: str | None = None,
              observer: loop.Observer = loop.NOBODY) -> nn.Module:
        """Train, as far as the flags say, with the record of a run; returns the network.

        command is what the record calls the command, by default that of this process. Raises
        InputError before the first epoch, RunError from then on.
        """
        flags, checkpoint = self.flags, self.source and self.source.checkpoint
        if checkpoint and checkpoint['epoch'] > flags.epochs:
            raise InputError(f'{self.source.path} has {checkpoint["epoch"]} epochs already, more '
                             f'than --epochs={flags.epochs}')
        notes = list(self.notes)
        model, both = self.make_network(notes.append), self.make_loaders(notes.append)
        train_loader, _ = both
        if flags.batch_size == 1:
            self._check_batch_of_one(model)
        if not len(train_loader):
            raise InputError(f'the training set of {flags.dataset} has a single image, and '
                             'BatchNorm needs two in a batch')
        run: Run | SilentRun = SilentRun()
        if parallel.rank() == 0:
            folder = Path(flags.logdir) / flags.name
            with naming('--logdir'):
                checkpoints.check_disk_space(folder, model)
            run = Run(folder, vars(flags), provenance(self.device, command), flags.resume,
                      checkpoint, flags.overwrite,
                      Pictures(self.data.val, self.data.spec, self.classes))
        with run:
            run.say(describe(model, self.channels, flags.inpsize, self.device, flags.verbose))
            run.say(arithmetic(self.device, flags.amp, epoch.validation_amp(model, flags.amp),
                               flags.channelsLast))
            run.say(describe_data(train_loader, len(self.data.val), len(self.classes),
                                  parallel.processes()))
            for sentence in notes:
                run.say(sentence)
            facts = {'flags': vars(flags), 'classes': self.classes, 'channels': self.channels,
                     'training_images': self.data.training_images}
            loop.train(flags, model, both, run, self.device, facts, checkpoint, observer)
        return model

    def _check_batch_of_one(self, model):
        """A BatchNorm over 1×1 maps cannot train on one image: better to learn it now."""
        try:
            image = torch.zeros(1, self.channels, self.flags.inpsize, self.flags.inpsize)
            copy.deepcopy(model)(image.to(self.device))
        except ValueError as error:
            if 'Expected more than 1 value per channel' not in str(error):
                raise
            raise InputError(f'--batch-size=1: {error}') from error


def from_command(arguments: Sequence[str] | None = None) -> Experiment:
    """Make the experiment of a command line, by default of this process. Raises InputError."""
    return from_flags(opts.parse(arguments))


def from_flags(typed: Mapping[str, object]) -> Experiment:
    """Make the experiment of the typed flags {name: value}. Raises InputError."""
    flags, source, notes = resolve.resolve(typed)
    device = parallel.start('cpu' if flags.packed else flags.device)
    resolve.check_same_start(source, device)
    choose_algorithms(flags.deterministic and device.type != 'cpu')
    data = None
    if not (flags.classify or flags.export):
        data = load_data(dataset_spec(vars(flags)), flags.data_dir, flags.inpsize, source,
                         flags.tenCrop, flags.manualSeed, flags.skipBroken, flags.split or 'val')
        if datasets.is_own(flags.dataset):
            flags = flags.replace(**own_data_flags(data.spec.mean, data.spec.std))
            notes.append(describe_own(flags.dataset, data))
        if flags.nClasses not in (None, len(data.classes)):
            trained = f'{source.path} was trained with ' if source else ''
            raise InputError(f'{trained}--nClasses={flags.nClasses}, but the data has '
                             f'{len(data.classes)} classes')
    classes, channels = (data or source).classes, (data or source).channels
    notes += resolve.ignored(flags, channels, device, data is None or data.in_folders)
    flags = resolve.complete(flags, classes, channels, device)
    notes += resolve.changed_schedule(flags, source)
    if data and not flags.evaluate:
        notes += note_validation(data)
        if source:
            notes += source.note_training(data, Path(flags.logdir, flags.name))
    return Experiment(flags, source, data, classes, channels, device, tuple(notes))


def choose_algorithms(deterministic: bool):
    """Let PyTorch use the fastest algorithms on a GPU, or only deterministic ones."""
    if deterministic != torch.are_deterministic_algorithms_enabled():   # the call takes seconds
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ['CUBLAS_WORKSPACE_CONFIG'] = ':4096:8'   # which PyTorch demands of cuBLAS


@dataclass(frozen=True)
class Trained:
    """A network for scripts: network(transform(image)[None]) returns log-probabilities."""

    network: nn.Module      # in evaluation mode, on the CPU
    classes: list[str]      # in the order of its outputs
    transform: Callable[..., Tensor]    # from a PIL image of any mode to (channels, side, side)


def load(path: str | Path, build: Callable = models.build) -> Trained:
    """Load the trained network of a checkpoint or a packed model (.dab).

    build: for networks that are not registered, build(model_def, nClasses, channels, inpsize,
    signLayers) -> nn.Module. Sketches are read with the checkpoint's --ink; a packed model does
    not record it and expects dark strokes. Raises InputError for any other file.
    """
    from utils import packed
    from utils.source import checkpoint_source, packed_source, stored_network
    is_packed = packed.is_packed(path)
    source = packed_source(path, build) if is_packed else checkpoint_source(path)
    transform = partial(prepared, channels=source.channels, ink=source.flags['ink'],
                        transform=datasets.transform(source.spec, source.flags['inpsize']))
    return Trained(stored_network(source, build).eval(), source.classes, transform)


def prepared(image, channels: int, ink: str, transform: Callable) -> Tensor:
    """Transform a PIL image of any mode for a network of this many channels."""
    return transform(datasets.as_channels(image, channels, ink=ink))

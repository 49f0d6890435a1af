"""From the flags of a command to those that everything is built from.

A value is that of the command or, in this order, of --config, of the checkpoint or packed model
that the command names, or the default. Defaults that depend on other flags are filled in by
resolve, those that depend on the data or on the device by complete.
"""
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

import datasets
import models
import opts
from utils import binarize
from utils.flags.checks import ACTIONS, check, without_effect, without_effect_on_steps
from utils.flags.config import config_flags
from utils.flags.parser import Flags
from utils.source import Source, checkpoint_source, packed_source
from utils.system.errors import InputError, naming
from utils.training import optim, parallel


def resolve(typed: Mapping[str, object]) -> tuple[Flags, Source | None, list[str]]:
    """All flags of a command, the network that they name, and sentences for the log.

    typed: {name: value} as opts.parse returns it. Raises InputError.
    """
    config, sentences = {}, []
    if 'config' in typed:
        config, sentences = config_flags(typed['config'], typed)
    chosen = config | typed
    if chosen.get('resume') and chosen.get('packed'):
        raise InputError('--resume and --packed both name a network: give one of them')
    chosen, source = find_source(chosen)
    known = {name: value for name, value in (source.flags if source else {}).items()
             if name in opts.FLAGS and not opts.FLAGS[name].once
             and name not in ('logdir', 'name')}        # see where_it_lies
    flags = Flags(**{name: opts.default(name) for name in opts.FLAGS} | known | chosen)
    if source:
        flags = keep_own_data(flags, source)
    check(flags, typed, chosen)
    flags = with_defaults(flags)
    if source:
        check_source(flags, source)
    return flags, source, sentences


def find_source(chosen: dict[str, object]) -> tuple[dict[str, object], Source | None]:
    """The network that these flags name, and the flags with the place where its run goes on."""
    resume, source = chosen.get('resume'), None
    if resume == 'auto':
        found = {name: opts.default(name) for name in opts.FLAGS} | chosen
        run = with_defaults(Flags(**found))
        chosen = chosen | {'logdir': run.logdir, 'name': run.name, 'resume': last_checkpoint(run)}
    elif resume:
        chosen = where_it_lies(resume) | chosen
    if chosen.get('resume'):
        with naming('--resume'):
            source = replace(checkpoint_source(chosen['resume']), is_found=resume == 'auto')
    elif chosen.get('packed'):
        with naming('--packed'):
            source = packed_source(chosen['packed'])
    return chosen, source


def with_defaults(flags: Flags) -> Flags:
    """The flags with the defaults that depend on other flags."""
    own = models.default_inpsize(flags.model_def)
    inpsize = flags.inpsize or (min(own, 97) if flags.dataset == 'doodles' else own)
    dataset, channels = flags.dataset, flags.channels
    if dataset == datasets.OWN:
        dataset = datasets.name_of_folder(flags.data_dir)
    elif not datasets.is_own(dataset):
        channels = None     # those of the dataset
    suffix = f'-{flags.binarizer}' if flags.binaryWeight else ''
    name = flags.name or f'{datasets.data_name(dataset)}-{flags.model_def}{suffix}'
    return flags.replace(inpsize=inpsize, dataset=dataset, channels=channels, name=name)


def last_checkpoint(flags: Flags) -> str | None:
    """What --resume=auto resumes: the last.pth.tar of --logdir and --name, or None.

    Raises InputError where it is missing and the flags need it.
    """
    if flags.overwrite:
        raise InputError('--resume=auto continues a run, and --overwrite replaces it: give one of '
                         'them')
    folder = Path(flags.logdir, flags.name)
    last = str(folder / 'last.pth.tar')
    if os.path.lexists(last):
        return last
    action = next((name for name in ACTIONS if getattr(flags, name)), None)
    if action:
        raise InputError(f'--resume=auto: {folder} has no last.pth.tar, which --{action} needs')
    return None


def where_it_lies(checkpoint: str) -> dict[str, str]:
    """--logdir and --name of the run whose folder a checkpoint lies in; {} outside of one.

    Those that the checkpoint recorded do not count: its folder may have been moved, and a file from
    elsewhere must not say where this program writes.
    """
    folder = Path(checkpoint).parent
    if not (folder / 'flags.json').is_file():
        return {}
    if folder.name in ('', '..'):
        folder = folder.resolve()
    return {'logdir': str(folder.parent), 'name': folder.name}


def keep_own_data(flags: Flags, source: Source) -> Flags:
    """The flags with the name of --dataset=folder that the source recorded, wherever it lies now.

    Raises InputError where one of the two is one's own data and the other is not, and where the
    flags describe the data in another way.
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
    """Raise InputError where one of these flags has another value than its source had."""
    for name in names:      # a checkpoint older than a flag has its default
        fixed, value = source.flags.get(name, opts.default(name)), getattr(flags, name)
        if fixed != value:
            raise InputError(f'{source.path} was trained {opts.spelled(name, fixed)}, not '
                             f'{opts.spelled(name, value)}')


def check_source(flags: Flags, source: Source):
    """Raise InputError where the flags differ in what their source fixes."""
    refuse_other(flags, source, source.fixes)
    if flags.pretrained_file not in (None, source.flags.get('pretrained_file')):
        raise InputError(f'{source.path} has all weights: --pretrained_file would change nothing')


def check_same_start(source: Source | None, device: torch.device):
    """Raise InputError where the processes of torchrun found checkpoints of different epochs.

    Each looks before the first of them can write, since they wait for each other in between.
    """
    done = source.checkpoint['epoch'] + 1 if source and source.checkpoint else 0
    everywhere = parallel.sum_(torch.tensor(done, device=device)).item()
    if everywhere != done * parallel.processes():
        raise InputError('--resume: the processes of torchrun found different checkpoints: all '
                         'machines need the same files')


def complete(flags: Flags, classes: Sequence[str], channels: int, device: torch.device) -> Flags:
    """The flags with the defaults that depend on the data, on the network and on the device."""
    values: dict = {'nClasses': flags.nClasses or len(classes)}
    if flags.binEnd is None and not flags.packed:
        arguments = flags.model_def, len(classes), channels, flags.inpsize, flags.signLayers
        try:
            with torch.device('meta'):      # without memory for its weights
                model = models.build(*arguments)
        except RuntimeError:                # a builder that computes with tensors
            model = models.build(*arguments)
        values['binEnd'] = binarize.default_binEnd(model, flags.binStart)
    if device.type == 'cpu':
        values['syncBN'] = False
    if flags.channelsLast is None:      # on GPUs where it was measured to win, or is recommended
        values['channelsLast'] = {'cpu': False, 'cuda': True}.get(device.type, flags.amp != 'off')
    return flags.replace(**values)


def ignored(flags: Flags, channels: int, device: torch.device,
            in_folders: bool = True) -> list[str]:
    """Sentences about flags without effect on images of so many channels; see datasets.Data."""
    return [*without_effect(flags, channels, device, in_folders), *without_effect_on_steps(flags)]


def changes_result(name: str, flags: Flags) -> bool:
    """Whether another value of a flag can make these flags train to another result."""
    if name == 'epochs':    # a run of fewer can be continued, unless its schedule ends with them
        return name in optim.SCHEDULES[flags.learningratescheduler].flags
    return name not in opts.FLAGS or opts.FLAGS[name].changes_result


def changed_schedule(flags: Flags, source: Source | None) -> list[str]:
    """A sentence where a resumed run follows another schedule, or the same to another end."""
    if not source or not source.checkpoint:
        return []
    before, done = Flags(**source.flags), source.checkpoint['epoch']
    new, old = flags.learningratescheduler, before.learningratescheduler
    ends = changes_result('epochs', flags) and before.epochs != flags.epochs
    if not 0 < done < flags.epochs or new == old and not ends:
        return []
    change = (f'the schedule is now --learningratescheduler={new}, not {old}' if new != old else
              f'the {new} schedule now ends with --epochs={flags.epochs}, not {before.epochs}')
    last, following = optim.learning_rate(before, done - 1), optim.learning_rate(flags, done)
    return [f'{change}: the learning rate goes on at {following:g} after {last:g}, and the run '
            'differs from an unbroken one']

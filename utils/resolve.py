"""From the flags of a command to those that everything is built from.

A flag's way: utils/config.py and opts.parse, checks.check (contradictions), then here complete
(defaults that depend on other flags), check_source (what a checkpoint or a packed model fixes), and
resolve (defaults that depend on data, network and device).
"""
import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

import datasets
import models
import opts
from utils import binarize
from utils.arguments import Flags
from utils.checks import ACTIONS, check, without_effect, without_effect_on_steps
from utils.errors import InputError, naming
from utils.files import has_file
from utils.source import Source, checkpoint_source, packed_source
from utils.training import optim, parallel


def flags_and_source(words: list[str]) -> tuple[argparse.Namespace, Source | None]:
    """The flags of a command, as complete returns them, and the network that they name."""
    given = opts.parse(words)
    if given.resume and given.packed:
        raise InputError('--resume and --packed both name a network: give one of them')
    auto, resume, source, known = given.resume == 'auto', given.resume, None, {}
    if auto:
        given = complete(given)
        resume = last_checkpoint(given)
    if resume:
        with naming('--resume'):
            source = replace(checkpoint_source(resume), is_found=auto)
        place = {'logdir': given.logdir, 'name': given.name} if auto else where_it_lies(resume)
        known = {name: value for name, value in source.flags.items()
                 if name not in ('logdir', 'name')} | place
    elif given.packed:
        with naming('--packed'):
            source = packed_source(given.packed)
            known = source.flags
    given = opts.parse(words, known)
    given.resume = resume
    if source:
        keep_own_data(given, source)
    check(given)
    given = complete(given)
    if source:
        check_source(given, source)
    return given, source

def complete(flags: argparse.Namespace) -> argparse.Namespace:
    """The flags with the defaults that depend on other flags."""
    binarizer = flags.binarizer or ('bnn' if flags.bnnModel else 'dab')
    own = models.default_inpsize(flags.model_def)
    inpsize = flags.inpsize or (min(own, 97) if flags.dataset == 'doodles' else own)
    suffix = f'-{binarizer}' if flags.binaryWeight else ''
    dataset, channels = flags.dataset, flags.channels
    if dataset == datasets.OWN:
        dataset = datasets.name_of_folder(flags.data_dir)
    elif not datasets.is_own(dataset):
        channels = None     # those of the dataset
    return argparse.Namespace(**vars(flags) | {
        'binarizer': binarizer, 'inpsize': inpsize, 'dataset': dataset, 'channels': channels,
        'amp': None if flags.amp == 'off' else flags.amp,
        'name': flags.name or f'{datasets.data_name(dataset)}-{flags.model_def}{suffix}'})


def last_checkpoint(flags: argparse.Namespace) -> str | None:
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
    if not has_file(folder / 'flags.json'):
        return {}
    if folder.name in ('', '..'):
        folder = folder.resolve()
    return {'logdir': str(folder.parent), 'name': folder.name}


def keep_own_data(flags: argparse.Namespace, source: Source):
    """Give --dataset=folder the name that its source recorded, wherever the data lies by now.

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
    if flags.dataset == datasets.OWN:
        flags.dataset = recorded


def refuse_other(flags: argparse.Namespace, source: Source, names: Sequence[str]):
    """Raise InputError where one of these flags has another value than its source had."""
    for name in names:      # a checkpoint older than a flag has its default
        fixed, given = source.flags.get(name, opts.default(name)), getattr(flags, name)
        if fixed != given:
            raise InputError(f'{source.path} was trained {opts.spelled(name, fixed)}, not '
                             f'{opts.spelled(name, given)}')


def check_source(flags: argparse.Namespace, source: Source):
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


def resolve(flags: argparse.Namespace, classes: list[str], channels: int,
            device: torch.device, in_folders: bool = True) -> tuple[Flags, tuple[str, ...]]:
    """The flags of complete, all resolved, and a sentence about each that has no effect.

    What is left depends on the data, on the network and on the device. in_folders: see
    datasets.Data.
    """
    values = dict(vars(flags))
    values['nClasses'] = flags.nClasses or len(classes)
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
        values['channelsLast'] = {'cpu': False, 'cuda': True}.get(device.type, bool(flags.amp))
    sentences = (without_effect(flags, channels, device, in_folders)
                 | without_effect_on_steps(flags))
    return Flags(**values), tuple(text for text, applies in sentences.items() if applies)


def changes_result(name: str, flags: argparse.Namespace) -> bool:
    """Whether another value of a flag can make these flags train to another result."""
    if name == 'epochs':    # a run of fewer can be continued, unless its schedule ends with them
        return name in optim.SCHEDULES[flags.learningratescheduler].flags
    return name not in opts.RULES or opts.RULES[name].changes_result


def changed_schedule(flags: argparse.Namespace, source: Source | None) -> tuple[str, ...]:
    """A sentence where a resumed run follows another schedule, or the same to another end."""
    if not source or not source.checkpoint:
        return ()
    before, done = argparse.Namespace(**source.flags), source.checkpoint['epoch']
    new, old = flags.learningratescheduler, before.learningratescheduler
    ends = changes_result('epochs', flags) and before.epochs != flags.epochs
    if not 0 < done < flags.epochs or new == old and not ends:
        return ()
    change = (f'the schedule is now --learningratescheduler={new}, not {old}' if new != old else
              f'the {new} schedule now ends with --epochs={flags.epochs}, not {before.epochs}')
    last, following = optim.learning_rate(before, done - 1), optim.learning_rate(flags, done)
    return (f'{change}: the learning rate goes on at {following:g} after {last:g}, and the run '
            'differs from an unbroken one',)

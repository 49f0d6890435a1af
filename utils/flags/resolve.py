"""From the typed flags to all flags of an experiment.

A flag has the first of these values: typed, from --config, from the checkpoint or packed model that
the command names, its default. resolve fills in defaults that depend on other flags, complete those
that depend on the data or the device.
"""
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import datasets
import models
import opts
from utils import binarize
from utils.flags.checks import ACTIONS, check, without_effect, without_effect_on_steps
from utils.flags.parser import Flags
from utils.system.errors import InputError
from utils.training import optim, parallel

if TYPE_CHECKING:
    from utils.source import Source


def resolve(typed: Mapping[str, object]) -> tuple[Flags, 'Source | None', list[str]]:
    """Return all flags, the source of the network if they name one, and notes for the log.

    typed: {name: value} as opts.parse returns it. Raises InputError.
    """
    config, sentences, source = {}, [], None
    if 'config' in typed:
        from utils.flags.config import config_flags
        config, sentences = config_flags(typed['config'], typed)
    chosen = config | typed
    if chosen.get('resume') and chosen.get('packed'):
        raise InputError('--resume and --packed both name a network: give one of them')
    is_auto = chosen.get('resume') == 'auto'
    if is_auto:
        run = with_defaults(Flags(**opts.defaults() | chosen))
        chosen |= {'logdir': run.logdir, 'name': run.name, 'resume': last_checkpoint(run)}
    if chosen.get('resume') or chosen.get('packed'):
        from utils import source as sources
        chosen, source = sources.find_source(chosen, is_auto)
    known = {name: value for name, value in (source.flags if source else {}).items()
             if name in opts.FLAGS and not opts.FLAGS[name].once
             and name not in ('logdir', 'name')}        # those of its folder
    flags = Flags(**opts.defaults() | known | chosen)
    if source:
        flags = sources.keep_own_data(flags, source)
    check(flags, typed, chosen)
    flags = with_defaults(flags)
    if source:
        sources.check_source(flags, source)
    return flags, source, sentences


def with_defaults(flags: Flags) -> Flags:
    """Fill in the defaults that depend on other flags."""
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
    """Return the last.pth.tar that --resume=auto continues, None to start a new run.

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


def check_same_start(source: 'Source | None', device: torch.device):
    """Raise InputError if the processes of torchrun found checkpoints of different epochs."""
    done = source.checkpoint['epoch'] + 1 if source and source.checkpoint else 0
    everywhere = parallel.sum_(torch.tensor(done, device=device)).item()
    if everywhere != done * parallel.processes():
        raise InputError('--resume: the processes of torchrun found different checkpoints: all '
                         'machines need the same files')


def complete(flags: Flags, classes: Sequence[str], channels: int, device: torch.device) -> Flags:
    """Fill in the defaults that depend on the data, the network or the device."""
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
    """Return notes about flags that have no effect; channels and in_folders: see datasets.Data."""
    return [*without_effect(flags, channels, device, in_folders), *without_effect_on_steps(flags)]


def changes_result(name: str, flags: Flags) -> bool:
    """Whether changing this flag can change what is trained."""
    if name == 'epochs':    # a run of fewer can be continued, unless its schedule ends with them
        return name in optim.SCHEDULES[flags.learningratescheduler].flags
    return name not in opts.FLAGS or opts.FLAGS[name].changes_result


def changed_schedule(flags: Flags, source: 'Source | None') -> list[str]:
    """Note that a resumed run follows another schedule, or the same one to another end."""
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

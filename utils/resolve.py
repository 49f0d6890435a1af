"""From the flags of a command to those that everything is built from: check, complete, resolve.

A flag's way: utils/config.py and opts.parse, then here check (contradictions), complete (defaults
that depend on other flags), check_source (what a checkpoint or a packed model fixes), and resolve
(defaults that depend on data, network and device).
"""
import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

import datasets
import models
import opts
from utils import binarize
from utils.arguments import Flags, check_not_empty, numbers
from utils.errors import InputError, naming
from utils.source import Source, checkpoint_source, packed_source
from utils.training import optim, parallel

ACTIONS = 'export', 'classify', 'evaluate'      # flags that name another work than training


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
            source = checkpoint_source(resume)
        place = {'logdir': given.logdir, 'name': given.name} if auto else where_it_lies(resume)
        known = source.flags | place
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

EXPORT_ENDINGS = '.dab', '.pt', '.onnx'     # see utils.export


def check(flags: argparse.Namespace):
    """Raise InputError for flags that contradict each other."""
    uses_minlr = 'minlr' in optim.SCHEDULES[flags.learningratescheduler].flags
    if uses_minlr and flags.minlr > flags.maxlr:
        raise InputError(f'--minlr={flags.minlr} must not be above --maxlr={flags.maxlr}')
    if flags.binEnd is not None and flags.binStart > flags.binEnd:
        raise InputError(f'--binStart={flags.binStart} must not be above --binEnd={flags.binEnd}')
    if flags.bnnModel and flags.binarizer not in (None, 'bnn'):
        raise InputError(f'--bnnModel contradicts --binarizer={flags.binarizer}')
    if (flags.binarizer or flags.bnnModel) and not (
            flags.binaryWeight or flags.resume or flags.packed):
        method = '--bnnModel' if flags.bnnModel else f'--binarizer={flags.binarizer}'
        raise InputError(f'{method} needs --binaryWeight: without it all weights stay real')
    check_not_empty(flags, 'logdir', 'resume', 'packed', 'pretrained_file', 'export')
    if flags.optimType == 'sgd' and flags.nesterov and flags.momentum == 0:
        raise InputError('--nesterov needs a --momentum above 0')
    check_data(flags)
    check_action(flags)


def check_data(flags: argparse.Namespace):
    """Raise InputError where the flags contradict the dataset, or do not describe one's own."""
    normalization = [name for name in ('mean', 'std') if getattr(flags, name) is not None]
    if not datasets.is_own(flags.dataset):
        if normalization:
            raise InputError(f'--{normalization[0]} goes with --dataset=folder: {flags.dataset} '
                             'has its own')
        channels = datasets.spec(flags.dataset).channels
        if flags.channels not in (None, channels):
            raise InputError(f'--channels={flags.channels}: the images of {flags.dataset} have '
                             f'{channels}')
        return
    if flags.channels is None:
        kinds = ', '.join(f'{number} for {kind}' for number, kind in datasets.KINDS.items())
        raise InputError(f'--dataset=folder needs --channels: {kinds}, each with transforms of '
                         'their own')
    if flags.dataset == datasets.OWN and not flags.data_dir:
        raise InputError('--dataset=folder needs --data_dir, the folder with your train/ and val/')
    if len(normalization) == 1:
        raise InputError('--mean and --std go together: without both they are measured')
    for name in normalization:
        text = getattr(flags, name)
        if len(numbers(text)) != flags.channels:
            raise InputError(f'--{name}={text} must have as many numbers as --channels='
                             f'{flags.channels} says')


def check_action(flags: argparse.Namespace):
    """Raise InputError where the flags do not name one thing to do, and all that it needs."""
    actions = [name for name in ACTIONS if getattr(flags, name)]
    if len(actions) > 1:
        raise InputError(f'--{actions[0]} and --{actions[1]} are two things to do: '
                         'give one of them')
    if flags.calculateBinarizationLosses and (flags.export or flags.classify):
        raise InputError('--calculateBinarizationLosses goes with training and --evaluate, '
                         f'not with --{actions[0]}')
    for name in 'evaluate', 'classify':
        if getattr(flags, name) and not (flags.resume or flags.packed):
            raise InputError(f'--{name} needs a checkpoint, --resume=FILE, or a packed model, '
                             '--packed=FILE')
    if flags.split and not flags.evaluate:
        raise InputError('--split goes with --evaluate: training never looks at a third split')
    if flags.packed and not (flags.evaluate or flags.classify):
        raise InputError('--packed cannot be trained, only used: with --evaluate or --classify')
    if flags.packed and flags.calculateBinarizationLosses:
        raise InputError('--calculateBinarizationLosses needs the checkpoint: '
                         'a packed model has no sign layers')
    if flags.packed and flags.amp not in (None, 'off'):
        raise InputError(f'--amp={flags.amp}: a packed model computes in bits and float32')
    if flags.export and not flags.resume:
        raise InputError('--export=FILE needs the checkpoint to export: --resume=FILE')
    ending = Path(flags.export or '').suffix
    if flags.export and ending not in EXPORT_ENDINGS:
        raise InputError(f'--export={flags.export} must end in .dab (packed, one bit per binarized '
                         'weight), .pt (a state_dict) or .onnx')
    if flags.exportHalf and ending != '.dab':
        raise InputError('--exportHalf needs --export=FILE.dab')


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

    The folder may have been moved or be meant from another working directory than its flags say.
    """
    folder = Path(checkpoint).parent
    if not (folder / 'flags.json').is_file():
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
    if flags.channelsLast is None:      # where it was measured to win, or PyTorch recommends it
        has_avx512 = torch.backends.cpu.get_cpu_capability() == 'AVX512'
        values['channelsLast'] = has_avx512 if device.type == 'cpu' else bool(flags.amp)
    sentences = (without_effect(flags, channels, device, in_folders)
                 | without_effect_on_steps(flags))
    return Flags(**values), tuple(text for text, applies in sentences.items() if applies)


def without_effect(flags: argparse.Namespace, channels: int, device: torch.device,
                   in_folders: bool) -> dict[str, object]:
    """Sentences about flags with little or no effect, and whether each is true of these flags."""
    own = opts.not_default(flags, 'binStart', 'binSearch')
    return {
        f'{" and ".join(own)} without --binaryWeight: all weights stay real':
            own and not flags.binaryWeight,
        f'--binSearch is ignored: {flags.binarizer} has nothing to search':
            flags.binaryWeight and flags.binarizer != 'dab' and flags.binSearch != 'fast',
        '--syncBN is ignored: PyTorch synchronizes BatchNorm on GPUs only, under torchrun':
            flags.syncBN and (device.type == 'cpu' or parallel.processes() == 1),
        '--deterministic changes nothing on a CPU: there a seed always trains to the same weights':
            flags.deterministic and device.type == 'cpu',
        f'--skipBroken is ignored: {flags.dataset} has no image files in folders':
            flags.skipBroken and not in_folders,
        f'--ink is ignored: the images of {flags.dataset} are photographs ({channels} channels)':
            flags.ink != 'dark' and channels != 1,
    }


def without_effect_on_steps(flags: argparse.Namespace) -> dict[str, object]:
    """without_effect of the flags of optimizer and learning rate."""
    schedule = flags.learningratescheduler
    unused = opts.not_default(flags, *sorted(
        {'minlr', 'decayinterval', 'decaylevel'} - {*optim.SCHEDULES[schedule].flags}))
    return {
        f'--momentum is ignored: {flags.optimType} has its own':
            flags.optimType != 'sgd' and opts.not_default(flags, 'momentum'),
        '--optimType=adamw without --weightDecay computes what adam does':
            flags.optimType == 'adamw' and flags.weightDecay == 0,
        '--noDecay without --weightDecay: nothing decays':
            flags.noDecay and flags.weightDecay == 0,
        '--noDecay=latent without --binaryWeight: the network has no latent weights':
            'latent' in flags.noDecay and not flags.binaryWeight,
        f'{" and ".join(unused)} without effect on --learningratescheduler={schedule}': unused,
        f'--warmup={flags.warmup} leaves nothing of --epochs={flags.epochs}: the learning rate '
        'does not reach --maxlr': 0 < flags.epochs <= flags.warmup,
    }


def changes_result(name: str, flags: argparse.Namespace) -> bool:
    """Whether another value of a flag can make these flags train to another result."""
    if name == 'epochs':    # a run of fewer can be continued, unless its schedule ends with them
        return name in optim.SCHEDULES[flags.learningratescheduler].flags
    return name not in opts.RULES or opts.RULES[name].changes_result


def changed_schedule(flags: argparse.Namespace, source: Source | None) -> tuple[str, ...]:
    """A sentence where a resumed run follows its schedule to another last epoch than before."""
    if not source or not source.checkpoint or not changes_result('epochs', flags):
        return ()
    before, done = argparse.Namespace(**source.flags), source.checkpoint['epoch']
    is_same = before.learningratescheduler == flags.learningratescheduler
    if not is_same or before.epochs == flags.epochs or not 0 < done < flags.epochs:
        return ()
    last, following = optim.learning_rate(before, done - 1), optim.learning_rate(flags, done)
    return (f'the {flags.learningratescheduler} schedule now ends with --epochs={flags.epochs}, '
            f'not {before.epochs}: the learning rate goes on at {following:g} after {last:g}, '
            'and the run differs from an unbroken one',)

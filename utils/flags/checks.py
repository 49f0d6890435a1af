"""Which flags contradict each other, and which have no effect."""
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

import datasets
import opts
from utils.flags.parser import Flags, check_not_empty, numbers
from utils.system import devices
from utils.system.errors import InputError
from utils.training import optim, parallel

ACTIONS = 'export', 'classify', 'evaluate'      # flags that name another work than training
EXPORT_ENDINGS = '.dab', '.pt', '.onnx'     # see utils.export


def check(flags: Flags, typed: Mapping[str, object], chosen: Mapping[str, object]):
    """Raise InputError for flags that contradict each other.

    typed: those of the command; chosen: those of --config too.
    """
    check_not_empty(flags, 'logdir', 'resume', 'packed', 'pretrained_file', 'export', 'predictions')
    uses_minlr = 'minlr' in optim.SCHEDULES[flags.learningratescheduler].flags
    if uses_minlr and flags.minlr > flags.maxlr:
        raise InputError(f'--minlr={flags.minlr} must not be above --maxlr={flags.maxlr}')
    if flags.binEnd is not None and flags.binStart > flags.binEnd:
        raise InputError(f'--binStart={flags.binStart} must not be above --binEnd={flags.binEnd}')
    # The flags.json of a run has a binarizer where its weights are real too.
    asks_for_method = 'binarizer' in (chosen if 'binaryWeight' not in chosen else typed)
    if asks_for_method and not (flags.binaryWeight or flags.resume or flags.packed):
        raise InputError(f'--binarizer={flags.binarizer} needs --binaryWeight: without it all '
                         'weights stay real')
    if flags.optimType == 'sgd' and flags.nesterov and flags.momentum == 0:
        raise InputError('--nesterov needs a --momentum above 0')
    check_data(flags)
    check_action(flags)


def check_data(flags: Flags):
    """Raise InputError for flags that contradict the dataset, or do not describe a folder."""
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
        raise InputError(f'--dataset=folder needs --channels: {datasets.KINDS_LISTED}, each with '
                         'transforms of their own')
    if flags.dataset == datasets.OWN and not flags.data_dir:
        raise InputError('--dataset=folder needs --data_dir, the folder with your train/ and val/')
    if len(normalization) == 1:
        raise InputError('--mean and --std go together: without both they are measured')
    for name in normalization:
        text = getattr(flags, name)
        if len(numbers(text)) != flags.channels:
            raise InputError(f'--{name}={text} must have as many numbers as --channels='
                             f'{flags.channels} says')


def check_action(flags: Flags):
    """Raise InputError unless the flags name one action and all that it needs."""
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
    if flags.predictions is not None and not flags.evaluate:
        raise InputError('--predictions goes with --evaluate')
    if flags.packed and not (flags.evaluate or flags.classify):
        raise InputError('--packed cannot be trained, only used: with --evaluate or --classify')
    if flags.packed and flags.calculateBinarizationLosses:
        raise InputError('--calculateBinarizationLosses needs the checkpoint: '
                         'a packed model has no sign layers')
    if flags.packed and flags.amp != 'off':
        raise InputError(f'--amp={flags.amp}: a packed model computes in bits and float32')
    if flags.packed and flags.device not in ('auto', 'cpu'):
        raise InputError(f'--device={flags.device}: a packed model computes on the CPU')
    if flags.export and not flags.resume:
        raise InputError('--export=FILE needs the checkpoint to export: --resume=FILE')
    ending = Path(flags.export or '').suffix
    if flags.export and ending not in EXPORT_ENDINGS:
        raise InputError(f'--export={flags.export} must end in .dab (packed, one bit per binarized '
                         'weight), .pt (a state_dict) or .onnx')
    if flags.exportHalf and ending != '.dab':
        raise InputError('--exportHalf needs --export=FILE.dab')


def without_effect(flags: Flags, channels: int, device: torch.device,
                   in_folders: bool) -> Iterator[str]:
    """Yield notes about flags that have little effect, none, or a bad one."""
    weights = opts.not_default(flags, 'binStart', 'binSearch', 'centring')
    if weights and not flags.binaryWeight:
        yield f'{" and ".join(weights)} without --binaryWeight: all weights stay real'
    if flags.binaryWeight and flags.binarizer != 'dab' and flags.binSearch != 'fast':
        yield f'--binSearch is ignored: {flags.binarizer} has nothing to search'
    if flags.syncBN and (device.type == 'cpu' or parallel.processes() == 1):
        yield '--syncBN is ignored: PyTorch synchronizes BatchNorm on GPUs only, under torchrun'
    if flags.deterministic and device.type == 'cpu':
        yield ('--deterministic changes nothing on a CPU: there a seed always trains to the same '
               'weights')
    if flags.amp != 'off' and device.type == 'cpu' and not devices.trains_fast_in(flags.amp):
        yield (f'--amp={flags.amp} is slow on this processor, which lacks instructions for it: '
               f'training took up to {"18" if flags.amp == "bfloat16" else "84"} times as long as '
               'in float32')
    if flags.skipBroken and not in_folders:
        yield f'--skipBroken is ignored: {flags.dataset} has no image files in folders'
    if flags.minCrop != datasets.MIN_CROP and not datasets.crops_a_share(flags.dataset):
        yield f'--minCrop is ignored: the training crops of {flags.dataset} have one size'
    if flags.ink != 'dark' and channels != 1:
        yield (f'--ink is ignored: the images of {flags.dataset} are photographs ({channels} '
               'channels)')
    if flags.ink != 'dark' and channels == 1 and not in_folders:
        yield f'--ink is ignored: {flags.dataset} are drawn dark on light'


def without_effect_on_steps(flags: Flags) -> Iterator[str]:
    """The same for the flags of optimizer and learning rate."""
    schedule = flags.learningratescheduler
    unused = opts.not_default(flags, *sorted(
        {'minlr', 'decayinterval', 'decaylevel'} - {*optim.SCHEDULES[schedule].flags}))
    if flags.optimType != 'sgd' and opts.not_default(flags, 'momentum'):
        yield f'--momentum is ignored: {flags.optimType} has its own'
    if flags.optimType == 'adamw' and flags.weightDecay == 0:
        yield '--optimType=adamw without --weightDecay computes what adam does'
    if flags.noDecay and flags.weightDecay == 0:
        yield '--noDecay without --weightDecay: nothing decays'
    if 'latent' in flags.noDecay and not flags.binaryWeight:
        yield '--noDecay=latent without --binaryWeight: the network has no latent weights'
    if unused:
        yield f'{" and ".join(unused)} without effect on --learningratescheduler={schedule}'
    if 0 < flags.epochs <= flags.warmup:
        yield (f'--warmup={flags.warmup} leaves nothing of --epochs={flags.epochs}: the learning '
               'rate does not reach --maxlr')

"""From the flags of a command to those that everything is built from: check, complete, resolve.

A flag's way: opts.parse, then here check (contradictions), complete (defaults that depend on other
flags), check_source (what a checkpoint or a packed model fixes), and resolve (defaults that depend
on data, network and device).
"""
import argparse
from pathlib import Path

import torch

import models
import opts
from utils import binarize
from utils.arguments import Flags, check_not_empty
from utils.errors import InputError
from utils.source import Source
from utils.training import parallel

EXPORT_ENDINGS = '.dab', '.pt', '.onnx'     # see utils.export


def check(flags: argparse.Namespace):
    """Raise InputError for flags that contradict each other."""
    if flags.minlr > flags.maxlr:
        raise InputError(f'--minlr={flags.minlr} must not be above --maxlr={flags.maxlr}')
    if flags.binEnd is not None and flags.binStart > flags.binEnd:
        raise InputError(f'--binStart={flags.binStart} must not be above --binEnd={flags.binEnd}')
    if flags.bnnModel and flags.binarizer not in (None, 'bnn'):
        raise InputError(f'--bnnModel contradicts --binarizer={flags.binarizer}')
    check_not_empty(flags, 'logdir', 'resume', 'packed', 'pretrained_file', 'export')
    if flags.optimType == 'sgd' and flags.nesterov and flags.momentum == 0:
        raise InputError('--nesterov needs a --momentum above 0')
    check_action(flags)


def check_action(flags: argparse.Namespace):
    """Raise InputError where the flags do not name one thing to do, and all that it needs."""
    actions = [name for name in ('export', 'classify', 'evaluate') if getattr(flags, name)]
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
    return argparse.Namespace(**vars(flags) | {
        'binarizer': binarizer, 'inpsize': inpsize,
        'amp': None if flags.amp == 'off' else flags.amp,
        'name': flags.name or f'{flags.dataset}-{flags.model_def}{suffix}'})


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


def check_source(flags: argparse.Namespace, source: Source):
    """Raise InputError where the flags differ in what their source fixes."""
    for name in source.fixes:       # a checkpoint older than a flag has its default
        fixed, given = source.flags.get(name, opts.default(name)), getattr(flags, name)
        if fixed != given:
            raise InputError(f'{source.path} was trained {opts.spelled(name, fixed)}, not '
                             f'{opts.spelled(name, given)}')
    if flags.pretrained_file not in (None, source.flags.get('pretrained_file')):
        raise InputError(f'{source.path} has all weights: --pretrained_file would change nothing')


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
    return Flags(**values), without_effect(flags, device, in_folders)


def without_effect(flags: argparse.Namespace, device: torch.device,
                   in_folders: bool) -> tuple[str, ...]:
    """A sentence about each flag that was given and has little or no effect."""
    own = opts.not_default(flags, 'binStart', 'binSearch', 'bnnModel')
    if flags.binarizer not in ('dab', 'bnn'):
        own.append('--binarizer')
    sentences = {
        f'--nesterov is ignored: {flags.optimType} has no Nesterov momentum':
            flags.nesterov and flags.optimType != 'sgd',
        f'--momentum is ignored: {flags.optimType} has its own':
            flags.optimType != 'sgd' and opts.not_default(flags, 'momentum'),
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
    }
    return tuple(sentence for sentence, applies in sentences.items() if applies)

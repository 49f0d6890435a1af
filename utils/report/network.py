"""The section on the network: what it is, how it was trained, what is binarized."""
import torch
from torch import nn

import datasets
from utils.binarize import METHODS, convolutions
from utils.describe import convolution_rows
from utils.source import Source

from .page import Page
from .summary import epochs

SCHEDULES = {       # what becomes of the learning rate
    'decayschedular': 'divided by {decaylevel:g} every {decayinterval} epochs down to {minlr:g}',
    'cosine': 'falling as a cosine to {minlr:g} in epoch {epochs}',
    'linear': 'falling linearly to {minlr:g} in epoch {epochs}',
    'constant': 'constant',
}


def add_network(page: Page, source: Source, model: nn.Module):
    flags = source.flags
    method = METHODS[flags['binarizer']]
    formula = f': {method.formula}' if method.formula else ''
    page.text('Binarization gives every filter of a convolution two numbers, α and β, and replaces '
              'each of its weights by one of them, so that a weight takes 1 bit instead of 32. '
              f'This network was trained with {method.title}{formula}.')
    page.table([], facts(source, len(convolutions(model))))
    image = torch.zeros(1, source.channels, flags['inpsize'], flags['inpsize'])
    header, *rows = convolution_rows(model, image)
    with page.folded(f'Its {len(rows)} convolutions, numbered as everywhere on this page'):
        page.table(('convolution', *header[1:]), rows)
    centred = 'centred over the input channels, if there are several, and '
    page.text('The weights on this page are the latent ones that training keeps, projected as the '
              f'network does before it binarizes them: {centred if flags["centring"] else ""}'
              'clamped to ±1. n is the number of weights of a filter, K how many of them become α. '
              'Weights and errors have no unit.')


def facts(source: Source, count: int) -> list[tuple[str, str]]:
    """The rows of the table about the run; count: how many convolutions the network has."""
    flags = source.flags
    side, channels = flags['inpsize'], source.channels
    return [
        ('run', flags['name']),
        ('checkpoint', f'{source.path}, after {epochs(source.checkpoint["epoch"])}'),
        ('network', f'{flags["model_def"]}, for images of {side} × {side} pixels and '
                    f'{channels} channel{"s" if channels > 1 else ""}'),
        ('data', data(source)),
        ('binarizer', f'{flags["binarizer"]}{"" if flags["centring"] else ", not centred"}, '
                      f'convolutions {flags["binStart"]} to {min(flags["binEnd"], count)}'),
        ('training', training(flags))]


def training(flags: dict) -> str:
    """Optimizer, learning rate and what else decides the steps, as far as it is in use."""
    parts = {
        '{optimType}, learning rate {maxlr:g}': True,
        'reached after a warm-up of {warmup} epochs': flags['warmup'] > 0,
        SCHEDULES[flags['learningratescheduler']]: True,
        'batches of {batch_size}': True,
        '{accumulate} of them in a step': flags['accumulate'] > 1,
        'weight decay {weightDecay:g}': True,
        'but none of {noDecay}': flags['weightDecay'] > 0 and flags['noDecay'],
        'gradients clipped at the norm {clipGrad:g}': flags['clipGrad'] > 0,
        'label smoothing {labelSmoothing:g}': flags['labelSmoothing'] > 0,
        'crops of at least {minCrop:g} of an image': flags['minCrop'] != datasets.MIN_CROP,
        'seed {manualSeed}': True,
    }
    return ', '.join(part.format_map(flags) for part, is_used in parts.items() if is_used)


def data(source: Source) -> str:
    name = datasets.data_name(source.flags['dataset'])
    own = (f', own images normalized by mean {source.flags["mean"]} and std {source.flags["std"]}'
           if datasets.is_own(source.flags['dataset']) else '')
    return f'{name}, {len(source.classes)} classes{own}'

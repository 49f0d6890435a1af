"""The section on what sign layers lose of their inputs, and the hybrid which that suggests."""
import math

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

import models
from models.blocks import layer_string
from utils.activations import MEASURES, binarization_losses
from utils.training.progress import Progress

from . import figures
from .page import Page

DECISIVE = 'normalized RMSE'    # the measure that chooses


def add_activations(page: Page, model: nn.Module, flags: dict, images: Subset):
    """images: items (tensor, label), all of which are measured."""
    loader = DataLoader(images, flags['testbatchsize'])
    progress = Progress('sign layers', len(loader))
    losses = binarization_losses(model, loader, torch.device('cpu'), progress)
    order = worst_first(losses, DECISIVE)
    kept = worst_third(losses, DECISIVE)
    of_normal = math.sqrt(2 - 2 * math.sqrt(2 / math.pi))
    page.text('A sign layer makes +1 or −1 of every number x that enters it. What that loses, '
              f'averaged over {len(images)} validation images: RMSE is the root of the mean of '
              '(sign(x) − x)², normalized RMSE the root of that mean over the mean of x², '
              'one-minus-square the mean of |1 − clamp(x, −1, 1)²|. A standard normal x would have '
              f'a normalized RMSE of {of_normal:.3f}.')
    by_measure = {measure: [losses[name][column] for name in order]
                  for column, measure in enumerate(MEASURES)}
    page.figure('activations', 'The three measures of every sign layer (no unit), sorted by '
                f'{DECISIVE}, the largest loss at the top.',
                figures.activations(order, by_measure, kept))
    page.table(['sign layer', *MEASURES, 'suggestion'],
               [(name, *(f'{value:.4f}' for value in losses[name]),
                 'keep real' if name in kept else '') for name in order])
    others = '; '.join(f'{measure} names {", ".join(worst_third(losses, measure))}'
                       for measure in MEASURES if measure != DECISIVE)
    page.text(f'The rule: of all sign layers the third, rounded up, with the largest {DECISIVE} is '
              'suggested to keep its input real. Normalized, because layers differ in the scale of '
              'their inputs. Such a rule always names layers, even where all lose about the same: '
              'whether the hybrid is better, only training it shows. By the same rule '
              f'{others}.')
    add_hybrids(page, flags['model_def'], list(losses), kept)


def add_hybrids(page: Page, model_def: str, signs: list[str], kept: list[str]):
    """The suggested hybrid as a flag, beside the hybrids of its family, if that has fbin variants.

    signs: the names of all sign layers; kept: of those whose inputs should be real.
    """
    family = {name: models.sign_layers(name) for name in models.family(model_def)}
    widest = max(family.values(), key=len)
    if not widest:
        return
    binary, worst = layer_numbers(signs), layer_numbers(kept)
    page.text('The suggested hybrid, as a command:')
    page.block(f'python3 main.py --model_def={model_def} --binaryWeight '
               f'--signLayers={layer_string(binary - worst)} …')
    hybrids = {'suggested here': binary - worst}
    hybrids |= {name: layers for name, layers in family.items() if layers and layers != widest}
    page.text('Beside it the hybrid variants of its family:' if len(hybrids) > 1 else
              'Its family has no hybrid variants to compare it with.')
    page.table(['network', 'inputs binarized', 'inputs kept real', 'of the suggested ones'],
               [(name, layer_string(layers), layer_string(widest - layers),
                 layer_string(worst - layers) or 'none') for name, layers in hybrids.items()])


def worst_first(losses: dict[str, list[float]], measure: str) -> list[str]:
    """The names of the sign layers, the largest loss first."""
    column = MEASURES.index(measure)
    return sorted(losses, key=lambda name: -losses[name][column])


def worst_third(losses: dict[str, list[float]], measure: str) -> list[str]:
    """The third of the sign layers, rounded up, that loses the most, the worst first."""
    return worst_first(losses, measure)[:math.ceil(len(losses) / 3)]


def layer_numbers(signs: list[str]) -> frozenset[int]:
    """The numbers of the convolutions behind sign layers, as models.blocks.Units names them."""
    return frozenset(int(name.rpartition('sign')[2]) for name in signs)


def evenly_spaced(images, count: int) -> Subset:
    """Up to `count` of the images, evenly spaced, so that every class has its share."""
    places = torch.linspace(0, len(images) - 1, min(count, len(images)))
    return Subset(images, places.long().tolist())

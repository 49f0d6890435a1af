"""The section on what sign layers lose of their inputs, and the hybrid which that suggests.

The rule: a third of the sign layers, those with the largest normalized RMSE, keep real inputs.
"""
import math
from collections.abc import Collection

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

import models
from models.blocks import Sign, layer_string
from utils import binarize
from utils.evaluate import MEASURES, binarization_losses
from utils.record.describe import watching_inputs
from utils.record.progress import Progress
from utils.style import legend_outside

from .figures import WIDTH
from .page import Page

DECISIVE = 'normalized RMSE'    # the measure that the rule goes by
BINARY = 58     # binary multiply-adds that cost as much as a real one (XNOR-Net, ECCV 2016)
ALL_REAL = 'all inputs real'     # where the family has no such network
MARKERS: list[dict] = [
    dict(marker='o', color='#0072b2'),
    dict(marker='s', color='#c06a00', markerfacecolor='none', markersize=9),
    dict(marker='^', color='black', markerfacecolor='none', markersize=9)]


def add_activations(page: Page, model: nn.Module, flags: dict, images: Subset):
    """Measure the sign layers on all images, items (tensor, label), and suggest a hybrid."""
    loader = DataLoader(images, flags['testbatchsize'])
    progress = Progress('sign layers', len(loader))
    by_name = binarization_losses(model, loader, torch.device('cpu'), progress)
    losses = {number: by_name[name] for name, number in numbered_signs(model).items()}
    costs = Costs(model, images[0][0])
    kept = worst_third(losses, DECISIVE)
    add_measures(page, losses, costs, kept, len(images))
    others = '; '.join(f'{measure} would name {layer_string(worst_third(losses, measure))}'
                       for measure in MEASURES if measure != DECISIVE)
    page.text('Which inputs should a hybrid network keep real? One third of them, rounded up, '
              f'those with the largest {DECISIVE}: {layer_string(kept)} ({others}). Normalized, '
              'because layers differ in the scale of their inputs. The rule names layers even '
              'where all lose about the same: whether a hybrid is better, only training it shows.')
    add_hybrids(page, flags['model_def'], costs, frozenset(losses), kept)


def numbered_signs(model: nn.Module) -> dict[str, int]:
    """{name of a sign layer: number of the convolution that is registered next}."""
    numbers = {conv: number for number, _, conv in binarize.convolutions(model)}
    found, waiting = {}, []
    for name, module in model.named_modules():
        if isinstance(module, Sign):
            waiting.append(name)
        elif module in numbers:
            found |= dict.fromkeys(waiting, numbers[module])
            waiting = []
    return found


def worst_first(losses: dict[int, list[float]], measure: str) -> list[int]:
    """The numbers of the layers with these MEASURES, the largest loss first."""
    column = MEASURES.index(measure)
    return sorted(losses, key=lambda number: -losses[number][column])


def worst_third(losses: dict[int, list[float]], measure: str) -> list[int]:
    """The third of the layers, rounded up, that loses the most, the worst first."""
    return worst_first(losses, measure)[:math.ceil(len(losses) / 3)]


def add_measures(page: Page, losses: dict, costs: 'Costs', kept: list[int], images: int):
    """Show what the layers lose as a picture and as a table."""
    of_normal = math.sqrt(2 - 2 * math.sqrt(2 / math.pi))
    page.text('A sign layer makes +1 or −1 of every number x that enters its convolution. What '
              f'that loses, averaged over {images} validation images: RMSE is the root of the mean '
              'of (sign(x) − x)², normalized RMSE the root of that mean over the mean of x², '
              'one-minus-square the mean of |1 − clamp(x, −1, 1)²|. A standard normal x would have '
              f'a normalized RMSE of {of_normal:.3f}.')
    order = worst_first(losses, DECISIVE)
    page.figure('activations', f'What sign layers lose (no unit), sorted by {DECISIVE}, the '
                'largest at the top. Shaded: the inputs that the rule suggests keeping real.',
                measures_figure(order, losses, kept))
    rows = [(f'convolution {number}', *(f'{value:.4f}' for value in losses[number]),
             f'{costs.by_number[number] / 1e6:,.2f}', '✓' if number in kept else '')
            for number in order]
    page.long_table(f'The measures of all {len(rows)} sign layers',
                    ['input of', *MEASURES, 'multiply-adds, millions', 'keep real'], rows)


def measures_figure(order: list[int], losses: dict[int, list[float]], kept: list[int]) -> Figure:
    """Dots for the MEASURES of the convolutions, the first at the top; those kept are shaded."""
    figure = Figure(figsize=(WIDTH, 1.5 + 0.25 * len(order)), layout='constrained')
    ax = figure.subplots()
    places = range(len(order) - 1, -1, -1)
    for column, (measure, style) in enumerate(zip(MEASURES, MARKERS)):
        values = [losses[number][column] for number in order]
        ax.plot(values, places, linestyle='', label=measure, **style)
    for place, number in zip(places, order):
        if number in kept:
            ax.axhspan(place - 0.45, place + 0.45, color='0.82', zorder=0)
    ax.set_yticks(places, [f'convolution {number}' for number in order])
    ax.set(xlabel='measure (no unit; 0 would be no loss)', xlim=(0, None),
           ylim=(-0.7, len(order) - 0.3))
    legend_outside(figure, [*ax.get_legend_handles_labels()[0],
                            Patch(color='0.82', label='suggested: keep real')])
    return figure


def add_hybrids(page: Page, model_def: str, costs: 'Costs', signs: frozenset[int],
                kept: list[int]):
    """Show the suggested hybrid as a flag, and its cost beside those of the family.

    signs: the convolutions whose inputs are binarized; kept: those that should be real.
    """
    family = {name: models.sign_layers(name) for name in models.family(model_def)}
    widest = max(family.values(), key=len)
    suggested = signs.difference(kept)
    hybrids = {f'{model_def}, this one': signs, 'suggested': suggested}
    real = ALL_REAL
    if widest:
        for name, layers in family.items():
            if not layers:
                real = name
            elif layers != signs:
                hybrids[name] = layers
        page.text('The suggested hybrid as a command, which names the inputs that stay binarized '
                  '(… stands for the other flags of the run):')
        page.block(f'python3 main.py --model_def={model_def} --binaryWeight '
                   f'--signLayers={layer_string(suggested)} …')
    else:
        page.text(f'{model_def} takes no --signLayers, so that this hybrid needs a change of its '
                  'file.')
    hybrids[real] = frozenset()
    page.text('What each network costs for one image, in millions of multiply-adds, of '
              f'{costs.total / 1e6:,.1f} in all. Binary ones have binarized weights and inputs. '
              f'Equivalent: real + binary / {BINARY}, which the authors count with.')
    page.table(['network', 'inputs kept real', '--signLayers', 'real', 'binary', 'binary, share',
                'equivalent'],
               [hybrid_row(name, layers, widest | signs, costs)
                for name, layers in hybrids.items()])


def hybrid_row(name: str, layers: frozenset[int], all_signs: frozenset[int],
               costs: 'Costs') -> tuple:
    real, binary = costs.with_signs(layers)
    return (name, layer_string(all_signs - layers) or 'none', layer_string(layers) or 'none',
            f'{real / 1e6:,.1f}', f'{binary / 1e6:,.1f}', f'{100 * binary / costs.total:.1f} %',
            f'{(real + binary / BINARY) / 1e6:,.1f}')


class Costs:
    """The multiply-adds of a network for any choice of binarized inputs."""

    def __init__(self, model: nn.Module, image: Tensor):
        counted = multiply_adds(model, image)
        convolutions = binarize.convolutions(model)
        self.total = sum(counted.values())
        self.by_number = {number: counted[name] for number, name, _ in convolutions}
        self.binarizable = {number for number, _, conv in convolutions
                            if binarize.binarization(conv)}

    def with_signs(self, numbers: Collection[int]) -> tuple[int, int]:
        """(real, binary) multiply-adds if the convolutions `numbers` have binarized inputs.

        Where their weights are real, their multiply-adds are real too.
        """
        binary = sum(self.by_number[number] for number in self.binarizable.intersection(numbers))
        return self.total - binary, binary


@torch.no_grad()
def multiply_adds(model: nn.Module, image: Tensor) -> dict[str, int]:
    """{name: multiply-adds} of every convolution and linear layer for one image (c, h, w).

    Counted from the shapes that pass through, padding included; nothing else is counted.
    """
    counted = {name: layer for name, layer in model.named_modules()
               if isinstance(layer, nn.Conv2d | nn.Linear)}
    found: dict[str, int] = {}

    def count(name, x):
        layer = counted[name]
        if isinstance(layer, nn.Linear):
            found[name] = x.shape[:-1].numel() * layer.in_features * layer.out_features
            return
        filters = torch.empty(layer.out_channels, layer.in_channels // layer.groups,
                              *layer.kernel_size, device='meta')
        y = F.conv2d(x.to('meta', torch.float32), filters, None, layer.stride, layer.padding,
                     layer.dilation, layer.groups)
        found[name] = y.numel() * filters[0].numel()

    with watching_inputs(counted, count):
        model(image[None])
    return found

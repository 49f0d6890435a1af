"""The section on the weights: the two values of every filter, and how its weights split."""
import math

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from utils.report.layer_errors import Layer

from .figures import REFERENCE, WIDTH, legend_above, name_convolutions, panel_grid
from .page import Page
from .words import capitalized, extremes, number, span

FILTERS = 4     # of each layer get a histogram
FEW = 4         # layers, all of whose histograms are shown; of more, three are
ALPHA: dict = dict(facecolor='#5b9bc8', edgecolor='0.2')
BETA: dict = dict(facecolor='#e9c48a', edgecolor='0.2', hatch='////')


def add_weights(page: Page, layers: list[Layer]):
    page.text('In each binarized convolution every filter has its own K/n, the share of its '
              'weights that become α, and its own two values.')
    add_spread(page, layers)
    page.text(f'The histograms show {FILTERS} filters of a convolution (counted from 0), evenly '
              'spaced from the one with the smallest K/n to the one with the largest. The boundary '
              'lies halfway between the two values, at (α + β)/2: under dab, xnor and bnn a weight '
              'takes the nearer one.')
    places = range(len(layers))
    shown = places if len(layers) <= FEW else (0, len(layers) // 2, len(layers) - 1)
    for place in shown:
        add_histograms(page, layers[place])
    if rest := [layers[place] for place in places if place not in shown]:
        with page.folded(f'Histograms of the other {len(rest)} convolutions'):
            for layer in rest:
                add_histograms(page, layer)


def add_spread(page: Page, layers: list[Layer]):
    numbers = [layer.number for layer in layers]
    shares, alphas, betas = ([getattr(layer, name) for layer in layers]
                             for name in ('shares', 'alpha', 'beta'))
    medians = [extremes(numbers, [values.median().item() for values in per_layer])
               for per_layer in (shares, alphas, betas)]
    page.figure('spread', 'K/n, the share of the weights that become α (above; dotted: one half), '
                'and the two values α and β (below, no unit; dotted: 0), over the filters of each '
                'binarized convolution. The line in a box is the median, the box holds the middle '
                'half of the filters, the whiskers the middle 90 %. Naive binarization (xnor) has '
                'K wherever 0 cuts the weights, and β = −α.',
                spread(numbers, shares, alphas, betas),
                'Medians over the filters of a convolution: K/n {}; α {}; β {}.'.format(*medians))


def add_histograms(page: Page, layer: Layer):
    filters = evenly_spaced_filters(layer)
    page.figure(f'weights-{layer.number}',
                f'{capitalized(layer.title)}: the {layer.projected[0].numel()} latent weights (no '
                f'unit) of {len(filters)} of its {len(layer.projected)} filters.',
                histograms(filters), f'{capitalized(layer.title)}: ' + '; '.join(
                    f'{title}, β = {number(beta)}, α = {number(alpha)}, weights from '
                    f'{span(weights)}' for title, weights, _, alpha, beta in filters) + '.')


def evenly_spaced_filters(layer: Layer) -> list[tuple]:
    """(title, weights (n,), mask (n,), α, β) of FILTERS filters, ordered by K/n."""
    order = layer.shares.argsort(stable=True)
    places = torch.linspace(0, len(order) - 1, min(FILTERS, len(order))).round().long()
    return [(f'filter {i}: K/n = {layer.shares[i]:.2f}', layer.projected[i].flatten().numpy(),
             layer.mask[i].flatten().numpy(), layer.alpha[i].item(), layer.beta[i].item())
            for i in order[places].tolist()]


def histograms(filters: list[tuple]) -> Figure:
    """A histogram of every (title, weights (n,), mask (n,), alpha, beta), the groups apart."""
    figure, axes = panel_grid(len(filters), len(filters), 1.7)
    for ax, (title, weights, mask, alpha, beta) in zip(axes, filters):
        boundary = (alpha + beta) / 2
        edges = edges_around(boundary, weights)
        for group, style in ((~mask, BETA), (mask, ALPHA)):
            counts = np.histogram(weights[group], edges)[0]
            ax.stairs(counts, edges, fill=True, linewidth=0.4, **style)
        for value, line in ((alpha, '-'), (beta, '--')):
            ax.axvline(value, color='black', linestyle=line, linewidth=1.6)
        ax.axvline(boundary, color='black', linestyle=':', linewidth=1.3)
        ax.set(title=title, xlabel='weight')
        ax.locator_params(axis='x', nbins=5)
    axes[0].set_ylabel('number of weights')
    legend_above(figure, [
        *(Line2D([], [], color='black', linestyle=line, label=label)
          for label, line in (('β', '--'), ('boundary', ':'), ('α', '-'))),
        Patch(**BETA, label='weights that become β'),
        Patch(**ALPHA, label='weights that become α')])
    return figure


def edges_around(boundary: float, weights: np.ndarray) -> np.ndarray:
    """The edges of a histogram, one of them at the boundary, so that no bar lies on both sides."""
    low, high = weights.min(), weights.max()
    bars = min(40, max(8, round(math.sqrt(len(weights)))))
    step = max(high - low, 1e-12) / bars
    first, last = math.floor((low - boundary) / step), math.ceil((high - boundary) / step)
    return boundary + step * np.arange(first, last + 1)


def spread(numbers: list[int], shares: list, alphas: list, betas: list) -> Figure:
    """Box plots over the filters of each convolution: K/n above, α and β below."""
    figure = Figure(figsize=(WIDTH, 4.6), layout='constrained')
    above, below = figure.subplots(2, sharex=True)
    places = np.arange(len(numbers))
    common = dict(patch_artist=True, whis=(5, 95), showfliers=False,
                  medianprops=dict(color='black', linewidth=1.4))
    above.boxplot(shares, positions=places, widths=0.45, boxprops=dict(facecolor='#d5e5f1'),
                  **common)
    above.axhline(0.5, **REFERENCE)
    above.set_ylabel('K/n')
    for values, shift, style in ((alphas, -0.19, ALPHA), (betas, 0.19, BETA)):
        below.boxplot(values, positions=places + shift, widths=0.32, boxprops=style, **common)
    below.axhline(0, **REFERENCE)
    below.set_ylabel('weight')
    below.legend(handles=[Patch(**ALPHA, label='α'), Patch(**BETA, label='β')],
                 loc='center left', bbox_to_anchor=(1, 0.5), frameon=False)
    name_convolutions(below, numbers)
    return figure

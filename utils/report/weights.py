"""The sections on the weights: their two values, and what binarization loses of them."""
import torch

from utils import binarize

from . import figures
from .layers import ROUNDING, Layer
from .page import Page

FILTERS = 4     # of each layer get a histogram


def add_weights(page: Page, layers: list[Layer]):
    page.text(f'{FILTERS} filters of each binarized convolution (counted from 0), evenly spaced '
              'from the one with the smallest K/n to the one with the largest. The boundary lies '
              'halfway between the two values, at (α + β)/2: under dab, xnor and bnn a weight '
              'takes the nearer one.')
    for layer in layers:
        filters = evenly_spaced_filters(layer)
        page.figure(f'weights-{layer.number}',
                    f'Convolution {layer.number} ({layer.name}): how many of the '
                    f'{layer.projected[0].numel()} latent weights of a filter (vertical, a count) '
                    f'have which value (horizontal, no unit), for {len(filters)} of its '
                    f'{len(layer.projected)} filters.', figures.histograms(filters))
    numbers = [layer.number for layer in layers]
    per_filter = [[getattr(layer, name).numpy() for layer in layers]
                  for name in ('shares', 'alpha', 'beta')]
    page.figure('spread', 'K/n, the share of the weights that become α (above; dotted: one half), '
                'and the two values α and β (below, no unit; dotted: 0), over the filters of each '
                'binarized convolution. The line in a box is the median, the box holds the middle '
                'half of the filters, the whiskers the middle 90 %. Naive binarization (xnor) has '
                'K wherever 0 cuts the weights, and β = −α.',
                figures.spread(numbers, *per_filter))


def evenly_spaced_filters(layer: Layer) -> list[tuple]:
    """(title, weights (n,), mask (n,), α, β) of FILTERS filters, ordered by K/n."""
    order = layer.shares.argsort(stable=True)
    places = torch.linspace(0, len(order) - 1, min(FILTERS, len(order))).round().long()
    return [(f'filter {i}: K/n = {layer.shares[i]:.2f}', layer.projected[i].flatten().numpy(),
             layer.mask[i].flatten().numpy(), layer.alpha[i].item(), layer.beta[i].item())
            for i in order[places].tolist()]


def add_errors(page: Page, layers: list[Layer], binarizer: str):
    page.text('What the same latent weights W lose when they are binarized to W~ by each method: '
              'the relative error ‖W − W~‖²/‖W‖², in float64. 0 would be no loss; 1 is the loss of '
              f'setting all weights to 0. The network was trained under {binarizer}, and its '
              'weights have adapted to that.')
    page.table(['method', 'name', 'α and β'], [(name, method.title, method.formula)
                                               for name, method in binarize.METHODS.items()])
    relative = {method: [layer.relative_error(method) for layer in layers]
                for method in binarize.METHODS}
    page.figure('errors', 'Relative error ‖W − W~‖²/‖W‖² of all weights of a convolution (no unit) '
                f'under {", ".join(relative)} (above), under dab and xnor enlarged (below); the '
                'lines only guide the eye.',
                figures.errors([layer.number for layer in layers], relative))
    page.table(['convolution', 'name', 'filters', 'n', 'mean K/n', *relative, 'dab / xnor',
                'filters with dab > xnor'], [error_row(layer, relative) for layer in layers])
    add_filter_errors(page, layers)


def error_row(layer: Layer, methods) -> tuple:
    ratio = layer.errors['dab'].sum() / layer.errors['xnor'].sum()
    errors = [f'{layer.relative_error(method):.4g}' for method in methods]
    return (layer.number, layer.name, len(layer.projected), layer.projected[0].numel(),
            f'{layer.shares.mean():.3f}', *errors, f'{ratio:.4f}', layer.worse_filters())


def add_filter_errors(page: Page, layers: list[Layer]):
    """Compare dab and xnor filter by filter."""
    worse = sum(layer.worse_filters() for layer in layers)
    filters = sum(len(layer.projected) for layer in layers)
    page.text(f'The error of dab exceeds that of xnor on {worse} of {filters} filters (differences '
              f'below {ROUNDING:g} of ‖W‖², which are rounding, not counted). By construction it '
              'never should.')
    dab, xnor = (torch.cat([layer.errors[method] / layer.norms for layer in layers]).numpy()
                 for method in ('dab', 'xnor'))
    page.figure('filters', 'Relative error of each single filter (no unit) under dab (vertical) '
                'and under xnor (horizontal). Below the dotted line dab loses less.',
                figures.error_pairs(dab, xnor))

"""The sections on the weights: their two values, and what binarization loses of them."""
import torch

from utils import binarize
from utils.report.layer_errors import ROUNDING, Layer

from . import figures
from .page import Page
from .words import capitalized, extremes, number, span

FILTERS = 4     # of each layer get a histogram
FEW = 4         # layers, all of whose histograms are shown; of more, three are


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
                figures.spread(numbers, shares, alphas, betas),
                'Medians over the filters of a convolution: K/n {}; α {}; β {}.'.format(*medians))


def add_histograms(page: Page, layer: Layer):
    filters = evenly_spaced_filters(layer)
    page.figure(f'weights-{layer.number}',
                f'{capitalized(layer.title)}: the {layer.projected[0].numel()} latent weights (no '
                f'unit) of {len(filters)} of its {len(layer.projected)} filters.',
                figures.histograms(filters), f'{capitalized(layer.title)}: ' + '; '.join(
                    f'{title}, β = {number(beta)}, α = {number(alpha)}, weights from '
                    f'{span(weights)}' for title, weights, _, alpha, beta in filters) + '.')


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
    numbers = [layer.number for layer in layers]
    page.figure('errors', 'Relative error ‖W − W~‖²/‖W‖² of all weights of a convolution (no unit) '
                'under the methods that lose less than everything (above), and by how many percent '
                'the closest exceed dab, the smallest possible (below); the lines only guide the '
                'eye.', figures.errors(numbers, relative),
                'Relative error, its smallest and largest: ' + '; '.join(
                    f'{method} {extremes(numbers, errors)}' for method, errors in relative.items())
                + '.')
    digits = {method: 4 if max(errors) < 10 else 1 for method, errors in relative.items()}
    rows = [error_row(layer, digits) for layer in layers]
    page.long_table(f'The errors of all {len(rows)} convolutions',
                    ['convolution', 'name', 'filters', 'n', 'mean K/n', *relative, 'dab / xnor',
                     'filters with dab > xnor'], rows)
    add_filter_errors(page, layers, binarizer, figures.on_scale(relative))


def error_row(layer: Layer, methods: dict[str, int]) -> tuple:
    """A row of the table of errors; methods: {name: digits after the point}."""
    ratio = layer.errors['dab'].sum() / layer.errors['xnor'].sum()
    errors = [f'{layer.relative_error(method):,.{digits}f}' for method, digits in methods.items()]
    return (layer.number, layer.name, len(layer.projected), layer.projected[0].numel(),
            f'{layer.shares.mean():.3f}', *errors, f'{ratio:.4f}', layer.worse_filters())


def add_filter_errors(page: Page, layers: list[Layer], binarizer: str, on_scale: list[str]):
    """Compare dab filter by filter with xnor and with the network's own method."""
    worse = sum(layer.worse_filters() for layer in layers)
    filters = sum(len(layer.projected) for layer in layers)
    page.text(f'The error of dab exceeds that of xnor on {worse} of {filters} filters (differences '
              f'below {ROUNDING:g} of ‖W‖², which are rounding, not counted). It never should, '
              'since dab minimizes this error.')
    others = ['xnor'] + [binarizer] * (binarizer in on_scale and binarizer not in ('dab', 'xnor'))
    dab, *errors = (torch.cat([layer.errors[method] / layer.norms for layer in layers])
                    for method in ('dab', *others))
    page.figure('filters', 'Relative error of each single filter (no unit) under dab (vertical) '
                f'and under {" and ".join(others)} (horizontal). Below the dotted line dab loses '
                'less.', figures.error_pairs(dab.numpy(), {
                    method: values.numpy() for method, values in zip(others, errors)}),
                '; '.join(f'In the median, a filter loses {number(dab.median().item())} under dab '
                          f'and {number(values.median().item())} under {method}'
                          for method, values in zip(others, errors)) + '.')

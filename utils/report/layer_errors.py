"""The binarized convolutions of a network, and what binarization loses of their weights."""
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from utils import binarize
from utils.style import method_style

from .figures import REFERENCE, WIDTH, name_convolutions
from .page import Page
from .words import extremes, number, span

ROUNDING = 1e-12        # of ‖W‖²: by how much float64 can be wrong about an error
PART = 256              # filters at a time, which keeps the memory for large layers small
CLOSE = 3       # times as far from dab as xnor, methods are still drawn beside it


class Layer(NamedTuple):
    """A binarized convolution as evaluation sees it; all tensors per filter are (out,)."""
    number: int
    name: str
    method: str             # the name of its own binarizer
    projected: Tensor       # the projected latent weights W, (out, c, kh, kw)
    weight: Tensor          # their W~ that the layer computes with, of their shape
    alpha: Tensor
    beta: Tensor
    mask: Tensor            # of their shape, True where a weight becomes alpha
    norms: Tensor           # ‖W‖², in float64, above 0
    errors: dict[str, Tensor]   # {method: ‖W − W~‖²}, in float64

    @property
    def title(self) -> str:
        return title(self.number, self.name)

    @property
    def shares(self) -> Tensor:
        """K/n of every filter."""
        return self.mask.flatten(1).double().mean(1)

    def relative_error(self, method: str) -> float:
        return (self.errors[method].sum() / self.norms.sum()).item()

    def worse_filters(self) -> int:
        """How many filters have a larger error under dab than under xnor."""
        excess = self.errors['dab'] - self.errors['xnor']
        return int((excess > ROUNDING * self.norms).sum())

    def two_valued(self, method: str) -> Tensor:
        """W~ of the projected weights under a method; under its own, what it computes with."""
        return self.weight if method == self.method else two_valued(self.projected, method)


def title(number: int, name: str) -> str:
    """Return the title of a convolution in reports."""
    return f'convolution {number} ({name})'


def measure_layers(model: nn.Module) -> list[Layer]:
    """The Layer of every binarized convolution."""
    smallest = torch.finfo(torch.float64).tiny
    layers = []
    for place, name, conv in binarize.convolutions(model):
        if own := binarize.binarization(conv):
            projected, weight, alpha, beta, mask = binarize.layer_weights(conv)
            norms = projected.flatten(1).double().square().sum(1).clamp_min(smallest)
            errors = {method: squared_errors(projected, method) for method in binarize.METHODS}
            if own.method.state_dict():     # learned values, which only this layer has
                difference = projected.double() - weight
                errors[own.name] = difference.flatten(1).square().sum(1)
            layers.append(Layer(place, name, own.name, projected, weight, alpha, beta, mask,
                                norms, errors))
    return layers


def squared_errors(weight: Tensor, method: str) -> Tensor:
    """‖W − W~‖² of every filter of weight (out, c, kh, kw): (out,), in float64."""
    errors = []
    for part in weight.split(PART):
        part = part.double()
        difference = part - binarize.binarize_weight(part, method)
        errors.append(difference.flatten(1).square().sum(1))
    return torch.cat(errors)


def two_valued(weight: Tensor, method: str) -> Tensor:
    """W~ of weight (out, c, kh, kw), in its dtype, but searched in float64."""
    return torch.cat([binarize.binarize_weight(part.double(), method).to(weight.dtype)
                      for part in weight.split(PART)])


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
                'eye.', errors_figure(numbers, relative),
                'Relative error, its smallest and largest: ' + '; '.join(
                    f'{method} {extremes(numbers, errors)}' for method, errors in relative.items())
                + '.')
    digits = {method: 4 if max(errors) < 10 else 1 for method, errors in relative.items()}
    rows = [error_row(layer, digits) for layer in layers]
    page.long_table(f'The errors of all {len(rows)} convolutions',
                    ['convolution', 'name', 'filters', 'n', 'mean K/n', *relative, 'dab / xnor',
                     'filters with dab > xnor'], rows)
    add_filter_errors(page, layers, binarizer, on_scale(relative))


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
                'less.', error_pairs(dab.numpy(), {
                    method: values.numpy() for method, values in zip(others, errors)}),
                '; '.join(f'In the median, a filter loses {number(dab.median().item())} under dab '
                          f'and {number(values.median().item())} under {method}'
                          for method, values in zip(others, errors)) + '.')


def errors_figure(numbers: list[int], relative: dict[str, list[float]]) -> Figure:
    """Relative errors {method: one per convolution}; below, by how much they exceed dab's.

    Methods that lose more than the weights are, above 1, are left to a note: on the axis of bnn,
    whose values have no scale, all others would lie on one line.
    """
    figure = Figure(figsize=(WIDTH, 5), layout='constrained')
    above, below = figure.subplots(2, sharex=True)
    excess = {method: [100 * (error / least - 1) if least else 0.
                       for error, least in zip(errors, relative['dab'])]
              for method, errors in relative.items()}
    drawn = on_scale(relative)
    close = [method for method in drawn if max(excess[method]) <= CLOSE * max(excess['xnor'])]
    for ax, methods, values in ((above, drawn, relative), (below, close, excess)):
        for method in methods:
            ax.plot(range(len(numbers)), values[method], label=method, **method_style(method))
    above.set(ylabel='relative error',
              ylim=(0, 1.2 * max(max(relative[method]) for method in drawn)))
    beyond = [f'{method} ({span(relative[method])})' for method in relative if method not in drawn]
    if beyond:
        above.set_title(f'beyond this axis: {", ".join(beyond)}', loc='right')
    below.set_ylabel('more than dab, %')
    below.legend(loc='center left', bbox_to_anchor=(1, 0.5), frameon=False)
    above.legend(loc='center left', bbox_to_anchor=(1, 0.5), frameon=False)
    name_convolutions(below, numbers)
    return figure


def on_scale(relative: dict[str, list[float]]) -> list[str]:
    """The methods that lose nowhere more than setting all weights to 0 would."""
    return [method for method, errors in relative.items() if max(errors) <= 1]


def error_pairs(dab: np.ndarray, others: dict[str, np.ndarray]) -> Figure:
    """Relative error under dab against that under each other method, a point for each filter."""
    figure = Figure(figsize=(0.4 + 4.4 * len(others), 4.3), layout='constrained')
    panels = figure.subplots(1, len(others), squeeze=False)[0]
    for ax, (method, errors) in zip(panels, others.items()):
        low, high = min(dab.min(), errors.min()), max(dab.max(), errors.max())
        limits = low - 0.04 * (high - low), high + 0.04 * (high - low)
        ax.plot(limits, limits, **REFERENCE, label='equal errors')
        ax.plot(errors, dab, '.', color='#0072b2', markersize=5, markeredgewidth=0, alpha=0.5,
                label='a filter', rasterized=True)      # thousands of them
        ax.set(xlabel=f'relative error under {method}', ylabel='relative error under dab',
               xlim=limits, ylim=limits, aspect='equal')
        ax.legend(loc='upper left', frameon=False)
    return figure

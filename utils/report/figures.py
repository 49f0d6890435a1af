"""The pictures of weights and activations: each function draws numbers, and knows no network.

Everything that is told apart by colour is told apart by line, marker or hatch too, for gray print.
"""
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from utils.style import legend_outside, method_style

from .words import span

WIDTH = 11      # inches, 1056 pixels
ALPHA: dict = dict(facecolor='#5b9bc8', edgecolor='0.2')
BETA: dict = dict(facecolor='#e9c48a', edgecolor='0.2', hatch='////')
REFERENCE: dict = dict(color='0.35', linestyle=':', linewidth=1.3)
MEASURES: list[dict] = [
    dict(marker='o', color='#0072b2'),
    dict(marker='s', color='#c06a00', markerfacecolor='none', markersize=9),
    dict(marker='^', color='black', markerfacecolor='none', markersize=9)]
CLOSE = 3       # times as far from dab as xnor, methods are still drawn beside it


def panel_grid(count: int, columns: int, height: float, right: float = 0.1, **options):
    """A figure of `count` panels of `height` inches in so many columns: (figure, list of axes).

    Its margins in inches, for a legend above and the labels, are given: to measure them takes
    seconds. right: that at the right.
    """
    rows = math.ceil(count / columns)
    above, below, left, gap = 0.6, 0.5, 0.8, 0.55
    total = height * rows + above + below
    panel = (WIDTH - left - right - gap * (columns - 1)) / columns
    figure = Figure(figsize=(WIDTH, total))
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=dict(
        left=left / WIDTH, right=1 - right / WIDTH, top=1 - above / total, bottom=below / total,
        wspace=gap / panel, hspace=0.4), **options).flatten()
    for unused in axes[count:]:
        unused.remove()
    for lowest in axes[max(count - columns, 0):count]:      # of its column
        lowest.xaxis.set_tick_params(labelbottom=True)
    return figure, axes[:count]


def legend_above(figure: Figure, handles: list):
    """One legend in a row above the panels of panel_grid."""
    figure.legend(handles=handles, loc='upper center', ncols=len(handles), frameon=False,
                  borderaxespad=0.1)


def histograms(filters: Sequence[tuple]) -> Figure:
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


def name_convolutions(ax, numbers: list[int]):
    """The horizontal axis of a plot with a place for each convolution; of many, some are named."""
    places = range(0, len(numbers), math.ceil(len(numbers) / 30))
    ax.set_xticks(places, [numbers[place] for place in places])
    ax.set(xlabel='convolution', xlim=(-0.6, len(numbers) - 0.4))


def errors(numbers: list[int], relative: dict[str, list[float]]) -> Figure:
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


def activations(numbers: list[int], measures: dict[str, list[float]], kept: list[int],
                scores: list[float], kept_by_score: list[int]) -> Figure:
    """Dots for {measure: a value per sign layer}, the first at the top, and beside them scores > 0.

    numbers: those of the convolutions. Those in `kept` and in kept_by_score are shaded.
    """
    figure = Figure(figsize=(WIDTH, 1.5 + 0.25 * len(numbers)), layout='constrained')
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = np.arange(len(numbers))[::-1]
    for (measure, values), style in zip(measures.items(), MEASURES):
        left.plot(values, places, linestyle='', label=measure, **style)
    right.plot(scores, places, linestyle='', marker='D', color='#7a3e9d', label='error per cost')
    for ax, shaded in ((left, kept), (right, kept_by_score)):
        for place, number in zip(places, numbers):
            if number in shaded:
                ax.axhspan(place - 0.45, place + 0.45, color='0.82', zorder=0)
    left.set_yticks(places, [f'convolution {number}' for number in numbers])
    left.set(xlabel='measure (no unit; 0 would be no loss)', xlim=(0, None),
             ylim=(-0.7, len(numbers) - 0.3))
    right.set(xlabel='error per cost, relative', xscale='log')
    handles = [handle for ax in (left, right) for handle in ax.get_legend_handles_labels()[0]]
    legend_outside(figure, [*handles, Patch(color='0.82', label='suggested: keep real')])
    return figure

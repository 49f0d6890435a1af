"""The pictures of a report: each function draws numbers and knows nothing of networks.

Everything that is told apart by colour is told apart by line, marker or hatch too, for gray print.
"""
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from utils.style import legend_outside, method_style

WIDTH = 11      # inches, 1100 pixels
ALPHA: dict = dict(facecolor='#5b9bc8', edgecolor='0.2')
BETA: dict = dict(facecolor='#e9c48a', edgecolor='0.2', hatch='////')
LINES = [dict(color='#0072b2', linestyle='-', marker='o'),
         dict(color='#e08a00', linestyle='--', marker='s')]
REFERENCE: dict = dict(color='0.35', linestyle=':', linewidth=1.3)
MEASURES: list[dict] = [
    dict(marker='o', color='#0072b2'),
    dict(marker='s', color='#c06a00', markerfacecolor='none', markersize=9),
    dict(marker='^', color='black', markerfacecolor='none', markersize=9)]

Curves = dict[str, tuple[list[int], list[float]]]       # {label: (epochs, values)}


def panel_grid(count: int, columns: int, height: float, **options):
    """A figure of `count` panels of `height` inches in so many columns: (figure, list of axes)."""
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH, height * rows + 0.6), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False, **options).flatten()
    for unused in axes[count:]:
        unused.remove()
    for lowest in axes[max(count - columns, 0):count]:      # of its column
        lowest.xaxis.set_tick_params(labelbottom=True)
    return figure, axes[:count]


def histograms(filters: Sequence[tuple]) -> Figure:
    """A histogram of every (title, weights (n,), mask (n,), alpha, beta), the groups apart."""
    figure, axes = panel_grid(len(filters), len(filters), 2.1)
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
    legend_outside(figure, [
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
    figure = Figure(figsize=(WIDTH, 5.4), layout='constrained')
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


def name_convolutions(ax, numbers):
    ax.set_xticks(range(len(numbers)), numbers, fontsize=9 if len(numbers) <= 30 else 6)
    ax.set(xlabel='number of the convolution', xlim=(-0.6, len(numbers) - 0.4))


def errors(numbers: list[int], relative: dict[str, list[float]]) -> Figure:
    """Relative errors {method: one per convolution} on a log axis; dab and xnor again, closer."""
    figure = Figure(figsize=(WIDTH, 5.4), layout='constrained')
    above, below = figure.subplots(2, sharex=True)
    for ax, methods in ((above, relative), (below, ('dab', 'xnor'))):
        for method in methods:
            ax.plot(range(len(numbers)), relative[method], label=method, **method_style(method))
        ax.set_ylabel('relative error')
        ax.legend(loc='center left', bbox_to_anchor=(1, 0.5), frameon=False)
    above.set(yscale='log', title='all methods, logarithmic axis')
    below.set(title='dab and xnor, linear axis that does not begin at 0')
    below.margins(y=0.15)
    name_convolutions(below, numbers)
    return figure


def error_pairs(dab: np.ndarray, xnor: np.ndarray) -> Figure:
    """Relative error under dab against that under xnor, a point for each filter."""
    figure = Figure(figsize=(5.6, 5.2), layout='constrained')
    ax = figure.subplots()
    low, high = min(dab.min(), xnor.min()), max(dab.max(), xnor.max())
    limits = low - 0.04 * (high - low), high + 0.04 * (high - low)
    ax.plot(limits, limits, **REFERENCE, label='equal errors')
    ax.plot(xnor, dab, '.', color='#0072b2', markersize=5, markeredgewidth=0, alpha=0.5,
            label='a filter')
    ax.set(xlabel='relative error under xnor', ylabel='relative error under dab', xlim=limits,
           ylim=limits, aspect='equal')
    ax.legend(loc='upper left')
    return figure


def picture(pixels: np.ndarray) -> Figure:
    """One gray picture (h, w)."""
    figure = Figure(figsize=(2.6, 2.6), layout='constrained')
    ax = figure.subplots()
    ax.imshow(pixels, cmap='gray')
    ax.set_axis_off()
    return figure


def responses(channels: list[int], maps: dict[str, np.ndarray]) -> Figure:
    """Maps {title of a row: (channels, h, w)}; each column, a channel, has its own gray scale."""
    figure = Figure(figsize=(9.5, 1.3 + 2 * len(maps)), layout='constrained')
    axes = figure.subplots(len(maps), len(channels), squeeze=False)
    for column, channel in enumerate(channels):
        values = np.stack([rows[column] for rows in maps.values()])
        for row, ax in enumerate(axes[:, column]):
            image = ax.imshow(values[row], cmap='gray', vmin=values.min(), vmax=values.max())
            ax.set(xticks=[], yticks=[])
        axes[0, column].set_title(f'channel {channel}')
        bar = figure.colorbar(image, ax=axes[:, column], location='bottom', shrink=0.85, aspect=25,
                              pad=0.02)
        bar.ax.locator_params(nbins=4)
    for ax, title in zip(axes[:, 0], maps):
        ax.set_ylabel(title)
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


def per_layer(panels: dict[str, Curves], ylabel: str, epoch: int) -> Figure:
    """A panel for each {title: curves}, all on the same axes; a dotted line at `epoch`."""
    columns = 3 if len(panels) <= 6 else 5
    figure, axes = panel_grid(len(panels), columns, 1.6, sharex=True, sharey=True)
    for ax, (title, curves) in zip(axes, panels.items()):
        draw_curves(ax, curves, epoch)
        ax.set_title(title)
    figure.supxlabel('epoch')
    figure.supylabel(ylabel)
    legend_outside(figure, axes[0].get_legend_handles_labels()[0])
    return figure


def accuracy(panels: dict[str, Curves], epoch: int) -> Figure:
    """A panel for each {title: curves in percent}; a dotted line at `epoch`."""
    figure, axes = panel_grid(len(panels), len(panels), 3, sharey=True)
    for ax, (title, curves) in zip(axes, panels.items()):
        draw_curves(ax, curves, epoch)
        ax.set(title=title, xlabel='epoch')
    axes[0].set(ylabel='accuracy, %', ylim=(0, 100))
    legend_outside(figure, axes[0].get_legend_handles_labels()[0])
    return figure


def draw_curves(ax, curves: Curves, epoch: int):
    """Curves with a dotted line at the epoch of the checkpoint."""
    for (label, (epochs, values)), style in zip(curves.items(), LINES):
        ax.plot(epochs, values, label=label, linewidth=1.3, **style, markersize=4,
                markevery=max(1, len(epochs) // 8))
    ax.axvline(epoch, **REFERENCE, label='this checkpoint')
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
